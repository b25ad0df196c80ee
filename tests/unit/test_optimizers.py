"""AdamW against a reference in float64, its schedule, what it leaves in a checkpoint, and how it is chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import same_end
from torch import Tensor, nn

from equimod.models.ssl import SSL
from equimod.pipelines.batch import Batch
from equimod.pipelines.records.protocol import Fingerprint
from equimod.pipelines.sampler import Cursor
from equimod.train import loop
from equimod.train.checkpoint import open_checkpoint, restore, save, step_folder
from equimod.train.config import Config, ConfigError, parse, read_recipe
from equimod.train.config.optim import OptimSettings
from equimod.train.distributed import DistInfo
from equimod.train.loop import NotFiniteError, TrainState, assert_finite
from equimod.train.main import main
from equimod.train.optimizers import build_optimizer, kept_tensors, set_weight_decay
from equimod.train.run import build_train_state
from equimod.train.schedule import cosine

ADAMW = OptimSettings("adamw", lr=0.01, betas=(0.8, 0.95), weight_decay=0.3, warmup_epochs=1)
ALONE = DistInfo(0, 0, 1, torch.device("cpu"))
RATES = ((0.01, 0.3), (0.02, 0.25), (0.005, 0.2))  # learning rate and weight decay of each step


class _Records:
    size = np.array([[40, 30]], dtype=np.int32)
    classes = ("a",)


def _state(config: Config) -> TrainState:
    return build_train_state(config, _Records(), 10, ALONE)


@pytest.fixture
def config(options: list[str]) -> Config:
    return parse([*options, "--optim.name", "adamw", "--precision", "fp32"])


def _set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.zeros_like(p).copy_(torch.randn(p.shape, generator=generator)) if p.requires_grad else None


def _reference(p: Tensor, gradients: list[Tensor], decays: bool) -> Tensor:
    """Loshchilov and Hutter, 2019, Algorithm 2, with the learning rate in place of the schedule multiplier."""
    (beta_1, beta_2), p = ADAMW.betas, p.double()
    mean, square = torch.zeros_like(p), torch.zeros_like(p)
    for t, ((lr, weight_decay), gradient) in enumerate(zip(RATES, gradients, strict=True), 1):
        mean = beta_1 * mean + (1 - beta_1) * gradient
        square = beta_2 * square + (1 - beta_2) * gradient**2
        step = mean / (1 - beta_1**t) / ((square / (1 - beta_2**t)).sqrt() + 1e-8)
        p = p - lr * step - lr * weight_decay * decays * p
    return p


def test_adamw_steps_equal_the_reference_in_the_layout_of_training(config: Config) -> None:
    state = _state(replace(config, optim=ADAMW))
    kernel = state.model.encoder.layer1[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    gradients: dict[str, list[Tensor]] = {name: [] for name in before}
    for step, (lr, weight_decay) in enumerate(RATES):
        _set_gradients(state.model, step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        set_weight_decay(state.optimizer, weight_decay)
        state.optimizer.step()
        for name, p in state.model.named_parameters():
            assert p.grad is not None
            gradients[name].append(p.grad.double())
    for name, p in state.model.named_parameters():
        expected = _reference(before[name], gradients[name], decays=p.ndim > 1)
        torch.testing.assert_close(p.double(), expected, rtol=2e-6, atol=2e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_weight_decay_goes_along_half_a_cosine() -> None:
    values = [cosine(step, total_steps=4, start=0.04, end=0.4) for step in range(5)]
    quarter = (0.4 - 0.04) * (1 - math.sqrt(0.5)) / 2
    assert values == pytest.approx([0.04, 0.04 + quarter, 0.22, 0.4 - quarter, 0.4])


def test_every_step_of_a_run_has_its_weight_decay_and_learning_rate(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []
    original = loop.train_step

    def train_step(state: TrainState, batch: Batch, lr: float) -> dict[str, Tensor]:
        losses = original(state, batch, lr)
        seen.append([group[key] for key in ("weight_decay", "lr") for group in state.optimizer.param_groups])
        return losses

    monkeypatch.setattr(loop, "train_step", train_step)
    rates = ["--optim.lr", "1e-3", "--optim.weight-decay", "0.04", "--optim.weight-decay-end", "0.4"]
    assert main([*options, "--output", str(tmp_path / "run"), "--optim.name", "adamw", *rates]) == 0
    for step, found in enumerate(seen):  # 12 steps, 3 of them of warm-up
        decay = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 12)) / 2
        lr = 1e-3 * (step + 1) / 3 if step < 3 else 1e-3 * (1 + math.cos(math.pi * (step - 3) / 9)) / 2
        assert found == pytest.approx([decay, 0.0, lr, lr])
    assert len(seen) == 12


def _stepped(state: TrainState, steps: range) -> TrainState:
    for step in steps:
        _set_gradients(state.model, step)
        state.optimizer.step()
    return state


def _all_tensors(state: TrainState) -> dict[str, Tensor]:
    return {**state.model.state_dict(), **{f"of {name}": t for name, t in kept_tensors(state.model, state.optimizer)}}


def test_a_checkpoint_holds_all_that_adamw_goes_on_from(config: Config, tmp_path: Path) -> None:
    records = Fingerprint(table="table", content="content", dates="dates")
    state = _stepped(_state(config), range(3))
    save(tmp_path, Cursor(1, 2), 12, state, config, records)
    checkpoint = open_checkpoint(step_folder(tmp_path, 12))
    kept = checkpoint.tensors("optimizer.safetensors")
    assert {f"{kind}/encoder.conv1.weight" for kind in ("exp_avg", "exp_avg_sq", "step")} <= kept.keys()
    assert kept["step/encoder.conv1.weight"] == 3
    assert len(kept) == 3 * sum(p.requires_grad for p in state.model.parameters())
    resumed = _state(replace(config, seed=1))
    assert restore(checkpoint, resumed, records) == Cursor(1, 2)
    expected, found = _all_tensors(_stepped(state, range(3, 5))), _all_tensors(_stepped(resumed, range(3, 5)))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq"])
def test_an_average_that_is_not_finite_is_not_saved(config: Config, kind: str) -> None:
    state = _stepped(_state(config), range(1))
    assert_finite(state, 3, 0.5, "step-2", ALONE)
    state.optimizer.state[state.model.encoder.conv1.weight][kind][0] = math.inf
    with pytest.raises(NotFiniteError, match=f"momentum of {kind}/encoder.conv1.weight is not finite in step 3"):
        assert_finite(state, 3, 0.5, "step-2", ALONE)


def test_a_run_with_adamw_goes_on_bit_for_bit(options: list[str], tmp_path: Path) -> None:
    options = [*options, "--optim.name", "adamw", "--optim.weight-decay-end", "0.2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*options, "--output", str(whole), "--log.checkpoint-every", "7"]) == 0
    start = ["--resume", str(whole / "checkpoints" / "step-00000007")]
    assert main([*options, "--output", str(resumed), "--log.checkpoint-every", "7", *start]) == 0
    assert same_end(whole, resumed)


IMAGENET = ["--method", "simclr", "--dataset", "imagenet", "--data", "records"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("lars", 4.8, 1e-6)),
        (["--encoder.arch", "resnet18"], ("lars", 4.8, 1e-6)),
        (["--encoder.arch", "timm:resnet50"], ("lars", 4.8, 1e-6)),
        (["--encoder.arch", "vit_small_patch16_224"], ("adamw", 0.0024, 0.1)),
        (["--encoder.arch=convnext_tiny", "--batch-size", "512"], ("adamw", 0.0003, 0.1)),
        (["encoder.arch=convnext_tiny", "batch_size=512"], ("adamw", 0.0003, 0.1)),
        (["--encoder.arch", "vit_small_patch16_224", "--optim.lr", "0.001"], ("adamw", 0.001, 0.1)),
        (["--encoder.arch", "vit_small_patch16_224", "--optim.name", "lars"], ("lars", 4.8, 1e-6)),
        (["--optim.name", "adamw"], ("adamw", 0.0024, 0.1)),
        (["--config", "simclr_vits16_imagenet"], ("adamw", 0.0024, 0.1)),
        (["--config", "simclr_vits16_imagenet", "--encoder.arch", "vit_base_patch16_224"], ("adamw", 0.0024, 0.1)),
        (["--config", "simclr_vits16_imagenet", "--encoder.arch", "timm:resnet50"], ("lars", 4.8, 1e-6)),
    ],
)
def test_the_optimizer_follows_from_the_architecture_unless_it_is_given(
    options: list[str], expected: tuple[str, float, float]
) -> None:
    """LARS's rate of its own is .3 for 256 images (SimCLR), AdamW's 1.5e-4 (MoCo v3)."""
    freeze = ["--encoder.no-freeze-patch-embed"] if "timm:resnet50" in options and "--config" in options else []
    optim = parse([*IMAGENET, *options, *freeze]).optim
    assert (optim.name, optim.lr, optim.weight_decay) == expected


def test_it_follows_in_recipes_too_and_stays_in_what_a_run_writes(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("dataset: imagenet\nencoder: {arch: vit_small_patch16_224}\nbatch_size: 1024\n")
    config = read_recipe(recipe)
    assert (config.optim.name, config.optim.lr, config.optim.warmup_epochs) == ("adamw", 0.0006, 10)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert read_recipe(tmp_path / "config.yaml") == config
    chosen = replace(config, encoder=replace(config.encoder, arch="convnext_tiny"), optim=OptimSettings("lars", lr=0.7))
    (tmp_path / "config.yaml").write_text(chosen.to_yaml())
    assert read_recipe(tmp_path / "config.yaml") == chosen


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"name": "adamw"}, "optim.lr=4.0 is LARS's and far too large for AdamW; give 0.1 or less, such as 0.00015"),
        ({"name": "adamw", "lr": 0.01, "momentum": 0.8}, "optim.momentum=0.8 has no effect with optim.name=adamw"),
        ({"name": "adamw", "lr": 0.01, "trust_coefficient": 0.1}, "optim.trust_coefficient=0.1 has no effect with"),
        ({"betas": (0.9, 0.95)}, r"optim.betas=\(0.9, 0.95\) has no effect with optim.name=lars; leave it out"),
        ({"name": "adamw", "lr": 0.01, "betas": (0.9, 1.0)}, r"optim.betas=1.0 must lie in \[0, 1\)"),
        ({"weight_decay_end": -1.0}, "optim.weight_decay_end=-1.0 is too small; give 0 or more"),
    ],
)
def test_what_does_not_go_with_an_optimizer_is_refused(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        OptimSettings(**settings)


def test_a_batch_without_a_number_leaves_the_error_to_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*IMAGENET, "--optim.name", "adamw", "--batch-size", "many"])
    assert "batch-size" in capsys.readouterr().err


def test_the_models_optimizer_is_the_one_that_settings_name(config: Config) -> None:
    model = _state(config).model
    assert isinstance(model, SSL)
    assert type(build_optimizer(ADAMW, model)) is torch.optim.AdamW
    assert type(build_optimizer(OptimSettings(), model)).__name__ == "LARS"
