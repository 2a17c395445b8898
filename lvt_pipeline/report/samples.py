"""The samples section of a report: videos that play in step, codes and changes (paper, figures 6 to 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.errors import LVTError
from lvt_pipeline.evaluation.actions.measuring import steered_codes
from lvt_pipeline.evaluation.pixels import Pixels
from lvt_pipeline.evaluation.samples import first_frame_of, original_of, priming_frames_of, siblings_of
from lvt_pipeline.progress import count_of
from lvt_pipeline.report.clips import METRIC_OF, clip_values, evenly_chosen, orders_of, sample_metric
from lvt_pipeline.report.numbers import format_number
from lvt_pipeline.report.parts import Part
from lvt_pipeline.report.work import WorkDir
from lvt_pipeline.video.notebook import data_uri
from lvt_pipeline.video.pictures import code_rows, png_bytes
from lvt_pipeline.video.tiles import shrunk, strip
from lvt_pipeline.video.write import mp4_bytes

SHOWN_CLIPS = 12
SHOWN_SAMPLES = 4  # of one clip
SHOWN_STRIP_FRAMES = 24
PLAYER_SIZE = 256  # pixels a video is enlarged to, about
STRIP_SIZE = 64
MOST_EMBEDDED_BYTES = 12_000_000  # of media, before base64 adds a third; the page stays below 20 MB
OPTIONAL_SETTINGS = ("top_k", "top_p", "guidance", "codebook_temperatures")

Video = tuple[str, str, NDArray[np.uint8]]  # kind (real, reconstructed or sampled), caption, frames


def samples_section(work: WorkDir) -> Part:
    """Real, reconstructed and sampled videos side by side, with their codes and changes (figures 6 to 8)."""
    sampled = checked_samples(work)
    settings = work.samples.provenance.settings
    priming = priming_frames_of(work.samples)
    num_samples = sum(map(len, sampled.values()))
    of_clips = f" of {count_of(len(sampled), 'clip')}" if num_samples > len(sampled) else ""
    facts = [
        ("Samples", f"{num_samples:,}{of_clips}"),
        ("Priming frames", f"{priming}"),
        ("Sampled frames", f"{int(settings.get('frames', 0)) - priming}"),
        ("Temperature", f"{settings.get('temperature', 1.0):g}"),
        ("Seed", f"{settings.get('seed', 0)}"),
    ]
    chosen = [name for name in OPTIONAL_SETTINGS if settings.get(name) is not None]
    facts += [(name.replace("_", " ").capitalize(), f"{settings[name]}") for name in chosen]
    values = clip_values(work)
    key = sample_metric(values)
    names, note = evenly_chosen(list(sampled), {key: values[key]} if key else {}, SHOWN_CLIPS)

    def player(name: str, place: int) -> Part:
        order = {key: by_clip[name] for key, by_clip in values.items() if name in by_clip}
        numbers = [(METRIC_OF[key].title, format_number(value)) for key, value in order.items()]
        return clip_player(name, place, [videos_of_run(work, "", sampled[name])], numbers, order)

    clips = within_budget(player, names)
    if len(clips) < len(names):
        note = f"{len(clips)} of {len(sampled):,} are shown: more would make the page larger than 20 MB."
    if note:
        note += " All are in samples.zarr; lvt decode writes them as videos."
    found = {"num_samples": num_samples, "facts": facts, "clips": clips, "orders": orders_of(values), "note": note}
    return found | {"steered": steered_clip(work)}


def within_budget(player: Any, names: Sequence[str]) -> list[Part]:
    """Players of the first names whose media fit into the page; at least one.

    Args:
        player: from a name and its place on the page, from 1, to its player.
    """
    clips: list[Part] = []
    embedded = 0
    for name in names:
        shown = player(name, len(clips) + 1)
        embedded += sum(len(video["source"]) for video in shown["videos"] if video is not None)
        embedded += sum(len(row["image"]) for row in shown["rows"])
        if clips and embedded * 3 / 4 > MOST_EMBEDDED_BYTES:
            break
        clips.append(shown)
    return clips


def checked_samples(work: WorkDir) -> dict[str, list[CodeClip]]:
    """The samples of each real clip.

    Raises:
        MissingPart: samples, codes or tokenizer do not exist yet.
        MismatchError: they do not belong together.
    """
    work.require_tokenizer_of(work.samples)
    return siblings_of(work.samples, work.codes)


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
    """Decode what a run has of one clip; what no longer exists is named."""
    sampled = work.samples
    shown = siblings[:SHOWN_SAMPLES]
    codes = [sampled.read(clip) for clip in shown]
    origin, start = original_of(siblings[0], work.codes), first_frame_of(sampled)
    found = videos_of_codes(work, shown[0], origin, codes, priming_frames_of(sampled), start)
    return replace(found, name=name, num_samples=len(siblings))


def videos_of_codes(
    work: WorkDir,
    clip: CodeClip,
    origin: CodeClip | None,
    samples: Sequence[NDArray[Any]],
    priming: int,
    start: int = 0,
) -> RunVideos:
    """Decode samples (T, h, w, n_c) of one clip, and what happened from its frame `start` on, if it still exists."""
    store, tokenizer = work.codes, work.tokenizer
    length = max(map(len, samples))
    real = real_codes = reconstructed = None
    problem = "" if origin is not None else "The clip that this sample continues is no longer in data.zarr."
    if origin is not None:
        real_codes = store.read(origin, start, min(origin.length, start + length))
        reconstructed = tokenizer.decode(real_codes).numpy()
        try:
            real = Pixels(store, work.frames, tokenizer).real(origin, length, start)
        except LVTError as error:
            problem = f"The real video is not shown: {error}"
    return RunVideos(
        name="",
        clip=clip,
        codebook_size=store.codebook_size,
        priming_frames=priming,
        real=real,
        real_codes=real_codes,
        reconstructed=reconstructed,
        codes=samples[0],
        samples=[tokenizer.decode(some).numpy() for some in samples],
        num_samples=len(samples),
        problem=problem,
    )


def steered_clip(work: WorkDir) -> Part | None:
    """The player of one clip continued under three action sequences; None where none were measured."""
    try:
        steered = work.results.get("actions", {}).get("steered")
    except LVTError:
        return None
    if steered is None or steered["clip"] not in work.codes:
        return None
    clip = work.codes.clip(steered["clip"])
    runs = [
        replace(videos_of_codes(work, clip, clip, [codes], steered["priming_frames"]), name=f"{name} actions")
        for name, codes in zip(steered["sequences"], steered_codes(steered).astype(work.codes.dtype), strict=True)
    ]
    return clip_player(clip.id, 1, runs, [], {})


def clip_player(
    name: str, place: int, runs: Sequence[RunVideos], numbers: Sequence[tuple[str, str]], order: Mapping[str, float]
) -> Part:
    """The players and strips of one clip, of one run or of several side by side.

    Args:
        place: among the clips of the page, from 1.
        numbers: metrics and their values, as text.
        order: what clips can be ordered by.
    """
    columns, videos = _videos_of_one(runs[0]) if len(runs) == 1 else _videos_of_several(runs)
    lengths = [0 if video is None else len(video[2]) for video in videos]
    leading = max(range(len(videos)), key=lambda number: (lengths[number], number))
    num_frames, priming = max(lengths), runs[0].priming_frames
    return {
        "name": name,
        "place": place,
        "label": runs[0].clip.label or "",
        "num_frames": num_frames,
        "priming_frames": priming,
        # Where on a slider over frame numbers the priming frames end, between the last of them and the next.
        "priming_percent": 100 * max(priming - 0.5, 0) / max(num_frames - 1, 1),
        "fps": runs[0].clip.fps,
        "columns": columns,
        # All videos of a clip follow the one that leads; None keeps a place in the grid free.
        "videos": [
            None if video is None else _video(video, runs[0].clip.fps) | {"leads": number == leading}
            for number, video in enumerate(videos)
        ],
        "rows": _strips(runs),
        "shown_frames": min(num_frames, SHOWN_STRIP_FRAMES),
        "notes": _notes(runs),
        "numbers": numbers,
        "order": order,
    }


def _video(video: Video, fps: float) -> Part:
    kind, caption, frames = video
    scale = max(1, round(PLAYER_SIZE / int(frames.shape[1])))
    return {"kind": kind, "caption": caption, "source": data_uri(mp4_bytes(frames, fps, scale), "video/mp4")}


def _videos_of_one(run: RunVideos) -> tuple[int, list[Video | None]]:
    """Columns and videos: real, reconstructed, and the samples after them."""
    numbers = [f" {number}" for number in range(1, len(run.samples) + 1)] if len(run.samples) > 1 else [""]
    found = [("real", "Real", run.real), ("reconstructed", "Reconstructed", run.reconstructed)]
    found += [("sampled", f"Sampled{number}", some) for number, some in zip(numbers, run.samples, strict=True)]
    videos: list[Video | None] = [(kind, caption, frames) for kind, caption, frames in found if frames is not None]
    return 4 if len(videos) == 4 else 3, videos


def _videos_of_several(runs: Sequence[RunVideos]) -> tuple[int, list[Video | None]]:
    """Real, reconstructed and every run's sample; of several tokenizers, each reconstruction is below its sample."""
    real = next((run.real for run in runs if run.real is not None), None)
    videos: list[Video | None] = [None if real is None else ("real", "Real", real)]
    sampled: list[Video] = [("sampled", f"{run.name}, sampled", run.samples[0]) for run in runs]
    first = runs[0].reconstructed
    if first is not None and all(_are_equal(run.reconstructed, first) for run in runs):
        return min(len(runs) + 2, 4), [*videos, ("reconstructed", "Reconstructed", first), *sampled]
    below: list[Video | None] = [
        None if run.reconstructed is None else ("reconstructed", f"{run.name}, reconstructed", run.reconstructed)
        for run in runs
    ]
    return len(runs) + 1, [*videos, *sampled, None, *below]


def _notes(runs: Sequence[RunVideos]) -> list[str]:
    """What is unexpected about the videos of a clip."""
    notes = [f"{run.name}: {run.problem}" if run.name else run.problem for run in runs if run.problem]
    real = next((run for run in runs if run.real is not None), None)
    for run in runs[1:]:
        if run.priming_frames != runs[0].priming_frames:
            notes.append(f"{run.name} has {count_of(run.priming_frames, 'priming frame')}.")
        if real is not None and real.real is not None and run.real is not None:
            length = min(len(real.real), len(run.real))
            if not _are_equal(run.real[:length], real.real[:length]):
                notes.append(f"The clip of this name is another one in {run.name}: the real video is {real.name}'s.")
    for run in runs:
        shown = len(run.samples) if len(runs) == 1 else 1
        if run.num_samples > shown:
            notes.append(f"Shown: {shown} of {run.num_samples} samples{' of ' + run.name if run.name else ''}.")
    return notes


def _strips(runs: Sequence[RunVideos]) -> list[Part]:
    """Frames above their codes and changes: the real clip's, once where all have the same codes, then each sample's."""
    shares_codes = len(runs) > 1 and all(_are_equal(run.real_codes, runs[0].real_codes) for run in runs)
    rows: list[Part] = []
    for number, run in enumerate(runs):
        prefix = f"{run.name}, " if run.name else ""
        pictures = run.real if run.real is not None else run.reconstructed
        if pictures is not None and run.real_codes is not None and not (shares_codes and number):
            label = "real" if shares_codes else f"{prefix}real"
            rows += _strips_of_one(label, pictures, run.real_codes, run.codebook_size)
        rows += _strips_of_one(f"{prefix}sampled", run.samples[0], run.codes, run.codebook_size)
    return rows


def _strips_of_one(
    label: str, pictures: NDArray[np.uint8], codes: NDArray[np.unsignedinteger[Any]], codebook_size: int
) -> list[Part]:
    """The video above its codes and changes."""
    tiles, codes = shrunk(pictures[:SHOWN_STRIP_FRAMES], STRIP_SIZE), codes[:SHOWN_STRIP_FRAMES]
    video = strip(tiles, tiles.shape[2] // codes.shape[2] or 1)
    rows = [(label, video, "video")]
    rows += [(name, strip(tiles), "codes") for name, tiles in code_rows(codes, codebook_size)]
    return [
        {"label": name, "image": data_uri(png_bytes(image), "image/png"), "kind": kind} for name, image, kind in rows
    ]


def _are_equal(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)
