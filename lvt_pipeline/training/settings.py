"""How a model is trained: the settings of both trainings. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.prior.config import PriorModelSettings
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.settings import Settings, setting

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


Optimizer = Literal["adamw", "adam", "rmsprop"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """How a model is trained. Each stage overrides the defaults with its own."""

    other_names: ClassVar[Mapping[str, str]] = OTHER_NAMES
    table: ClassVar[str] = "training."

    max_steps: int = setting(1000, "Number of optimizer steps.", at_least=1)
    batch_size: int = setting(
        32, "Items per step, over all processes and accumulation parts.", at_least=1, at_most=1_000_000
    )
    gradient_accumulation_steps: int = setting(
        1, "Number of parts into which a step's batch is divided to save memory.", at_least=1
    )
    optimizer: Optimizer = setting("adamw", "Optimizer.")
    learning_rate: float = setting(1e-3, "Learning rate.", above=0, at_most=1e30)
    betas: tuple[float, float] = setting((0.9, 0.999), "Moment decays of adam and adamw.", at_least=0, below=1)
    alpha: float = setting(0.95, "Decay of the squared gradients, for rmsprop.", at_least=0, below=1)
    momentum: float = setting(0.9, "Momentum, for rmsprop.", at_least=0, below=1)
    eps: float = setting(1e-8, "Term added to the optimizer's denominator.", above=0)
    weight_decay: float = setting(
        0.0, "Weight decay of matrices and kernels; biases, norms and other vectors have none.", at_least=0
    )
    schedule: Literal["constant", "cosine", "wsd"] = setting(
        "constant", "Learning rate schedule. wsd: warm-up, stable, decay in the last decay_steps."
    )
    warmup_steps: int = setting(0, "Number of steps of linear warm-up from 0.", at_least=0)
    decay_steps: int | None = setting(None, "Number of decay steps, for wsd.", at_least=1, unset="a fifth of max_steps")
    min_lr_ratio: float = setting(
        0.0, "Final learning rate of cosine and wsd, as a fraction of learning_rate.", at_least=0, at_most=1
    )
    grad_clip: float | None = setting(None, "Largest norm of the gradient.", above=0, unset="no clipping")
    ema_decay: float | None = setting(
        None,
        "Decay of the moving average of the weights, which evaluation and later stages use.",
        at_least=0,
        below=1,
        unset="no moving average",
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "Precision. bfloat16: autocast; the weights stay float32."
    )
    compile: bool = setting(False, "Use of torch.compile; the first step takes minutes.")
    activation_checkpointing: bool = setting(False, "Recomputation of activations, to save memory.")
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "Distribution under torchrun: every process holds all weights (ddp), or a part of every weight (fsdp, for "
        "large priors).",
    )
    deterministic: bool = setting(False, "Bitwise repeatable results on GPUs too, at some cost in speed.")
    seed: int = setting(0, "Random seed.", at_least=0)
    log_every: int = setting(50, "Steps between lines of the log.", at_least=1)
    eval_every: int = setting(500, "Steps between evaluations.", at_least=1)
    eval_items: int = setting(256, "Number of validation frames or windows; always the same ones.", at_least=1)
    picture_every: int = setting(500, "Steps between pictures.", at_least=1)
    checkpoint_every: int = setting(500, "Steps between checkpoints.", at_least=1)
    keep_checkpoints: int = setting(2, "Number of newest checkpoints to keep, in addition to the best.", at_least=1)
    patience: int | None = setting(
        None, "Number of evaluations without a better score after which the training ends.", at_least=1, unset="never"
    )
    explosion_factor: float | None = setting(
        100.0,
        "The training stops when the average loss is this many times its lowest; by then the weights are ruined. "
        "none: never.",
        above=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.gradient_accumulation_steps:
            raise ConfigError(
                f"training.batch_size={self.batch_size} does not divide into "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )
        if self.compile and self.parallel == "fsdp":
            raise ConfigError("training.compile does not go with training.parallel=fsdp; leave one of them out")
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ConfigError(f"training.decay_steps={self.decay_steps} needs schedule='wsd', found {self.schedule!r}")


@dataclass(frozen=True, kw_only=True)
class VQVAETraining(TrainingSettings):
    """Training settings with the defaults of the paper's released VQ-VAE, for BAIR."""

    max_steps: int = 500_000
    batch_size: int = 32
    optimizer: Optimizer = "adam"
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.9)
    log_every: int = 100
    eval_every: int = 2_000
    picture_every: int = 2_000
    checkpoint_every: int = 2_000
    freeze: Literal["encoder"] | None = setting(
        None,
        "Part whose weights stay. encoder: with the codebooks, so that only the decoder changes and codes stay valid.",
        unset="nothing",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel == "fsdp":
            raise ConfigError(
                "training.parallel=fsdp splits the weights of a prior; a VQ-VAE is small and every process keeps its "
                "codebooks whole: use ddp"
            )


@dataclass(frozen=True, kw_only=True)
class VQVAERunSettings(Settings):
    """What `lvt train-vqvae --config` reads."""

    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    training: VQVAETraining = field(default_factory=VQVAETraining)


@dataclass(frozen=True, kw_only=True)
class PriorTraining(TrainingSettings):
    """Training settings with the defaults of the paper's released priors."""

    max_steps: int = 600_000
    batch_size: int = 64
    optimizer: Optimizer = "rmsprop"
    learning_rate: float = 2e-5
    log_every: int = 100
    eval_every: int = 5_000
    picture_every: int = 5_000
    checkpoint_every: int = 5_000
    explosion_factor: float | None = 10.0
    shuffle: Literal["clips", "shards"] | None = setting(
        None,
        "Order of the training windows; see docs/concepts.md.",
        unset="clips, or shards when the codes are streamed",
    )
    windows_per_clip: int = setting(1, "Number of windows of a clip in an epoch of shards.", at_least=1)
    mix: tuple[float, ...] | None = setting(None, "Weights of several code stores.", above=0, unset="equal weights")


@dataclass(frozen=True, kw_only=True)
class PriorRunSettings(Settings):
    """What `lvt train-prior --config` reads."""

    model: PriorModelSettings = field(default_factory=PriorModelSettings)
    training: PriorTraining = field(default_factory=PriorTraining)
