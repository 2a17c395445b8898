"""lvt compare: several evaluations in a table with intervals. Reads eval.json files; writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvt_pipeline.progress import aligned
from lvt_pipeline.settings import setting
from stages.command import stage_command
from stages.console import Result

if TYPE_CHECKING:
    from lvt_pipeline.evaluation.compare import Comparison, Difference


@stage_command("compare")
def command(
    results: tuple[Path, ...],
    *,
    level: float = setting(0.95, "Confidence level of the intervals.", above=0, below=1),
) -> Result:
    """Compare evaluations in a table with bootstrap intervals over clips, and name the differences that exceed noise.

    RESULTS are work directories or files that `lvt evaluate` wrote. All are compared with the first.

    Example: lvt compare work_a work_b
    """
    from lvt_pipeline.evaluation.compare import compare

    if len(results) < 2:
        raise click.UsageError("give at least two work directories or result files")
    found = compare(results, level=level)
    return Result(found.to_json(), _page(found))


def _page(found: Comparison) -> str:
    """The table, then the differences."""
    from lvt_pipeline.evaluation.compare import METRICS

    titles = {metric.key: metric.title for metric in METRICS}
    rows = [["", *(evaluation.name for evaluation in found.evaluations)]]
    rows.append(["clips", *(f"{e.results['clips']} {e.results['split']}" for e in found.evaluations)])
    rows += [
        [titles[key], *("–" if measured is None else measured.text for measured in row)]
        for key, row in found.table.items()
    ]
    lines = aligned(rows)
    lines.append(f"[low, high]: {found.level:.0%} bootstrap interval over clips; of FVD over runs")
    for evaluation in found.evaluations[1:]:
        own = [difference for difference in found.differences if difference.of == evaluation.name]
        lines += ["", f"{evaluation.name} against {found.evaluations[0].name}"]
        lines += aligned([[f"  {titles[difference.metric]}", *_verdict(difference)] for difference in own])
        if not own:
            lines.append("  nothing was measured in both")
    labels = {str(evaluation.fact("fvd.label")) for evaluation in found.evaluations if evaluation.fact("fvd.label")}
    if any(key.startswith(("fvd_", "kvd_")) for key in found.table):
        lines += ["", *(f"FVD here: {label}" for label in sorted(labels))]
    if any(key.startswith("sample_") for key in found.table):
        lines += [
            "",
            "Sample errors are against the one future that happened: colder samples come closer, also bad ones.",
        ]
    return "\n".join(lines)


def _verdict(difference: Difference) -> list[str]:
    if not difference.text:
        return ["", f"{difference.verdict}: {difference.reason}"]
    of_what = "runs" if difference.metric.startswith(("fvd", "kvd")) else "clips"
    how = f"{'paired, ' if difference.is_paired else ''}{difference.values} {of_what}"
    note = f"; {difference.reason}" if difference.reason else ""
    return [difference.text, f"{difference.verdict} ({how}{note})"]
