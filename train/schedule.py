"""Learning rate and weight decay as functions of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of `step`, counted from 0: linear warm-up, then cosine decay (paper, Sec. 3.1.1).

    Step s of the warm-up has peak · (s + 1) / warmup_steps, so that none is lost to a rate of 0 and the last
    one has `peak`; step s after it has peak · (1 + cos(pi · (s - warmup_steps) / (total_steps - warmup_steps))) / 2,
    which starts at `peak` and would be 0 at step `total_steps`, the first one after the training.
    ValueError unless 0 <= warmup_steps < total_steps and 0 <= step <= total_steps.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps in a training of {total_steps}: shorten the warm-up or train longer"
        )
    if not 0 <= step <= total_steps:
        raise ValueError(f"step={step} lies outside the training's 0 to {total_steps}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(step - warmup_steps, total_steps=total_steps - warmup_steps, start=peak, end=0.0)


def cosine(step: int, *, total_steps: int, start: float, end: float) -> float:
    """From `start` in step 0 to `end` in step `total_steps` along half a cosine, as DINO's weight decay."""
    return end + (start - end) * (1 + math.cos(math.pi * step / total_steps)) / 2
