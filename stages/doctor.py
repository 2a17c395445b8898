"""lvt doctor: check that this machine can run every stage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lvt_pipeline.errors import LVTError
from stages.console import echo_facts
from stages.options import json_option, stage_command
from stages.values import PATH


@stage_command("doctor")
@click.option(
    "--folder",
    type=PATH,
    default=".",
    show_default="the current folder",
    help="Folder of future outputs; its disk is tested.",
)
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Test each part once: torch, decord, PyAV, zarr codecs, webdataset, training, spawned workers, disk.

    Example: lvt doctor
    """
    from lvt_pipeline.workspace.doctor import examine

    checks = examine(folder)
    lines = [f"{'ok  ' if check.is_ok else 'FAIL'}  {check.name:20} {check.detail}" for check in checks]
    echo_facts({"checks": [asdict(check) for check in checks]}, as_json, "\n".join(lines))
    failed = [check.name for check in checks if not check.is_ok]
    if failed:
        raise LVTError(f"this machine cannot run every stage: {', '.join(failed)} failed")
