"""What `lvt evaluate` measures, as settings. Nothing here loads torch, so that help texts stay quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lvt_pipeline.errors import ConfigError

ResizeRule = Literal["tf1", "half-pixel"]
PrimingPixels = Literal["both", "real", "reconstructed"]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured. Defaults are the paper's: 16 frames, of which the first is a priming frame."""

    frames: int = 16  # first frames of every clip; shorter clips are left out and counted
    priming_frames: int = 1  # frames whose codes are not counted in bits per code and baselines
    split: Literal["train", "val", "test"] = "test"  # when it has no clip, another held-out split is used
    max_clips: int | None = None  # first clips of the split; unset: all
    resize: ResizeRule = "tf1"  # how frames are enlarged for the FVD network; tf1: as in the published code
    priming_pixels: PrimingPixels = "both"  # source of the priming frames of samples in FVD

    def __post_init__(self) -> None:
        if not 1 <= self.priming_frames < self.frames:
            raise ConfigError(f"priming_frames={self.priming_frames} must be from 1 to frames - 1 = {self.frames - 1}")
        if self.max_clips is not None and self.max_clips < 1:
            raise ConfigError(f"max_clips={self.max_clips} must be at least 1")
