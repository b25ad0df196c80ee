"""Settings that follow from an architecture or an optimizer that is chosen, where no others are given."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Literal

from equimod.models.settings import OF_TIMM, EncoderSettings
from equimod.train.config.optim import OptimSettings
from equimod.train.config.settings import Config

_RESNETS = ("resnet", "resnext", "wide_resnet", "seresnet", "seresnext")  # how their names begin in timm


def with_following(base: Config, arguments: Sequence[str]) -> tuple[EncoderSettings, OptimSettings]:
    """The encoder and the optimizer of `base`, made fit for the --encoder.arch and --optim.name among `arguments`.

    The rest of `arguments` goes on top of them. Where no optimizer is given, an architecture of the other kind brings
    the one that is usual for it along. One that `base` does not have starts from its own defaults for the batch.
    """
    given = _given(arguments)
    encoder, optim, before = base.encoder, base.optim, base.encoder.arch
    arch = given.arch or before
    if (EncoderSettings(arch).timm_name is None) != (encoder.timm_name is None):
        encoder = EncoderSettings(arch)
    usual = usual_optimizer(arch)
    name = given.optimizer or (usual if usual != usual_optimizer(before) else optim.name)
    if name != optim.name:
        optim = OptimSettings.default(name, given.batch_size or base.batch_size, optim.warmup_epochs)
    return encoder, optim


def usual_optimizer(arch: str) -> Literal["lars", "adamw"]:
    """LARS for ResNets, which it was made for; AdamW for transformers and what is trained like them."""
    return "lars" if arch.removeprefix(OF_TIMM).startswith(_RESNETS) else "adamw"


def _given(arguments: Sequence[str]) -> argparse.Namespace:
    """Of the options, those that others follow from. tyro, which reads them again, has the errors."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--encoder.arch", dest="arch", nargs="?")
    parser.add_argument("--optim.name", dest="optimizer", nargs="?")
    parser.add_argument("--batch-size", "--batch_size", dest="batch_size", nargs="?")
    given, _ = parser.parse_known_args(arguments)
    if given.optimizer not in ("lars", "adamw"):
        given.optimizer = None
    digits = given.batch_size or ""
    given.batch_size = int(digits) if digits.isdecimal() and len(digits) < 10 else None
    return given
