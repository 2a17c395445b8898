"""The pieces that sections of a report are made of."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lvt_pipeline.evaluation.charts import Series


@dataclass(frozen=True)
class Problem:
    """Why a section cannot be shown, and the command that helps, if one does."""

    message: str
    command: str | None
    is_problem: bool = True


@dataclass(frozen=True)
class Card:
    """A key number beside what it has to beat. `verdict` is better, worse or plain (nothing to beat)."""

    label: str
    value: str
    unit: str
    verdict: str
    note: str
    baseline: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart with what it shows."""

    title: str
    svg: Markup
    caption: str = ""


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a text that a page can use in place of an address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def series_of(name: str, lines: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0) -> Series:
    points = [(line["step"], line[key] * factor) for line in lines if isinstance(line.get(key), (int, float))]
    return Series(name, [step for step, _ in points], [value for _, value in points])
