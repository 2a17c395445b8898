"""What `lvt run`, `lvt demo` and `lvt reproduce` share: running stages with a line for each. No command is here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvt_pipeline.progress import format_seconds
from stages.console import Console

if TYPE_CHECKING:
    from lvt_pipeline.pipeline.options import Making
    from lvt_pipeline.pipeline.running import StageResult
    from lvt_pipeline.workspace.settings import PipelineSettings

SETTINGS_HOME = ("lvt_pipeline.workspace.settings", "PipelineSettings")


def run_pipeline(
    settings: PipelineSettings, console: Console, making: Making, until: str | None = None
) -> dict[str, Any]:
    """Run the stages, up to and with `until`, with a line for each on stderr; returns the facts of the run."""
    from lvt_pipeline.pipeline.running import Pipeline

    started = time.monotonic()

    def on_end(result: StageResult) -> None:
        console.say(f"{result.name:15} {result_line(result)}")

    results = Pipeline(settings, making).run(until=until, on_end=on_end)
    return {
        "work_dir": settings.work_dir,
        "seconds": round(time.monotonic() - started, 3),
        "stages": [
            {
                "stage": result.name,
                "made": result.was_made,
                "seconds": round(result.seconds, 3),
                "output": str(result.output),
                "because": result.reasons,
            }
            for result in results
        ],
    }


def closing_lines(facts: Mapping[str, Any]) -> str:
    """How much was done, and where the videos and the report are once there are some."""
    work_dir = Path(facts["work_dir"])
    made = [stage for stage in facts["stages"] if stage["made"]]
    took = format_seconds(facts["seconds"])
    is_kept = any(not stage["made"] and stage["because"] for stage in facts["stages"])
    found = f"no stage in {work_dir} is stale" if is_kept else f"every stage in {work_dir} is done and unchanged"
    done = f"{len(made)} of {len(facts['stages'])} stages run in {took}" if made else f"nothing to do: {found} ({took})"
    outputs = {"videos": work_dir / "videos", "report": work_dir / "report.html"}
    return "\n".join([done, *(f"{name}: {path}" for name, path in outputs.items() if path.exists())])


def result_line(result: StageResult) -> str:
    """The outcome of a stage."""
    if not result.was_made:
        return "kept, its data have changed" if result.reasons else "unchanged"
    return f"{count_list(result.record.counts)} -> {result.output} in {format_seconds(result.seconds)}"


def count_list(counts: Mapping[str, Any]) -> str:
    """The plain numbers among a record's counts: clips 56, val psnr 28.1."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in counts.items()
        if isinstance(value, int | float)
    )
