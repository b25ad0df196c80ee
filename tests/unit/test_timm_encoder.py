"""Models of timm as encoders, against timm's own features, and in everything that an encoder takes part in."""

from __future__ import annotations

import json
import re
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from needs import needs
from safetensors.torch import load_file
from small_models import SETTINGS
from small_runs import same_end
from torch import Tensor

from equimod.models import batchnorm
from equimod.models.encoder import Encoder, build_encoder, require_arch
from equimod.models.settings import ConfigError, EncoderSettings, EquiModSettings
from equimod.models.ssl import SSL, build_ssl
from equimod.pipelines.batch import Batch
from equimod.pipelines.params import Standardizer
from equimod.train.distributed import DistInfo, sync_batchnorm
from equimod.train.evaluate import main as evaluate
from equimod.train.grad_cache import GradCache
from equimod.train.main import main
from equimod.train.optimizers import adamw_groups
from equimod.train.weights import read_weights

needs("timm", module=True)
import timm  # noqa: E402
from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402

VIT = EncoderSettings("test_vit")  # 2 blocks of 64 channels, in patches of 16 pixels
N, P, SIDE = 8, 5, 32
RECIPE = """\
method: {method}
dataset: shapes
equimod: true
image_size: 32
epochs: 4
batch_size: 8
encoder: {{arch: test_vit}}
equivariance: {{projector: [16, 8], embedding: [8]}}
optim: {{warmup_epochs: 1, lr: 1.0e-3, weight_decay_end: 0.2}}
log: {{every: 1, checkpoint_every: 7}}
system: {{workers: 1}}
"""


@pytest.mark.parametrize(
    ("arch", "head"),
    [("test_vit", "head"), ("test_convnext", "head.fc"), ("timm:resnet18", "fc"), ("regnety_002", "head.fc")],
)
def test_features_are_timms_before_its_classifier_under_timms_names(arch: str, head: str) -> None:
    size = {"img_size": 64} if arch == "test_vit" else {}
    theirs = timm.create_model(arch.removeprefix("timm:"), num_classes=7, **size).eval()
    published = {name: value for name, value in theirs.state_dict().items() if not name.startswith(f"{head}.")}
    encoder = build_encoder(EncoderSettings(arch), 64).eval()
    assert encoder.state_dict().keys() == published.keys()
    encoder.load_state_dict(published)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        h, expected = encoder(images), theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    assert torch.equal(h, expected)
    assert h.shape == (2, encoder.feature_dim)
    assert isinstance(encoder, Encoder)


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet18"])
def test_a_name_of_both_is_ours_unless_it_says_timm(arch: str) -> None:
    zeroed = build_encoder(EncoderSettings(arch)).layer1[0].bn2.weight
    assert (type(build_encoder(EncoderSettings(arch))).__module__ == "equimod.models.encoder") is (arch == "resnet18")
    assert zeroed.count_nonzero() == 0
    assert EncoderSettings(arch).timm_name == (None if arch == "resnet18" else "resnet18")


def test_a_name_of_neither_is_refused_with_the_nearest() -> None:
    for arch, near in (("resent50", "resnet50"), ("vit_small_patch16_22", "vit_small_patch16_224")):
        with pytest.raises(ConfigError, match=rf"encoder.arch={arch} is none of .* \(did you mean {near}\?\)"):
            require_arch(EncoderSettings(arch))


def test_without_timm_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "equimod.models.timm_encoder", raising=False)
    monkeypatch.delattr(sys.modules["equimod.models"], "timm_encoder", raising=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    for ask in (require_arch, build_encoder):
        with pytest.raises(ConfigError, match=r"encoder.arch=test_vit is none of .*: pip install 'equimod\[timm\]'"):
            ask(VIT)
    assert build_encoder(EncoderSettings("resnet10", width=8)).feature_dim == 64


@pytest.mark.parametrize("arch", ["test_vit", "test_maxvit"])
def test_images_that_it_cannot_take_are_refused_in_one_line(arch: str) -> None:
    fault = f"encoder.arch={arch} yields no features of images of 8 pixels"
    with pytest.raises(ConfigError, match=fault) as caught:
        build_encoder(EncoderSettings(arch), 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("pixels", "fitting"), [(100, 96), (39, 32)])
def test_images_that_fill_no_whole_patches_are_refused(pixels: int, fitting: int) -> None:
    with pytest.raises(ConfigError, match=f"{pixels} pixels are no whole number of them; give --image-size {fitting}"):
        build_encoder(EncoderSettings("vit_tiny_patch16_224"), pixels)


def test_what_gives_no_vector_an_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, global_pool=""))
    with pytest.raises(ConfigError, match=r"what it gives is \(1, 5, 64\) and no vector an image"):
        build_encoder(VIT, SIDE)


def test_every_pass_gives_the_same_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"drop_rate": 0.5, "attn_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5}
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **rates))
    encoder, images = build_encoder(VIT, SIDE).train(), torch.randn(4, 3, SIDE, SIDE)
    assert torch.equal(encoder(images), encoder(images))


def test_building_draws_as_timm_does() -> None:
    torch.manual_seed(3)
    expected = timm.create_model("test_vit", num_classes=0, img_size=SIDE).state_dict()
    torch.manual_seed(3)
    found = build_encoder(VIT, SIDE)
    assert found.training
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


def _model(method: str, encoder: EncoderSettings = VIT) -> SSL:
    torch.manual_seed(0)
    equimod = EquiModSettings(0.7, projector=(12, 6), embedding=(7,))
    standardizer = Standardizer(torch.zeros(P), torch.ones(P))
    return build_ssl(method, encoder, SETTINGS[method], equimod, standardizer, image_size=SIDE).double()


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(N, *shape, generator=generator, dtype=torch.float64)

    images = torch.cat([draw(3, SIDE, SIDE) for _ in range(3)])
    params: Any = (None, None)  # not read by the step
    return Batch(images, params, (draw(P), draw(P)), torch.arange(N) % 3, torch.arange(N))


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_in_chunks_the_gradient_is_that_of_the_whole_batch(method: str) -> None:
    whole = _model(method)
    parts = deepcopy(whole)
    off = torch.amp.GradScaler("cpu", enabled=False)
    for model, chunks in ((whole, 1), (parts, 4)):
        GradCache(model, model, chunks, off, None)(_batch())
    expected = {name: p.grad for name, p in whole.named_parameters() if p.requires_grad}
    assert float(expected["encoder.patch_embed.proj.weight"].abs().max()) > 1e-4
    for name, p in parts.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


def test_byols_target_follows_it() -> None:
    model = _model("byol")
    target, online = model.method.target_encoder, model.encoder
    assert [name for name, _ in target.named_parameters()] == [name for name, _ in online.named_parameters()]
    before = target.pos_embed.clone()
    with torch.no_grad():
        online.pos_embed += 1
    model.before_step(0.0)
    torch.testing.assert_close(target.pos_embed, before + 0.1)


def test_a_patch_projection_that_is_frozen_is_not_trained() -> None:
    model = _model("byol", EncoderSettings("test_vit", freeze_patch_embed=True))
    GradCache(model, model, 2, torch.amp.GradScaler("cpu", enabled=False), None)(_batch())
    without = {name for name, p in model.encoder.named_parameters() if p.grad is None}
    assert without == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert not any(
        p is q for group in adamw_groups(model) for p in group["params"] for q in model.encoder.patch_embed.parameters()
    )
    with pytest.raises(ConfigError, match="freeze_patch_embed has no effect on test_resnet"):
        build_encoder(EncoderSettings("test_resnet", freeze_patch_embed=True))
    with pytest.raises(ConfigError, match="freeze_patch_embed has no effect on resnet18; leave it out"):
        EncoderSettings(freeze_patch_embed=True)


def test_biases_norms_and_embeddings_have_no_weight_decay() -> None:
    model = _model("simclr")
    names = {p: name for name, p in model.named_parameters()}
    decayed, others = ({names[p] for p in group["params"]} for group in adamw_groups(model))
    assert decayed | others == set(names.values())
    assert not decayed & others
    assert {"encoder.pos_embed", "encoder.cls_token", "encoder.norm.weight", "encoder.blocks.0.attn.qkv.bias"} <= others
    assert {
        "encoder.patch_embed.proj.weight",
        "encoder.blocks.0.attn.qkv.weight",
        "method.projector.0.weight",
    } <= decayed
    assert all(p.ndim > 1 for p in names if names[p] in decayed)
    without = {name for name, _ in timm.create_model("test_vit").named_parameters()} & model.encoder.no_weight_decay()
    assert {name for name in others if model.get_parameter(name).ndim > 1} == {f"encoder.{name}" for name in without}


@pytest.mark.parametrize("arch", ["test_vit", "test_vit3", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
def test_a_position_embedding_for_images_of_another_size_is_resampled_as_timm_does_it(
    arch: str, tmp_path: Path
) -> None:
    """Of ViTs with a class token, without, and with two."""
    published = timm.create_model(arch, img_size=160)
    theirs = timm.create_model(arch, num_classes=0, img_size=96)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    given = read_weights(str(tmp_path / "weights.pth"))
    settings = EncoderSettings(f"timm:{arch}", weights=str(tmp_path / "weights.pth"))
    model = build_ssl("none", settings, SETTINGS["none"], image_size=96, weights=given.tensors)
    fitting = checkpoint_filter_fn(published.state_dict(), theirs)
    theirs.load_state_dict({name: tensor for name, tensor in fitting.items() if not name.startswith("head")})
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(model.encoder.eval()(images), theirs.eval()(images))
    assert given.note(model.encoder).endswith(", pos_embed resampled for images of another size")


@pytest.mark.parametrize("shape", [(1, 7, 64), (1, 5, 32), (64,)])
def test_a_position_embedding_of_no_square_or_another_width_is_refused(shape: tuple[int, ...]) -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=96)
    weights = {**model.state_dict(), "pos_embed": torch.zeros(shape)}
    with pytest.raises(ConfigError, match="of another shape: pos_embed"):
        build_ssl("none", VIT, SETTINGS["none"], image_size=96, weights=weights)


@pytest.mark.parametrize("method", ["simclr", pytest.param("byol", marks=pytest.mark.ci)])
def test_a_run_goes_on_bit_for_bit_and_is_evaluated(method: str, image_tree: Path, tmp_path: Path) -> None:
    small = ["--config", str(tmp_path / "recipe.yaml"), "--data", str(image_tree), "--val", str(image_tree)]
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(method=method))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*small, "--output", str(whole)]) == 0
    start = ["--resume", str(whole / "checkpoints" / "step-00000007"), "--output", str(resumed)]
    assert main([*small, *start]) == 0
    assert same_end(whole, resumed)
    exported = load_file(whole / "encoder.safetensors")
    theirs = timm.create_model("test_vit", img_size=SIDE)
    left = theirs.load_state_dict(exported, strict=False)
    assert (left.missing_keys, left.unexpected_keys) == (["head.weight", "head.bias"], [])
    found = json.loads((whole / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert found["environment"]["libraries"]["timm"] == timm.__version__
    assert evaluate([str(whole), "--knn", "--linear-cached", "--equivariance", "--workers", "1"]) == 0
    scores = json.loads((whole / "eval.json").read_text())
    assert {"knn_top1", "linear_cached_top1", "equivariance_absolute"} <= scores.keys()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--encoder.arch", "test_vi"], r"encoder.arch=test_vi is none of .* \(did you mean test_vit\?\)"),
        (["--encoder.width", "8"], "encoder.width=8 is for resnet10, resnet18, resnet34, resnet50 alone"),
        (["--encoder.stem", "cifar"], "encoder.stem=cifar is for resnet10, resnet18, resnet34, resnet50 alone"),
        (["--resolution.start", "16"], "resolution.start=16 is for resnet10, resnet18, resnet34, resnet50 alone"),
        (["--essl", "--rotation.size", "16"], "rotation.size=16 gives the encoder smaller images"),
        (["--image-size", "8"], "encoder.arch=test_vit yields no features of images of 8 pixels"),
    ],
)
def test_what_does_not_apply_to_it_is_refused_in_one_line(
    options: list[str], fault: str, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(method="simclr"))
    small = ["--config", str(tmp_path / "recipe.yaml"), "--data", str(image_tree), "--output", str(tmp_path / "run")]
    assert main([*small, *options]) == 2
    error = capsys.readouterr().err
    assert re.search(fault, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_over_ranks_keeps_what_timm_has_behind_it(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank of two that hold the same, beside timm's own."""
    monkeypatch.setattr(batchnorm, "gather", lambda t: torch.cat([t, t]))
    encoder = build_encoder(EncoderSettings("test_efficientnet"), SIDE).train(training)
    theirs, images = deepcopy(encoder), torch.randn(4, 3, SIDE, SIDE)
    kinds = {type(module).__name__ for module in encoder.modules()}
    assert "BatchNormAct2d" in kinds
    sync_batchnorm(encoder, DistInfo(0, 0, 2, torch.device("cpu")))
    assert "BatchNormAct2d" not in {type(module).__name__ for module in encoder.modules()}
    assert encoder.state_dict().keys() == theirs.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), theirs(images), rtol=1e-4, atol=1e-5)
