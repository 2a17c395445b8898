"""lvt manifest: list the clips of a dataset. Reads a folder, list or URL; writes one JSON line per clip."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import required_setting
from stages.command import stage_command
from stages.console import Console, Result
from stages.options import MEDIA


@click.group("manifest")
def command() -> None:
    """List the clips of a dataset, one JSON object per line.

    Example: lvt manifest build my_videos -o clips.jsonl
    """


@stage_command("build", group=command)
def build(
    source: str,
    *,
    out: Path = required_setting("Manifest to write, such as clips.jsonl."),
    settings: ManifestSettings,
    media: str | None = MEDIA,
) -> Result:
    """List the clips of SOURCE: a folder, a pattern, a CSV or JSONL file, a dataset's own files, or a URL.

    Clip ids are relative paths without the file extension. Files are hashed, so changed content is noticed.

    Example: lvt manifest build my_videos -o clips.jsonl

    Example: lvt manifest build "videos/**/*.mp4" -o clips.jsonl

    Example: lvt manifest build val.csv --media kinetics600 -o clips.jsonl
    """
    from lvt_pipeline.manifest.manifest import build_manifest

    record = build_manifest(source, out, settings, media=media, progress=Console())
    splits = ", ".join(f"{count} {name}" for name, count in record.counts["splits"].items())
    missing = f", {record.counts['missing']} missing" if record.counts["missing"] else ""
    return Result(record.to_json(), f"{count_of(record.counts['clips'], 'clip')} ({splits}{missing}) -> {out}")
