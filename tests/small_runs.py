"""Runs of 12 steps on the small tree, and what is looked at when they have ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from equimod.pipelines.durable import kept

STEPS = 12  # 24 images in batches of 8 make 3 steps an epoch
OPTIONS = ["--epochs", "4", "--batch-size", "8", "--encoder.arch", "resnet10", "--encoder.width", "8"]
OPTIONS += ["--equivariance.projector", "16", "8", "--equivariance.embedding", "8", "--optim.warmup-epochs", "1"]
OPTIONS += ["--optim.lr", "0.5", "--log.every", "1", "--log.checkpoint-every", "2", "--system.workers", "1"]
"""Options of such a run, but for its method, its data and its output."""


def newest(folder: Path) -> Path | None:
    """The newest checkpoint below a folder."""
    return next(iter(kept(folder)), None)


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in events(run) if event["event"] == "step"]


def end(run: Path) -> tuple[str, bytes, bytes]:
    """The last step of a run and the bytes of its model and optimizer."""
    last = newest(run / "checkpoints")
    assert last is not None
    return last.name, (last / "model.safetensors").read_bytes(), (last / "optimizer.safetensors").read_bytes()


def same_end(a: Path, b: Path) -> bool:
    return end(a) == end(b)  # compared out of sight of pytest, which would print megabytes of difference
