"""lvt doctor: check that this machine can run every stage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lvt_pipeline.errors import LVTError
from lvt_pipeline.settings import setting
from stages.command import stage_command
from stages.console import Result


@stage_command("doctor")
def command(
    *,
    folder: Path | None = setting(None, "Folder of future outputs; its disk is tested.", unset="the current folder"),
) -> Result:
    """Test each part once: torch, decord, PyAV, zarr codecs, webdataset, training, spawned workers, disk.

    Example: lvt doctor
    """
    from lvt_pipeline.workspace.doctor import examine

    checks = examine(folder or Path())
    lines = [f"{'ok  ' if check.is_ok else 'FAIL'}  {check.name:20} {check.detail}" for check in checks]
    failed = [check.name for check in checks if not check.is_ok]
    error = LVTError(f"this machine cannot run every stage: {', '.join(failed)} failed") if failed else None
    return Result({"checks": [asdict(check) for check in checks]}, "\n".join(lines), error)
