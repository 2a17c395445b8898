"""lvt report: one page about one or several work directories. Reads their artefacts; writes one HTML file."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.settings import required_setting, setting
from stages.command import stage_command
from stages.console import Console, Result


@stage_command("report")
def command(
    work_dirs: tuple[Path, ...] = required_setting(example="WORK_DIR..."),
    *,
    out: Path | None = setting(
        None,
        "HTML file to write.",
        unset="WORK_DIR/report.html; of several: comparison.html",
    ),
) -> Result:
    """Write curves, reconstructions, samples, metrics and provenance into one HTML file that opens anywhere.

    Several work directories are shown next to each other, each compared with the first.

    Example: lvt report work
    """
    from lvt_pipeline.report.page import write_comparison, write_report

    if len(work_dirs) == 1:
        target = out or work_dirs[0] / "report.html"
        record = write_report(work_dirs[0], target, progress=Console())
    else:
        target = out or Path("comparison.html")
        record = write_comparison(work_dirs, target, progress=Console())
    return Result(record.to_json(), f"{target} ({target.stat().st_size / 1e6:.1f} MB): open it in a browser")
