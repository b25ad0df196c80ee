"""The settings of the augmentation: a policy by its name, the size of its images, and every field of it.

`augment.views.0.jitter.hue` is a field of one view, `augment.jitter.hue` that field of all of them, `augment.x.resize`
one of the non-augmented image. An operator is left out by None, and one that the policy lacks begins as
`OPERATOR_DEFAULTS` has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import tyro

from equimod.models.settings import ConfigError
from equimod.pipelines.policy import (
    OPERATOR_DEFAULTS,
    OPERATORS,
    POLICIES,
    AugmentationPolicy,
    GaussianBlur,
    ViewPolicy,
)
from equimod.train.config.settings import Config

PREFIX = "augment"
_REFERENCE_SIZE = 224  # pixels, of OPERATOR_DEFAULTS
_OF_A_VIEW = {field.name for field in fields(ViewPolicy)}


@dataclass(frozen=True)
class _Augment:
    """Gives the options of a policy their prefix."""

    augment: AugmentationPolicy


def leaves(value: Any, key: str = PREFIX) -> Iterator[tuple[str, Any]]:
    """The settings of a recipe's `augment`, {crop: {scale: [0.2, 1]}} as ("augment.crop.scale", [0.2, 1])."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}")
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for position, inner in enumerate(value):
            yield from leaves(inner, f"{key}.{position}")
    else:
        yield key, value


def is_field(key: str) -> bool:
    """Whether `key` is written as a field of the augmentation; `change` says whether there is one."""
    return key.startswith(f"{PREFIX}.")


def change(base: Config, arguments: Sequence[str]) -> tuple[AugmentationPolicy, list[str]]:
    """The policy of `base` as the options say that concern it, and the `arguments` without those of its fields.

    Raises ConfigError for an operator that is given a value; exits 2 through tyro, with a hint, for fields that there
    are not and values that do not fit.
    """
    options, others = _split(arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--policy", "--image-size", "--normalize"):
        first.add_argument(name, nargs="?", default=argparse.SUPPRESS)
    chosen = vars(first.parse_known_args(others)[0])
    policy, size = base.augment, str(chosen.get("image_size", base.image_size))
    if chosen.get("policy") in POLICIES:  # Config refuses others
        policy = POLICIES[chosen["policy"]]
    elif "image_size" in chosen:
        policy = _before_its_size(base)
    if size.isdecimal() and int(size) not in (0, policy.size):
        policy = policy.at(int(size))
    if not options:
        return policy, others
    if "normalize" not in chosen and any("normalize" in key.split(".") for key, _ in options):
        others += ["--normalize", "given"]
    return _with_fields(policy, options), others


def _before_its_size(base: Config) -> AugmentationPolicy:
    """The policy to scale: as it is named where nothing else of it was changed, so that it is rounded once."""
    named, normalize = POLICIES[base.policy], base.augment.x.normalize
    scaled = named.at(base.image_size) if base.image_size else named
    return named.normalized(normalize) if base.augment == scaled.normalized(normalize) else base.augment


def _split(arguments: Sequence[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """The options of the augmentation as (key, values), and the other arguments."""
    options: list[tuple[str, list[str]]] = []
    others: list[str] = []
    into = others
    for word in arguments:
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and is_field(key):
            options.append((key.replace("-", "_").removeprefix(f"{PREFIX}."), [value] if equals else []))
            into = options[-1][1]
        else:
            into = others if word.startswith("--") else into
            into.append(word)
    return options, others


def _with_fields(policy: AugmentationPolicy, options: Sequence[tuple[str, list[str]]]) -> AugmentationPolicy:
    words = []
    for key, values in options:
        numbers, path = _addressed(key, len(policy.views))
        operator, _, field = path.partition(".")
        if numbers and operator in OPERATORS:
            if not field and values not in (["None"], ["null"]):
                raise ConfigError(
                    f"{PREFIX}.{key} holds settings of its own; give one of them, or None to leave it out"
                )
            policy = _with_operator(policy, numbers, operator) if field else _without(policy, numbers, operator)
        if field or not numbers:
            paths = [f"views.{number}.{path}" for number in numbers] or [path]
            paths += [f"x.{path}"] if key == path and operator == "normalize" else []
            words += [word for one in paths for word in (f"--{PREFIX}.{one}", *values)]
    read: _Augment = tyro.cli(
        tyro.conf.AvoidSubcommands[_Augment], args=words, default=_Augment(policy), add_help=False, prog="equimod"
    )
    return read.augment


def _addressed(key: str, views: int) -> tuple[list[int], str]:
    """The views that `key` is about, and the rest of it; none for what is about x, or about nothing there is."""
    first, _, rest = key.partition(".")
    number, _, path = rest.partition(".")
    if first == "views" and number.isdecimal() and int(number) < views:
        return [int(number)], path
    return (list(range(views)), key) if first in _OF_A_VIEW else ([], key)


def _with_operator(policy: AugmentationPolicy, numbers: Sequence[int], operator: str) -> AugmentationPolicy:
    """Add an operator to the views `numbers` that lack it; others that lack it get it with probability 0."""
    if all(getattr(policy.views[number], operator) is not None for number in numbers):
        return policy
    default = OPERATOR_DEFAULTS[operator]
    if isinstance(default, GaussianBlur):
        default = default.scaled(policy.size, _REFERENCE_SIZE)
    views = (
        view if getattr(view, operator) else _having(view, operator, default if n in numbers else replace(default, p=0))
        for n, view in enumerate(policy.views)
    )
    return replace(policy, views=tuple(views))


def _without(policy: AugmentationPolicy, numbers: Sequence[int], operator: str) -> AugmentationPolicy:
    views = (_having(view, operator, None) if n in numbers else view for n, view in enumerate(policy.views))
    return replace(policy, views=tuple(views))


def _having(view: ViewPolicy, name: str, operator: Any) -> ViewPolicy:
    return replace(view, **{name: operator})
