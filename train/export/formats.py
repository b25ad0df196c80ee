"""The forms that an encoder is exported in: what each adds to the folder, and how it is loaded from there."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch

from equimod.models.settings import ConfigError
from equimod.pipelines.policy import CenterPolicy
from equimod.train.export.architecture import building, imports_of, is_published, timm_arguments, timm_name
from equimod.train.opened_encoder import WEIGHTS, OpenedEncoder


class Form:
    """A form of export. Every folder holds model.safetensors and config.json, whatever its form."""

    def refuse(self, opened: OpenedEncoder) -> None:
        """Raise ConfigError where it is not for this encoder, or a package is missing."""

    def config(self, opened: OpenedEncoder) -> dict[str, Any]:
        """What it adds to config.json."""
        return {}

    def write(self, opened: OpenedEncoder, folder: Path) -> None:
        """Write its own files."""

    def usage(self, opened: OpenedEncoder, folder: str) -> str:
        """Python that makes `model`, which takes images (N,3,S,S) to representations (N,F), from that folder."""
        raise NotImplementedError


class Torchvision(Form):
    """model.safetensors as it is, whose names are torchvision's."""

    def refuse(self, opened: OpenedEncoder) -> None:
        if opened.settings.timm_name is not None:
            raise ConfigError(f"to=torchvision: it has no {opened.settings.arch}; give --to timm or hub")

    def usage(self, opened: OpenedEncoder, folder: str) -> str:
        lines = ["from safetensors.torch import load_file", *imports_of(opened.settings), ""]
        lines += building(opened.settings, opened.x.size)
        lines.append(f'model.load_state_dict(load_file("{folder}/{WEIGHTS}"))')
        return "\n".join([*lines, "model.eval()"])


class Timm(Form):
    """config.json as timm reads it from a local-dir: or from the Hugging Face Hub."""

    def refuse(self, opened: OpenedEncoder) -> None:
        if not is_published(opened.settings):
            raise ConfigError(
                f"to=timm: it has no {opened.settings.title} with the {opened.settings.stem} stem; give --to hub or "
                "torchvision, which say how to build it"
            )

    def config(self, opened: OpenedEncoder) -> dict[str, Any]:
        x = opened.x
        data = {
            "input_size": [3, x.size, x.size],
            "interpolation": x.interpolation,
            "crop_pct": _crop_pct(x),
            "crop_mode": "center",
            "mean": list(x.normalize.mean),
            "std": list(x.normalize.std),
            "num_classes": 0,
        }
        found: dict[str, Any] = {"architecture": timm_name(opened.settings), "num_classes": 0}
        found |= {"num_features": opened.encoder.feature_dim, "pretrained_cfg": data}
        arguments = timm_arguments(opened.settings, x.size)
        return found | ({"model_args": arguments} if arguments else {})

    def usage(self, opened: OpenedEncoder, folder: str) -> str:
        return (
            "import timm\n\n"
            f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
        )


def _crop_pct(x: CenterPolicy) -> float:
    """Share of the resized image that timm is to crop; it resizes to floor(size / share)."""
    share = x.size / x.resize
    return share if math.floor(x.size / share) == x.resize else x.size / (x.resize + 0.5)


class Hub(Form):
    """hubconf.py, for torch.hub: the architecture and the preprocessing as code that needs nothing of ours."""

    def write(self, opened: OpenedEncoder, folder: Path) -> None:
        (folder / "hubconf.py").write_text(_hubconf(opened), encoding="utf-8")

    def usage(self, opened: OpenedEncoder, folder: str) -> str:
        return (
            "import torch\n\n"
            f'model = torch.hub.load("{folder}", "encoder", source="local")\n'
            f'transform = torch.hub.load("{folder}", "transform", source="local")'
        )


def _hubconf(opened: OpenedEncoder) -> str:
    settings, x = opened.settings, opened.x
    package = "torchvision" if settings.timm_name is None else "timm"
    body = "\n".join(f"    {line}" for line in building(settings, x.size))
    imports = "\n".join(imports_of(settings))
    return f'''\
"""An encoder that was trained with equimod. README.md says how."""

dependencies = {sorted({"torch", "torchvision", "safetensors", package})}

from pathlib import Path

from safetensors.torch import load_file
{imports}


def encoder(pretrained=True):
    """From normalised images (N,3,{x.size},{x.size}) to representations (N,{opened.encoder.feature_dim})."""
{body}
    if pretrained:
        model.load_state_dict(load_file(Path(__file__).with_name("{WEIGHTS}")))
    return model.eval()


def transform():
    """From a PIL image to what the encoder takes, (3,{x.size},{x.size})."""
    from torchvision import transforms

{_indented(transform_code(x))}
'''


def transform_code(x: CenterPolicy) -> str:
    """Python that makes torchvision's `transform` of a PIL image; it needs `transforms`."""
    return f"""\
transform = transforms.Compose([
    transforms.Resize({x.resize}, transforms.InterpolationMode.{x.interpolation.upper()}),
    transforms.CenterCrop({x.size}),
    transforms.ToTensor(),
    transforms.Normalize({list(x.normalize.mean)}, {list(x.normalize.std)}),
])"""


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in [*code.splitlines(), "return transform"])


class ONNX(Form):
    """model.onnx, for batches of any size."""

    def refuse(self, opened: OpenedEncoder) -> None:
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError(f"to=onnx needs onnx and onnxscript ({error}): pip install 'equimod[onnx]'") from error

    def write(self, opened: OpenedEncoder, folder: Path) -> None:
        images = _example(opened)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            torch.onnx.export(
                opened.encoder,
                (images,),
                folder / "model.onnx",
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )

    def usage(self, opened: OpenedEncoder, folder: str) -> str:
        return (
            "import onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{folder}/model.onnx")\n'
            'model = lambda images: session.run(["features"], {"images": images})[0]  # NumPy, float32'
        )


class TorchScript(Form):
    """model.pt, which torch.jit.load reads without any code."""

    def write(self, opened: OpenedEncoder, folder: Path) -> None:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch prefers torch.export, which C++ programs of old do not read
            torch.jit.trace(opened.encoder, _example(opened)).save(str(folder / "model.pt"))

    def usage(self, opened: OpenedEncoder, folder: str) -> str:
        return f'import torch\n\nmodel = torch.jit.load("{folder}/model.pt")'


def _example(opened: OpenedEncoder) -> torch.Tensor:
    return torch.zeros(2, 3, opened.x.size, opened.x.size)


FORMS: dict[str, Form] = {
    "torchvision": Torchvision(),
    "timm": Timm(),
    "hub": Hub(),
    "onnx": ONNX(),
    "torchscript": TorchScript(),
}
