"""lvt manifest: list the clips of a dataset. Reads a folder, list or URL; writes one JSON line per clip."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import Console, echo_facts, json_option, out_option


@click.group("manifest")
def command() -> None:
    """List the clips of a dataset, one JSON object per line.

    Example: lvt manifest build my_videos -o clips.jsonl
    """


@command.command("build")
@click.argument("source")
@out_option("Manifest to write, such as clips.jsonl.")
@click.option(
    "--kind",
    type=click.Choice(["auto", "folder", "csv", "jsonl", "kinetics", "bair", "ucf101", "frames"]),
    default="auto",
    show_default=True,
    help="What SOURCE is. auto: found out and told. frames: folders of pictures.",
)
@click.option("--media", help="Folder or URL of the videos that a list names. [beside the list]")
@click.option(
    "--split",
    type=click.Choice(["auto", "hash", "none"]),
    default="auto",
    show_default=True,
    help="auto: the source decides (folders named train, val, test; a column; a list), else the content's hash. "
    "hash: the content. none: everything is train.",
)
@click.option("--val-share", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share of clips in val.")
@click.option("--test-share", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share in test.")
@click.option(
    "--label",
    type=click.Choice(["folder", "none"]),
    default="folder",
    show_default=True,
    help="folder: a clip's label is the name of the folder it lies in, or what the list says.",
)
@click.option("--path-column", help="Column of a CSV or JSONL that names the video. [path, source or video]")
@click.option("--label-column", help="Column that names the class. [label]")
@click.option("--split-column", help="Column that names the split. [split]")
@click.option("--camera", type=click.Choice(["image_aux1", "image_main", "both"]), help="Camera of BAIR. [image_aux1]")
@click.option("--fold", type=click.IntRange(1, 3), help="Which of UCF101's splits. [1]")
@click.option(
    "--fps",
    type=click.FloatRange(min=0, min_open=True),
    help="Frame rate of what holds no times. [BAIR 10, folders of pictures 25]",
)
@click.option(
    "--missing",
    type=click.Choice(["list", "drop"]),
    help="Clips without a file. list: ingest records them as missing. drop: they are left out. [list]",
)
@json_option
def build(source: str, out: Path, kind: str, media: str | None, as_json: bool, **settings: object) -> None:
    """List the clips of a folder, a pattern, a CSV, a dataset's own files, or a URL.

    Clip ids are relative paths without the file ending. Files are hashed, so the list notices changed content.

    Example: lvt manifest build my_videos -o clips.jsonl

    Example: lvt manifest build "videos/**/*.mp4" -o clips.jsonl

    Example: lvt manifest build val.csv --media kinetics600 -o clips.jsonl
    """
    from lvt_pipeline.config import build as build_settings
    from lvt_pipeline.manifest.manifest import build_manifest
    from lvt_pipeline.manifest.settings import ManifestSettings

    chosen = build_settings(ManifestSettings, {**settings, "kind": None if kind == "auto" else kind})
    record = build_manifest(source, out, chosen, media=media, progress=Console())
    splits = ", ".join(f"{count} {name}" for name, count in record.counts["splits"].items())
    missing = f", {record.counts['missing']} missing" if record.counts["missing"] else ""
    echo_facts(record.to_json(), as_json, f"{record.counts['clips']} clips ({splits}{missing}) -> {out}")
