"""How far every backend is from torchvision, operator by operator: python benchmarks/parity.py --records FILE.beton.

The reference is Pillow's decode and crop, and torchvision's operators on floats with the same parameters; a second one
is torchvision on Pillow images throughout, which round to 8 bits after each operator. A row is a policy in which that
operator alone is at work, on every image, behind the crop. Distances are in levels of 255; `benchmarks/readme.py` puts
them into docs/formats.md.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from equimod.benchmarks.reference import cut, replay, replay_on_pillow
from equimod.benchmarks.result import present
from equimod.pipelines.batch import Batch, Decoded
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.policy import (
    POLICIES,
    AugmentationPolicy,
    CenterPolicy,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    RandomResizedCrop,
    Solarize,
    ViewPolicy,
)
from equimod.pipelines.records import open_records
from equimod.pipelines.records.protocol import Records
from equimod.train.command import refused_settings, run_command
from equimod.train.evaluation.table import Table

NO_CHANGE = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OPERATOR_POLICIES: dict[str, dict[str, Any]] = {
    "flip": {"flip": HorizontalFlip(1.0)},
    "brightness": {"jitter": ColorJitter(0.8, 0, 0, 0, p=1.0)},
    "contrast": {"jitter": ColorJitter(0, 0.8, 0, 0, p=1.0)},
    "saturation": {"jitter": ColorJitter(0, 0, 0.8, 0, p=1.0)},
    "hue": {"jitter": ColorJitter(0, 0, 0, 0.2, p=1.0)},
    "jitter, all four in any order": {"jitter": ColorJitter(0.8, 0.8, 0.8, 0.2, p=1.0)},
    "grayscale": {"gray": Grayscale(1.0)},
    "blur": {"blur": GaussianBlur(23, 1.0)},
    "solarize": {"solarize": Solarize(1.0)},
}
WHOLE = ("simclr_imagenet", "byol_imagenet")
BATCH_SIZE = 32
SEED = 0


@dataclass(frozen=True)
class Arguments:
    records: Path
    """Records that hold original images; a .beton file where ffcv is compared."""
    backends: str = "native,dali,ffcv"
    """Backends to compare, with commas between them."""
    images: int | None = None
    """Images to compare; none: all."""
    output: Path | None = None
    """JSON file for the result."""


def policies() -> dict[str, AugmentationPolicy]:
    """A policy a row of the table, whose pixels stay between 0 and 1."""
    whole = {f"{name}, whole views": POLICIES[name] for name in WHOLE}
    crop = RandomResizedCrop(224)
    single = {
        name: AugmentationPolicy(
            CenterPolicy(224, 256, NO_CHANGE), views=(ViewPolicy(crop, NO_CHANGE, **({"flip": None} | operator)),)
        )
        for name, operator in {"crop and resize": {}, **OPERATOR_POLICIES}.items()
    }
    return single | whole


Distance = tuple[float, float]
"""Mean and largest distance over the pixels of an image, in levels of 255."""


@dataclass(frozen=True)
class Distances:
    """How far the images of a sample are from a reference."""

    x: Distance
    view: Distance  # the first
    view_on_pillow: Distance  # from the second reference


def distances(records: Records, policy: AugmentationPolicy, backend: str, images: int) -> Iterator[Distances]:
    """Those of each image."""
    pipeline = build_pipeline(records, policy, backend=backend, batch_size=BATCH_SIZE, seed=SEED, shuffle=False)
    seen = 0
    for before, after in zip(pipeline.decoded(0), pipeline.epoch(0), strict=True):
        for row in range(len(after)):
            yield _distance(records, policy, before, after, row, seen)
            seen += 1
            if seen == images:
                return


def _distance(
    records: Records, policy: AugmentationPolicy, before: Decoded, after: Batch, row: int, position: int
) -> Distances:
    x, *views = cut(records.read(position), after, row, policy)
    assert before.x is not None
    view, of_view = after.views[0], policy.views[0]
    expected = replay(views[0], view.params, row, of_view)
    mean, std = (255 * torch.tensor(value)[:, None, None] for value in (of_view.normalize.mean, of_view.normalize.std))
    return Distances(
        _size(before.x[row].float() - x.float()),
        _size((view.image[row] - expected) * std),
        _size(view.image[row] * std + mean - replay_on_pillow(views[0], view.params, row, of_view)),
    )


def _size(difference: Tensor) -> Distance:
    return difference.abs().mean().item(), difference.abs().max().item()


def compare(records: Records, backends: Sequence[str], images: int) -> list[dict[str, Any]]:
    """A row an operator: mean and largest distance of each backend."""
    rows: list[dict[str, Any]] = []
    for name, policy in policies().items():
        row: dict[str, Any] = {"operator": name, "backends": {}, "from_pillow": {}}
        of_x: dict[str, Any] = {"operator": "x: resize and centre crop", "backends": {}, "from_pillow": {}}
        for backend in backends:
            found = list(distances(records, policy, backend, images))
            row["backends"][backend] = _summary([d.view for d in found])
            row["from_pillow"][backend] = _summary([d.view_on_pillow for d in found])
            of_x["backends"][backend] = of_x["from_pillow"][backend] = _summary([d.x for d in found])
        rows += [row] if rows else [of_x, row]
        print(f"{name}: " + ", ".join(f"{b} {m['mean']:.2f}" for b, m in row["backends"].items()), file=sys.stderr)
    return rows


def _summary(images: Sequence[Distance]) -> dict[str, float]:
    means, largest = zip(*images, strict=True)
    return {"mean": statistics.mean(means), "worst_image": max(means), "max": max(largest)}


def rows(result: dict[str, Any]) -> list[Table]:
    """The table of a result."""
    backends = list(result["rows"][0]["backends"])
    found = []
    for row in result["rows"]:
        of_row = [*row["backends"].values(), row["from_pillow"][backends[0]]]
        found.append([row["operator"], *(f"{m['mean']:.2f} ({m['worst_image']:.2f})" for m in of_row)])
    return [Table(["operator", *backends, f"{backends[0]}, from Pillow throughout"], found)]


def caption(result: dict[str, Any]) -> str:
    """What stands under the table."""
    return (
        "Mean distance over all pixels, in levels of 255, and in brackets that of the worst image, to torchvision's "
        "operators on floats behind Pillow's crop; in the last column to torchvision on Pillow images throughout, "
        f"which round after each operator. {result['settings']['images']} original ImageNet files. Each operator "
        "stands behind the crop, so its row holds the crop's distance too."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        arguments = tyro.cli(Arguments, args=given, prog="parity.py", description=__doc__)
        records = open_records(arguments.records)
        images = min(arguments.images or len(records), len(records))
        with refused_settings():
            found = compare(records, arguments.backends.split(","), images)
        settings = {"records": str(arguments.records), "images": images}
        present(
            {"benchmark": "parity", "settings": settings, "rows": found}, rows, "parity.py", given, arguments.output
        )

    return run_command(run, again="run the same command again")


if __name__ == "__main__":
    sys.exit(main())
