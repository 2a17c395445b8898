"""Continue a video file: its frames to codes, the codes sampled on, and everything back to one video.

No work directory is written: two trained runs and a video are enough. The video is read as the frames were from which
the prior's codes were made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.config import build, to_plain
from lvt_pipeline.errors import ConfigError, LVTError
from lvt_pipeline.job import Job
from lvt_pipeline.jobs.encode_shards import use_precision
from lvt_pipeline.jobs.sample import check_settings, report_unfinished
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.models.vqvae.config import DOWNSAMPLING
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import digest_file
from lvt_pipeline.runs.actions import Rows, digest_of
from lvt_pipeline.runs.compatibility import require_label, require_matching_runs
from lvt_pipeline.runs.read import load_prior, load_vqvae, read_run, run_fingerprint
from lvt_pipeline.storage import write_bytes
from lvt_pipeline.video.container.facts import inspect_video
from lvt_pipeline.video.decode import clip_fps, decode_clip
from lvt_pipeline.video.geometry import Frames
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.tiles import PRIMING_EDGE, SAMPLED_EDGE, framed, picture_grid
from lvt_pipeline.video.write import enlarge, video_bytes, with_note

if TYPE_CHECKING:
    from lvt_pipeline.models.prior.model import Prior

STAGE = "continue"
JOB = Job(stage=STAGE, version=1, kind="video")
FILE_MARK = b"written by lvt continue"
SUFFIXES = (".mp4", ".gif", ".png")
CLIP_ID = "video"  # of the random numbers, so that a sample does not depend on the name of the file
EDGE = 6  # pixels of the coloured edge
GAP = 4  # pixels between samples
BACKGROUND = (24, 24, 27)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What was written.

    Attributes:
        out: the video.
        samples: how many continuations it shows.
        frames: its length, including the priming frames.
        priming_frames: how many of its first frames are those of the video.
        fps: frames per second.
        start_seconds: where in the video the first priming frame is shown.
    """

    out: str
    samples: int
    frames: int
    priming_frames: int
    fps: float
    start_seconds: float


def continue_video(
    video: Path,
    out: Path,
    vqvae: Path,
    prior: Path,
    settings: SampleSettings = SampleSettings(),
    *,
    codes: Path | None = None,
    start_seconds: float | None = None,
    scale: int = 4,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Continuation:
    """Write a video that begins with frames of `video` and continues with sampled ones, each kind with its own edge.

    Args:
        out: `.mp4` or `.gif`; `.png` is a strip of all frames. An older output of this function is replaced; one of
            the same video, runs and settings is kept.
        vqvae, prior: run directories that belong together.
        settings: length, priming frames, label, seed and rule; `samples_per_clip` continuations are shown as a grid.
        codes: code store whose geometry the video is read with; unset: that of the frames the VQ-VAE was trained on.
        start_seconds: where the priming frames begin; unset: they are the last frames of the video.
        scale: every pixel becomes a square of this width.

    Raises:
        MismatchError: the runs do not belong together, or the prior does not know the label.
        DecodeError: the video cannot be read.
        LVTError: the video has too few frames, or the output is the video or another program's file.
    """
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{out} ends in {out.suffix or 'nothing'}; give an output that ends in {', '.join(SUFFIXES)}")
    require_output_file(out, STAGE, (video, vqvae, prior, codes), mark=FILE_MARK)
    tokenizer, model = load_vqvae(vqvae, device=device), load_prior(prior, device=device)
    precision = require_matching_runs(vqvae, tokenizer, prior, model)
    actions = _checked(model, prior, settings, progress)
    geometry = _geometry(vqvae, codes, model.config.grid)
    _require_file(video)
    choices = {"sample": to_plain(settings), "geometry": to_plain(geometry), "start": start_seconds, "scale": scale}
    inputs = {"video": digest_file(video), "vqvae": run_fingerprint(vqvae), "prior": run_fingerprint(prior)}
    inputs |= digest_of(actions)
    with JOB.open_file(out, choices, inputs) as work:
        if work.is_current:
            return Continuation(out=str(out), **work.record.counts)
        frames, fps, begins = _priming_frames(video, geometry, settings.priming_frames, start_seconds)
        use_precision(tokenizer, precision)
        sampled = _sample(model, tokenizer.encode(frames).numpy(), settings, actions, progress)
        videos = [np.concatenate([frames, tokenizer.decode(one[len(frames) :]).numpy()]) for one in sampled]
        shown = _grid(videos, settings.priming_frames, scale)
        write_bytes(out, with_note(video_bytes(suffix, shown, fps), suffix, FILE_MARK))
        done = Continuation(
            out=str(out),
            samples=len(videos),
            frames=len(shown),
            priming_frames=settings.priming_frames,
            fps=fps,
            start_seconds=round(begins, 3),
        )
        work.finish(digest_file(out), counts={name: value for name, value in asdict(done).items() if name != "out"})
        return done


def _checked(model: Prior, prior: Path, settings: SampleSettings, progress: Progress) -> Rows | None:
    """Actions (frames, d) of all samples, after refusing settings that do not fit this prior. None: unknown ones, as a
    video has none of its own."""
    if settings.priming_frames < 1:
        raise ConfigError("priming_frames=0 would not continue the video; give at least 1")
    given = check_settings(prior, model, settings)
    if settings.label is not None:
        require_label(settings.label, prior, model)
    elif model.config.num_classes and not model.config.class_dropout:
        known = ", ".join(model.class_names) or "none"
        raise ConfigError(f"the prior {prior} is conditioned on a class; give one of its labels with --label: {known}")
    report_unfinished(prior, progress)
    if given is None and model.config.actions:
        needs = f"the prior {prior} is conditioned on {', '.join(model.config.actions)}, which a video does not have"
        if not model.config.drops_actions:
            raise ConfigError(f"{needs}; give --actions zero or --actions FILE")
        progress.say(f"{needs}: sampling without; --actions zero or --actions FILE steers")
    return given


def _sample(
    model: Prior, codes: NDArray[np.int64], settings: SampleSettings, actions: Rows | None, progress: Progress
) -> NDArray[np.int64]:
    """Codes (samples, frames, h, w, n_c) that continue codes (priming frames, h, w, n_c)."""
    count = settings.samples_per_clip
    result: NDArray[np.int64] = model.sample(
        np.repeat(codes[None], count, axis=0),
        frames=settings.frames,
        seed=settings.seed,
        **settings.sampling,
        labels=None if settings.label is None else [settings.label] * count,
        actions=None if actions is None else np.repeat(actions[None], count, axis=0),
        clip_ids=[CLIP_ID] * count,
        sample_ids=range(count),
        progress=progress,
    ).numpy()
    return result


# The video ---------------------------------------------------------------------------------------------------------


def _geometry(vqvae: Path, codes: Path | None, grid: tuple[int, int]) -> GeometrySettings:
    """How the frames of the codes were made; where nothing is recorded, the default at the size of the grid."""
    recorded: Mapping[str, Any] = (
        read_run(vqvae)["facts"].get("geometry", {}) if codes is None else open_codes(codes).schema.geometry
    )
    if grid[0] != grid[1]:
        raise LVTError(f"this prior models frames of {grid[0]} x {grid[1]} codes; lvt reads videos as squares")
    geometry: GeometrySettings = build(GeometrySettings, dict(recorded), where=str(codes or vqvae))
    # The limits on the length of a clip say nothing about this video.
    return replace(geometry, size=grid[0] * DOWNSAMPLING, max_frames=None, clip_seconds=None, split_scenes=None)


def _require_file(video: Path) -> None:
    if not video.is_file():
        raise LVTError(f"{video} is {'a folder' if video.is_dir() else 'not there'}; give a video file")


def _priming_frames(
    video: Path, geometry: GeometrySettings, count: int, start: float | None
) -> tuple[Frames, float, float]:
    """The last frames of a video, or those from a moment on; their rate, and when the first is shown in seconds."""
    timing = inspect_video(str(video)).timing
    span = 2 * (count + 1) / clip_fps(timing, geometry)  # rates vary, so more than enough is read
    first = max(0.0, timing.seconds - span) if start is None else start
    clip = decode_clip(str(video), first, None if start is None else first + span, geometry)
    if len(clip.frames) < count:  # with long pauses between frames
        clip = decode_clip(str(video), start, None, geometry)
    found = len(clip.frames)
    if found < count:
        since = "" if start is None else f" from {start:g} s on"
        raise LVTError(
            f"{video} has {found} frames{since} at {clip.fps:.4g} per second, and {count} priming frames are needed; "
            f"give --priming-frames {found}" + ("" if start is None else ", or an earlier --start")
        )
    chosen = slice(found - count, found) if start is None else slice(0, count)
    return clip.frames[chosen], clip.fps, float(clip.begins + clip.times[chosen][0])


def _grid(videos: list[Frames], num_priming: int, scale: int) -> Frames:
    """Videos of one length playing side by side, uint8 (T, H, W, 3): blue edges until sampling starts, then orange."""
    columns = math.ceil(math.sqrt(len(videos)))
    tiles = np.stack([enlarge(frames, scale) for frames in videos])
    empty = np.broadcast_to(np.array(BACKGROUND, np.uint8), tiles.shape[1:])
    pictures = []
    for number in range(tiles.shape[1]):
        edge = PRIMING_EDGE if number < num_priming else SAMPLED_EDGE
        cells = [framed(tile, EDGE, edge) for tile in tiles[:, number]]
        cells += [framed(empty[number], EDGE, BACKGROUND)] * (-len(cells) % columns)
        grid = rearrange(np.stack(cells), "(r c) h w k -> r c h w k", c=columns)
        pictures.append(picture_grid(grid, gap=GAP, background=BACKGROUND))
    return np.stack(pictures)
