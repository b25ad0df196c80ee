"""A trained encoder outside its training, with what it is shown: of a run, of an exported folder, or of timm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from equimod.models.encoder import Encoder, build_encoder
from equimod.models.settings import OF_TIMM, ConfigError, EncoderSettings
from equimod.models.weights import load_weights
from equimod.pipelines.policy import CenterPolicy, Interpolation, Normalize
from equimod.pipelines.progress import say
from equimod.pipelines.stored import DamagedFileError, FileDigest, decode_json, read_bytes
from equimod.train.checkpoint import Checkpoint, hold_model, serialized
from equimod.train.config import is_run, read_run
from equimod.train.weights import read_weights

EXPORTED, WEIGHTS = "config.json", "model.safetensors"  # of an exported folder


@dataclass(frozen=True)
class OpenedEncoder:
    """An encoder in eval mode, on the CPU, and the images that it takes."""

    encoder: Encoder
    settings: EncoderSettings
    x: CenterPolicy  # how images become what it is shown
    precision: str = "fp32"  # that it was trained in
    checkpoint: Checkpoint | None = None  # of a run

    @property
    def weights(self) -> bytes:
        """Its weights as safetensors, under the names of torchvision or timm."""
        return serialized(self.encoder.state_dict())


@dataclass(frozen=True)
class Exported:
    """What an exported folder says about its encoder, in config.json under "equimod"."""

    encoder: EncoderSettings
    x: CenterPolicy
    sha256: str  # of model.safetensors
    format: int = 1


@dataclass(frozen=True)
class _Card:
    equimod: Exported | None = None


def open_encoder(source: str, checkpoint: Path | None = None) -> OpenedEncoder:
    """The encoder that `source` names: the folder of a run or of an export, or timm:NAME with weights in its cache.

    `checkpoint`: one of a run's; None: its newest that is sound. Raises ConfigError where there is none,
    CheckpointError and DamagedFileError for what is damaged.
    """
    if source.startswith(OF_TIMM):
        return _of_timm(source)
    folder = Path(source)
    if is_run(folder, checkpoint):
        return encoder_of_run(folder, checkpoint)
    if (folder / EXPORTED).exists():
        return _of_export(folder)
    fault = "holds neither a run nor an exported encoder" if folder.is_dir() else "is not there"
    raise ConfigError(f"{source} {fault}; give the folder of a run or of an export, or {OF_TIMM}NAME")


def encoder_of_run(folder: Path, path: Path | None) -> OpenedEncoder:
    """As `open_encoder`, of the folder of a run alone."""
    read_run(folder)
    found, of_model = hold_model(folder, path, say)
    config, prefix = found.config, "encoder."
    tensors = {k.removeprefix(prefix): v for k, v in of_model.items() if k.startswith(prefix)}
    settings = replace(config.encoder, weights=None, weights_sha256=None)
    encoder = _filled(settings, config.augment.size, tensors, str(found.path))
    return OpenedEncoder(encoder, settings, config.evaluation_policy.x, config.precision, found)


def _of_export(folder: Path) -> OpenedEncoder:
    card = decode_json(read_bytes(folder / EXPORTED), _Card, str(folder / EXPORTED)).equimod
    if card is None:
        raise ConfigError(f"{folder / EXPORTED} was not written by equimod export; give a folder that was")
    content = read_bytes(folder / WEIGHTS)
    if FileDigest.of_content(content).sha256 != card.sha256:
        raise DamagedFileError(f"{folder / WEIGHTS} does not have the SHA-256 that {EXPORTED} says; export it again")
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise DamagedFileError(f"{folder / WEIGHTS} is damaged ({error}); export it again") from error
    encoder = _filled(card.encoder, card.x.size, tensors, str(folder / WEIGHTS))
    return OpenedEncoder(encoder, card.encoder, card.x)


def _of_timm(source: str) -> OpenedEncoder:
    given = read_weights(source)  # first: it says so where timm is not there
    import timm

    name = source.removeprefix(OF_TIMM)
    data = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    size = data["input_size"][-1]
    interpolation: Interpolation = "bilinear" if data["interpolation"] == "bilinear" else "bicubic"
    x = CenterPolicy(
        size, int(size / data["crop_pct"]), Normalize(tuple(data["mean"]), tuple(data["std"])), interpolation
    )
    settings = EncoderSettings(OF_TIMM + name.partition(".")[0])
    return OpenedEncoder(_filled(settings, size, given.tensors, str(given.path)), settings, x)


def _filled(settings: EncoderSettings, image_size: int, tensors: dict[str, Tensor], source: str) -> Encoder:
    encoder = build_encoder(settings, image_size)
    load_weights(encoder, tensors, source)
    return encoder.eval()
