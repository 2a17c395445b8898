"""The shape of the frame autoencoder and the rules of its codebooks. Nothing here loads torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.settings import Settings, setting

DOWNSAMPLING = 4  # pixels per latent position, along each axis: two strided convolutions
MIN_LEVELS = 3  # with two, the half step of even counts would be the whole range


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(Settings):
    """Shape of the autoencoder and the rules its codebooks follow. Defaults are the paper's BAIR model.

    The paper reports 4 codebooks of "2048"; its released model has 512 codes in each of the 4.
    """

    num_codebooks: int = setting(4, "Number of codebooks (n_c), which share the code width evenly.", at_least=1)
    codebook_size: int = setting(512, "Number of codes in each codebook (K).", at_least=1)
    code_width: int = setting(256, "Width of the encoder output (D).", at_least=1)
    stem_width: int = setting(128, "Channels between the two strided convolutions.", at_least=1)
    residual_width: int = setting(128, "Inner channels of a residual block.", at_least=1)
    num_residual_blocks: int = setting(2, "Number of residual blocks (R); 4 for Kinetics-600.", at_least=0)
    residual: Literal["reference", "textbook"] = setting(
        "reference", "Input of the skip connection: ReLU(x), as in the released model, or x."
    )
    commitment_weight: float = setting(
        1.0, "Weight of the commitment loss (beta); the default is the value of the released code.", at_least=0
    )
    ema_decay: float = setting(0.99, "Decay of the codebooks' moving averages.", at_least=0, below=1)
    ema_epsilon: float = setting(1e-5, "Smoothing of the moving averages' counts.", above=0)
    ema_init: Literal["reference", "consistent"] = setting(
        "reference", "Start of the moving averages: as in the released code, or consistent with the codebooks."
    )
    dead_code: Literal["none", "resample"] = setting(
        "none", "Treatment of codes that are not used: none, or resample them from encoder outputs."
    )
    dead_code_threshold: float = setting(
        0.03, "Fraction of the mean moving-average count below which a code is dead.", at_least=0
    )
    codebook_init: Literal["uniform", "kmeans"] | None = setting(
        None, "Start of the codebooks. kmeans: cluster centres of training latents.", unset="uniform"
    )
    quantizer: Literal["vq", "fsq"] | None = setting(
        None, "Quantizer. vq: codebooks with trained embeddings. fsq: rounding, without codebooks.", unset="vq"
    )
    fsq_levels: tuple[int, ...] | None = setting(
        None, "Numbers of levels of each fsq codebook; their product is codebook_size."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_width % self.num_codebooks:
            raise ConfigError(f"code_width={self.code_width} does not divide into {self.num_codebooks} codebooks")
        self._check_levels()

    def _check_levels(self) -> None:
        if self.quantizer != "fsq":
            if self.fsq_levels is not None:
                raise ConfigError(f"fsq_levels={list(self.fsq_levels)} needs quantizer='fsq'")
            return
        if self.fsq_levels is None:
            raise ConfigError(
                "quantizer='fsq' needs fsq_levels whose product is codebook_size, such as [8, 8, 4] for 256, "
                "[8, 8, 8] for 512 or [8, 5, 5, 5] for 1000"
            )
        require_levels(self.fsq_levels)
        if math.prod(self.fsq_levels) != self.codebook_size:
            raise ConfigError(
                f"fsq_levels={list(self.fsq_levels)} make {math.prod(self.fsq_levels)} codes but "
                f"codebook_size={self.codebook_size}; set codebook_size={math.prod(self.fsq_levels)}, or other levels"
            )


def require_levels(levels: Sequence[int]) -> None:
    """Refuse levels that make no codebook.

    Raises:
        ConfigError: there are none, or fewer than 3 somewhere.
    """
    if not levels or min(levels) < MIN_LEVELS:
        raise ConfigError(
            f"fsq_levels={list(levels)} must be one or more numbers of at least {MIN_LEVELS}, such as [8, 8, 4] for "
            "256 codes or [8, 8, 8] for 512"
        )
