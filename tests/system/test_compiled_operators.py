"""The compiled operators give what the eager ones give, and go over memory no more often than contrast makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from needs import needs_compiler
from torch import Tensor

from equimod.pipelines import compiled, ops
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.color import group_samples
from equimod.pipelines.params import AugmentationParams, draw
from equimod.pipelines.policy import POLICIES, ViewPolicy
from equimod.pipelines.records import open_records

SIZE = 32


@pytest.fixture(scope="module")
def traced() -> Iterator[None]:
    """torch.compile's tracing without its slow code generator."""
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch("recompile_limit", 64):
        for name in ("level", "color"):
            function = torch.compile(getattr(compiled, name), fullgraph=True, dynamic=True, backend="eager")
            patch.setattr(compiled, f"_{name}", function)
        yield


def _batch(policy: ViewPolicy, n: int, seed: int = 0) -> tuple[Tensor, AugmentationParams]:
    generator = torch.Generator().manual_seed(seed)
    images = (255 * torch.rand(n, 3, SIZE, SIZE, generator=generator)).to(torch.uint8)
    return images, draw(policy, torch.full((n, 2), SIZE), torch.arange(n), seed=seed, epoch=0, view=0)


def _always(policy: ViewPolicy, **operators: float) -> ViewPolicy:
    """`policy` with these probabilities, and 0 for every other operator."""
    names = ("flip", "jitter", "gray", "blur", "solarize")
    kept = {name: getattr(policy, name) for name in names if getattr(policy, name)}
    return replace(policy, **{name: replace(o, p=operators.get(name, 0.0)) for name, o in kept.items()})


def _agree(policy: ViewPolicy, images: Tensor, params: AugmentationParams) -> None:
    found, expected = (apply(images, params, policy) for apply in (compiled.apply, ops.apply))
    distance = (found - expected).abs()
    assert (distance > 2e-5).float().mean() < 1e-4
    assert distance.max() < 0.02  # of a value that rounding brings to the other side of the threshold of solarize
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["simclr_cifar10", "byol_cifar10"])
@pytest.mark.parametrize("n", [1, 2, 64])
def test_views_are_those_of_the_eager_operators(name: str, n: int, traced: None) -> None:
    for view in POLICIES[name].views:
        _agree(view, *_batch(view, n))


@pytest.mark.parametrize("blur", [0.0, 1.0])
@pytest.mark.parametrize("solarize", [0.0, 1.0])
@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_all_or_none_of_the_samples_make_no_difference(
    jitter: float, blur: float, solarize: float, traced: None
) -> None:
    policy = _always(POLICIES["byol_cifar10"].views[0], jitter=jitter, blur=blur, solarize=solarize, gray=0.3)
    _agree(policy, *_batch(policy, 40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apply", [compiled.apply, ops.apply], ids=["compiled", "eager"])
def test_float_images_are_taken_as_they_are(
    apply: Callable[[Tensor, AugmentationParams, ViewPolicy], Tensor], dtype: torch.dtype, traced: None
) -> None:
    policy = POLICIES["byol_cifar10"].views[0]
    images, params = _batch(policy, 24)
    floats = (images.float() / 255).to(dtype)
    found = apply(floats, params, policy)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ops.apply(floats.float(), params, policy), rtol=0, atol=2e-5)
    if dtype == torch.float32:
        torch.testing.assert_close(found, ops.apply(images, params, policy), rtol=0, atol=2e-5)


@pytest.fixture
def counted() -> Iterator[None]:
    """torch's code generator counts bytes, which it does where it logs them and takes nothing from its cache."""
    from torch._inductor import config

    needs_compiler()
    torch._dynamo.reset()
    torch._logging.set_logs(inductor_metrics=True)
    with config.patch("force_disable_caches", True):
        yield
    torch._logging.set_logs()


@pytest.mark.ci
def test_one_kernel_reads_each_pixel_for_the_mean_and_one_reads_and_writes_it(counted: None) -> None:
    """3 bytes for the mean, then 3 + 12 for the view; the results are those without torch.compile."""
    from torch._inductor import metrics
    from torch._inductor.utils import run_and_get_code

    policy = _always(POLICIES["simclr_cifar10"].views[0], jitter=1.0, gray=0.5)
    images, params = _batch(policy, 200)
    (group, *_) = [group for group in group_samples(params, images.device, torch.float32, 200) if group.place == 1]
    n, pixels = len(group.rows), SIZE * SIZE
    taken = images[group.rows].permute(1, 0, 2, 3).contiguous().flatten(2)
    numbers = torch.cat([group.jitter.flatten(1), torch.zeros(n, 2)], 1)
    out, normal = torch.zeros(n, pixels, 3), torch.ones(2, 3)
    levels = compiled.level(taken, group.before, 1)

    def count(function: Callable[..., Any], *arguments: object) -> tuple[Any, int]:
        metrics.reset()
        result, (code,) = run_and_get_code(torch.compile(function, fullgraph=True, dynamic=False), *arguments)
        assert code.count("async_compile.cpp_pybinding(") == 1
        return result, metrics.num_bytes_accessed

    for function, arguments, bytes_a_pixel in (
        (compiled.level, (taken, group.before, 1), 3),
        (compiled.colored, (taken, numbers, levels, normal, 1), 3 + 12),
    ):
        result, touched = count(function, *arguments)
        torch.testing.assert_close(result, function(*arguments))
        assert touched == pytest.approx(bytes_a_pixel * n * pixels, rel=0.05)
    count(compiled.color, taken, numbers, levels, torch.arange(n), normal, out, 1)
    torch.testing.assert_close(out, compiled.colored(taken, numbers, levels, normal, 1))


def test_a_pipeline_compiles_its_operators_where_it_is_asked_to(
    image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(compiled, "apply", lambda *arguments: calls.append(1) or ops.apply(*arguments))
    build = partial(build_pipeline, open_records(image_tree), POLICIES["simclr_cifar10"], batch_size=8, seed=0)
    list(build().epoch(0))
    assert not calls
    list(build(compiled=True).epoch(0))
    assert len(calls) == 6
