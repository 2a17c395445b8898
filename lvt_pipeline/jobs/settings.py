"""The settings of the jobs between artefacts: encode, sample, decode, export and import. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.sampling.rule import SamplingRule
from lvt_pipeline.settings import Settings, setting

Split = Literal["train", "val", "test"]
Precision = Literal["float32", "bfloat16"]
VideoFormat = Literal["mp4", "gif", "png", "npy"]
ExportFormat = Literal["npy", "npy-frames", "memmap", "webdataset", "parquet"]

LARGEST_FPS = 1000.0
LARGEST_BATCH = 1_000_000  # more frames than any machine has memory for


@dataclass(frozen=True, kw_only=True)
class EncodeSettings(Settings):
    """How frames pass through the encoder. The size of a pass can change the last bit of a sum, and so a rare code."""

    batch_size: int = setting(64, "Number of frames per pass of the encoder.", at_least=1, at_most=LARGEST_BATCH)
    precision: Precision | None = setting(
        None,
        "Encoder precision. bfloat16 is faster on GPUs but changes some codes, so it counts as a different tokenizer.",
        unset="float32",
    )
    arrays: tuple[str, ...] | None = setting(
        None,
        "Names of the arrays next to the frames, such as actions, that the store holds too. none: no array.",
        example="NAME,NAME",
        unset="all",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision == "float32":
            object.__setattr__(self, "precision", None)  # one spelling, so one fingerprint


@dataclass(frozen=True, kw_only=True)
class SampleSettings(Settings):
    """The settings of sampling. Defaults are the paper's protocol: 5 priming frames, 11 sampled ones, temperature 1."""

    other_names: ClassVar[Mapping[str, str]] = {
        "num_samples": "samples_per_clip", "num_return_sequences": "samples_per_clip", "samples": "samples_per_clip",
        "num_videos": "num_clips", "length": "frames", "num_steps": "frames", "max_length": "frames",
        "max_new_tokens": "frames", "context_frames": "priming_frames", "num_context_frames": "priming_frames",
        "cond_frames": "priming_frames", "prompt_frames": "priming_frames", "n_prime": "priming_frames",
        "temp": "temperature", "cfg": "guidance", "cfg_scale": "guidance", "guidance_scale": "guidance",
        "topk": "top_k", "topp": "top_p", "nucleus": "top_p",
    }  # fmt: skip

    split: Split = setting("test", "Split of the clips to continue. If it is empty, the next split with clips is used.")
    num_clips: int | None = setting(8, "Number of clips to continue.", at_least=1, unset="all")
    clips: tuple[str, ...] = setting(
        (),
        "Id of a clip to continue, of any split; may be repeated.",
        option="--clip",
        example="ID",
        unset="clips of the split",
    )
    start: int = setting(0, "Frame of each clip at which its sample starts, counted from 0.", at_least=0)
    label: str | None = setting(
        None, "Label of the samples, for a prior with classes.", example="NAME", unset="that of each clip"
    )
    actions: str | None = setting(
        None,
        "Actions of the samples, for a prior with actions: own (recorded with each clip; after its end its last row is "
        "repeated), zero, or a .npy, .csv or .parquet with a row for each frame.",
        example="own|zero|FILE",
        unset="own",
    )
    samples_per_clip: int = setting(1, "Number of samples per clip.", at_least=1)
    frames: int = setting(
        16,
        "Total length in frames, including the priming frames.",
        at_least=1,
        option="--num-frames",
        old_options=("--frames",),
    )
    priming_frames: int = setting(5, "Number of real frames that each sample starts from.", at_least=0)
    temperature: float = setting(
        1.0, "Sampling temperature: below 1 gives likelier codes, above 1 more variety.", above=0
    )
    codebook_temperatures: tuple[float, ...] | None = setting(
        None, "One temperature per codebook, instead of --temperature.", above=0, example="T,T,..."
    )
    top_k: int | None = setting(
        None, "Sample among the k likeliest codes only; 1 always takes the likeliest.", at_least=1, unset="off"
    )
    top_p: float | None = setting(
        None, "Sample among the likeliest codes that together have this probability.", above=0, at_most=1, unset="off"
    )
    guidance: float | None = setting(
        None,
        "Classifier-free guidance scale, such as 2, for a prior trained with class_dropout or with actions.",
        at_least=0,
        unset="off",
    )
    seed: int = setting(0, "Random seed. The same seed and clip give the same sample.", at_least=0)
    weights: Literal["float32", "bfloat16", "int8"] = setting(
        "float32",
        "Precision of sampling. int8 (CPUs only), and bfloat16 where the processor computes in it, are faster and "
        "change some codes.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.priming_frames >= self.frames:
            raise ConfigError(f"priming_frames={self.priming_frames} must be less than frames={self.frames}")
        if self.codebook_temperatures is not None and self.temperature != 1:
            raise ConfigError("temperature and codebook_temperatures exclude each other; give one of them")
        SamplingRule(**self.drawing)  # refuses values out of range

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `Prior.sample` that change the codes, without those that are off."""
        return self.drawing if self.weights == "float32" else {**self.drawing, "weights": self.weights}

    @property
    def drawing(self) -> dict[str, Any]:
        """Arguments of `SamplingRule`, without those that are off."""
        chosen = {"top_k": self.top_k, "top_p": self.top_p, "guidance": self.guidance}
        drawing: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        temperatures = self.codebook_temperatures
        return {"temperature": self.temperature if temperatures is None else list(temperatures), **drawing}


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(Settings):
    """Which clips become which kind of file."""

    other_names: ClassVar[Mapping[str, str]] = {"upscale": "scale", "type": "format", "frame_rate": "fps"}

    format: VideoFormat = setting(
        "mp4", "File format. png: a strip of all frames. npy: an array of uint8 (T, H, W, 3) at the original size."
    )
    scale: int = setting(4, "Factor by which pixels are enlarged.", at_least=1, at_most=64)
    fps: float | None = setting(
        None, "Playback speed in frames per second.", above=0, at_most=LARGEST_FPS, unset="the clip's own"
    )
    split: Split | None = setting(None, "Split whose clips are decoded.", unset="all")
    clips: tuple[str, ...] = setting(
        (), "Id of a clip to decode; may be repeated.", option="--clip", example="ID", unset="all"
    )


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Which clips become which kind of file."""

    other_names: ClassVar[Mapping[str, str]] = {"type": "format", "shard_size": "clips_per_file"}

    format: ExportFormat = setting(
        "npy",
        "File format. npy: a file per clip. npy-frames: a file per frame, as the paper's code reads. memmap: one "
        "file and its meta.json. webdataset: tar files. parquet: for Hugging Face datasets.",
    )
    split: Split | None = setting(None, "Split whose clips are exported.", unset="all")
    clips_per_file: int = setting(1024, "Number of clips in each webdataset or parquet file.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class ImportSettings(Settings):
    """The facts that the files do not hold."""

    other_names: ClassVar[Mapping[str, str]] = {"k": "codebook_size", "vocab_size": "codebook_size"}

    codebook_size: int | None = setting(
        None, "Number of codes in a codebook (K). Required unless `lvt export` wrote the folder.", at_least=1
    )
    split: Split = setting("train", "Split of clips that are not in a folder named train, val or test.")
    fps: float = setting(10.0, "Frame rate of the clips.", above=0, at_most=LARGEST_FPS)
