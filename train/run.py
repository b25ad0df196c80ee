"""One run from its configuration to the exported encoder: everything the loop needs, put together and taken down."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from equimod.models.ssl import SSL, build_ssl
from equimod.pipelines.build import build_pipeline
from equimod.pipelines.durable import durable_file, prune, remove_leftovers
from equimod.pipelines.order import Cursor
from equimod.pipelines.params import Standardizer
from equimod.pipelines.policy import POLICIES
from equimod.pipelines.records.protocol import Records
from equimod.train import checkpoint
from equimod.train.config import Config, ConfigError, differences, read_recipe
from equimod.train.data import prepare
from equimod.train.distributed import World, barrier, data_parallel, same_on_all_ranks, sync_batchnorm, world
from equimod.train.lars import LARS, lars_groups
from equimod.train.loop import AUTOCAST, Parts, train
from equimod.train.report import Reporter
from equimod.train.schedule import warmup_cosine

SIGTERM_EXIT = 128 + signal.SIGTERM


def run(config: Config) -> int:
    """Train after `config`, in this process as one rank. Returns the exit code: 0, or 143 when stopped by SIGTERM.

    Raises ConfigError for what the command line must change, RecordsError, CheckpointError and OSError otherwise.
    """
    with _sigterm() as stop_asked, ExitStack() as stack:
        with _usage():
            here = stack.enter_context(world(config.system.device))
        return _run(config, here, stop_asked)


def _run(config: Config, here: World, stop_asked: threading.Event) -> int:
    folder = config.run_folder()
    resume_from = _open_folder(folder, config, here)
    config, records = prepare(config, here)
    _set_up_torch(config, here)
    with _usage():
        pipeline = build_pipeline(
            records,
            POLICIES[config.policy],
            backend=config.backend,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=here.rank,
            world_size=here.size,
            device=here.device,
            with_x=config.equimod,
            workers=config.system.workers,
            window=config.shuffle_window,
        )
    model = build_model(config, records).to(here.device).to(memory_format=torch.channels_last)
    parallel = data_parallel(sync_batchnorm(model, here), here)
    optimizer = LARS(
        lars_groups(model),
        lr=config.optim.lr,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        trust_coefficient=config.optim.trust_coefficient,
    )
    scaler = torch.amp.GradScaler(here.device.type, enabled=config.precision == "fp16")
    provenance = checkpoint.Provenance(records.fingerprint(), here.size)
    start = Cursor(0, 0, config.seed)
    if resume_from is not None:
        start = checkpoint.restore(resume_from, model, optimizer, scaler, provenance)
    if here.rank == 0:
        _write_config(folder, config)

    steps = len(pipeline)
    learning_rate = partial(
        warmup_cosine,
        total_steps=config.epochs * steps,
        warmup_steps=round(config.optim.warmup_epochs * steps),
        peak=config.optim.lr,
    )
    with _usage():
        learning_rate(0)

    def save(cursor: Cursor, global_step: int) -> str:
        path = folder / "checkpoints" / f"step-{global_step:08d}"
        if here.rank == 0:
            path = checkpoint.save(folder / "checkpoints", cursor, global_step, model, optimizer, scaler, provenance)
        barrier(here)
        return str(path)

    start_step = start.epoch * steps + start.step
    with Reporter(
        folder if here.rank == 0 else None,
        total_steps=config.epochs * steps,
        start_step=start_step,
        batch_size=config.batch_size,
    ) as reporter:
        reporter.say(_opening(config, records, model, here, folder, start_step))
        reached_end = train(
            Parts(model, parallel, optimizer, scaler, AUTOCAST[config.precision], learning_rate),
            pipeline,
            start,
            config.epochs,
            world=here,
            reporter=reporter,
            log_every=config.log.every,
            checkpoint_every=config.log.checkpoint_every,
            save=save,
            stop_asked=stop_asked.is_set,
        )
        if not reached_end:
            reporter.say(f"stopped by SIGTERM after a checkpoint; --resume auto goes on in {folder}")
            return SIGTERM_EXIT
        if here.rank == 0:
            checkpoint.export_encoder(model.encoder, folder / "encoder.safetensors")
        reporter.say(f"done: {folder}; evaluate it with: python train/evaluate.py {folder}")
    return 0


def build_model(config: Config, records: Records) -> SSL:
    """The model of a configuration, initialised from its seed, its parameter statistics drawn over the real sizes."""
    torch.manual_seed(config.seed)
    standardizer = Standardizer.fit(POLICIES[config.policy], records.size) if config.equimod else None
    return build_ssl(
        config.method,
        config.encoder,
        getattr(config, config.method),
        config.equivariance if config.equimod else None,
        standardizer,
    )


def _open_folder(folder: Path, config: Config, here: World) -> Path | None:
    """Make the run's folder, and find the checkpoint to resume from.

    Raises ConfigError where the folder holds a run that was not asked for, or one of another configuration.
    """
    source = folder if config.resume in ("never", "auto") else Path(config.resume).parent.parent
    held = source / "config.yaml"
    if config.resume == "never" and held.exists() and not config.overwrite:
        raise ConfigError(f"{folder} holds a run; give --resume auto to go on, --overwrite to delete it, or --output")
    if config.resume != "never" and held.exists():
        changed = differences(config, read_recipe(held))
        if changed:
            raise ConfigError(
                f"cannot resume {source} with another configuration: {', '.join(changed)}; "
                "give the same settings, or another --output"
            )
    with _usage():
        same_on_all_ranks(replace(config, system=Config.system).to_yaml(), "the configuration", here)
    if here.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if config.overwrite:
            _delete_run(folder)
        remove_leftovers(folder)
        if (folder / "checkpoints").exists():
            prune(folder / "checkpoints")
    barrier(here)
    if config.resume == "auto":
        return checkpoint.newest(folder / "checkpoints")
    return None if config.resume == "never" else Path(config.resume)


def _delete_run(folder: Path) -> None:
    """Delete what a run and its evaluation write, and nothing else that the folder may hold."""
    for name in ("checkpoints", "tensorboard", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "encoder.safetensors", "eval.json", "config.yaml"):
        (folder / name).unlink(missing_ok=True)


def _write_config(folder: Path, config: Config) -> None:
    with durable_file(folder / "config.yaml") as handle:
        handle.write(config.to_yaml().encode())


def _set_up_torch(config: Config, here: World) -> None:
    torch.set_float32_matmul_precision("highest" if config.precision == "fp32" else "high")
    if here.device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def _opening(config: Config, records: Records, model: SSL, here: World, folder: Path, start_step: int) -> str:
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    equimod = " + EquiMod" if config.equimod else ""
    resumed = f", resumed at step {start_step}" if start_step else ""
    return (
        f"{config.method}{equimod} on {config.dataset}: {len(records)} images, {config.encoder.arch} width "
        f"{config.encoder.width}, {parameters:.1f} M parameters, {here.size} rank(s) on {here.device.type}, "
        f"{config.precision}, output {folder}{resumed}"
    )


@contextmanager
def _usage() -> Iterator[None]:
    """Turn the ValueErrors of constructors that check settings into ConfigErrors."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that is set when SIGTERM arrives. A second SIGTERM ends the process at once."""
    asked = threading.Event()

    def handle(*_: object) -> None:
        if asked.is_set():
            sys.exit(SIGTERM_EXIT)
        asked.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
