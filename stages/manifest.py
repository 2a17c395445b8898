"""lvt manifest: list the clips of a dataset. Reads a folder or a CSV; writes one JSON line per clip."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, echo_facts, json_option, out_option


@click.group("manifest")
def command() -> None:
    """List the clips of a dataset, one JSON object per line.

    Example: lvt manifest build my_videos -o clips.jsonl
    """


@command.command("build")
@click.argument("source", type=PATH)
@out_option("Manifest to write, such as clips.jsonl.")
@click.option(
    "--split",
    type=click.Choice(["auto", "hash", "none"]),
    default="auto",
    show_default=True,
    help="auto: folders named train, val, test decide, else the content's hash. none: everything is train.",
)
@click.option("--val-share", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share of clips in val.")
@click.option("--test-share", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share in test.")
@click.option(
    "--label",
    type=click.Choice(["folder", "none"]),
    default="folder",
    show_default=True,
    help="folder: a clip's label is the name of the folder it lies in.",
)
@json_option
def build(source: Path, out: Path, split: str, val_share: float, test_share: float, label: str, as_json: bool) -> None:
    """List the videos of a folder, or the rows of a CSV with a column `path`.

    Clip ids are relative paths without the file ending. Files are hashed, so the list notices changed content.

    Example: lvt manifest build my_videos -o clips.jsonl
    """
    from lvt_pipeline.config import build as build_settings
    from lvt_pipeline.data.manifest import ManifestSettings, build_manifest

    settings = build_settings(
        ManifestSettings, {"split": split, "val_share": val_share, "test_share": test_share, "label": label}
    )
    record = build_manifest(source, out, settings, progress=Console())
    splits = ", ".join(f"{count} {name}" for name, count in record.counts["splits"].items())
    echo_facts(record.to_json(), as_json, f"{record.counts['clips']} clips ({splits}) -> {out}")
