"""What importing a module brings along."""

from __future__ import annotations

import subprocess
import sys


def test_drawing_parameters_opens_no_compiled_kernel() -> None:
    kernels = ["equimod.pipelines.kernel", "equimod.pipelines.decode", "equimod.pipelines.resize", "simplejpeg"]
    code = f"import sys, equimod.pipelines.params; print([name for name in {kernels} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
