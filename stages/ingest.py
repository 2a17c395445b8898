"""lvt ingest: decode videos into frames. Reads a manifest and its videos; writes webdataset shards of uint8 frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.progress import count_of, format_seconds
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.settings import required_setting, setting
from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Console, Result
from stages.options import OVERWRITE
from stages.running import ArrayOptions, DecodingOptions


@stage_command("ingest")
def command(
    *,
    manifest: Path = required_setting("Manifest from `lvt manifest build`."),
    out: Place = required_setting("Folder of frame shards to create, resume or bring up to date, or its URL."),
    settings: IngestSettings,
    runner_options: DecodingOptions,
    worker_memory: float | None = setting(
        None,
        "Memory in gigabytes that one decoding process may use.",
        at_least=0.5,
        at_most=1e6,
        example="GB",
        unset="the machine's, divided by the workers",
    ),
    max_failures: float = setting(
        0.5, "Fraction of clips that may fail before the command ends with exit code 3.", at_least=0, at_most=1
    ),
    no_space_check: bool = setting(False, "Start even if the disk seems too small for the frames."),
    retry_failed: bool = setting(False, "Try clips again that failed before."),
    array: ArrayOptions,
    overwrite: bool = OVERWRITE,
) -> Result:
    """Decode every clip, crop the centre, resize, and store uint8 frames.

    A clip that cannot be decoded is recorded with its reason in failures.jsonl, and the command continues.

    Example: lvt ingest --manifest clips.jsonl -o frames --workers 8

    Example: lvt ingest --manifest films.jsonl -o frames --fps 10 --split-scenes --clip-seconds 10 --min-frames 16
    """
    from lvt_pipeline.jobs.ingest.ingest import ingest, ingest_step

    runner = runner_options.start()
    step = array.step(runner, overwrite=overwrite, retry_failed=retry_failed)
    options: dict[str, Any] = {
        "num_workers": runner_options.workers,
        "worker_memory": None if worker_memory is None else int(worker_memory * 1e9),
        "check_space": not no_space_check,
        "overwrite": overwrite,
        "progress": Console(),
    }
    if step.kind in ("plan", "shards"):
        shards = ingest_step(manifest, out, settings, step, **options)
        line = f"{shards.num_missing} of {shards.num_shards} shards are missing in {out}"
        return Result(asdict(shards), line)
    record = ingest(
        manifest,
        out,
        settings,
        max_failures=max_failures,
        retry_failed=retry_failed,
        publish_only=step.kind == "publish",
        runner=runner,
        **options,
    )
    lines = [summary(record, out), *reason_table(record.counts["failures_by_reason"])]
    if record.counts.get("notes"):
        lines += ["decoded, but unusual:", *reason_table(record.counts["notes"])]
    return Result(record.to_json(), "\n".join(lines))


def summary(record: Provenance, out: Place) -> str:
    """The result in one line."""
    counts = record.counts
    parts = [count_of(counts["clips"], "clip"), count_of(counts["frames"], "frame")]
    if counts.get("kept_truncated"):
        parts.append(f"{counts['kept_truncated']} of files cut short")
    if counts["failures"]:
        parts.append(f"{counts['failures']} failed (see {out}/failures.jsonl)")
    return f"{', '.join(parts)} -> {out} in {format_seconds(record.seconds)}"


def reason_table(counts: Mapping[str, int]) -> list[str]:
    """Counts by reason or kind of note, a line each, the most common first."""
    width = max(map(len, counts), default=0)
    return [f"  {reason:<{width}}  {count:>6}" for reason, count in counts.items()]
