"""lvt report: one page about a work directory. Reads its artefacts; writes a self-contained HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, echo_facts, json_option, out_option


@click.command("report")
@click.argument("work_dir", type=PATH)
@out_option("HTML file to write. [WORK_DIR/report.html]", required=False)
@json_option
def command(work_dir: Path, out: Path | None, as_json: bool) -> None:
    """Curves, reconstructions, samples, metrics and provenance in one file that opens anywhere.

    Example: lvt report work
    """
    from lvt_pipeline.evaluation.report import write_report

    target = out or work_dir / "report.html"
    record = write_report(work_dir, target, progress=Console())
    echo_facts(record.to_json(), as_json, f"{target} ({target.stat().st_size / 1e6:.1f} MB): open it in a browser")
