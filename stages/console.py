"""What the stage commands share: option types, progress on a terminal, how facts are printed. No stage lives here."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tqdm import tqdm

from lvt_pipeline.config import load
from lvt_pipeline.progress import Bar

if TYPE_CHECKING:
    from lvt_pipeline.workspace.pipeline import PipelineSettings, StageResult

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings")

# Paths are checked by the library, whose message also says what to do; click only turns the text into a Path.
PATH = click.Path(path_type=Path)


def out_option(help_text: str, *, required: bool = True, default: str | None = None) -> Callable[[Command], Command]:
    """The `-o/--out` option that every writing stage has."""
    return click.option("-o", "--out", type=PATH, required=required, default=default, help=help_text)


def json_option(command: Command) -> Command:
    """`--json`: facts as one JSON object on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")(command)


def device_option(command: Command) -> Command:
    """`--device`: where tensors live."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cuda or cuda:N. auto takes a GPU if there is one.",
    )(command)


def at_option(command: Command) -> Command:
    """`--at`: which generation of a code store is read."""
    return click.option(
        "--at",
        "at",
        type=click.IntRange(min=1),
        metavar="N",
        help="Read generation N of the code store; lvt inspect lists them. [the current one]",
    )(command)


def overwrite_option(command: Command) -> Command:
    """`--overwrite`: throw the existing output away first. Never the default."""
    return click.option("--overwrite", is_flag=True, help="Start again: delete the existing output first.")(command)


def training_options(family: str, preset: str) -> Callable[[Command], Command]:
    """What both training stages offer, in the order of their help.

    Args:
        family: folder of their presets.
        preset: the one taken when neither a preset nor a config file is given.
    """
    options = [
        out_option("Run directory to create or resume. Not needed with --dry-run.", required=False),
        click.option("--preset", help=f"Settings that ship with lvt (lvt_pipeline/presets/{family}). [{preset}]"),
        click.option(
            "--recipe",
            help="How to learn: default, or paper. Replaces what the preset or the file says about optimizer, rates "
            "and clipping. [that of the preset]",
        ),
        click.option("--config", type=PATH, help="TOML file of settings."),
        click.option(
            "--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change one setting; may be repeated."
        ),
        click.option("--max-steps", type=click.IntRange(min=1), help="Same as --set training.max_steps=N."),
        click.option(
            "--max-seconds", type=click.FloatRange(min=0), help="Save and stop after this long (exit code 75)."
        ),
        device_option,
        click.option("--dry-run", is_flag=True, help="Build the model, time one step, print the facts, write nothing."),
        overwrite_option,
        click.option(
            "--allow-config-change",
            is_flag=True,
            help="Go on with a run although settings of its training changed; the run lists the changes.",
        ),
        click.option(
            "--track",
            type=click.Choice(["tensorboard", "wandb"]),
            multiple=True,
            help="Show the metrics there too (an extra to install); metrics.jsonl is always written.",
        ),
        json_option,
    ]

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def listing_settings(module: str, name: str) -> type[click.Command]:
    """A command whose `--help` ends with all keys of a settings dataclass.

    Args:
        module, name: where it is; only loaded for the help, since torch comes with it.
    """

    class WithSettings(click.Command):
        def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            from stages.options import setting_rows

            rows = setting_rows(getattr(import_module(module), name))
            with formatter.section("Settings, for --set and --config, as they are without a preset"):
                formatter.write_dl(rows)

    return WithSettings


def training_settings(
    cls: type[Settings],
    family: str,
    default_preset: str,
    *,
    preset: str | None,
    recipe: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    max_steps: int | None,
) -> Settings:
    """The run settings that these options ask for."""
    if max_steps is not None:
        overrides = (*overrides, f"training.max_steps={max_steps}")
    chosen = preset or (None if config else default_preset)
    return load(cls, family, preset=chosen, recipe=recipe, config=config, overrides=overrides)


def echo_facts(facts: Mapping[str, Any], as_json: bool, line: str) -> None:
    """Print `facts` as JSON, or the one summary line for people; once, however many processes there are."""
    if _is_first_process():
        click.echo(json.dumps(facts, indent=2, default=str) if as_json else line)


class Console:
    """Progress on stderr: bars on a terminal, a plain line now and then elsewhere."""

    seconds_between_lines = 15.0

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet or not _is_first_process()
        self._on_terminal = sys.stderr.isatty()

    def say(self, line: str) -> None:
        if not self._quiet:
            tqdm.write(line, file=sys.stderr)

    @contextmanager
    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Bar]:
        if self._quiet or not self._on_terminal:
            yield _Lines(task, total, unit, done, self)
            return
        with tqdm(
            total=total, initial=done, unit=f" {unit}", desc=task, file=sys.stderr, dynamic_ncols=True, leave=False
        ) as drawn:
            yield _Drawn(drawn)


class _Drawn:
    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def advance(self, amount: int = 1, **facts: Any) -> None:
        if facts:
            self._bar.set_postfix_str(_spoken(facts), refresh=False)
        self._bar.update(amount)


class _Lines:
    """A line every few seconds, for logs."""

    def __init__(self, task: str, total: int | None, unit: str, done: int, console: Console) -> None:
        self._task, self._total, self._unit, self._done, self._console = task, total, unit, done, console
        self._first, self._start = done, time.monotonic()
        self._last_line = self._start

    def advance(self, amount: int = 1, **facts: Any) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last_line < self._console.seconds_between_lines:
            return
        self._last_line = now
        rate = (self._done - self._first) / (now - self._start)
        left = f", {clock((self._total - self._done) / rate)} left" if self._total and rate else ""
        shown = f", {_spoken(facts)}" if facts else ""
        of_total = f"/{self._total}" if self._total else ""
        self._console.say(f"  {self._task}: {self._done}{of_total} {self._unit}, {rate:.1f}/s{left}{shown}")


def _is_first_process() -> bool:
    """Whether this is the process of a group, started by `torchrun`, that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _spoken(facts: Mapping[str, Any]) -> str:
    """Facts beside a bar: loss 0.0123, 1.52 bits."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )


def clock(seconds: float) -> str:
    """A duration as people say it: 8.1 s, 3:20 min, 2:05:00 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def dry_run_line(facts: Mapping[str, Any]) -> str:
    """The summary of a dry run for people."""
    end = datetime.now() + timedelta(seconds=facts["total_seconds"])
    return (
        f"{facts['parameters']:,} parameters, about {facts['memory_bytes'] / 2**20:,.0f} MiB, "
        f"{facts['steps_per_second']:.3g} steps/s ({facts['step_seconds']:.3f} s each): {facts['max_steps']:,} steps "
        f"take {clock(facts['total_seconds'])}, until {end:%Y-%m-%d %H:%M}"
    )


def run_pipeline(settings: PipelineSettings, console: Console, *, device: str, workers: int | None) -> dict[str, Any]:
    """Run the stages with a line for each on stderr; the facts of the run."""
    from lvt_pipeline.workspace.pipeline import Pipeline

    started = time.monotonic()

    def on_end(result: StageResult) -> None:
        console.say(f"{result.name:15} {told(result)}")

    pipeline = Pipeline(settings, device=device, num_workers=workers)
    results = pipeline.run(progress=console, on_end=on_end)
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


def closing_lines(facts: dict[str, Any]) -> str:
    """Where the user finds what they came for."""
    work_dir = Path(facts["work_dir"])
    made = [stage for stage in facts["stages"] if stage["made"]]
    lines = [
        f"{len(made)} of {len(facts['stages'])} stages run in {clock(facts['seconds'])}"
        if made
        else f"nothing to do: every stage in {work_dir} is done and unchanged ({clock(facts['seconds'])})",
        f"videos: {work_dir / 'videos'}",
        f"report: {work_dir / 'report.html'}",
    ]
    return "\n".join(lines)


def told(result: StageResult) -> str:
    """What became of a stage, for people."""
    if not result.was_made:
        return "unchanged"
    return f"{spoken_counts(result.record.counts)} -> {result.output} in {clock(result.seconds)}"


def spoken_counts(counts: Mapping[str, Any]) -> str:
    """The plain numbers among a record's counts: clips 56, val psnr 28.1."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in counts.items()
        if isinstance(value, int | float)
    )
