"""Which frames are taken from a clip, and how each becomes a square: the settings that decide pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.settings import Settings, setting
from lvt_pipeline.video.geometry import Fit

MAX_FPS = 480.0  # a header that states more is wrong: FLV files state 1000
SIZE_STEP = 4  # the tokenizer halves a frame twice


@dataclass(frozen=True, kw_only=True)
class GeometrySettings(Settings):
    """Which frames are taken from a clip, and how each becomes a square."""

    other_names: ClassVar[Mapping[str, str]] = {
        "resolution": "size",
        "image_size": "size",
        "height": "size",
        "width": "size",
        "frame_rate": "fps",
        "sample_rate": "stride",
        "frame_stride": "stride",
        "every": "stride",
        "num_frames": "max_frames",
        "clip_length": "clip_seconds",
        "chunk_seconds": "clip_seconds",
        "crop": "fit",
        "interpolation": "resize",
        "backend": "decoder",
    }

    size: int = setting(64, "Height and width of a frame in pixels, a multiple of 4.", at_least=4, at_most=32768)
    fit: Fit = setting(
        "crop", "Shape of the frame. crop: the centre square. letterbox: the whole picture between black bars."
    )
    resize: Literal["lanczos", "decoder"] = setting(
        "lanczos", "Resize filter. lanczos: the paper's. decoder: FFmpeg's, about 3 times faster, with other pixels."
    )
    fps: float | None = setting(
        None, "Frame rate to resample to, by presentation time.", above=0, at_most=MAX_FPS, unset="native"
    )
    stride: int = setting(1, "Distance between the frames that are kept, applied after --fps.", at_least=1)
    decoder: Literal["auto", "decord", "pyav"] = setting(
        "auto", "Video decoder. auto: PyAV, which finds damage as it reads. decord: decord where it is equal."
    )
    max_frames: int | None = setting(
        None, "Largest number of frames of a clip; later ones are left out.", at_least=1, unset="all"
    )
    clip_seconds: float | None = setting(
        None, "Length in seconds of the clips into which each video is cut, named ID@SECONDS.", above=0, unset="whole"
    )
    split_scenes: float | None = setting(
        None,
        "Threshold in grey levels for cutting where the scene changes; 20 without a value.",
        above=0,
        below=255,
        unset="no cuts",
        example="[LEVELS]",
        bare=20.0,
    )
    on_truncated: Literal["fail", "keep"] = setting(
        "fail", "Treatment of files that lack frames: record a failure, or keep the frames that are there."
    )
    trust_bitstream: bool = setting(False, "Accept pictures that the decoder marks as damaged.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % SIZE_STEP:
            below = self.size // SIZE_STEP * SIZE_STEP
            raise ConfigError(
                f"size={self.size} is not a multiple of {SIZE_STEP}, which the tokenizer needs; "
                f"take {below} or {below + SIZE_STEP}"
            )

    @property
    def cuts(self) -> bool:
        """Whether one video may give several clips."""
        return self.clip_seconds is not None or self.split_scenes is not None
