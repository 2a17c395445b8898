"""The samples section of a report: videos that play beside each other, codes and changes (paper, figures 6 to 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.errors import LVTError
from lvt_pipeline.evaluation.pixels import real_frames
from lvt_pipeline.evaluation.samples import original_of, siblings_of
from lvt_pipeline.report.charts import spoken_number
from lvt_pipeline.report.clips import (
    METRIC_OF,
    Choice,
    ClipOrder,
    ClipValues,
    choose,
    clip_values,
    orders_of,
    thumbnails,
)
from lvt_pipeline.report.figures import code_strips, strip
from lvt_pipeline.report.parts import data_uri
from lvt_pipeline.report.work_dir import WorkDir
from lvt_pipeline.runs.compatibility import check_tokenizer
from lvt_pipeline.video.pictures import png_bytes
from lvt_pipeline.video.write import mp4_bytes

SHOWN_CLIPS = 12
SHOWN_SAMPLES = 4  # of one clip
SHOWN_STRIP_FRAMES = 24
PLAYER_SIZE = 256  # pixels a video is enlarged to, about
STRIP_SIZE = 64
MOST_EMBEDDED_BYTES = 12_000_000  # of media, before base64 adds a third; the page stays below 20 MB
CHOSEN_BY = ("sample_lpips", "sample_ssim", "sample_mse", "bits")  # the first of these that was measured


@dataclass(frozen=True)
class Video:
    """One player. All of a clip follow the one that `leads`."""

    kind: str  # real, reconstructed or sampled
    caption: str
    source: str
    leads: bool


@dataclass(frozen=True)
class FigureRow:
    """One strip of a code figure."""

    label: str
    image: str
    kind: str  # video or codes


@dataclass(frozen=True)
class ClipPlayer:
    """A clip as it was, as tokenizers see it, and as priors continue it; `None` keeps a place in the grid free."""

    name: str
    place: int  # among the clips of the page, from 1
    label: str
    num_frames: int
    priming_frames: int
    fps: float
    columns: int
    videos: Sequence[Video | None]
    rows: Sequence[FigureRow]
    shown_frames: int
    notes: Sequence[str]
    values: Sequence[tuple[str, str]]  # metrics and what they are, in words
    order: Mapping[str, float]  # what clips can be ordered by

    @property
    def given_percent(self) -> float:
        """Where on a slider over frame numbers the given frames end, between the last of them and the next."""
        return 100 * max(self.priming_frames - 0.5, 0) / max(self.num_frames - 1, 1)

    @property
    def num_bytes(self) -> int:
        """What it adds to the page."""
        videos = sum(len(video.source) for video in self.videos if video is not None)
        return videos + sum(len(row.image) for row in self.rows)


@dataclass(frozen=True)
class SamplesSection:
    num_samples: int
    facts: Sequence[tuple[str, str]]
    clips: Sequence[ClipPlayer]
    orders: Sequence[ClipOrder]
    note: str
    is_problem: bool = False


def samples_section(work: WorkDir) -> SamplesSection:
    """Real, reconstructed and sampled videos beside each other, with their codes and changes (figures 6 to 8)."""
    sampled = checked_samples(work)
    settings = work.store("samples").provenance.settings
    priming = priming_frames_of(work)
    num_samples = sum(map(len, sampled.values()))
    facts = [
        ("Samples", f"{num_samples:,}" + (f" of {len(sampled):,} clips" if num_samples > len(sampled) else "")),
        ("Frames given", f"{priming}"),
        ("Frames sampled", f"{int(settings.get('frames', 0)) - priming}"),
        ("Temperature", f"{settings.get('temperature', 1.0):g}"),
        ("Seed", f"{settings.get('seed', 0)}"),
    ]
    facts += [
        (name.replace("_", " ").capitalize(), f"{settings[name]}")
        for name in ("top_k", "top_p", "guidance", "codebook_temperatures")
        if settings.get(name) is not None
    ]
    values = clip_values(work)
    choice = choose_players(list(sampled), values)
    names = [list(sampled)[index] for index in choice.indices]
    clips: list[ClipPlayer] = []
    embedded = 0
    for name in names:
        order = {key: by_clip[name] for key, by_clip in values.items() if name in by_clip}
        told = [(METRIC_OF[key].title, spoken_number(value)) for key, value in order.items()]
        shown = clip_player(name, len(clips) + 1, [videos_of_run(work, "", sampled[name])], told, order)
        embedded += shown.num_bytes
        if clips and embedded * 3 / 4 > MOST_EMBEDDED_BYTES:
            break
        clips.append(shown)
    note = choice.reason
    if len(clips) < len(names):
        note = f"{len(clips)} of {len(sampled):,} are shown: more would make the page larger than 20 MB."
    if note:
        note += " All are in samples.zarr; lvt decode writes them as videos."
    return SamplesSection(num_samples, facts, clips, orders_of(values), note)


def checked_samples(work: WorkDir) -> dict[str, list[CodeClip]]:
    """The samples of each real clip.

    Raises:
        MissingPart: samples, codes or tokenizer are not there yet.
        MismatchError: they do not belong together.
    """
    sampled = work.store("samples")
    check_tokenizer(sampled, work.artefacts["vqvae"], work.tokenizer())
    return siblings_of(sampled, work.store())


def priming_frames_of(work: WorkDir) -> int:
    """How many frames the samples of a work directory were given."""
    return int(work.store("samples").provenance.settings.get("priming_frames", 0))


def choose_players(names: Sequence[str], values: ClipValues) -> Choice:
    """Which clips get players: all, or the worst and best by the first metric of samples and others between them."""
    key = next((key for key in CHOSEN_BY if key in values), None)
    return choose(names, {key: values[key]} if key else {}, SHOWN_CLIPS)


@dataclass(frozen=True)
class RunVideos:
    """What one run has of a clip. `name` is empty on a page about one run; codes are (T, h, w, n_c)."""

    name: str
    clip: CodeClip
    codebook_size: int
    priming_frames: int
    real: NDArray[np.uint8] | None
    real_codes: NDArray[np.unsignedinteger[Any]] | None
    reconstructed: NDArray[np.uint8] | None
    codes: NDArray[np.unsignedinteger[Any]]  # of the first sample
    samples: Sequence[NDArray[np.uint8]]
    num_samples: int
    problem: str


def videos_of_run(work: WorkDir, name: str, siblings: Sequence[CodeClip]) -> RunVideos:
    """Decode what a run has of one clip; what is not there any more is named."""
    sampled, store, tokenizer = work.store("samples"), work.store(), work.tokenizer()
    shown = siblings[:SHOWN_SAMPLES]
    length = max(clip.length for clip in shown)
    codes = [sampled.read(clip) for clip in shown]
    origin = original_of(siblings[0], store)
    real = real_codes = reconstructed = None
    problem = ""
    if origin is not None:
        real_codes = store.read(origin, 0, min(origin.length, length))
        reconstructed = tokenizer.decode(real_codes).numpy()
        try:
            real = real_frames(store, origin, work.frames(), length)
        except LVTError as error:
            problem = f"The real video is not shown: {error}"
    else:
        problem = "The clip that this sample continues is not in data.zarr any more."
    return RunVideos(
        name=name,
        clip=shown[0],
        codebook_size=store.codebook_size,
        priming_frames=priming_frames_of(work),
        real=real,
        real_codes=real_codes,
        reconstructed=reconstructed,
        codes=codes[0],
        samples=[tokenizer.decode(some).numpy() for some in codes],
        num_samples=len(siblings),
        problem=problem,
    )


def clip_player(
    name: str, place: int, runs: Sequence[RunVideos], values: Sequence[tuple[str, str]], order: Mapping[str, float]
) -> ClipPlayer:
    """The players and strips of one clip, of one run or of several beside each other."""
    columns, parts = _parts_of_one(runs[0]) if len(runs) == 1 else _parts_of_several(runs)
    lengths = [0 if part is None else len(part[2]) for part in parts]
    leading = max(range(len(parts)), key=lambda number: (lengths[number], number))
    fps = runs[0].clip.fps
    videos: list[Video | None] = []
    for number, part in enumerate(parts):
        if part is None:
            videos.append(None)
            continue
        kind, caption, pictures = part
        source = data_uri(mp4_bytes(pictures, fps, _player_scale(pictures)), "video/mp4")
        videos.append(Video(kind, caption, source, number == leading))
    return ClipPlayer(
        name=name,
        place=place,
        label=runs[0].clip.label or "",
        num_frames=max(lengths),
        priming_frames=runs[0].priming_frames,
        fps=fps,
        columns=columns,
        videos=videos,
        rows=_strips(runs),
        shown_frames=min(max(lengths), SHOWN_STRIP_FRAMES),
        notes=_notes(runs),
        values=values,
        order=order,
    )


Part = tuple[str, str, NDArray[np.uint8]]  # kind, caption, frames of a video


def _parts_of_one(run: RunVideos) -> tuple[int, list[Part | None]]:
    """Columns and videos: real, reconstructed, and the samples after them."""
    named = [("real", "Real", run.real), ("reconstructed", "Reconstructed", run.reconstructed)]
    several = len(run.samples) > 1
    named += [
        ("sampled", f"Sampled {number}" if several else "Sampled", video) for number, video in enumerate(run.samples, 1)
    ]
    videos: list[Part | None] = [(kind, caption, video) for kind, caption, video in named if video is not None]
    return 4 if len(videos) == 4 else 3, videos


def _parts_of_several(runs: Sequence[RunVideos]) -> tuple[int, list[Part | None]]:
    """Real, reconstructed and every run's sample; of several tokenizers, each reconstruction is below its sample."""
    real = next((run.real for run in runs if run.real is not None), None)
    videos: list[Part | None] = [None if real is None else ("real", "Real", real)]
    sampled: list[Part] = [("sampled", f"{run.name}, sampled", run.samples[0]) for run in runs]
    first = runs[0].reconstructed
    if first is not None and all(_are_equal(run.reconstructed, first) for run in runs):
        return min(len(runs) + 2, 4), [*videos, ("reconstructed", "Reconstructed", first), *sampled]
    below: list[Part | None] = [
        None if run.reconstructed is None else ("reconstructed", f"{run.name}, reconstructed", run.reconstructed)
        for run in runs
    ]
    return len(runs) + 1, [*videos, *sampled, None, *below]


def _notes(runs: Sequence[RunVideos]) -> list[str]:
    """What is not as one would expect of the videos of a clip."""
    notes = [f"{run.name}: {run.problem}" if run.name else run.problem for run in runs if run.problem]
    real = next((run for run in runs if run.real is not None), None)
    for run in runs[1:]:
        if run.priming_frames != runs[0].priming_frames:
            notes.append(f"{run.name} was given {run.priming_frames} of the frames.")
        if real is not None and real.real is not None and run.real is not None:
            length = min(len(real.real), len(run.real))
            if not _are_equal(run.real[:length], real.real[:length]):
                notes.append(f"The clip of this name is another one in {run.name}: the real video is {real.name}'s.")
    for run in runs:
        shown = len(run.samples) if len(runs) == 1 else 1
        if run.num_samples > shown:
            notes.append(f"Shown: {shown} of {run.num_samples} samples{' of ' + run.name if run.name else ''}.")
    return notes


def _strips(runs: Sequence[RunVideos]) -> list[FigureRow]:
    """Frames above their codes and changes: the real clip's, once where all have the same codes, then each sample's."""
    shares_codes = len(runs) > 1 and all(_are_equal(run.real_codes, runs[0].real_codes) for run in runs)
    rows: list[FigureRow] = []
    for number, run in enumerate(runs):
        prefix = f"{run.name}, " if run.name else ""
        pictures = run.real if run.real is not None else run.reconstructed
        if pictures is not None and run.real_codes is not None and not (shares_codes and number):
            rows += _strip_rows(
                "real" if shares_codes else f"{prefix}real", pictures, run.real_codes, run.codebook_size
            )
        rows += _strip_rows(f"{prefix}sampled", run.samples[0], run.codes, run.codebook_size)
    return rows


def _strip_rows(
    label: str, pictures: NDArray[np.uint8], codes: NDArray[np.unsignedinteger[Any]], codebook_size: int
) -> list[FigureRow]:
    tiles = thumbnails(pictures[:SHOWN_STRIP_FRAMES], STRIP_SIZE)
    rows = [FigureRow(label, _strip_uri(strip(tiles, tiles.shape[2] // codes.shape[2] or 1)), "video")]
    strips = code_strips(codes[:SHOWN_STRIP_FRAMES], codebook_size)
    return rows + [FigureRow(item.label, _strip_uri(item.image), "codes") for item in strips]


def _are_equal(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)


def _player_scale(frames: NDArray[np.uint8]) -> int:
    return max(1, round(PLAYER_SIZE / int(frames.shape[1])))


def _strip_uri(image: NDArray[np.uint8]) -> str:
    return data_uri(png_bytes(image), "image/png")
