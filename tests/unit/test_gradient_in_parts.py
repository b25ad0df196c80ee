"""A batch in parts: the gradient of the whole batch, with a part of its images in the encoder at a time."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import ENCODER, SETTINGS
from torch import Tensor

from equimod.models.settings import EquiModSettings, ESSLSettings
from equimod.models.ssl import METHODS, SSL, build_ssl
from equimod.pipelines.batch import Batch
from equimod.pipelines.params import Standardizer
from equimod.train.grad_cache import GradCache
from equimod.train.main import main

N, P, PARTS = 8, 5, 4


def _batch(n: int = N) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    images = torch.cat([draw(3, 16, 16) for _ in range(3)])
    params: Any = (None, None)  # not read by the step
    return Batch(images, params, (draw(P), draw(P)), torch.arange(n) % 3, torch.arange(n))


def _model(method: str, equimod: bool = True, essl: bool = False, probe: bool = False, layer: str | None = None) -> SSL:
    torch.manual_seed(0)
    model = build_ssl(
        method,
        ENCODER,
        SETTINGS[method],
        EquiModSettings(0.7, projector=(12, 6), embedding=(7,), layer=layer) if equimod else None,
        Standardizer(torch.zeros(P), torch.ones(P)),
        ESSLSettings(weight=0.3, hidden=(16,)) if essl else None,
        3 if probe else None,
    ).double()
    for p in model.parameters():  # off the zeros of residual branches and of the probe, which would hide gradients
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("method", ["simclr", "vicreg"])
def test_x_as_a_view_has_the_gradient_of_the_whole_batch(method: str) -> None:
    torch.manual_seed(0)
    whole = build_ssl(method, ENCODER, SETTINGS[method], x_as_view=True).double()
    whole.encoder.eval()
    parts = deepcopy(whole)
    expected, found = _backward(whole, 1), _backward(parts, PARTS)
    _assert_close(found[0], expected[0])
    _assert_close(found[1], expected[1])


def _backward(model: SSL, parts: int, scale: float = 1.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses, and the gradients by name."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
    losses = GradCache(model, model, parts, scaler, None)(_batch())
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = tolerance * max(float(value.detach().abs().max()), 1e-3)
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


BESIDE = ("", "equimod", "equimod layer3", "essl", "probe", "equimod essl probe layer2")


@pytest.mark.parametrize(
    ("method", "beside"),
    [
        (method, beside)
        for method in METHODS
        for beside in BESIDE
        if method != "none" or beside not in ("", "probe", "equimod layer3")
    ],
)
def test_with_frozen_statistics_the_gradient_is_that_of_the_whole_batch(method: str, beside: str) -> None:
    layer = next((name for name in ("layer2", "layer3") if name in beside), None)
    model = _model(method, *(name in beside for name in ("equimod", "essl", "probe")), layer)
    model.encoder.eval()
    if method == "byol":
        model.method.target_encoder.eval()
    whole, parts = model, deepcopy(model)
    expected, found = _backward(whole, 1), _backward(parts, PARTS)
    assert max(float(g.abs().max()) for g in expected[1].values()) > 1e-3
    _assert_close(found[0], expected[0])
    _assert_close(found[1], expected[1])
    _assert_close(dict(parts.named_buffers()), dict(whole.named_buffers()))  # of the heads: updated once


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_batch_norms_of_the_encoder_see_a_part_at_a_time_and_take_in_each_once(method: str) -> None:
    reference = _model(method)
    cached = deepcopy(reference)
    batch = _batch()
    images = [torch.cat(sets) for sets in zip(*(t.chunk(PARTS) for t in batch.images.chunk(3)), strict=True)]
    h = [reference.encode(part) for part in images]
    seen = [reference.method.target_forward(part[-2 * N // PARTS :]) for part in images]
    whole_h, whole_seen = (tuple(map(torch.cat, zip(*parts, strict=True))) for parts in (h, seen))
    losses = reference.compare(whole_h, whole_seen, batch.encodings, batch.label)
    losses["loss"].backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    found = _backward(cached, PARTS)
    _assert_close(found[0], losses)
    _assert_close(found[1], expected)
    buffers = {name: b for name, b in cached.named_buffers() if "target" not in name}
    _assert_close(buffers, {name: b for name, b in reference.named_buffers() if "target" not in name})


def test_the_sum_over_small_batches_would_be_another_gradient() -> None:
    model = _model("simclr", equimod=False)
    model.encoder.eval()
    expected = _backward(deepcopy(model), 1)[1]
    i, j = _batch().views
    for v_i, v_j in zip(i.image.chunk(PARTS), j.image.chunk(PARTS), strict=True):
        (model(torch.cat([v_i, v_j]), (), torch.arange(0))["loss"] / PARTS).backward()
    name = "encoder.conv1.weight"
    ordinary = dict(model.named_parameters())[name].grad
    assert ordinary is not None
    assert (ordinary - expected[name]).norm() > 0.1 * expected[name].norm()


def test_equimod_without_x_is_refused_with_the_remedy() -> None:
    model, batch = _model("simclr"), _batch()
    grad_cache = GradCache(model, model, 1, torch.amp.GradScaler("cpu", enabled=False), None)
    with pytest.raises(ValueError, match="with_x=True"):
        grad_cache(replace(batch, images=batch.images[N:]))


def test_x_is_left_alone_without_equimod() -> None:
    model, batch = _model("simclr", equimod=False), _batch()
    grad_cache = GradCache(model, model, PARTS, torch.amp.GradScaler("cpu", enabled=False), None)
    alone = grad_cache(replace(batch, images=batch.images[N:]))["loss"]
    assert torch.equal(grad_cache(batch)["loss"], alone)


def test_a_gradient_scaler_scales_every_part() -> None:
    model = _model("simclr", essl=True)
    _, expected = _backward(deepcopy(model), PARTS)
    _, scaled = _backward(model, PARTS, scale=1024.0)
    _assert_close({name: g / 1024 for name, g in scaled.items()}, expected)


def test_the_encoder_never_sees_more_than_a_part() -> None:
    model, seen = _model("simclr"), []
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.append((len(inputs[0]), output.grad_fn)))
    _backward(model, PARTS)
    assert [images for images, _ in seen] == [3 * N // PARTS] * 2 * PARTS
    assert sum(graph is not None for _, graph in seen) == PARTS


@pytest.mark.parametrize("parts", [1, PARTS])
def test_every_forward_and_backward_pass_of_every_part_is_timed_as_what_it_is(
    monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    now, model = [0.0], _model("simclr")
    monkeypatch.setattr("equimod.pipelines.timing.perf_counter", lambda: now[0])

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **keywords: Any) -> Any:
            now[0] += seconds
            return function(*arguments, **keywords)

        return slow

    monkeypatch.setattr(model, "encode", taking(1, model.encode))
    for name in ("backward", "grad"):
        monkeypatch.setattr(torch.autograd, name, taking(100, getattr(torch.autograd, name)))
    grad_cache = GradCache(model, model, parts, torch.amp.GradScaler("cpu", enabled=False), None)
    grad_cache(_batch())
    passes = (1, 1) if parts == 1 else (2 * parts, 1 + parts)  # of the encoder, and to the leaves and each part
    assert grad_cache.stages.seconds() == {"forward": passes[0], "backward": 100 * passes[1]}


def test_a_number_of_parts_that_does_not_divide_the_batch_is_refused(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", "simclr", "--dataset", "cifar10"]
    options += ["--data", str(image_tree), "--output", str(tmp_path / "run")]
    assert main([*options, "--batch-size", "8", "--epochs", "11", "--grad-cache", "3"]) == 2
    assert "grad_cache=3 does not divide the 8 images of a rank; give a divisor of 8" in capsys.readouterr().err
    assert main([*options, "--grad-cache", "0"]) == 2
    assert "grad_cache=0 is too small" in capsys.readouterr().err
