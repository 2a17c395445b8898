"""The pieces that sections of a report are made of."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lvt_pipeline.report.charts import Series
from lvt_pipeline.report.work_dir import MADE, StageRecord


@dataclass(frozen=True)
class Problem:
    """Why a section cannot be shown, and the command that helps, if one does."""

    message: str
    command: str | None
    is_problem: bool = True


@dataclass(frozen=True)
class Check:
    """Whether a number beats another. `kind` is better, worse or plain (nothing to beat)."""

    kind: str
    text: str
    note: str = ""


def beats(is_better: bool, baseline: str = "", note: str = "") -> Check:
    """A check in words: "✓ beats the unigram"; without a name for what stands beside it in a table."""
    if is_better:
        return Check("better", f"✓ beats {baseline or 'it'}", note)
    return Check("worse", f"✗ does not beat {baseline}" if baseline else "✗ does not", note)


@dataclass(frozen=True)
class Card:
    """A key number with what it has to beat."""

    label: str
    value: str
    unit: str
    checks: Sequence[Check] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Numbers in rows: the first column says of what, a `Check` is written as a verdict."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Check]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart with what it shows."""

    title: str
    svg: Markup
    caption: str = ""


def problems_of(records: Sequence[StageRecord]) -> list[tuple[str, Problem]]:
    """Stages that are not up to date, each with the tab that shows it; those that one command helps count as one."""
    by_command: dict[str, list[StageRecord]] = {}
    for record in records:
        if record.state in ("stale", "unfinished"):
            by_command.setdefault(record.command, []).append(record)
    found = [
        (MADE[group[0].role].tab, Problem(" ".join(f"{record.name}: {record.reason}." for record in group), command))
        for command, group in by_command.items()
    ]
    missing = [record for record in records if record.state == "missing"]
    if missing:
        names = ", ".join(record.name.lower() for record in missing)
        found.append((MADE[missing[0].role].tab, Problem(f"Not made yet: {names}.", missing[0].command)))
    return found


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a text that a page can use in place of an address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def series_of(
    name: str, lines: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0, style: int | None = None
) -> Series:
    """What a run logged under a key, against its steps; a list of numbers (one per codebook) counts as its mean."""
    points = [(line["step"], value) for line in lines if (value := _number(line.get(key))) is not None]
    return Series(name, [step for step, _ in points], [value * factor for _, value in points], style)


def _number(value: Any) -> float | None:
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        return sum(value) / len(value)
    return value if isinstance(value, int | float) else None
