"""How a model is trained: the settings that both training stages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lvt_pipeline.config import LATER
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.settings import check_fields

# They change when a run looks at itself or ends, or who computes what, never what a step does.
HARMLESS_SETTINGS = frozenset(
    {
        *("max_steps", "log_every", "eval_every", "eval_items", "picture_every", "checkpoint_every"),
        *("keep_checkpoints", "patience", "explosion_factor", "parallel"),
    }
)
# What other trainers (nanoGPT, litgpt) call our settings, and what to write here.
OTHER_NAMES = {
    "max_iters": "max_steps",
    "global_batch_size": "batch_size",
    "micro_batch_size": "gradient_accumulation_steps (batch_size is that of the whole step)",
    "lr": "learning_rate",
    "beta1": "betas=[beta1, beta2]",
    "beta2": "betas=[beta1, beta2]",
    "decay_lr": "schedule (constant, cosine or wsd)",
    "lr_scheduler": "schedule (constant, cosine or wsd)",
    "warmup_iters": "warmup_steps",
    "lr_warmup_steps": "warmup_steps",
    "lr_decay_iters": "max_steps (the cosine ends there)",
    "min_lr": "min_lr_ratio (a share of learning_rate)",
    "max_norm": "grad_clip",
    "gradient_clip_val": "grad_clip",
    "dtype": "precision (float32 or bfloat16)",
    "log_interval": "log_every",
    "eval_interval": "eval_every",
    "eval_iters": "eval_items",
    "save_interval": "checkpoint_every",
    "gradient_checkpointing": "activation_checkpointing",
    "early_stopping": "patience",
    "strategy": "parallel (ddp or fsdp)",
}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained. Each stage overrides the defaults with its own."""

    other_names: ClassVar[Mapping[str, str]] = OTHER_NAMES

    max_steps: int = 1000
    batch_size: int = 32  # per step, over all workers and accumulation steps
    gradient_accumulation_steps: int = 1  # parts a step's batch is cut into, to save memory
    optimizer: Literal["adamw", "adam", "rmsprop"] = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)  # adam, adamw
    alpha: float = 0.95  # rmsprop: decay of the squared gradients
    momentum: float = 0.9  # rmsprop
    eps: float = 1e-8
    weight_decay: float = 0.0  # of matrices and kernels; biases, norms and other vectors never decay
    schedule: Literal["constant", "cosine", "wsd"] = "constant"  # wsd: warm-up, stable, decay in the last decay_steps
    warmup_steps: int = 0  # linear, from 0
    decay_steps: int | None = field(default=None, metadata=LATER)  # of wsd; a fifth of max_steps when not given
    min_lr_ratio: float = 0.0  # where cosine and wsd end, as a share of learning_rate
    grad_clip: float | None = None  # largest norm of the gradient
    ema_decay: float | None = None  # moving average of the weights, used for evaluation and by later stages
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast, weights stay float32
    compile: bool = False  # torch.compile; the first step takes minutes
    activation_checkpointing: bool = field(default=False, metadata=LATER)  # compute activations twice to keep fewer
    # Under torchrun every process holds all weights (ddp), or its part of every weight (fsdp, for large priors).
    parallel: Literal["ddp", "fsdp"] = field(default="ddp", metadata=LATER)
    deterministic: bool = field(default=False, metadata=LATER)  # the same bits on a GPU too, at some cost in speed
    seed: int = 0
    log_every: int = 50
    eval_every: int = 500
    eval_items: int = 256  # validation frames or windows, always the same ones
    picture_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2  # the newest ones; the best one is kept as well
    patience: int | None = field(default=None, metadata=LATER)  # evaluations without a better score before it ends
    # Stop when the average loss is so many times its lowest, see `training.breakdown`; none: never.
    explosion_factor: float | None = field(default=100.0, metadata=LATER)

    def __post_init__(self) -> None:
        check_fields(self, "training.")
        for name, (is_allowed, needed) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not all(map(is_allowed, value if isinstance(value, tuple) else (value,))):
                raise ConfigError(f"training.{name}={value} must be {needed}")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ConfigError(
                f"training.batch_size={self.batch_size} does not divide into "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )
        if self.compile and self.parallel == "fsdp":
            raise ConfigError("training.compile does not go with training.parallel=fsdp; leave one of them out")
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ConfigError(f"training.decay_steps={self.decay_steps} needs schedule='wsd', found {self.schedule!r}")


Range = tuple[Callable[[float], bool], str]
_AT_LEAST_ONE: Range = (lambda value: value >= 1, "at least 1")
_NOT_NEGATIVE: Range = (lambda value: value >= 0, "at least 0")
_POSITIVE: Range = (lambda value: value > 0, "above 0")
_SHARE: Range = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_RANGES: dict[str, Range] = {
    **dict.fromkeys(("max_steps", "batch_size", "gradient_accumulation_steps", "decay_steps"), _AT_LEAST_ONE),
    **dict.fromkeys(("log_every", "eval_every", "eval_items", "picture_every"), _AT_LEAST_ONE),
    **dict.fromkeys(("checkpoint_every", "keep_checkpoints", "patience"), _AT_LEAST_ONE),
    **dict.fromkeys(("seed", "warmup_steps", "weight_decay"), _NOT_NEGATIVE),
    **dict.fromkeys(("learning_rate", "eps"), _POSITIVE),
    **dict.fromkeys(("betas", "alpha", "momentum", "ema_decay"), _SHARE),
    "min_lr_ratio": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "grad_clip": (lambda value: value > 0, "above 0; leave it out for no clipping"),
    "explosion_factor": (lambda value: value > 1, "above 1; none turns it off"),
}
