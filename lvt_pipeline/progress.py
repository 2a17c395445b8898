"""How library code reports progress to a caller, without printing.

Long functions take `progress: Progress = SILENT`. The commands pass one that draws bars (`stages/console.py`), a
notebook may pass its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Bar(Protocol):
    """One task under way."""

    def advance(self, amount: int = 1, **facts: Any) -> None:
        """`amount` more units are done; `facts` (loss=..., ...) are shown next to the bar."""


class Progress(Protocol):
    """Where tasks announce themselves."""

    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
        """Announce a task of `total` units of which `done` were finished by an earlier run."""

    def say(self, line: str) -> None:
        """One line worth reading now, such as a warning."""


class _SilentBar:
    def advance(self, amount: int = 1, **facts: Any) -> None:
        pass


class _Silent:
    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
        return nullcontext(_SilentBar())

    def say(self, line: str) -> None:
        pass


def count_of(count: int, noun: str) -> str:
    """A number with its noun: "1 clip", "2,000 clips"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_seconds(seconds: float) -> str:
    """A duration for people: 8.1 s, 3 min 20 s, 2 h 5 min, 12 d 3 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


SILENT: Progress = _Silent()
