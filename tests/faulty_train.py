"""train/main.py with a fault: `python faulty_train.py STEP SIGNAL RANK OPTIONS...` sends SIGNAL, twice, to the process
of RANK when STEP steps are done, or makes the loss of the next step NaN where SIGNAL is `nan`. A process that torchrun
started again has no fault."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import torch

from equimod.pipelines.batch import Batch
from equimod.train import loop
from equimod.train.main import main

Step = Callable[[loop.TrainState, Batch, float], dict[str, torch.Tensor]]


def with_fault(original: Step, step: int, fault: str, rank: str = "0") -> Step:
    """`original` with this fault."""
    done = 0

    def train_step(state: loop.TrainState, batch: Batch, lr: float) -> dict[str, torch.Tensor]:
        nonlocal done
        here = os.environ.get("RANK", "0") == rank
        if done == step and here and fault != "nan":
            for _ in range(2):  # launchers pass a SIGTERM on to ranks that got it already
                os.kill(os.getpid(), signal.Signals[fault])
        losses = original(state, batch, lr)
        if done == step and here and fault == "nan":
            losses["loss"] = losses["loss"] * torch.nan
        done += 1
        return losses

    return train_step


if __name__ == "__main__":
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        loop.train_step = with_fault(loop.train_step, int(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.exit(main(sys.argv[4:]))
