"""Scripts as they are started: quick help, from any working directory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, equimod.train.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_is_answered_without_importing_torch() -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "train" / "main.py"), "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0
    assert "--equimod" in answer.stdout
    assert "equimod.train.config" in answer.stderr
    assert not re.search(r"\|\s+torch$", answer.stderr, re.MULTILINE)


def test_a_reader_that_has_seen_enough_is_no_error(image_tree: Path) -> None:
    inspect = f"'{sys.executable}' '{ROOT}/tools/inspect_records.py' '{image_tree}' --verify"
    done = subprocess.run(["sh", "-c", f"{inspect} | true"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
