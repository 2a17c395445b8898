"""lvt ingest: decode videos into frames. Reads a manifest and its videos; writes webdataset shards of uint8 frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from stages.console import PATH, Console, clock, echo_facts, json_option, out_option, overwrite_option


@click.command("ingest")
@click.option("--manifest", type=PATH, required=True, help="Manifest from `lvt manifest build`.")
@out_option("Folder of frame shards to create, resume or bring up to date.")
@click.option(
    "--size", type=click.IntRange(min=4), default=64, show_default=True, help="Frame height and width, a multiple of 4."
)
@click.option(
    "--fit",
    type=click.Choice(["crop", "letterbox"]),
    default="crop",
    show_default=True,
    help="crop: the centre square. letterbox: all of it between black bars.",
)
@click.option(
    "--resize",
    type=click.Choice(["lanczos", "decoder"]),
    default="lanczos",
    show_default=True,
    help="lanczos: the paper's filter. decoder: faster, other pixels.",
)
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="Resample by presentation time. [native]")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Keep every N-th frame.")
@click.option(
    "--decoder",
    type=click.Choice(["auto", "decord", "pyav"]),
    default="auto",
    show_default=True,
    help="auto: decord, and PyAV for what decord cannot read.",
)
@click.option("--max-frames", type=click.IntRange(min=1), help="Keep the first frames of each clip. [all]")
@click.option(
    "--clip-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Cut into clips of this length, named ID@SECONDS. [whole]",
)
@click.option(
    "--split-scenes",
    type=click.FloatRange(0, 255, min_open=True, max_open=True),
    is_flag=False,
    flag_value=20.0,
    metavar="[LEVELS]",
    help="Cut where the picture changes at once, by more than 20 grey levels or as many as given. [no]",
)
@click.option(
    "--on-truncated",
    type=click.Choice(["fail", "keep"]),
    default="fail",
    show_default=True,
    help="Files that were cut short: record as failures, or keep the frames that are there.",
)
@click.option("--min-frames", type=click.IntRange(min=1), default=1, show_default=True, help="Shorter clips fail.")
@click.option(
    "--codec",
    type=click.Choice(["raw", "png", "webp", "jpeg"]),
    default="raw",
    show_default=True,
    help="How frames are stored. raw is largest and fastest; only jpeg changes pixels.",
)
@click.option("--clips-per-shard", type=click.IntRange(min=1), default=64, show_default=True, help="Clips in one tar.")
@click.option(
    "--shard-mb",
    type=click.FloatRange(min=0, min_open=True),
    help="Instead of a number of clips: a tar is full once its frames take this many megabytes.",
)
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes. [one per core]")
@click.option(
    "--worker-memory",
    type=click.FloatRange(min=0.5),
    metavar="GB",
    help="Memory one clip may take, decoders included, at least 0.5. [the machine's, divided by the workers]",
)
@click.option(
    "--max-failures",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of clips that may fail before the command ends with exit code 3.",
)
@click.option("--no-space-check", is_flag=True, help="Begin even if the disk seems too small for the frames.")
@click.option("--retry-failed", is_flag=True, help="Try the clips again that failed before.")
@overwrite_option
@json_option
def command(
    manifest: Path,
    out: Path,
    size: int,
    fit: str,
    resize: str,
    fps: float | None,
    stride: int,
    decoder: str,
    max_frames: int | None,
    clip_seconds: float | None,
    split_scenes: float | None,
    on_truncated: str,
    min_frames: int,
    codec: str,
    clips_per_shard: int,
    shard_mb: float | None,
    workers: int | None,
    worker_memory: float | None,
    max_failures: float,
    no_space_check: bool,
    retry_failed: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Decode every clip, crop the centre, resize, and store uint8 frames.

    A clip that cannot be decoded is recorded with its reason in failures.jsonl and the run goes on.

    Example: lvt ingest --manifest clips.jsonl -o frames --workers 8

    Example: lvt ingest --manifest films.jsonl -o frames --fps 10 --split-scenes --clip-seconds 10 --min-frames 16
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.jobs.ingest.ingest import ingest
    from lvt_pipeline.jobs.ingest.settings import IngestSettings

    geometry = {
        "size": size,
        "fit": fit,
        "resize": resize,
        "fps": fps,
        "stride": stride,
        "decoder": decoder,
        "max_frames": max_frames,
        "clip_seconds": clip_seconds,
        "split_scenes": split_scenes,
        "on_truncated": on_truncated,
    }
    settings = build(
        IngestSettings,
        {
            "geometry": geometry,
            "codec": codec,
            "clips_per_shard": clips_per_shard,
            "min_frames": min_frames,
            "shard_mb": shard_mb,
        },
        where="lvt ingest",
    )
    record = ingest(
        manifest,
        out,
        settings,
        num_workers=workers,
        max_failures=max_failures,
        retry_failed=retry_failed,
        worker_memory=None if worker_memory is None else int(worker_memory * 1e9),
        check_space=not no_space_check,
        overwrite=overwrite,
        progress=Console(),
    )
    counts = record.counts
    summary = f"{counts['clips']} clips, {counts['frames']} frames"
    if counts.get("kept_truncated"):
        summary += f", {counts['kept_truncated']} of files cut short"
    if counts["failures"]:
        summary += f", {counts['failures']} failed (see {out}/failures.jsonl)"
    summary += f" -> {out} in {clock(record.seconds)}"
    echo_facts(record.to_json(), as_json, "\n".join([summary, *reason_table(counts["failures_by_reason"])]))


def reason_table(counts: Mapping[str, int]) -> list[str]:
    """Failures by reason, a line each, the most common first."""
    width = max(map(len, counts), default=0)
    return [f"  {reason:<{width}}  {count:>6}" for reason, count in counts.items()]
