"""A process that dies before any one of its file-system calls leaves complete checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Forks a child for every file-system call of three checkpoints and lets it die just before that call.
KILLED_ANYWHERE = """
import os, sys
from pathlib import Path
from equimod.pipelines.durable import durable_dir, kept, prune, rotate

WATCHED = {"open", "write", "close", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir"}

def checkpoints(folder, die_at):
    count = 0
    def watch(frame, event, function):
        nonlocal count
        if event == "c_call" and function.__name__ in WATCHED:
            count += 1
            if count == die_at:
                os._exit(9)
    sys.setprofile(watch)
    for name in "123":
        with durable_dir(folder / name) as inside:
            (inside / "a").write_text(name)
            (inside / "b").write_text(name)
        rotate(folder, name)
    os._exit(0)

deaths = 0
while True:
    folder = Path(sys.argv[1]) / str(deaths)
    folder.mkdir()
    child = os.fork()
    if child == 0:
        checkpoints(folder, deaths + 1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    deaths += 1
    named = kept(folder)
    for path in named:
        assert [(path / part).read_text() for part in "ab"] == [path.name] * 2, (deaths, path)
    for path in folder.glob("[0-9]"):
        assert len(list(path.iterdir())) == 2, (deaths, path)
    prune(folder)
    assert set(folder.glob("[0-9.]*")) == set(named), deaths
print(deaths)
"""


def test_killed_anywhere_the_pointer_names_complete_folders(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED_ANYWHERE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 30
