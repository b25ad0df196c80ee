"""The compiled operators go over memory no more often than contrast makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from needs import needs_compiler
from torch import Tensor

from equimod.pipelines import compiled
from equimod.pipelines.colour import parts
from equimod.pipelines.params import AugmentationParams, draw
from equimod.pipelines.policy import POLICIES, ViewPolicy

SIZE = 32


def _batch(policy: ViewPolicy, n: int, seed: int = 0) -> tuple[Tensor, AugmentationParams]:
    generator = torch.Generator().manual_seed(seed)
    images = (255 * torch.rand(n, 3, SIZE, SIZE, generator=generator)).to(torch.uint8)
    return images, draw(policy, torch.full((n, 2), SIZE), torch.arange(n), seed=seed, epoch=0, view=0)


def _always(policy: ViewPolicy, **operators: float) -> ViewPolicy:
    """`policy` with these probabilities, and 0 for every other operator."""
    names = ("flip", "jitter", "gray", "blur", "solarize")
    kept = {name: getattr(policy, name) for name in names if getattr(policy, name)}
    return replace(policy, **{name: replace(o, p=operators.get(name, 0.0)) for name, o in kept.items()})


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
    (part, *_) = [part for part in parts(params, images.device, torch.float32, 200) if part.place == 1]
    n, pixels = len(part.rows), SIZE * SIZE
    taken = images[part.rows].permute(1, 0, 2, 3).contiguous().flatten(2)
    numbers = torch.cat([part.jitter.flatten(1), torch.zeros(n, 2)], 1)
    out, normal = torch.zeros(n, pixels, 3), torch.ones(2, 3)
    levels = compiled.level(taken, part.before, 1)

    def count(function: Callable[..., Any], *arguments: object) -> tuple[Any, int]:
        metrics.reset()
        result, (code,) = run_and_get_code(torch.compile(function, fullgraph=True, dynamic=False), *arguments)
        assert code.count("async_compile.cpp_pybinding(") == 1
        return result, metrics.num_bytes_accessed

    for function, arguments, bytes_a_pixel in (
        (compiled.level, (taken, part.before, 1), 3),
        (compiled.coloured, (taken, numbers, levels, normal, 1), 3 + 12),
    ):
        result, touched = count(function, *arguments)
        torch.testing.assert_close(result, function(*arguments))
        assert touched == pytest.approx(bytes_a_pixel * n * pixels, rel=0.05)
    count(compiled.colour, taken, numbers, levels, torch.arange(n), normal, out, 1)
    torch.testing.assert_close(out, compiled.coloured(taken, numbers, levels, normal, 1))
