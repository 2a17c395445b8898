"""How library code tells a caller what it is doing, without printing.

Long functions take `progress: Progress = SILENT`. The commands pass one that draws bars (`stages/console.py`), a
notebook may pass its own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Bar(Protocol):
    """One task under way."""

    def advance(self, amount: int = 1, **facts: Any) -> None:
        """`amount` more units are done; `facts` (loss=..., ...) are shown beside the bar."""


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


SILENT: Progress = _Silent()
