"""The settings of a run, as dataclasses: what a recipe, a command line and config.yaml hold.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from tyro.conf import Fixed, Suppress, arg

from equimod.models.settings import (
    METHOD_NAMES,
    RESNETS,
    ConfigError,
    EncoderSettings,
    EquiModSettings,
    ESSLSettings,
    MethodName,
    MethodSettings,
    require_at_least,
)
from equimod.pipelines.errors import nearest
from equimod.pipelines.policy import OPERATORS, POLICIES, AugmentationPolicy, evaluation_policy
from equimod.pipelines.resolution import Resolution
from equimod.train.config.optim import OptimSettings

SEEDS = 2**64
Labels = Literal["auto", "folder", "none"]  # as of `records.folder`, which takes a while to import


@dataclass(frozen=True)
class ResolutionSettings:
    """Smaller images in the first epochs, which saves time. What is drawn stays the same."""

    start: int | None = None
    """Side in pixels of the images of the first epoch; none: all epochs have the policy's. It rises in steps of what
    the encoder makes one pixel of: 32 with the stem for ImageNet, 8 with that for CIFAR."""
    until: float = 0.6
    """Share of the epochs after which images have the size of the policy."""

    def __post_init__(self) -> None:
        if not 0 < self.until < 1:
            raise ConfigError(f"resolution.until={self.until} must lie between 0 and 1")


@dataclass(frozen=True)
class SystemSettings:
    """What changes the speed of a run and not its result."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    workers: int | None = None
    """Loader threads of each rank; none: its share of the machine's cores, less up to three on a GPU."""
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """Mode of torch.compile for the encoder, the last two with CUDA graphs. The first takes a minute; then a step of
    ResNet-50 is 1.4 times as fast on an H200."""
    batchnorm: Literal["torch", "apex"] = "torch"
    """The encoder's batch norm over several GPUs; apex: its cudnn_gbn, within one node. Not run on GPUs yet."""

    def __post_init__(self) -> None:
        require_at_least(self, "system.", workers=1)


@dataclass(frozen=True)
class LogSettings:
    every: int = 10
    """Steps between two entries of metrics.jsonl and TensorBoard."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; there is one at the end and one at SIGTERM too."""
    validate_every: int | None = None
    """Steps between two validations, which log the accuracy of nearest neighbours and of a linear classifier on the
    validation images, from at most 10,000 training images; there is one at the end too. None: no validation."""
    to: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Trackers that get what TensorBoard gets, one or both; each needs the extra of its name."""

    def __post_init__(self) -> None:
        require_at_least(self, "log.", every=1, checkpoint_every=1, validate_every=1)


@dataclass(frozen=True)
class _RunSettings:
    method: MethodName = "simclr"
    """Invariance method; none leaves EquiMod or E-SSL alone."""
    equimod: bool = False
    """Add the equivariance module of EquiMod beside the method."""
    essl: bool = False
    """Add the prediction of rotations of E-SSL beside the method."""
    x_as_view: bool = False
    """Make x a third view of the method's loss, which is the mean over the three pairs: a control for EquiMod."""
    norm_per_view: bool = False
    """Have batch norms of encoder and heads see each view by itself, as BYOL, Barlow Twins, SimSiam and VICReg have it;
    otherwise all together, as EquiMod's authors do."""
    online_probe: bool = False
    """Train a linear classifier on detached representations beside the run and log its accuracy (probe_top1)."""
    dataset: Literal["shapes", "cifar10", "imagenet"] | None = None
    """A data set whose settings are known; none: images of one's own in --data, or else shapes. shapes is drawn and
    needs nothing; cifar10 is downloaded where --data is not given."""
    data: tuple[Path, ...] | None = None
    """Training images: records, a folder or a list of images, an archive or shards; several are taken together."""
    labels: Labels = "auto"
    """What labels the images of a folder have: folder, the name of the first folder on their way; none; auto: whichever
    is plain. Training itself reads none."""
    val: tuple[Path, ...] | None = None
    """Validation images, kept for evaluate.py."""
    output: Path | None = None
    """Folder of the run; none: runs/METHOD[-equimod][-essl]-DATASET, or with the name of --data in its place."""
    config: Annotated[Path | None, arg(aliases=["--recipe"])] = None
    """A recipe in place of the one of the method and data set: a file, or the name of one of this project's."""
    backend: Literal["auto", "native", "dali", "ffcv"] = "auto"
    """What decodes and crops; auto takes the fastest that is installed and fits, and says which."""
    epochs: int = 800
    """Passes over the data."""
    batch_size: int = 512
    """Images a step over all ranks together."""
    grad_cache: int = 1
    """Chunks in which a rank's images go through the encoder, for batches that do not fit at once (GradCache, Gao et
    al., 2021). Losses see the whole batch, batch norms of the encoder one chunk at a time, which changes the gradient;
    the encoder runs forward twice."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of the forward pass; auto: bf16 on a GPU, fp32 on a CPU. Weights, losses and the optimizer stay
    float32. TF32 is off in all of them."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Precision in which the ranks of a run add up their gradients. bf16 halves what they send, and rounds it."""
    seed: int = 0
    """Seed of everything random: weights, order, augmentations."""
    resume: str = "never"
    """never, auto (go on where the run in --output stopped), or the folder of a checkpoint."""
    resume_anyway: bool = False
    """Go on although the code or a library is another one, and may compute other numbers."""
    overwrite: bool = False
    """Delete the run that --output holds and start anew."""
    policy: str = "simclr_shapes"
    """Name of the augmentation policy. Every field of it is a setting, such as --augment.crop.scale 0.2 1 for all
    views, --augment.views.0.jitter.hue 0.2 for one, --augment.blur None."""
    augment: Suppress[Fixed[AugmentationPolicy]] = POLICIES["simclr_shapes"]
    """The policy with these changes."""
    image_size: int | None = None
    """Side of the images in pixels; none: that of the policy. A blur grows with it."""
    normalize: Literal["given", "measured"] = "given"
    """Mean and standard deviation that are taken off: given with the policy or by --augment.normalize.mean and .std, or
    measured over the training images."""
    shuffle_window: int | None = None
    """Shuffle within about this many neighbours, for cold disks; none: over the whole set."""
    encoder: EncoderSettings = EncoderSettings()
    resolution: ResolutionSettings = ResolutionSettings()


@dataclass(frozen=True)
class Config(MethodSettings, _RunSettings):
    """Train an encoder without labels, with or without EquiMod.

    Settings come from the recipe of the method and data set (or --config RECIPE), then from these options, which may
    be written as in a recipe too (optim.lr=3). `equimod train --gpus N` starts a process for each of N GPUs.
    Example: equimod train --method simclr --equimod --dataset cifar10 --data records/train
    """

    equivariance: EquiModSettings = EquiModSettings()
    rotation: ESSLSettings = ESSLSettings()
    optim: OptimSettings = OptimSettings()
    system: SystemSettings = SystemSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range and for settings that contradict each other."""
        require_at_least(self, "", epochs=1, batch_size=2, grad_cache=1, seed=0)
        if self.seed >= SEEDS:
            raise ConfigError(f"seed={self.seed} is too large; give less than {SEEDS}")
        self._check_paths()
        self._check_policy()
        self.resolution_by_epoch()
        if self.encoder.timm_name is not None and self.essl and self.rotation.size is not None:
            raise ConfigError(
                f"rotation.size={self.rotation.size} gives the encoder smaller images, and encoder.arch="
                f"{self.encoder.arch} is made for one size; leave it out"
            )
        if self.system.compile in ("reduce-overhead", "max-autotune") and (self.grad_cache > 1 or self.essl):
            raise ConfigError(
                f"system.compile={self.system.compile} keeps one output of the encoder at a time, and --grad-cache and "
                "--essl need several; give --system.compile default"
            )
        if self.norm_per_view and self.equivariance.layer is not None:
            raise ConfigError(
                f"equivariance.layer={self.equivariance.layer} is read from one pass of the encoder, and norm_per_view "
                "takes one for each view; leave one of them out"
            )
        if self.x_as_view and (self.equimod or self.method in ("byol", "none")):
            raise ConfigError(
                "x_as_view is a control for simclr, barlow_twins, simsiam and vicreg without EquiMod; leave it out"
            )
        if self.method == "none" and self.equivariance.layer is not None and not self.essl:
            raise ConfigError(
                f"equivariance.layer={self.equivariance.layer} leaves the layers behind it untrained with method=none; "
                "give a --method, or leave it out"
            )
        if self.system.batchnorm == "apex" and self.precision != "fp16":
            raise ConfigError(f"system.batchnorm=apex computes in fp16, not {self.precision}; give --precision fp16")
        if self.system.batchnorm == "apex" and self.essl:
            raise ConfigError(
                "system.batchnorm=apex keeps the statistics of one forward pass, and --essl takes two before a "
                "backward pass; give --system.batchnorm torch"
            )
        if self.resume != "never" and self.overwrite:
            raise ConfigError(f"resume={self.resume} and overwrite=True contradict each other; give one of them")
        if self.optim.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"optim.warmup_epochs={self.optim.warmup_epochs} is not shorter than epochs={self.epochs}; "
                "give --optim.warmup-epochs as well"
            )

    def _check_paths(self) -> None:
        for path in (*(self.data or ()), *(self.val or ()), self.output or "", self.resume):
            if "\0" in str(path):
                raise ConfigError(f"{str(path)!r} holds a NUL, which no path can; correct it")
        try:
            str(self.output).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"output={self.output} is not UTF-8, which TensorBoard needs; give another") from error

    def _check_policy(self) -> None:
        if self.policy not in POLICIES:
            hint = nearest(self.policy, POLICIES)
            raise ConfigError(f"policy={self.policy}: no such policy{hint}; give one of {', '.join(POLICIES)}")
        if self.image_size is not None and self.image_size != self.augment.size:
            raise ConfigError(
                f"image_size={self.image_size} and augment.x.size={self.augment.size} contradict each other; leave the "
                "sizes of augment out"
            )
        for view in self.augment.views:
            if view.blur and view.blur.kernel_size // 2 >= self.augment.size:
                raise ConfigError(
                    f"augment.blur.kernel_size={view.blur.kernel_size} is too large for images of {self.augment.size} "
                    "pixels; give less than twice their side"
                )
        for name in OPERATORS:
            if len({getattr(view, name) is None for view in self.augment.views}) > 1:
                raise ConfigError(
                    f"augment.{name} is part of some views alone, and all have one encoding; where it is not wanted, "
                    f"give it a probability of 0, such as --augment.views.0.{name}.p 0"
                )

    def resolution_by_epoch(self) -> Resolution:
        """The size of the images in every epoch. ConfigError where it does not come out."""
        size, start, until = self.augment.size, self.resolution.start, self.resolution.until
        if start is None:
            return Resolution((size,))
        if self.encoder.timm_name is not None:
            raise ConfigError(
                f"resolution.start={start} is for {', '.join(RESNETS)} alone, and encoder.arch is {self.encoder.arch}; "
                "leave it out"
            )
        rising = round(until * self.epochs)
        if not 0 < rising < self.epochs:
            raise ConfigError(
                f"resolution.until={until} makes the images of {rising} of {self.epochs} epochs smaller; give a share "
                "that leaves epochs of either kind"
            )
        try:
            return Resolution.from_start(start, size, self.encoder.stride, rising)
        except ValueError as error:
            raise ConfigError(f"resolution.{error}") from error

    def require_complete(self) -> None:
        """Raise ConfigError where something is missing that a recipe may leave to the command line."""
        if self.method == "none" and not (self.equimod or self.essl):
            raise ConfigError("method=none has nothing to learn from; give --equimod or --essl as well")
        if self.dataset == "imagenet" and not self.data:
            raise ConfigError("data is missing; convert ImageNet with equimod convert and give --data RECORDS")
        if self.dataset is None and not self.data:
            raise ConfigError("data is missing; give --data IMAGES, or --dataset shapes")

    def run_folder(self) -> Path:
        """Where the run goes."""
        beside = ("-equimod" if self.equimod else "") + ("-essl" if self.essl else "")
        return self.output or Path("runs") / f"{self.method}{beside}-{self.data_name}"

    def on_device(self, kind: str) -> Config:
        """With the precision that `auto` stands for on a "cuda" or a "cpu"."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bf16" if kind == "cuda" else "fp32")

    @property
    def data_name(self) -> str:
        """The name of the data set, for people: that of --data for a set of one's own."""
        return self.dataset or "-".join(path.resolve().stem for path in self.data or ())

    @property
    def evaluation_policy(self) -> AugmentationPolicy:
        """The view that classifiers on the frozen encoder are trained on, and x to test on."""
        return evaluation_policy(self.augment, self.dataset)

    @property
    def title(self) -> str:
        """The method and what stands beside it, for people."""
        beside = {" + EquiMod": self.equimod, " + E-SSL": self.essl, " with x as a view": self.x_as_view}
        return self.method + "".join(name for name, is_there in beside.items() if is_there)

    def to_yaml(self) -> str:
        """Every setting that the run depends on as YAML, readable by `read_recipe`."""
        settings = {key: value for key, value in asdict(self).items() if key not in METHOD_NAMES or key == self.method}
        return yaml.safe_dump(_plain(settings), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
