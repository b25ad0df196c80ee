"""One run from its configuration to the exported encoder: sets up what the loop needs, and cleans up after it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from equimod.models.encoder import Encoder, require_arch
from equimod.models.ssl import SSL, build_ssl
from equimod.pipelines.backends.choose import choose
from equimod.pipelines.build import Pipeline, build_pipeline
from equimod.pipelines.params import Standardizer
from equimod.pipelines.records.protocol import Contents, Fingerprint, Records, fingerprint
from equimod.pipelines.records.remote import url_of
from equimod.pipelines.sampler import Cursor
from equimod.pipelines.timing import StageTimes
from equimod.train.checkpoint import Checkpoint, export_encoder, restore, save, step_folder
from equimod.train.command import refused_settings
from equimod.train.config import Config
from equimod.train.data import measured_normalization, prepare
from equimod.train.distributed import (
    DistInfo,
    assert_same_on_all_ranks,
    barrier,
    data_parallel,
    of_first_rank,
    process_group,
    sync_batchnorm,
)
from equimod.train.environment import code_digests
from equimod.train.grad_cache import GradCache
from equimod.train.loop import AUTOCAST, RunContext, TrainState, image_dtype, train
from equimod.train.optimizers import build_optimizer
from equimod.train.report import Reporter
from equimod.train.run_folder import CHECKPOINTS, checkpoint_to_resume, held, take
from equimod.train.schedule import cosine, warmup_cosine
from equimod.train.signals import SIGTERM_EXIT, stop_signal
from equimod.train.time_spent import Clock
from equimod.train.trackers import require_trackers
from equimod.train.validation import Validation
from equimod.train.weights import GivenWeights, given_weights, settled_weights


def run_training(config: Config) -> int:
    """Train as `config` says, this process being one rank. Returns the exit code: 0, or 143 when stopped by SIGTERM.

    Raises ConfigError for what the command line must change, RecordsError, CheckpointError and OSError otherwise.
    Until everything is put together, nothing in the output folder is changed, and SIGTERM ends the process at once.
    """
    with ExitStack() as stack:
        with refused_settings():
            dist_info = stack.enter_context(process_group(config.system.device))
            config = config.on_device(dist_info.device.type)
            if dist_info.rank == 0:
                require_trackers(config.log.to)
            require_arch(config.encoder)
            config, weights = given_weights(config)
            code = "\n".join(f"{name} {digest}" for name, digest in code_digests().items())
            assert_same_on_all_ranks(code, "the code of equimod", dist_info)
            assert_same_on_all_ranks(replace(config, system=Config.system).to_yaml(), "the configuration", dist_info)
        notes: list[str] = []
        resume_from = of_first_rank(lambda: _begin(config, stack, notes.append), dist_info)
        config, weights = settled_weights(config, weights, resume_from)
        config, records = prepare(config, dist_info)
        config, why = with_backend(config, records, resume_from, dist_info)
        config = with_normalization(config, records, resume_from)
        with refused_settings():
            found = fingerprint(records)
            assert_same_on_all_ranks(f"{found.table}{found.content}", "the content of the training records", dist_info)
            assert_same_on_all_ranks(config.backend, "the backend", dist_info)
            pipeline = training_pipeline(config, records, dist_info)
            state = build_train_state(config, records, len(pipeline), dist_info, pipeline.stages, weights)
        told = [f"backend {config.backend}: {why}", *notes]
        if config.shuffle_window is None and any(url_of(path) for path in config.data or ()):
            told.append(
                "images come from a URL in random order, a block for each until all are here; --shuffle-window fetches "
                "neighbours together"
            )
        if weights is not None:
            told.append(weights.note(state.model.encoder))
        validation = Validation.of(config, records)
        run = PreparedRun(config, records, found, pipeline, state, dist_info, resume_from, validation, tuple(told))
        start = Cursor(0, 0)
        if resume_from is not None:
            start = restore(resume_from, state, found, resume_anyway=config.resume_anyway)
        if dist_info.rank == 0:
            take(config, resume_from)
        barrier(dist_info)
        with stop_signal() as stop_asked:
            return _train(run, start, stop_asked)


def _begin(config: Config, stack: ExitStack, say: Callable[[str], None]) -> Checkpoint | None:
    """On the first rank: hold the run's folder until `stack` ends, and find where to go on."""
    stack.enter_context(held(config.run_folder()))
    return checkpoint_to_resume(config, say)


@dataclass(frozen=True)
class PreparedRun:
    """A run that is put together and has written nothing yet."""

    config: Config
    records: Records
    fingerprint: Fingerprint
    pipeline: Pipeline
    state: TrainState
    dist_info: DistInfo
    resume_from: Checkpoint | None
    validation: Validation | None
    notes: tuple[str, ...]  # why this backend, and what is to be said of the checkpoint

    @property
    def folder(self) -> Path:
        return self.config.run_folder()

    def validate(self) -> dict[str, float]:
        """The accuracies by now, which the first rank measures. Without a validation there are none."""
        validation, encoder = self.validation, self.state.model.encoder
        return of_first_rank(lambda: validation(encoder) if validation else {}, self.dist_info)

    def save(self, cursor: Cursor, global_step: int) -> str:
        """Write a checkpoint, on rank 0, and wait for it. Returns its path."""
        checkpoints = self.folder / CHECKPOINTS
        if self.dist_info.rank == 0:
            save(checkpoints, cursor, global_step, self.state, self.config, self.fingerprint)
        barrier(self.dist_info)
        return str(step_folder(checkpoints, global_step))

    def opening(self, start_step: int) -> str:
        """What the run says before its first step."""
        config, ranks, device = self.config, self.dist_info.world_size, self.dist_info.device.type
        parameters = sum(p.numel() for p in self.state.model.parameters()) / 1e6
        resumed = f", resumed at step {start_step}" if start_step else ""
        return (
            f"{config.title} on {config.data_name}: {len(self.records)} images, {config.encoder.title}, "
            f"{parameters:.1f} M parameters, {config.optim.title}, {ranks} rank(s) on {device}, {config.precision}, "
            f"output {self.folder}{resumed}"
        )


def build_model(config: Config, records: Contents, weights: GivenWeights | None = None) -> SSL:
    """The model of a configuration, initialised from its seed, its parameter statistics drawn over the real sizes.

    Its encoder starts from `weights` where they are given. Raises ConfigError where they do not fit.
    """
    torch.manual_seed(config.seed)
    standardizer = Standardizer.fit(config.augment, records.size) if config.equimod else None
    return build_ssl(
        config.method,
        config.encoder,
        getattr(config, config.method),
        config.equivariance if config.equimod else None,
        standardizer,
        config.rotation if config.essl else None,
        len(records.classes) if config.online_probe else None,
        config.augment.size,
        weights.tensors if weights else None,
        config.x_as_view,
        config.norm_per_view,
    )


def with_backend(
    config: Config, records: Records, resume_from: Checkpoint | None, dist_info: DistInfo
) -> tuple[Config, str]:
    """The configuration with the backend that `auto` stands for, and the reason.

    A resumed run keeps the one it had, so that its images stay the same to the bit where another one is there now.
    """
    if config.backend != "auto":
        return config, "as given"
    if resume_from is not None:
        return replace(config, backend=resume_from.config.backend), "as before"
    choice = choose(records, dist_info.device)
    return replace(config, backend=choice.backend), choice.reason


def with_normalization(config: Config, records: Records, resume_from: Checkpoint | None) -> Config:
    """The configuration with the mean and standard deviation that are to be measured; a resumed run keeps its own."""
    if config.normalize != "measured":
        return config
    if resume_from is not None:
        normalize = resume_from.config.augment.x.normalize
    else:
        normalize = measured_normalization(records, config.augment.x, workers=config.system.workers)
    return replace(config, augment=config.augment.normalized(normalize))


def training_pipeline(config: Config, records: Records, dist_info: DistInfo) -> Pipeline:
    return build_pipeline(
        records,
        config.augment,
        backend=config.backend,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=dist_info.rank,
        world_size=dist_info.world_size,
        device=dist_info.device,
        with_x=config.equimod or config.x_as_view,
        workers=config.system.workers,
        window=config.shuffle_window,
        dtype=image_dtype(config.precision),
        resolution=config.resolution_by_epoch(),
    )


def build_train_state(
    config: Config,
    records: Contents,
    steps: int,
    dist_info: DistInfo,
    stages: StageTimes | None = None,
    weights: GivenWeights | None = None,
) -> TrainState:
    """Model, optimizer, scaler and schedules; `steps` an epoch. ValueError where the schedule has no room.

    The time that steps take goes to `stages`, those of the pipeline in a run. The encoder starts from `weights`. Raises
    ConfigError where they do not fit.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    learning_rate = partial(
        warmup_cosine,
        total_steps=config.epochs * steps,
        warmup_steps=round(config.optim.warmup_epochs * steps),
        peak=config.optim.lr,
    )
    learning_rate(0)
    decay = config.optim.weight_decay
    weight_decay = partial(
        cosine,
        total_steps=config.epochs * steps,
        start=decay,
        end=decay if config.optim.weight_decay_end is None else config.optim.weight_decay_end,
    )
    local_batch_size = config.batch_size // dist_info.world_size
    if local_batch_size % config.grad_cache:
        raise ValueError(
            f"grad_cache={config.grad_cache} does not divide the {local_batch_size} images of a rank; "
            f"give a divisor of {local_batch_size}"
        )
    model = build_model(config, records, weights).to(dist_info.device).to(memory_format=torch.channels_last)
    parallel = data_parallel(sync_batchnorm(model, dist_info, config.system.batchnorm), dist_info, config.gradients)
    if config.system.compile != "no":
        _compile_encoders(model, config.system.compile)
    optimizer = build_optimizer(config.optim, model)
    scaler = torch.amp.GradScaler(dist_info.device.type, enabled=config.precision == "fp16")
    grad_cache = GradCache(
        model, parallel, config.grad_cache, scaler, AUTOCAST[config.precision], stages or StageTimes()
    )
    return TrainState(model, optimizer, grad_cache, learning_rate, weight_decay)


def _compile_encoders(model: SSL, mode: str) -> None:
    """Have torch compile the encoder, and a method's second one, at their first call. ValueError without a compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # only now: it takes a second to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            f"system.compile={mode} needs a C++ compiler: apt-get install g++, or give --system.compile no"
        ) from error
    for module in model.modules():
        if isinstance(module, Encoder):
            module.compile(mode=mode, dynamic=False)


def _train(run: PreparedRun, start: Cursor, stop_asked: Callable[[], bool]) -> int:
    config, folder, steps = run.config, run.folder, len(run.pipeline)
    is_first = run.dist_info.rank == 0
    start_step = start.epoch * steps + start.step
    with Reporter(
        folder if is_first else None,
        Clock(run.pipeline.stages, run.pipeline.workers, config.batch_size // run.dist_info.world_size),
        config,
        total_steps=config.epochs * steps,
        start_step=start_step,
    ) as reporter:
        reporter.say(run.opening(start_step))
        for note in run.notes:
            reporter.say(note)
        if run.dist_info.device.type == "cuda":
            reporter.say(f"operators: {run.pipeline.operators.description}")
        context = RunContext(
            dist_info=run.dist_info,
            reporter=reporter,
            epochs=config.epochs,
            log_every=config.log.every,
            checkpoint_every=config.log.checkpoint_every,
            validate_every=config.log.validate_every,
            validate=run.validate,
            save=run.save,
            last_good=str(run.resume_from.path if run.resume_from else "none"),
            stop_asked=stop_asked,
        )
        if not train(run.state, run.pipeline, start, context):
            reporter.say(f"stopped by SIGTERM after a checkpoint; --resume auto goes on in {folder}")
            return SIGTERM_EXIT
        if is_first:
            export_encoder(run.state.model.encoder, folder / "encoder.safetensors")
        reporter.say(f"done: {folder}; evaluate it with: equimod evaluate {folder}")
    return 0
