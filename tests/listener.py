"""A progress that remembers what was said."""

from __future__ import annotations

from contextlib import AbstractContextManager

from lvt_pipeline.progress import SILENT, Bar


class Listener:
    """Hand it to a function as its `progress`."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
        return SILENT.bar(task, total, unit, done)

    def say(self, line: str) -> None:
        self.said.append(line)
