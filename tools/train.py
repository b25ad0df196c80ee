"""`equimod train`: train/main.py in this process, or with --gpus N in one for each of N GPUs, under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from equimod.pipelines.errors import UsageError
from equimod.train.command import run_command
from equimod.train.main import main as train


def main() -> int:
    """Run the command line. Returns the exit code; with --gpus, torchrun takes the place of this process."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--gpus")
    given, options = first.parse_known_args(sys.argv[1:])
    if given.gpus is None:
        return train()
    return run_command(lambda: _under_torchrun(given.gpus, options), again="run the same command again")


def _under_torchrun(gpus: str, options: Sequence[str]) -> None:
    if not gpus.isdecimal() or int(gpus) < 1:
        raise UsageError(f"--gpus {gpus}: give a number of 1 or more")
    if not {"--help", "-h"}.intersection(options) and not _on_cpu(options):
        import torch  # only now: it takes seconds

        if torch.cuda.device_count() < int(gpus):
            raise UsageError(f"--gpus {gpus}: {torch.cuda.device_count()} are here; give as many, or leave it out")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    os.execv(sys.executable, [*torchrun, "--nproc-per-node", gpus, "-m", "equimod.train.main", *options])


def _on_cpu(options: Sequence[str]) -> bool:
    """Whether processes are to train on the CPU, of which there may be any number."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--system.device", dest="device")
    return bool(first.parse_known_args(list(options))[0].device == "cpu")


if __name__ == "__main__":
    sys.exit(main())
