"""The settings of the optimizer, and what is usual for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from equimod.models.settings import ConfigError, require_at_least, require_positive

LR_BATCH_SIZE = 256  # images that a published learning rate is for
ADAMW_LR = 1.5e-4  # for LR_BATCH_SIZE (MoCo v3)
LARGEST_OF_ADAMW = 0.1  # learning rate


@dataclass(frozen=True)
class OptimSettings:
    """LARS or AdamW with linear warm-up and cosine decay."""

    name: Literal["lars", "adamw"] = "lars"
    """Where it is not given, it follows from an --encoder.arch that is: lars for a ResNet, adamw for any other. An
    optimizer other than the recipe's brings its own learning rate and weight decay along."""
    lr: float = 4.0
    """Peak learning rate, for the global batch."""
    momentum: float = 0.9
    """Momentum of LARS."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW: momentum of the gradient and of its square."""
    weight_decay: float = 1e-6
    """Weight decay; biases, norms and what timm leaves out of it, such as position embeddings, have none."""
    weight_decay_end: float | None = None
    """Weight decay at the end of the training, to which it goes along a cosine (DINO); none: it stays the same."""
    trust_coefficient: float = 1e-3
    """Trust coefficient of LARS."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up."""

    def __post_init__(self) -> None:
        require_at_least(self, "optim.", warmup_epochs=0, weight_decay=0, weight_decay_end=0)
        require_positive(self, "optim.", "lr", "trust_coefficient")
        for name, value in (("momentum", self.momentum), *(("betas", beta) for beta in self.betas)):
            if not 0 <= value < 1:
                raise ConfigError(f"optim.{name}={value} must lie in [0, 1)")
        for name in ("momentum", "trust_coefficient") if self.name == "adamw" else ("betas",):
            if getattr(self, name) != getattr(OptimSettings, name):
                raise ConfigError(
                    f"optim.{name}={getattr(self, name)} has no effect with optim.name={self.name}; leave it out"
                )
        if self.name == "adamw" and self.lr > LARGEST_OF_ADAMW:
            raise ConfigError(
                f"optim.lr={self.lr} is LARS's and far too large for AdamW; give {LARGEST_OF_ADAMW} or less, such as "
                f"{ADAMW_LR} for each {LR_BATCH_SIZE} images of the batch"
            )

    @classmethod
    def default(cls, name: Literal["lars", "adamw"], batch_size: int, warmup_epochs: float) -> OptimSettings:
        """What is usual for an optimizer: SimCLR's learning rate for LARS, MoCo v3's for AdamW, for this batch."""
        lr, weight_decay = (ADAMW_LR, 0.1) if name == "adamw" else (0.3, 1e-6)
        lr = float(f"{lr * batch_size / LR_BATCH_SIZE:.4g}") or lr  # of a batch that is refused later
        lr = min(lr, LARGEST_OF_ADAMW) if name == "adamw" else lr
        return cls(name, lr, weight_decay=weight_decay, warmup_epochs=warmup_epochs)

    @property
    def title(self) -> str:
        """The optimizer with its two rates, for people."""
        end = "" if self.weight_decay_end is None else f" to {self.weight_decay_end:g}"
        return f"{self.name} lr {self.lr:g} weight decay {self.weight_decay:g}{end}"
