"""The Triton kernels in Triton's interpreter, beside the eager operators; their launches, uploads and bytes."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from needs import needs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

needs("triton", module=True)

from equimod.benchmarks.augmenters import smooth_crops  # noqa: E402
from equimod.pipelines import operators, ops, triton_ops  # noqa: E402
from equimod.pipelines.build import build_pipeline  # noqa: E402
from equimod.pipelines.params import AugmentationParams, draw  # noqa: E402
from equimod.pipelines.policy import POLICIES, GaussianBlur, ViewPolicy  # noqa: E402

META = torch.device("meta")


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    """`triton_ops` for the interpreter, which Triton asks about where a kernel is defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec = importlib.util.find_spec("equimod.pipelines.triton_ops")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def _drawn(policy: ViewPolicy, n: int, size: int, seed: int = 1) -> AugmentationParams:
    return draw(policy, torch.full((n, 2), size), torch.arange(n), seed=seed, epoch=0, view=0)


def _crops(n: int, size: int) -> Tensor:
    return smooth_crops(n, size, torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)


def _empty(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full_like(images, torch.nan, dtype=dtype, memory_format=torch.channels_last)


def _apply(
    module: Any, images: Tensor, params: AugmentationParams, policy: ViewPolicy, dtype: torch.dtype = torch.float32
) -> Tensor:
    out = _empty(images, dtype)
    module.apply(images, module.table(params, policy).to(images.device), policy, out)
    return out


def _agree(
    module: Any, images: Tensor, params: AugmentationParams, policy: ViewPolicy, tolerance: float = 1e-5
) -> None:
    found, wanted = _apply(module, images, params, policy), ops.apply(images, params, policy)
    distance = (found - wanted).abs()
    # A value within rounding of solarize's threshold may come to lie on its other side.
    assert (~(distance <= 1e-5)).float().mean() <= 1e-4 * bool(params.solarize.any())


OFTEN = ("simclr_imagenet", "byol_cifar10")  # the others in CI, and with one sample


@pytest.mark.parametrize(
    ("name", "n"),
    [
        pytest.param(name, n, marks=() if n == 1 or name in OFTEN else pytest.mark.ci)
        for name in POLICIES
        for n in (1, 5)
    ],
)
def test_views_are_those_of_the_eager_operators(name: str, n: int, kernels: Any) -> None:
    size = 33  # of more than one block of pixels; and odd
    for seed, view in enumerate(POLICIES[name].views):
        _agree(kernels, _crops(n, size), _drawn(view, n, size, seed), view)


def test_every_order_of_the_jitter_with_everything_behind_it(kernels: Any) -> None:
    """24 orders, and flip, gray, blur and solarize in every combination with the others."""
    view, orders = POLICIES["byol_cifar10"].views[1], torch.tensor(list(itertools.permutations(range(4))))
    assert view.jitter is not None
    view = replace(view, blur=GaussianBlur(5, 0.5), jitter=replace(view.jitter, p=1.0, hue=0.5))
    number, drawn = torch.arange(24), _drawn(view, 24, 8)
    flags = {name: number // 2**k % 2 == 1 for k, name in enumerate(("flip", "gray", "blur", "solarize"))}
    sigma = torch.where(flags["blur"], torch.linspace(0.1, 2.0, 24).double(), 0.0)
    params = AugmentationParams(
        crop=drawn.crop, jitter=drawn.jitter, factors=drawn.factors, order=orders, sigma=sigma, **flags
    )
    _agree(kernels, _crops(24, 8), params, view)
    _agree(kernels, _crops(24, 8).float() / 255, params, view)


def test_x_is_normalised_and_nothing_else(kernels: Any) -> None:
    images, policy = _crops(2, 33), POLICIES["simclr_imagenet"].x
    out = _empty(images)
    kernels.apply(images, kernels.table(None, policy), policy, out)
    torch.testing.assert_close(out, ops.apply_center(images, policy), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_half_precision_is_rounded_at_the_end(dtype: torch.dtype, step: float, kernels: Any) -> None:
    """Samples with a blur before it and between its passes too, then as float16. The interpreter cuts bfloat16 off."""
    view = replace(POLICIES["simclr_cifar10"].views[0], blur=GaussianBlur(5, 0.5))
    images, params = _crops(5, 9), _drawn(view, 5, 9)
    found, wanted = _apply(kernels, images, params, view, dtype), ops.apply(images, params, view)
    assert found.dtype == dtype
    sharp = ~params.blur
    assert sharp.any()
    torch.testing.assert_close(found[sharp].float(), wanted[sharp], rtol=step, atol=1e-5)
    torch.testing.assert_close(found.float(), wanted, rtol=step, atol=2 * 2**-11 / min(view.normalize.std))


def test_solarize_takes_in_its_threshold(kernels: Any) -> None:
    """128 of 255 is inverted, 127 is not: division is rounded as torch's is."""
    view = POLICIES["byol_cifar10"].views[1]
    assert view.solarize is not None
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    for threshold in range(8, 256, 40):
        solarize = replace(view.solarize, p=1.0, threshold=threshold)
        policy = replace(_always(view), jitter=None, blur=None, solarize=solarize)
        params = _drawn(policy, 1, 16)
        found, wanted = _apply(kernels, images, params, policy), ops.apply(images, params, policy)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_sample_is_the_same_bits_in_any_batch(kernels: Any) -> None:
    view = POLICIES["byol_cifar10"].views[1]
    images, params = _crops(5, 40), _drawn(view, 5, 40)
    whole = _apply(kernels, images, params, view)
    for row in range(5):
        assert torch.equal(_apply(kernels, images[row : row + 1], params[row : row + 1], view), whole[row : row + 1])


def test_a_kernel_larger_than_the_image_is_refused(kernels: Any) -> None:
    view = POLICIES["simclr_imagenet"].views[0]
    with pytest.raises(ValueError, match="less than twice the side"):
        _apply(kernels, _crops(1, 8), _drawn(view, 1, 8), view)


class _Launches:
    """The names of kernels that `triton_ops` launches; nothing is run."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        patch.setattr(triton_ops, "_launch", lambda kernel, *_, **__: self.names.append(kernel.fn.__name__))


@pytest.mark.parametrize(
    ("name", "launches"),
    [
        ("simclr_imagenet", ["level_kernel", "color_kernel", "blur_kernel", "blur_kernel"]),
        ("simclr_cifar10", ["level_kernel", "color_kernel"]),
    ],
)
def test_a_view_takes_four_launches_and_two_without_a_blur(
    name: str, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, view = _Launches(monkeypatch), POLICIES[name].views[0]
    _apply(triton_ops, _crops(64, 32).to(META), _drawn(view, 64, 32), view)
    assert launched.names == launches


def _always(policy: ViewPolicy, **probabilities: float) -> ViewPolicy:
    """`policy` with these probabilities, and 0 for every other operator."""
    names = ("flip", "jitter", "gray", "blur", "solarize")
    known = {name: getattr(policy, name) for name in names if getattr(policy, name)}
    return replace(policy, **{name: replace(o, p=probabilities.get(name, 0.0)) for name, o in known.items()})


@pytest.fixture
def moved(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of distinct memory that each launch reads and writes, but for tables and sums."""
    from triton.runtime.interpreter import InterpreterBuilder

    touched: list[int] = []
    addresses: dict[str, set[int]] = {}

    def watch(kind: str) -> None:
        whole = getattr(InterpreterBuilder, f"create_masked_{kind}")

        def watched(builder: Any, pointers: Any, *rest: Any) -> Any:
            size = pointers.get_element_ty().primitive_bitwidth // 8
            mask = rest[0] if kind == "load" else rest[1]
            if pointers.data.size >= triton_ops.BLOCK:  # of pixels
                for byte in range(size):
                    addresses.setdefault(kind, set()).update((pointers.data[mask.data] + byte).tolist())
            return whole(builder, pointers, *rest)

        monkeypatch.setattr(InterpreterBuilder, f"create_masked_{kind}", watched)

    watch("load")
    watch("store")
    launch = kernels._launch

    def counted(*arguments: Any, **constants: Any) -> None:
        addresses.clear()
        launch(*arguments, **constants)
        touched.append(sum(map(len, addresses.values())))

    monkeypatch.setattr(kernels, "_launch", counted)
    return touched


@pytest.mark.parametrize(
    ("dtype", "color", "blur"), [(torch.float32, 3 + 12, 24), (torch.bfloat16, 3 + 6, 12), (torch.float16, 3 + 6, 12)]
)
def test_bytes_that_move_a_pixel(dtype: torch.dtype, color: int, blur: int, kernels: Any, moved: list[int]) -> None:
    """18 (12 in half precision), and 48 (24) more for a pixel that is blurred."""
    n, size = 2, 32
    images, pixels = _crops(n, size), n * size**2
    for p, of_blur in ((1.0, blur), (0.0, 0)):
        view = _always(replace(POLICIES["simclr_cifar10"].views[0], blur=GaussianBlur(5, 1.0)), jitter=1.0, blur=p)
        _apply(kernels, images, _drawn(view, n, size), view, dtype)
        assert moved == [3 * pixels, color * pixels, of_blur * pixels, of_blur * pixels]
        moved.clear()
    view = _always(POLICIES["simclr_cifar10"].views[0])
    _apply(kernels, images, _drawn(view, n, size), view, dtype)
    assert moved == [0, color * pixels]  # nothing is summed for samples without a jitter


class _Uploads(TorchDispatchMode):
    """Copies from the host to "meta", and tensors made there from values of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, out)) if isinstance(t, Tensor)}
        self.count += devices == {"cpu", "meta"}
        return out


@pytest.mark.parametrize(("with_x", "launches"), [(True, 9), (False, 8)])
def test_a_batch_takes_one_upload_beside_its_pixels(
    with_x: bool, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equimod.benchmarks.gpu_check.workload import DrawnRecords
    from equimod.pipelines.prefetch import GPUMemory

    n, policy = 16, POLICIES["simclr_imagenet"]
    monkeypatch.setattr("equimod.pipelines.build.operators_for", lambda device: operators.TritonOperators())
    records = DrawnRecords(2 * n, (250, 250), raw=True)
    pipeline = build_pipeline(
        records, policy, batch_size=n, seed=0, device=META, dtype=torch.bfloat16, with_x=with_x, workers=1
    )
    decoded = next(pipeline.decoded(0))
    sets = 2 + with_x
    memory = GPUMemory(sets * n * 3 * policy.size**2, torch.bfloat16, META, SimpleNamespace(Stream=lambda device: None))
    launched, uploads = _Launches(monkeypatch), _Uploads()
    with uploads:
        batch = pipeline._operated(decoded, memory.take())
    assert uploads.count == sets + 1
    assert len(launched.names) == launches
    assert launched.names.count("level_kernel") == 2
    assert (batch.images.shape, batch.images.dtype) == ((sets * n, 3, 224, 224), torch.bfloat16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert {t.device for t in (batch.images, batch.label, *batch.encodings)} == {META}


def test_without_a_gpu_that_compiles_the_operators_are_eager_and_say_so() -> None:
    found = operators.operators_for(torch.device("cuda", 0))
    assert isinstance(found, operators.EagerOperators)
    assert found.description.startswith("eager, which is slower: Triton's kernels do not run here (")
    assert operators.operators_for(torch.device("cpu")).description == "eager"
