"""Heads, SimCLR, EquiMod and their sum: the architecture of the paper and of the official code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equimod.models.encoder import build_encoder
from equimod.models.equimod import EquiMod
from equimod.models.heads import mlp
from equimod.models.losses import equimod_loss, nt_xent
from equimod.models.settings import EncoderSettings, EquiModSettings, SimCLRSettings
from equimod.models.simclr import SimCLR
from equimod.models.ssl import SSL, build_ssl
from equimod.pipelines.params import Standardizer

N, P, FEATURES = 6, 15, 24
ENCODER = EncoderSettings("resnet10", width=8)
SIMCLR = SimCLRSettings(hidden=(32, 16), dim=8, temperature=0.5)
EQUIMOD = EquiModSettings(weight=0.7, projector=(32, 16, 8), embedding=(12,))


def _standardizer() -> Standardizer:
    return Standardizer(torch.arange(P) / 3, torch.arange(1, P + 1) / 2)


def _ssl(equimod: EquiModSettings | None = EQUIMOD) -> SSL:
    torch.manual_seed(0)
    return build_ssl("simclr", ENCODER, SIMCLR, equimod, _standardizer())


def _batch() -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Images of x and both views, encodings, labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3 * N, 3, 16, 16, generator=generator)
    t_i, t_j = torch.randn(2, N, P, generator=generator)
    return images, (t_i, t_j), torch.arange(N) % 3


def _layers(head: nn.Module) -> list[str]:
    """FC by its shape, BN as "BN" or, where it neither scales nor shifts, "bn"."""
    names = []
    for layer in head.children():
        if isinstance(layer, nn.Linear):
            assert layer.bias is None
            names.append(f"{layer.in_features}>{layer.out_features}")
        elif isinstance(layer, nn.BatchNorm1d):
            names.append("BN" if layer.affine else "bn")
        else:
            names.append(type(layer).__name__)
    return names


def test_mlp_has_relu_between_layers_and_none_at_the_end() -> None:
    assert _layers(mlp(5, (4, 3), end="norm")) == ["5>4", "BN", "ReLU", "4>3", "BN"]
    assert _layers(mlp(5, (3,), end="plain norm")) == ["5>3", "bn"]
    assert torch.equal(mlp(5, (), end="norm")(torch.ones(2, 5)), torch.ones(2, 5))


def test_simclr_projector_is_the_official_one() -> None:
    simclr = SimCLR(build_encoder(replace(ENCODER, width=64)), SimCLRSettings())
    assert _layers(simclr.projector) == ["512>2048", "BN", "ReLU", "2048>2048", "BN", "ReLU", "2048>128", "bn"]


def test_simclr_is_nt_xent_of_the_projections_of_both_views_in_one_batch() -> None:
    simclr = SimCLR(build_encoder(ENCODER), SIMCLR)
    h = (torch.randn(N, 64), torch.randn(N, 64))
    z = simclr.projector(torch.cat(h))
    torch.testing.assert_close(simclr(h, ()), nt_xent(z[:N], z[N:], 0.5))


@pytest.mark.parametrize(
    ("settings", "projector", "embedding", "predictor"),
    [
        (
            EquiModSettings(),
            ["24>2048", "BN", "ReLU", "2048>2048", "BN", "ReLU", "2048>128", "bn"],
            ["15>128", "BN"],
            ["256>128", "bn"],
        ),
        (EquiModSettings(projector=None), [], ["15>128", "BN"], ["152>24", "bn"]),
        (EquiModSettings(projector=(8,)), ["24>8", "bn"], ["15>128", "BN"], ["136>8", "bn"]),
        (
            EquiModSettings(projector=(8,), predictor_hidden=(64,)),
            ["24>8", "bn"],
            ["15>128", "BN"],
            ["136>64", "BN", "ReLU", "64>8", "bn"],
        ),
        (EquiModSettings(projector=(8,), embedding=None), ["24>8", "bn"], [], ["23>8", "bn"]),
        (
            EquiModSettings(projector=(8,), embedding=(16, 128)),
            ["24>8", "bn"],
            ["15>16", "BN", "ReLU", "16>128", "BN"],
            ["136>8", "bn"],
        ),
    ],
)
def test_equimod_takes_every_form_of_table_2(
    settings: EquiModSettings, projector: list[str], embedding: list[str], predictor: list[str]
) -> None:
    equimod = EquiMod(FEATURES, _standardizer(), settings)
    assert _layers(equimod.projector) == projector
    assert _layers(equimod.embedding) == embedding
    assert _layers(equimod.predictor) == predictor
    h_x, h_i, h_j = torch.randn(3, N, FEATURES)
    t_i, t_j = torch.randn(2, N, P)
    assert equimod(h_x, (h_i, h_j), (t_i, t_j)).isfinite()


@pytest.mark.parametrize("negatives", ["paper", "official"])
def test_equimod_predicts_each_view_from_the_image_and_the_views_own_parameters(negatives: Any) -> None:
    equimod = EquiMod(FEATURES, _standardizer(), replace(EQUIMOD, negatives=negatives, temperature=0.3))
    h_x, h_i, h_j = torch.randn(3, N, FEATURES)
    t_i, t_j = torch.randn(2, N, P)
    y_x, y_i, y_j = equimod.projector(torch.cat([h_x, h_i, h_j])).split(N)
    t = equimod.embedding((torch.cat([t_i, t_j]) - equimod.standardizer.mean) / equimod.standardizer.std)
    y_hat = equimod.predictor(torch.cat([torch.cat([y_x, y_x]), t], dim=1))
    expected = equimod_loss(y_i, y_j, y_hat[:N], y_hat[N:], 0.3, negatives)
    torch.testing.assert_close(equimod(h_x, (h_i, h_j), (t_i, t_j)), expected)


def test_embed_gives_embeddings_and_predictions_of_evaluation() -> None:
    equimod = EquiMod(FEATURES, _standardizer(), EQUIMOD).eval()
    h_x, h_v = torch.randn(2, N, FEATURES)
    t = torch.randn(N, P)
    y_x, y_v, y_hat = equimod.embed(h_x, h_v, t)
    torch.testing.assert_close(y_x, equimod.projector(h_x))
    torch.testing.assert_close(y_v, equimod.projector(h_v))
    torch.testing.assert_close(y_hat, equimod.predict(y_x, t))


def test_loss_is_invariance_plus_weighted_equivariance() -> None:
    ssl = _ssl()
    images, encodings, label = _batch()
    losses = ssl(images, encodings, label)
    torch.testing.assert_close(losses["loss"], losses["invariance"] + 0.7 * losses["equivariance"])
    assert losses["loss"].requires_grad
    assert not losses["invariance"].requires_grad
    assert not losses["equivariance"].requires_grad
    h_x, *h = ssl.encoder(images).split(N)
    torch.testing.assert_close(losses["invariance"], ssl.method(tuple(h), ()))
    torch.testing.assert_close(losses["equivariance"], ssl.equimod(h_x, tuple(h), encodings))


def test_x_as_a_view_makes_the_invariance_the_mean_over_three_pairs() -> None:
    images, encodings, label = _batch()
    torch.manual_seed(0)
    ssl = build_ssl("simclr", ENCODER, SIMCLR, x_as_view=True)
    assert ssl.image_sets == 3
    found = ssl(images, encodings, label)
    h_x, h_i, h_j = ssl.encoder(images).split(N)
    pairs = ((h_x, h_i), (h_x, h_j), (h_i, h_j))
    expected = torch.stack([ssl.method(pair, ()) for pair in pairs]).mean()
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["invariance"], expected)


@pytest.mark.parametrize(("equimod", "images"), [(EQUIMOD, 3 * N), (None, 2 * N)])
def test_all_images_go_through_the_encoder_as_one_batch(equimod: EquiModSettings | None, images: int) -> None:
    ssl = _ssl(equimod)
    seen: list[int] = []
    ssl.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    given, encodings, label = _batch()
    ssl(given[-images:], encodings, label)
    assert seen == [images]


def test_without_equimod_parameters_do_not_matter() -> None:
    images, encodings, label = _batch()
    ssl = _ssl(None)
    losses = ssl(images[N:], encodings, label)
    assert losses.keys() == {"loss", "invariance"}
    assert torch.equal(losses["loss"], ssl(images[N:], (encodings[1], encodings[0]), label)["loss"])


@pytest.mark.parametrize("equimod", [EQUIMOD, replace(EQUIMOD, negatives="official"), None])
def test_every_parameter_gets_a_gradient(equimod: EquiModSettings | None) -> None:
    """Data-parallel training waits for all of them."""
    ssl = _ssl(equimod)
    images, encodings, label = _batch()
    ssl(images[-ssl.image_sets * N :], encodings, label)["loss"].backward()
    assert [name for name, p in ssl.named_parameters() if p.grad is None] == []


def test_channels_last_weights_get_channels_last_images_and_give_the_same_loss() -> None:
    expected = _ssl()(*_batch())["loss"]
    ssl = _ssl().to(memory_format=torch.channels_last)
    seen: list[bool] = []
    ssl.encoder.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(ssl(*_batch())["loss"], expected, rtol=1e-4, atol=1e-4)
    assert seen == [True]


def test_bf16_autocast_keeps_losses_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = _ssl()(*_batch())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_a_step_of_any_size_can_be_counted_on_the_meta_device() -> None:
    ssl = _ssl().to("meta")
    images, encodings, label = _batch()
    losses = ssl(images.to("meta"), tuple(t.to("meta") for t in encodings), label)
    losses["loss"].backward()
    assert losses["loss"].is_meta


def test_the_standardizer_travels_with_the_state_dict() -> None:
    state = _ssl().state_dict()
    torch.testing.assert_close(state["equimod.standardizer.mean"], _standardizer().mean)


def test_the_hook_before_a_step_reaches_the_method_with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    ssl = _ssl(None)
    calls: list[tuple[nn.Module, float]] = []
    monkeypatch.setattr(ssl.method, "before_step", lambda encoder, progress: calls.append((encoder, progress)))
    ssl.before_step(0.25)
    assert calls == [(ssl.encoder, 0.25)]


def test_misuse_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="'simclrr' is unknown; choose from simclr"):
        build_ssl("simclrr", ENCODER, SIMCLR, None, None)
    with pytest.raises(ValueError, match=r"Standardizer\.fit"):
        build_ssl("simclr", ENCODER, SIMCLR, EQUIMOD, None)
