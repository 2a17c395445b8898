"""lvt status: the state of each stage of a work directory, or the progress of a training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lvt_pipeline.progress import format_seconds
from lvt_pipeline.settings import required_setting
from stages.command import stage_command
from stages.console import Result
from stages.pipeline import count_list

if TYPE_CHECKING:
    from lvt_pipeline.runs.live import LiveRun

MARKS = {"done": "done", "stale": "STALE", "unfinished": "unfinished", "missing": "-", "waiting": "waiting"}


@stage_command("status")
def command(path: Path = required_setting(example="WORK_DIR|RUN")) -> Result:
    """Print a line per stage of a work directory: its contents, or why the next `lvt run` will make it again.

    For a run directory, print the progress of its training, also while it is running.

    Example: lvt status work
    """
    from lvt_pipeline.runs.layout import RUN_NAME

    if (path / RUN_NAME).is_file():
        from lvt_pipeline.runs.live import read_live_run

        run = read_live_run(path)
        facts = {"run": str(path), **asdict(run), "seconds_left": run.seconds_left}
        return Result(facts, run_line(run))
    stages = _stages(path)
    lines = [f"{MARKS.get(one['state'], one['state']):10}  {one['stage']:15}  {one['detail']}" for one in stages]
    return Result({"work_dir": str(path), "stages": stages}, "\n".join(lines))


def _stages(work_dir: Path) -> list[dict[str, str]]:
    from lvt_pipeline.runs.layout import RUN_NAME
    from lvt_pipeline.runs.live import read_live_run
    from lvt_pipeline.workspace.states import work_dir_states

    facts = []
    for state in work_dir_states(work_dir):
        record = state.record
        detail = "; ".join(state.reasons)
        if state.state == "unfinished" and (state.output / RUN_NAME).is_file():
            detail = run_line(read_live_run(state.output))
        if state.state == "done" and record is not None:
            counted = f"{count_list(record.counts)} ({format_seconds(record.seconds)}, {record.finished})"
            detail = state.note or counted
        facts.append({"stage": state.name, "state": state.state, "output": str(state.output), "detail": detail})
    return facts


def run_line(run: LiveRun) -> str:
    """How far a training is, in one line."""
    parts = [f"{run.status}, step {run.step:,} of {run.max_steps:,} ({run.saved_step:,} saved)"]
    train, val = run.train, run.val
    parts += [f"{name.replace('_', ' ')} {train[name]:.4g}" for name in ("loss", "bits_per_dim") if name in train]
    rate = next((name for name in ("windows_per_second", "frames_per_second") if name in train), None)
    if rate is not None:
        parts.append(f"{train[rate]:,.4g} {rate.partition('_')[0]}/s")
    if "data_wait_share" in train:
        parts.append(f"data wait {train['data_wait_share']:.1%}, memory {train['memory_bytes'] / 2**20:,.0f} MiB")
    if run.seconds_left is not None:
        parts.append(f"{format_seconds(run.seconds_left)} left")
    score = next((name for name in ("bits_per_dim", "mse") if name in val), None)
    if score is not None:
        parts.append(f"val {score.replace('_', ' ')} {val[score]:.4g} at step {val['step']:,}")
    return ", ".join(parts)
