"""The weights that a run starts from: which file they are, read without running code, and known by their digest."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from equimod.models.encoder import Encoder
from equimod.models.settings import OF_TIMM
from equimod.models.weights import head_keys
from equimod.pipelines.stored import DamagedFileError, FileDigest, read_bytes
from equimod.train.checkpoint import Checkpoint
from equimod.train.config import Config, ConfigError

OF_TORCHVISION = "torchvision:"
_WRAPPERS = ("state_dict", "model")  # keys under which trainers keep the weights beside other things


@dataclass(frozen=True)
class GivenWeights:
    """Weights by name, with the file that they are from."""

    path: Path
    sha256: str
    tensors: dict[str, Tensor]

    def note(self, encoder: Encoder) -> str:
        """What a run says of them."""
        heads = head_keys(encoder, self.tensors)
        dropped = f", without {', '.join(heads)}" if heads else ""
        given, own = self.tensors.get("pos_embed"), encoder.state_dict().get("pos_embed")
        of_other_size = given is not None and own is not None and given.shape != own.shape
        resampled = ", pos_embed resampled for images of another size" if of_other_size else ""
        return f"weights from {self.path} (SHA-256 {self.sha256[:12]}){dropped}{resampled}"


def given_weights(config: Config) -> tuple[Config, GivenWeights | None]:
    """The weights that `config` names, and the configuration with their digest.

    None where none are given, and where their file is gone and the run may be one that goes on. Raises ConfigError.
    """
    if config.encoder.weights is None:
        return config, None
    if config.resume != "never" and not _locate(config.encoder.weights)[0].exists():
        return config, None
    given = read_weights(config.encoder.weights)
    if config.encoder.weights_sha256 not in (None, given.sha256):
        raise ConfigError(
            f"encoder.weights: {given.path} has the SHA-256 {given.sha256}, and encoder.weights_sha256 is "
            f"{config.encoder.weights_sha256}; give that file, or --encoder.weights-sha256 None"
        )
    return _with_digest(config, given.sha256), given


def read_weights(name: str) -> GivenWeights:
    """The weights in a file, or in the cache of torchvision or timm. Raises ConfigError."""
    path, remedy = _locate(name)
    if not path.exists():
        raise _missing(name, path, remedy)
    try:
        content = read_bytes(path)
    except DamagedFileError as error:
        raise ConfigError(f"encoder.weights: {error}; give another file") from error
    return GivenWeights(path, FileDigest.of_content(content).sha256, _parse(content, path))


def settled_weights(
    config: Config, given: GivenWeights | None, resume_from: Checkpoint | None
) -> tuple[Config, GivenWeights | None]:
    """`given_weights` once it is known whether a run goes on: it needs none then, and keeps the digest that it had.

    Raises ConfigError where it needs some and their file is gone.
    """
    if resume_from is not None:
        return _with_digest(config, resume_from.config.encoder.weights_sha256), None
    if config.encoder.weights is not None and given is None:
        raise _missing(config.encoder.weights, *_locate(config.encoder.weights))
    return config, given


def _with_digest(config: Config, sha256: str | None) -> Config:
    return replace(config, encoder=replace(config.encoder, weights_sha256=sha256))


def _missing(name: str, path: Path, remedy: str) -> ConfigError:
    return ConfigError(f"encoder.weights={name}: {path} is not there; {remedy}")


def _locate(given: str) -> tuple[Path, str]:
    """Where a file of weights is to lie, and what helps where it does not. Nothing is downloaded."""
    if given.startswith(OF_TORCHVISION):
        return _of_torchvision(given.removeprefix(OF_TORCHVISION))
    if given.startswith(OF_TIMM):
        return _of_timm(given.removeprefix(OF_TIMM))
    return Path(given), "give the path of a file of weights"


def _of_torchvision(name: str) -> tuple[Path, str]:
    from torchvision.models import get_model_weights, get_weight

    try:
        weights = get_weight(name) if "." in name else get_model_weights(name).DEFAULT
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"encoder.weights={OF_TORCHVISION}{name}: torchvision has none of that name; give a model such as "
            "resnet50, for its newest weights, or weights such as ResNet50_Weights.IMAGENET1K_V1"
        ) from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    return path, f"put {weights.url} there, or give a file"


def _of_timm(name: str) -> tuple[Path, str]:
    try:
        from huggingface_hub import constants, try_to_load_from_cache
        from timm.models import get_pretrained_cfg
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"encoder.weights={OF_TIMM}{name} needs timm ({error}): pip install 'equimod[timm]'"
        ) from error
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the model does not have
        config = None
    if config is None or not config.hf_hub_id:
        raise ConfigError(
            f"encoder.weights={OF_TIMM}{name}: timm has no weights of that name; timm.list_pretrained() has the names"
        )
    file = config.hf_hub_filename or "model.safetensors"
    found = try_to_load_from_cache(config.hf_hub_id, file)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
    path = Path(found) if isinstance(found, str) else folder / file
    return path, f"download {file} of {config.hf_hub_id} with: hf download {config.hf_hub_id} {file}, or give a file"


def _parse(content: bytes, path: Path) -> dict[str, Tensor]:
    """The weights in a file's content, those that a trainer keeps beside other things among them. Raises ConfigError.

    safetensors, or what torch.save wrote, of which nothing but tensors and plain containers is read.
    """
    of_torch = content[:2] == b"PK" or content[:1] == b"\x80"  # a zip archive, or a bare pickle as of old
    loaded = _load_torch(content, path) if of_torch else _load_safetensors(content, path)
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(f"encoder.weights: {path} holds no weights by name; save a model's state_dict()")
    other = next((name for name, value in loaded.items() if not _is_weight(name, value)), None)
    if other is not None:
        raise ConfigError(
            f"encoder.weights: {path} holds {other!s:.200}, which is no tensor under a name; save a model's "
            "state_dict()"
        )
    in_ddp = all(name.startswith("module.") for name in loaded)
    return {name.removeprefix("module.") if in_ddp else name: tensor for name, tensor in loaded.items()}


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _load_safetensors(content: bytes, path: Path) -> Any:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _load_torch(content: bytes, path: Path) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ConfigError(
                f"encoder.weights: {path} holds {found.group(1)}, which is made by running code of the file; save "
                "the model's state_dict() alone"
            ) from error
        raise _unreadable(path, error) from error
    except Exception as error:  # of a damaged file, of any kind
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return ConfigError(
        f"encoder.weights: {path} is neither safetensors nor what torch.save wrote, or it is damaged ({reason[:200]}); "
        "give another file"
    )
