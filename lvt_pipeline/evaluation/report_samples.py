"""The samples section of a report: videos that play beside each other, codes and changes (paper, figures 6 to 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import reduce
from markupsafe import Markup
from numpy.typing import NDArray

from lvt_pipeline.data.codes import CodeClip
from lvt_pipeline.data.media import mp4_bytes
from lvt_pipeline.data.pictures import png_bytes
from lvt_pipeline.errors import LVTError
from lvt_pipeline.evaluation.charts import Series, line_chart
from lvt_pipeline.evaluation.figures import code_strips, strip
from lvt_pipeline.evaluation.metrics import psnr
from lvt_pipeline.evaluation.pixels import real_frames
from lvt_pipeline.evaluation.report_parts import Figure, data_uri
from lvt_pipeline.evaluation.samples import original_of
from lvt_pipeline.evaluation.work_dir import WorkDir
from lvt_pipeline.matching import check_tokenizer

SHOWN_CLIPS = 8
SHOWN_STRIP_FRAMES = 24
PLAYER_SIZE = 256  # pixels a video is enlarged to, about
STRIP_SIZE = 64
MOST_EMBEDDED_BYTES = 13_000_000  # of media, before base64 adds a third; the page stays below 20 MB


@dataclass(frozen=True)
class Video:
    """One player."""

    caption: str
    source: str


@dataclass(frozen=True)
class FigureRow:
    """One strip of a code figure."""

    label: str
    image: str
    kind: str  # video or codes


@dataclass(frozen=True)
class SampledClip:
    """A clip as it was, as the tokenizer sees it, and as the prior continues it."""

    name: str
    label: str
    num_frames: int
    priming_frames: int
    fps: float
    videos: Sequence[Video]
    rows: Sequence[FigureRow]
    shown_frames: int
    note: str

    @property
    def given_percent(self) -> float:
        """Where on a slider over frame numbers the given frames end, between the last of them and the next."""
        return 100 * max(self.priming_frames - 0.5, 0) / max(self.num_frames - 1, 1)


@dataclass(frozen=True)
class SamplesSection:
    num_samples: int
    facts: Sequence[tuple[str, str]]
    clips: Sequence[SampledClip]
    charts: Sequence[Figure]
    note: str
    is_problem: bool = False


def samples_section(work: WorkDir) -> SamplesSection:
    """Real, reconstructed and sampled videos beside each other, with their codes and changes (figures 6 to 8)."""
    sampled, store = work.store("samples"), work.store()
    tokenizer = work.tokenizer()
    check_tokenizer(sampled, work.artefacts["vqvae"], tokenizer)
    settings = sampled.provenance.settings
    priming = int(settings.get("priming_frames", 0))
    facts = [
        ("Samples", f"{len(sampled)}"),
        ("Frames given", f"{priming}"),
        ("Frames sampled", f"{int(settings.get('frames', 0)) - priming}"),
        ("Temperature", f"{settings.get('temperature', 1.0):g}"),
        ("Seed", f"{settings.get('seed', 0)}"),
    ]
    clips: list[SampledClip] = []
    embedded = 0
    for clip in sampled.clips[:SHOWN_CLIPS]:
        shown = _sampled_clip(work, clip, original_of(clip, store), priming)
        embedded += sum(len(item.source) for item in shown.videos) + sum(len(row.image) for row in shown.rows)
        if clips and embedded * 3 / 4 > MOST_EMBEDDED_BYTES:
            break
        clips.append(shown)
    left_out = len(sampled) - len(clips)
    note = f"{left_out} more samples are in samples.zarr; lvt decode writes all of them as videos." if left_out else ""
    charts: list[Figure] = []
    with suppress(LVTError):  # the metrics section says what is missing
        charts = _horizon_chart(work.results().get("samples", {}))
    return SamplesSection(len(sampled), facts, clips, charts, note)


def _sampled_clip(work: WorkDir, clip: CodeClip, origin: CodeClip | None, priming: int) -> SampledClip:
    sampled, store, tokenizer = work.store("samples"), work.store(), work.tokenizer()
    codes = sampled.read(clip)
    frames = tokenizer.decode(codes).numpy()
    real = real_codes = reconstructed = None
    note = ""
    if origin is not None:
        real_codes = store.read(origin, 0, min(origin.length, clip.length))
        reconstructed = tokenizer.decode(real_codes).numpy()
        try:
            real = real_frames(store, origin, work.frames(), clip.length)
        except LVTError as problem:
            note = f"The real video is not shown: {problem}"
    else:
        note = "The clip that this sample continues is not in data.zarr any more."
    videos = [
        Video(caption, data_uri(mp4_bytes(pictures, clip.fps, _player_scale(pictures)), "video/mp4"))
        for caption, pictures in (("Real", real), ("Reconstructed", reconstructed), ("Sampled", frames))
        if pictures is not None
    ]
    rows: list[FigureRow] = []
    for caption, pictures, some_codes in (
        ("real", real if real is not None else reconstructed, real_codes),
        ("sampled", frames, codes),
    ):
        if pictures is None or some_codes is None:
            continue
        tiles = _thumbnails(pictures[:SHOWN_STRIP_FRAMES])
        rows.append(FigureRow(caption, _strip_uri(strip(tiles, tiles.shape[2] // codes.shape[2] or 1)), "video"))
        for item in code_strips(some_codes[:SHOWN_STRIP_FRAMES], store.codebook_size):
            rows.append(FigureRow(item.label, _strip_uri(item.image), "codes"))
    return SampledClip(
        name=clip.id,
        label=clip.label or "",
        num_frames=clip.length,
        priming_frames=priming,
        fps=clip.fps,
        videos=videos,
        rows=rows,
        shown_frames=min(clip.length, SHOWN_STRIP_FRAMES),
        note=note,
    )


def _horizon_chart(samples: Mapping[str, Any]) -> list[Figure]:
    """PSNR of each frame against what really happened."""
    names = {"reconstructed": "reconstruction_mse", "sampled": "mse", "last given frame repeated": "copy_mse"}
    priming = int(samples.get("priming_frames", 0))
    series = []
    for name, key in names.items():
        values = [math.nan if mse is None else psnr(mse) for mse in samples.get(f"{key}_by_frame") or []]
        if key == "copy_mse":  # equal to the real frames by construction until then
            values = [math.nan] * priming + values[priming:]
        series.append(Series(name, list(range(1, len(values) + 1)), values))
    chart = line_chart(
        series,
        title="PSNR of each frame against the real video",
        x_label="frame",
        y_label="PSNR, dB",
        shaded_until=priming + 0.5 if priming else None,
    )
    caption = (
        "Against what really happened; frames in the shaded part are given. A sample is one possible future, so below "
        "the repeated frame is not yet a bad sample."
    )
    return [Figure("How far from what really happened", Markup(chart), caption)] if chart else []


def _thumbnails(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames made smaller by whole steps until they are at most STRIP_SIZE high."""
    factor = max(1, frames.shape[1] // STRIP_SIZE)
    height, width = frames.shape[1] // factor * factor, frames.shape[2] // factor * factor
    if factor == 1:
        return frames
    cropped = frames[:, :height, :width].astype(np.float32)
    return np.rint(reduce(cropped, "t (h a) (w b) c -> t h w c", "mean", a=factor, b=factor)).astype(np.uint8)


def _player_scale(frames: NDArray[np.uint8]) -> int:
    return max(1, round(PLAYER_SIZE / int(frames.shape[1])))


def _strip_uri(image: NDArray[np.uint8]) -> str:
    return data_uri(png_bytes(image), "image/png")
