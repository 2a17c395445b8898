"""lvt doctor: check that this machine can run every stage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lvt_pipeline.errors import LVTError
from stages.console import PATH, echo_facts, json_option


@click.command("doctor")
@click.option("--folder", type=PATH, default=".", help="Where outputs will go; its disk is measured. [here]")
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Try each part once: torch, decord, PyAV, zarr codecs, webdataset, spawned workers, disk.

    Example: lvt doctor
    """
    from lvt_pipeline.workspace.doctor import examine

    checks = examine(folder)
    lines = [f"{'ok  ' if check.is_ok else 'FAIL'}  {check.name:20} {check.detail}" for check in checks]
    echo_facts({"checks": [asdict(check) for check in checks]}, as_json, "\n".join(lines))
    failed = [check.name for check in checks if not check.is_ok]
    if failed:
        raise LVTError(f"this machine cannot run every stage: {', '.join(failed)} failed")
