"""What `lvt evaluate` measures, as settings. Nothing here loads torch, so that help texts stay quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.settings import Settings, setting

ResizeRule = Literal["tf1", "half-pixel"]
PrimingPixels = Literal["both", "real", "reconstructed"]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Settings):
    """Settings of the measurements. Defaults are the paper's: 16 frames, of which the first is a priming frame."""

    other_names: ClassVar[Mapping[str, str]] = {
        "length": "frames",
        "context_frames": "priming_frames",
        "num_context_frames": "priming_frames",
        "num_clips": "max_clips",
        "subset": "split",
    }

    split: Literal["train", "val", "test"] = setting(
        "test",
        "Split to measure. If it is empty, the other held-out split is used. train needs --allow-training-clips.",
    )
    frames: int = setting(
        16,
        "Number of frames measured from the start of each clip. Shorter clips are skipped and counted.",
        at_least=2,
        option="--num-frames",
    )
    priming_frames: int = setting(
        1, "Number of first frames that are not counted in bits per code and baselines.", at_least=1
    )
    max_clips: int | None = setting(
        None, "Largest number of clips; the first ones are measured.", at_least=1, unset="all"
    )
    action_clips: int | None = setting(
        None,
        "Number of clips sampled under true and under shuffled actions, for a prior with actions.",
        at_least=2,
        unset="8",
    )
    resize: ResizeRule = setting(
        "tf1",
        "Enlargement to 224x224 for FVD. tf1: as the published TensorFlow 1 code. half-pixel: as PyTorch and "
        "TensorFlow 2.",
    )
    priming_pixels: PrimingPixels = setting("both", "Source of the priming frames of samples in FVD.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.priming_frames >= self.frames:
            raise ConfigError(f"priming_frames={self.priming_frames} must be from 1 to frames - 1 = {self.frames - 1}")
