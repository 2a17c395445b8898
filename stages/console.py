"""Printing: facts on stdout, progress on stderr. A closed or broken stderr never stops the work."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from lvt_pipeline.errors import LVTError
from lvt_pipeline.progress import Bar, format_seconds
from lvt_pipeline.storage import Place

if TYPE_CHECKING:
    from lvt_pipeline.provenance import Provenance

RATE_SECONDS = 180.0  # that the speed of a plain line is averaged over


def echo_facts(facts: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print `facts` as JSON, or `text` for people; once, however many processes there are.

    Raises:
        LVTError: standard output is broken or full.
    """
    if _is_first_process():
        try:
            click.echo(json.dumps(facts, indent=2, default=str) if as_json else text)
        except BrokenPipeError:
            raise  # the reader has seen enough
        except OSError as error:
            raise LVTError(f"the result could not be printed: {error.strerror}") from error


@dataclass(frozen=True)
class Result:
    """What a command prints at its end: with `--json` the facts, else the text.

    Attributes:
        error: raised once it is printed.
    """

    facts: Mapping[str, Any]
    text: str
    error: LVTError | None = None

    @classmethod
    def of(cls, record: Provenance, made: str, out: Place) -> Result:
        """The record of an output; in one line its contents, its path and the time that it took."""
        return cls(record.to_json(), f"{made} -> {out} in {format_seconds(record.seconds)}")

    def echo(self, as_json: bool) -> None:
        """Print it.

        Raises:
            LVTError: `error`, or standard output is broken or full.
        """
        echo_facts(self.facts, as_json, self.text)
        if self.error is not None:
            raise self.error


class Console:
    """Progress on stderr: bars on a terminal, a plain line now and then elsewhere."""

    seconds_between_lines = 15.0

    def __init__(self) -> None:
        self._is_quiet = not _is_first_process()
        self._stream = Stderr()

    def say(self, line: str) -> None:
        """One line."""
        if not self._is_quiet:
            tqdm.write(line, file=self._stream)

    @contextmanager
    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Bar]:
        """A task under way."""
        if self._is_quiet or not self._stream.isatty():
            yield _Lines(task, total, unit, done, self)
            return
        with tqdm(
            total=total, initial=done, unit=f" {unit}", desc=task, file=self._stream, dynamic_ncols=True, leave=False
        ) as bar:
            yield _Bar(bar)


class Stderr:
    """Standard error as it is at this moment; writing to one that is closed or broken does nothing."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError, AttributeError):  # broken, closed, absent
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        with suppress(OSError, ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def fileno(self) -> int:
        """Its descriptor, which tqdm asks for the width of the terminal."""
        return sys.stderr.fileno()


class _Bar:
    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def advance(self, amount: int = 1, **facts: Any) -> None:
        if facts:
            self._bar.set_postfix_str(_fact_list(facts), refresh=False)
        self._bar.update(amount)


class _Lines:
    """A line every few seconds, for logs."""

    def __init__(self, task: str, total: int | None, unit: str, done: int, console: Console) -> None:
        self._task, self._total, self._unit, self._done, self._console = task, total, unit, done, console
        self._last_line = time.monotonic()
        self._marks = deque([(self._last_line, done)])

    def advance(self, amount: int = 1, **facts: Any) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last_line < self._console.seconds_between_lines:
            return
        self._last_line = now
        rate = self._recent_rate(now)
        left = f", {format_seconds((self._total - self._done) / rate)} left" if self._total and rate else ""
        shown = f", {_fact_list(facts)}" if facts else ""
        of_total = f"/{self._total}" if self._total else ""
        self._console.say(f"  {self._task}: {self._done}{of_total} {self._unit}, {rate:.1f}/s{left}{shown}")

    def _recent_rate(self, now: float) -> float:
        """Items per second over the last minutes: long enough for pauses, short enough to notice a busier machine."""
        while len(self._marks) > 1 and now - self._marks[1][0] >= RATE_SECONDS:
            self._marks.popleft()
        (began, done_then), done_now = self._marks[0], self._done
        self._marks.append((now, done_now))
        return (done_now - done_then) / max(now - began, 1e-9)


def _is_first_process() -> bool:
    """Whether this is the process of a group, started by `torchrun`, that prints for all."""
    return os.environ.get("RANK", "0") == "0"


def _fact_list(facts: Mapping[str, Any]) -> str:
    """Facts next to a bar: loss 0.0123, 1.52 bits."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )
