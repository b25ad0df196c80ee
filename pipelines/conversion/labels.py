"""Labels as other programs store them, beside each sample, in place of folders of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equimod.pipelines.records.protocol import RecordsError, numbered_classes

_LONGEST = 20  # digits of a number


def number_labels(path: Path, labels: Sequence[str | None], names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Class names and the number of each sample's label: numbers stand for themselves, words for their place among all.

    Without any label there are no classes, and every number is -1. RecordsError where some samples of `path` alone,
    whose `names` are given, have one.
    """
    known = {label for label in labels if label is not None}
    if not known:
        return [], [-1] * len(labels)
    if None in labels:
        raise RecordsError(
            f"{path}: {names[labels.index(None)]} has no label, and others do; give --labels none to leave labels out"
        )
    if all(label.isdecimal() and len(label) <= _LONGEST for label in known):
        return numbered_classes(path, max(map(int, known))), [int(label) for label in labels if label is not None]
    classes = sorted(known)
    number = {label: place for place, label in enumerate(classes)}
    return classes, [number[label] for label in labels if label is not None]
