"""What is different between two configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from equimod.train.config.settings import Config

_NOT_OF_THE_RESULT = {
    *("data", "val", "labels", "output", "config", "backend", "system", "log"),
    *("resume", "resume_anyway", "overwrite"),
}


def differences(config: Config, other: Config) -> list[str]:
    """The settings that change a run's result and differ, as `key=value (was value)`."""
    if config.normalize == other.normalize == "measured":  # over the same images, which is checked elsewhere
        config = replace(config, augment=config.augment.normalized(other.augment.x.normalize))
    mine, theirs = (
        {key: value for key, value in asdict(c).items() if key not in _NOT_OF_THE_RESULT} for c in (config, other)
    )
    for settings in (mine, theirs):
        del settings["encoder"]["weights"]  # known by their digest, wherever they lie
    if config.encoder.weights is not None and config.encoder.weights_sha256 is None:  # whose file is gone
        mine["encoder"]["weights_sha256"] = theirs["encoder"]["weights_sha256"] or "unknown"
    return differing(mine, theirs, "", was=True)


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str, was: bool = False) -> list[str]:
    found = []
    for key, value in mine.items():
        value, before = _numbered(value), _numbered(theirs[key])
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found += differing(value, before, f"{prefix}{key}.", was)
        elif value != before:
            found.append(f"{prefix}{key}={value}" + (f" (was {before})" if was else ""))
    return found


def _numbered(value: Any) -> Any:
    """Settings that are several, such as the views, by their number; any other value as it is."""
    several = isinstance(value, tuple) and value and all(isinstance(inner, Mapping) for inner in value)
    return {str(number): inner for number, inner in enumerate(value)} if several else value
