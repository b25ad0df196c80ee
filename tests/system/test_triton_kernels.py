"""The Triton kernels, compiled for GPUs that are not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from needs import needs
from torch import Tensor

needs("triton", module=True)

from equimod.pipelines import triton_ops  # noqa: E402
from equimod.pipelines.params import draw  # noqa: E402
from equimod.pipelines.policy import POLICIES  # noqa: E402


@pytest.mark.ci
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
def test_kernels_compile_for_gpus(
    capability: int, dtype: torch.dtype, pixels: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {torch.uint8: "*u8", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}

    def compiled(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        signature = {
            name: kinds[given.dtype] if isinstance(given, Tensor) else "i32" if isinstance(given, int) else "fp32"
            for name, given in zip(kernel.arg_names, arguments, strict=False)
        }
        source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"].startswith(b"\x7fELF")
        names.append(kernel.fn.__name__)

    names: list[str] = []
    monkeypatch.setattr(triton_ops, "_launch", compiled)
    view = POLICIES["byol_imagenet"].views[1]
    images = torch.empty(2, 3, 224, 224, dtype=pixels, device="meta")
    params = draw(view, torch.full((2, 2), 224), torch.arange(2), seed=0, epoch=0, view=1)
    out = torch.empty_like(images, dtype=dtype, memory_format=torch.channels_last)
    triton_ops.apply(images, triton_ops.table(params, view).to("meta"), view, out)
    assert len(names) == 4
