"""EquiMod on an earlier layer of the encoder: which representations it sees, and which weights learn from it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from needs import needs
from small_models import ENCODER, SETTINGS
from torch import Tensor

from equimod.models.encoder import Encoder, build_encoder
from equimod.models.inner_layer import InnerLayer, inner_dim
from equimod.models.settings import ConfigError, EncoderSettings, EquiModSettings
from equimod.models.ssl import SSL, build_ssl
from equimod.pipelines.params import Standardizer
from equimod.train.config import parse, read_recipe
from equimod.train.evaluate import main as evaluate
from equimod.train.evaluation.features import FrozenEncoder, FrozenLayer
from equimod.train.evaluation.trained_run import open_trained_run
from equimod.train.main import main as train

N, P = 4, 5


def _encoder(arch: str = "resnet10", side: int = 32) -> Encoder:
    torch.manual_seed(0)
    width = 8 if arch == "resnet10" else None
    return build_encoder(EncoderSettings(arch, width=width), side).eval()


def _model(method: str = "simclr", weight: float = 1.0, layer: str | None = "layer2") -> SSL:
    torch.manual_seed(0)
    settings = EquiModSettings(weight, projector=(12, 6), embedding=(7,), layer=layer)
    standardizer = Standardizer(torch.zeros(P), torch.ones(P))
    model = build_ssl(method, ENCODER, SETTINGS[method], settings, standardizer, image_size=16).double()
    for p in model.parameters():  # off the zeros of residual branches, which would hide gradients
        p.data += 0.1 * torch.randn_like(p)
    return model


def _batch() -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3 * N, 3, 16, 16, generator=generator, dtype=torch.float64)
    i, j = torch.randn(2, N, P, generator=generator, dtype=torch.float64)
    return images, (i, j), torch.arange(N)


def _gradients(model: SSL) -> dict[str, Tensor]:
    model(*_batch())["loss"].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def test_a_layer_of_a_resnet_is_averaged_over_its_places() -> None:
    encoder, images = _encoder(), torch.randn(2, 3, 32, 32)
    inner = InnerLayer(encoder, "layer2")
    encoder(images)
    maps = encoder.layer2(encoder.layer1(encoder.relu(encoder.bn1(encoder.conv1(images)))))
    assert torch.equal(inner.take(), maps.flatten(2).mean(2))
    assert inner_dim(encoder, "layer2", 32) == maps.shape[1] == 16


@torch.no_grad()
def test_a_block_of_a_vision_transformer_is_averaged_over_its_patches_and_not_the_class_token() -> None:
    needs("timm")
    encoder, images = _encoder("test_vit"), torch.randn(2, 3, 32, 32)
    inner = InnerLayer(encoder, "blocks.0")
    h = encoder(images)
    tokens = encoder.blocks[0](encoder.norm_pre(encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(images)))))
    assert tokens.shape == (2, 1 + 4, 64)
    torch.testing.assert_close(inner.take(), tokens[:, 1:].mean(1))
    assert h.shape == (2, 64)


@torch.no_grad()
def test_maps_whose_channels_come_last_are_averaged_over_their_places() -> None:
    needs("timm")
    encoder, images, maps = _encoder("swin_tiny_patch4_window7_224", 56), torch.randn(1, 3, 56, 56), []
    encoder.get_submodule("layers.1").register_forward_hook(lambda _, __, output: maps.append(output))
    inner = InnerLayer(encoder, "layers.1")
    encoder(images)
    assert maps[0].shape == (1, 7, 7, 192)
    assert torch.equal(inner.take(), maps[0].mean((1, 2)))


def test_a_pass_is_read_once_and_a_layer_let_go_is_left_alone() -> None:
    encoder = _encoder()
    inner = InnerLayer(encoder, "layer1")
    encoder(torch.zeros(1, 3, 32, 32))
    inner.take()
    inner.remove()
    encoder(torch.zeros(1, 3, 32, 32))
    with pytest.raises(AssertionError):
        inner.take()


def test_asking_for_the_dimension_leaves_the_encoder_as_it_was() -> None:
    encoder = _encoder().train()
    before, state = deepcopy(encoder.state_dict()), torch.get_rng_state()
    inner_dim(encoder, "layer2", 32)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not encoder.layer2._forward_hooks


def test_the_losses_are_those_of_the_layer_and_of_the_end() -> None:
    model = _model()
    images, (t_i, t_j), label = _batch()
    found = deepcopy(model)(images, (t_i, t_j), label)
    encoder, equimod = model.encoder, model.equimod
    assert equimod is not None
    maps = encoder.layer2(encoder.layer1(encoder.relu(encoder.bn1(encoder.conv1(images)))))
    x, i, j = maps.flatten(2).mean(2).chunk(3)
    h_i, h_j = encoder.avgpool(encoder.layer4(encoder.layer3(maps))).flatten(1).chunk(3)[1:]
    torch.testing.assert_close(found["equivariance"], equimod(x, (i, j), (t_i, t_j)).detach())
    torch.testing.assert_close(found["invariance"], model.method((h_i, h_j), ()).detach())


def test_layers_behind_it_learn_from_the_method_alone_and_those_before_from_both() -> None:
    without, with_it = _gradients(_model(weight=0.0)), _gradients(_model(weight=3.0))
    for behind in ("encoder.layer3.", "encoder.layer4.", "method."):
        names = [name for name in without if name.startswith(behind)]
        assert names
        assert all(torch.equal(without[name], with_it[name]) for name in names), behind
    for before in ("encoder.conv1.", "encoder.layer1.", "encoder.layer2."):
        assert all(not torch.equal(without[name], with_it[name]) for name in without if name.startswith(before)), before


def test_it_costs_no_weights_in_the_encoder_and_no_pass_of_a_target_network() -> None:
    of_layer, of_end = _model("byol"), _model("byol", layer=None)
    assert of_layer.encoder.state_dict().keys() == of_end.encoder.state_dict().keys()
    assert not of_layer.method.target_encoder.layer2._forward_hooks
    assert len(of_layer.encoder.layer2._forward_hooks) == 1


def test_a_frozen_layer_gives_its_representations_and_leaves_the_end_to_others() -> None:
    encoder, images = _encoder(), torch.randn(2, 3, 32, 32)
    frozen = FrozenLayer(encoder, None, "layer3", 32)
    h = FrozenEncoder(encoder, None)(images)
    assert h.shape == (2, encoder.feature_dim) == (2, 64)
    assert frozen(images).shape == (2, frozen.feature_dim) == (2, 32)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer5", r"the encoder has no layer of that name \(did you mean layer\d\?\); its parts are conv1, .*layer4"),
        ("", "the encoder has no layer of that name; its parts are conv1"),
    ],
)
def test_a_layer_that_is_not_there_is_named(layer: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _model(layer=layer)


def test_a_layer_that_gives_more_than_one_tensor_is_refused() -> None:
    class Pairs(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.lstm(images.mean((2, 3))[None])[0][0]

    with pytest.raises(ConfigError, match=r"layer=lstm gives tuple, no features of an image; give another"):
        inner_dim(Pairs(), "lstm", 32)


def test_alone_it_would_leave_layers_untrained() -> None:
    arguments = ["--method", "none", "--equimod", "--dataset", "shapes", "--equivariance.layer", "layer3"]
    with pytest.raises(ConfigError, match=r"equivariance\.layer=layer3 leaves the layers behind it untrained"):
        parse(arguments)
    assert parse([*arguments, "--essl"]).equivariance.layer == "layer3"


def test_a_run_is_trained_and_measured_on_its_layer(options: list[str], image_tree: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        train([*options, "--val", str(image_tree), "--equimod", "--equivariance.layer", "layer2", "--output", str(run)])
        == 0
    )
    config = read_recipe(run / "config.yaml")
    trained = open_trained_run(run, config, None, seed=0, workers=1)
    shown = [h_x.shape[1] for _, h_x, _ in trained.predictor_views.represent("views")]
    assert set(shown) == {trained.predictor.feature_dim} == {16}
    assert evaluate([str(run), "--equivariance", "--equivariance-per-operator", "--retrieval", "--knn"]) == 0
