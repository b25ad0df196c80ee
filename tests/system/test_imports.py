"""What importing a module brings along."""

from __future__ import annotations

import subprocess
import sys

import pytest

from equimod.tools.cli import COMMANDS


def test_drawing_parameters_opens_no_compiled_kernel() -> None:
    kernels = ["equimod.pipelines.kernel", "equimod.pipelines.decode", "equimod.pipelines.resize", "simplejpeg"]
    code = f"import sys, equimod.pipelines.params; print([name for name in {kernels} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_neither_torch_nor_matplotlib(command: str) -> None:
    code = (
        "import contextlib, io, sys\n"
        "from equimod.tools.cli import main\n"
        f"sys.argv = ['equimod', {command!r}, '--help']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main()\n"
        "print(sorted({'torch', 'matplotlib.figure', 'tensorboard'} & sys.modules.keys()))\n"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip().endswith("[]"), loaded.stdout


def test_what_pillow_warns_of_in_metadata_is_not_printed() -> None:
    code = (
        "import warnings, equimod.pipelines.codec\n"
        "for module in ('PIL.TiffImagePlugin', 'elsewhere'):\n"
        "    warnings.warn_explicit('Corrupt EXIF data', UserWarning, 'file.py', 1, module=module)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stderr.count("Corrupt EXIF data") == 1
