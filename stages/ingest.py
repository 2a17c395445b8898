"""lvt ingest: decode videos into frames. Reads a manifest and its videos; writes webdataset shards of uint8 frames."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, clock, echo_facts, json_option, out_option, overwrite_option


@click.command("ingest")
@click.option("--manifest", type=PATH, required=True, help="Manifest from `lvt manifest build`.")
@out_option("Folder of frame shards to create, resume or bring up to date.")
@click.option("--size", type=click.IntRange(min=4), default=64, show_default=True, help="Frame height and width.")
@click.option(
    "--resize",
    type=click.Choice(["lanczos", "decoder"]),
    default="lanczos",
    show_default=True,
    help="lanczos: the paper's filter. decoder: faster, other pixels.",
)
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="Resample by presentation time. [native]")
@click.option(
    "--decoder",
    type=click.Choice(["auto", "decord", "pyav"]),
    default="auto",
    show_default=True,
    help="auto: decord, and PyAV for what decord cannot read.",
)
@click.option("--max-frames", type=click.IntRange(min=1), help="Keep the first frames of each clip. [all]")
@click.option("--min-frames", type=click.IntRange(min=1), default=1, show_default=True, help="Shorter clips fail.")
@click.option(
    "--codec",
    type=click.Choice(["raw", "png"]),
    default="raw",
    show_default=True,
    help="How frames are stored; both lossless. raw is larger and much faster.",
)
@click.option("--clips-per-shard", type=click.IntRange(min=1), default=64, show_default=True, help="Clips in one tar.")
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes. [one per core]")
@click.option(
    "--max-failures",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of clips that may fail before the command ends with exit code 3.",
)
@click.option("--retry-failed", is_flag=True, help="Try the clips again that failed before.")
@overwrite_option
@json_option
def command(
    manifest: Path,
    out: Path,
    size: int,
    resize: str,
    fps: float | None,
    decoder: str,
    max_frames: int | None,
    min_frames: int,
    codec: str,
    clips_per_shard: int,
    workers: int | None,
    max_failures: float,
    retry_failed: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Decode every clip, crop the centre, resize, and store uint8 frames.

    A clip that cannot be decoded is recorded with its reason in failures.jsonl and the run goes on.

    Example: lvt ingest --manifest clips.jsonl -o frames --workers 8
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.engine.ingest import IngestSettings, ingest

    geometry = {"size": size, "resize": resize, "fps": fps, "decoder": decoder, "max_frames": max_frames}
    settings = build(
        IngestSettings,
        {"geometry": geometry, "codec": codec, "clips_per_shard": clips_per_shard, "min_frames": min_frames},
    )
    record = ingest(
        manifest,
        out,
        settings,
        num_workers=workers,
        max_failures=max_failures,
        retry_failed=retry_failed,
        overwrite=overwrite,
        progress=Console(),
    )
    counts = record.counts
    failed = f", {counts['failures']} failed (see {out}/failures.jsonl)" if counts["failures"] else ""
    echo_facts(
        record.to_json(),
        as_json,
        f"{counts['clips']} clips, {counts['frames']} frames{failed} -> {out} in {clock(record.seconds)}",
    )
