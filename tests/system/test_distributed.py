"""One process with the whole batch against several ranks with a share each: losses, batch norm, gradients, agreements.

Run as a script, this file is the program of one rank: every check computes with the rank's share of the same
inputs, and what it returns is written to FOLDER/RANK.safetensors. Alone, the same checks see the whole batch and
use plain batch norm and no gathering: that is what the ranks must add up to.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch_batchnorm
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from small_models import ENCODER, SETTINGS
from torch import Tensor, nn

from equimod.models import batchnorm
from equimod.models.gather import gather
from equimod.models.losses import barlow_twins_loss, byol_loss, equimod_loss, nt_xent, vicreg_loss
from equimod.models.settings import EncoderSettings, EquiModSettings, ESSLSettings, SimCLRSettings
from equimod.models.ssl import build_ssl
from equimod.pipelines.batch import Batch
from equimod.pipelines.params import Standardizer
from equimod.pipelines.records import open_records
from equimod.pipelines.sampler import Cursor
from equimod.pipelines.shapes import draw_dataset
from equimod.train.config import parse
from equimod.train.distributed import (
    DistInfo,
    any_rank,
    assert_same_on_all_ranks,
    barrier,
    data_parallel,
    mean_over_ranks,
    process_group,
    sync_batchnorm,
)
from equimod.train.grad_cache import GradCache
from equimod.train.loop import train_step
from equimod.train.run import build_train_state, training_pipeline

N, P = 8, 5  # samples of the global batch, encoded parameters
ALONE = DistInfo(0, 0, 1, torch.device("cpu"))
EQUIMOD = EquiModSettings(projector=(12, 6), embedding=(7,))
Results = dict[str, Tensor]  # "x/rows": each rank's rows of x; anything else: the same on every rank


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _share(t: Tensor, dist_info: DistInfo) -> Tensor:
    return t.chunk(dist_info.world_size)[dist_info.rank]


def _check_losses(dist_info: DistInfo) -> Results:
    results: Results = {"gather": gather(_share(_draw(0, N, 3), dist_info))}
    forms = {
        "nt_xent": lambda *e: nt_xent(e[0], e[1], 0.3),
        "paper": lambda *e: equimod_loss(*e, 0.3, "paper"),
        "official": lambda *e: equimod_loss(*e, 0.3, "official"),
        "byol": byol_loss,
        "barlow_twins": lambda *e: barlow_twins_loss(e[0], e[1], 0.3),
        "vicreg": lambda *e: vicreg_loss(e[0], e[1], 25, 25, 1),
    }
    for name, form in forms.items():
        embeddings = [_share(_draw(k, N, 4), dist_info).requires_grad_() for k in range(4)]
        loss = form(*embeddings)
        loss.backward()
        results |= {name: mean_over_ranks({name: loss}, dist_info)[name]}
        for k, e in enumerate(embeddings):
            if e.grad is not None:
                results[f"{name}.{k}/rows"] = e.grad / dist_info.world_size  # of the mean over the ranks
    return results


class _NormWithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the forward pass of the batch norm ends in its child."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        activated: Tensor = self.act(super().forward(input))
        return activated


def _check_batchnorm(dist_info: DistInfo) -> Results:
    results: Results = {}
    cases = {
        "2d": (nn.BatchNorm1d(3), (N, 3)),
        "4d": (nn.BatchNorm2d(3, momentum=0.3), (N, 3, 4, 4)),
        "plain": (nn.BatchNorm1d(3, affine=False), (N, 3)),
        "with activation": (_NormWithActivation(3), (N, 3, 4, 4)),
    }
    for name, (norm, shape) in cases.items():
        module = nn.Sequential(norm).double()
        for p in module.parameters():
            nn.init.normal_(p, 1.0, 0.5, generator=torch.Generator().manual_seed(5))
        keys = list(module.state_dict())
        parallel = sync_batchnorm(module, dist_info)
        assert list(parallel.state_dict()) == keys
        if any(p.requires_grad for p in module.parameters()):
            parallel = data_parallel(parallel, dist_info)
        for step in range(2):
            x = _share(_draw(step, *shape) * 3 + 100, dist_info).requires_grad_()
            out = parallel(x)
            module.zero_grad()
            (out * _share(_draw(9, *shape), dist_info)).flatten(1).sum(1).mean().backward()
        assert x.grad is not None
        results |= {f"{name}.out/rows": out.detach(), f"{name}.x/rows": x.grad / dist_info.world_size}
        results |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        results |= {f"{name}.grad.{key}": p.grad for key, p in module.named_parameters() if p.grad is not None}
        results[f"{name}.eval/rows"] = module.eval()(_share(_draw(3, *shape), dist_info)).detach()
    return results


def _check_batchnorm_of_gpus(dist_info: DistInfo) -> Results:
    with torch_batchnorm.in_place_of_torchs(), patch.object(batchnorm, "_kernels", lambda x: batchnorm._OnGPU):
        return _check_batchnorm(dist_info)


def _check_half_precision_batchnorm(dist_info: DistInfo) -> Results:
    norm = sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3)), dist_info)
    x = _share(_draw(0, N, 3) + 3, dist_info).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x)
    out.sum().backward()
    assert x.grad is not None
    assert out.dtype == x.grad.dtype == torch.bfloat16
    return {"half.out/rows": out.detach().float(), "half.var": norm[0].running_var}


def _check_ssl(dist_info: DistInfo) -> Results:
    results: Results = {}
    images = torch.cat([_share(_draw(k, N, 3, 16, 16), dist_info) for k in range(3)])
    encodings = (_share(_draw(3, N, P), dist_info), _share(_draw(4, N, P), dist_info))
    for negatives in ("paper", "official"):
        torch.manual_seed(dist_info.rank)  # data_parallel must make all ranks start like rank 0
        ssl = build_ssl(
            "simclr",
            EncoderSettings("resnet10", width=8),
            SimCLRSettings(hidden=(16,), dim=6),
            replace(EQUIMOD, negatives=negatives),
            Standardizer(torch.zeros(P), torch.ones(P)),
            ESSLSettings(hidden=(16,)),
            probe_classes=3,
        ).double()
        for p in ssl.parameters():  # off the zeros of the residual branches, which would hide gradients
            p.data += 0.1 * torch.randn_like(p)
        parallel = data_parallel(sync_batchnorm(ssl, dist_info), dist_info)
        losses = parallel(images, encodings, _share(torch.arange(N) % 3, dist_info))
        losses["loss"].backward()
        results |= {f"{negatives}.{name}": value for name, value in mean_over_ranks(losses, dist_info).items()}
        results |= {f"{negatives}.grad.{name}": p.grad for name, p in ssl.named_parameters() if p.grad is not None}
        results |= {f"{negatives}.buffer.{name}": buffer for name, buffer in ssl.named_buffers()}
    return results


def _check_grad_cache(dist_info: DistInfo) -> Results:
    """Two parts a rank, with frozen statistics in the encoder, against the whole batch at once."""
    results: Results = {}
    images = torch.cat([_share(_draw(k, N, 3, 16, 16), dist_info) for k in range(3)])
    encodings = (_share(_draw(3, N, P), dist_info), _share(_draw(4, N, P), dist_info))
    params: Any = (None, None)  # not read by the step
    label = _share(torch.arange(N) % 3, dist_info)
    batch = Batch(images, params, encodings, label, label)
    for method in ("simclr", "byol"):
        torch.manual_seed(0)
        standardizer = Standardizer(torch.zeros(P), torch.ones(P))
        model = build_ssl(method, ENCODER, SETTINGS[method], EQUIMOD, standardizer, ESSLSettings(hidden=(16,)), 3)
        model.double().encoder.eval()
        if method == "byol":
            model.method.target_encoder.eval()
        parallel = data_parallel(sync_batchnorm(model, dist_info), dist_info)
        off = torch.amp.GradScaler("cpu", enabled=False)
        grad_cache = GradCache(model, parallel, 1 if dist_info.world_size == 1 else 2, off, None)
        for _ in range(2):  # DDP regroups gradients after the first step
            model.zero_grad()
            losses = grad_cache(batch)
        results |= {f"{method}.{name}": value for name, value in mean_over_ranks(losses, dist_info).items()}
        results |= {f"{method}.grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return results


TRAINING = ["--method", "simclr", "--equimod", "--dataset", "shapes", "--precision", "fp32", "--backend", "native"]
TRAINING += ["--epochs", "2", "--batch-size", "8", "--optim.lr", "0.2", "--encoder.width", "8", "--simclr.hidden", "16"]
TRAINING += ["--equivariance.projector", "12", "6", "--system.device", "cpu", "--system.workers", "1"]


def _check_bf16_gradients(dist_info: DistInfo) -> Results:
    """Gradients that are rounded on their way, and ten steps with them, slow ones, since paths part in quick ones."""
    linear = nn.Linear(3, 5).double()
    parallel = data_parallel(linear, dist_info, "bf16")
    parallel(_share(_draw(0, N, 3), dist_info)).square().mean().backward()
    assert linear.weight.grad is not None
    rounded = linear.weight.grad.bfloat16().double()
    assert torch.equal(linear.weight.grad, rounded) is (dist_info.world_size > 1)
    found = _check_training(dist_info, "--gradients", "bf16", "--optim.lr", "0.01")
    return {name: loss for name, loss in found.items() if name.endswith("loss")}


def _check_training(dist_info: DistInfo, *options: str) -> Results:
    """Ten steps of the trainer on drawn images: the same samples, parameters and losses on any number of ranks."""
    results: Results = {}
    with tempfile.TemporaryDirectory() as folder:
        draw_dataset(Path(folder) / "images", samples=40, seed=0)
        config = parse([*TRAINING, *options, "--data", f"{folder}/images"])
        records = open_records(Path(folder) / "images")
        pipeline = training_pipeline(config, records, dist_info)
        torch.set_default_dtype(torch.float64)
        try:
            state = build_train_state(config, records, len(pipeline), dist_info)
        finally:
            torch.set_default_dtype(torch.float32)
        for step, batch in enumerate(pipeline.epochs(Cursor(0, 0), 2)):
            batch = replace(batch, images=batch.images.double(), encodings=tuple(t.double() for t in batch.encodings))
            state.model.before_step(step / 10)
            losses = mean_over_ranks(train_step(state, batch, state.learning_rate(step)), dist_info)
            results[f"step {step}.loss"] = losses["loss"]
            results[f"step {step}.index/rows"] = batch.index
            results[f"step {step}.encoding/rows"] = batch.encodings[1]
    assert len(results) == 30
    return results


CHECKS = (
    _check_losses,
    _check_batchnorm,
    _check_batchnorm_of_gpus,
    _check_half_precision_batchnorm,
    _check_ssl,
    _check_grad_cache,
    _check_training,
    _check_bf16_gradients,
)
TOLERANCE = {_check_half_precision_batchnorm: 2e-2, _check_bf16_gradients: 5e-2}


def _agreements(dist_info: DistInfo) -> dict[str, object]:
    barrier(dist_info)
    assert_same_on_all_ranks("one", "the plan", dist_info)
    try:
        assert_same_on_all_ranks("all" if dist_info.rank == 0 else "some", "the plan", dist_info)
        message = ""
    except ValueError as error:
        message = str(error)
    return {
        "nobody": any_rank(False, dist_info),
        "the last": any_rank(dist_info.rank == dist_info.world_size - 1, dist_info),
        "mean": [float(t) for t in mean_over_ranks(
            {"b": torch.tensor(float(dist_info.rank)), "a": torch.tensor(1.0)}, dist_info).values()],
        "message": message,
        "local_rank": dist_info.local_rank,
    }  # fmt: skip


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.ci)])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What every rank of a group of 2, then of 4, has written, without its suffix."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = run_ranks([[__file__, str(folder)]] * request.param)
    assert [code for code, _ in ended] == [0] * request.param, ended
    return [folder / str(rank) for rank in range(request.param)]


@cache
def _alone(check: Callable[[DistInfo], Results]) -> Results:
    return check(ALONE)


@pytest.mark.parametrize("check", CHECKS)
def test_ranks_compute_what_one_process_computes_with_the_whole_batch(
    check: Callable[[DistInfo], Results], ranks: list[Path]
) -> None:
    tolerance = TOLERANCE.get(check, 1e-9)
    shares = [load_file(f"{rank}.safetensors") for rank in ranks]
    expected = _alone(check)
    assert expected
    for name, value in expected.items():
        parts = [share[f"{check.__name__}/{name}"] for share in shares]
        got = [torch.cat(parts)] if name.endswith("/rows") else parts
        for t in got:
            # At least something: a bias before a batch norm has gradient 0, but for rounding.
            scale = max(float(value.double().abs().max()), 1e-4)
            torch.testing.assert_close(
                t, value, rtol=tolerance, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_ranks_agree(ranks: list[Path]) -> None:
    size = len(ranks)
    for number, rank in enumerate(ranks):
        agreements = json.loads(rank.with_suffix(".json").read_text())
        assert agreements["nobody"] is False
        assert agreements["the last"] is True
        assert agreements["mean"] == [(size - 1) / 2, 1.0]
        assert agreements["message"] == "the plan differs between the ranks: 'all' on rank 0, 'some' on rank 1"
        assert agreements["local_rank"] == number


def test_alone_nothing_is_replaced_and_nobody_is_asked() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    assert sync_batchnorm(module, ALONE) is module
    assert type(module[0]) is nn.BatchNorm1d
    assert data_parallel(module, ALONE) is module
    assert any_rank(True, ALONE)
    assert not any_rank(False, ALONE)
    assert_same_on_all_ranks("anything", "the plan", ALONE)
    barrier(ALONE)


def test_world_alone_needs_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu") as dist_info:
        assert dist_info == ALONE
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [("tpu", 1, "choose auto, cpu or cuda"), ("cuda", 0, "lower --nproc-per-node"), ("auto", 1, "finds 1 GPUs")],
)
def test_a_rank_without_a_device_is_told_the_remedy(
    device: str, gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=message), process_group(device):
        pass


def _main(folder: Path) -> None:
    with process_group("cpu") as dist_info:
        results: Results = {}
        for check in CHECKS:
            results |= {f"{check.__name__}/{name}": value for name, value in check(dist_info).items()}
        save_file({name: t.contiguous() for name, t in results.items()}, folder / f"{dist_info.rank}.safetensors")
        (folder / f"{dist_info.rank}.json").write_text(json.dumps(_agreements(dist_info)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
