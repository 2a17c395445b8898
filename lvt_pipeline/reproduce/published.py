"""The tables of the paper, read from `published.toml` (Rakhimov et al. 2020, tables 1 to 8).

A row also names our experiment that corresponds to it, by its key in `experiments`; rows of other papers have none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Dataset = Literal["bair", "kinetics"]
DATASETS: Mapping[Dataset, str] = {"bair": "BAIR robot pushing", "kinetics": "Kinetics-600"}
SHORT_NAMES: Mapping[Dataset, str] = {"bair": "BAIR", "kinetics": "Kinetics-600"}
TEST_CLIPS: Mapping[Dataset, str] = {"bair": "256", "kinetics": "about 50,000"}

Column = Literal["mse", "bits", "fvd", "parameters", "seconds"]
COLUMNS: Mapping[Column, str] = {
    "mse": "MSE",
    "bits": "bits/dim",
    "fvd": "FVD",
    "parameters": "parameters, M",
    "seconds": "s per clip",
}
NOTHING = "-"  # how the paper prints a number that its source does not give
COPY = "copy"  # the baseline that repeats the last priming frame


@dataclass(frozen=True)
class Row:
    """One row of a table: its title, its numbers, and our experiment that measures the same."""

    labels: Sequence[str]
    numbers: Sequence[str]
    ours: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table of the paper."""

    number: int
    title: str
    section: str
    dataset: Dataset
    labels: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Row]


def parse_number(text: str) -> tuple[float | None, float | None]:
    """Mean and spread of a printed number: "258.89 ± 2.85", "0.002", "-"."""
    if text == NOTHING:
        return None, None
    mean, _, spread = text.partition(" ± ")
    return float(mean), float(spread) if spread else None


def _read(table: Mapping[str, Any]) -> PublishedTable:
    """A table of `published.toml`."""
    texts = {key: tuple(table[key]) for key in ("labels", "columns")}
    rows = [Row(tuple(row["labels"]), tuple(row["numbers"]), row.get("ours")) for row in table["rows"]]
    return PublishedTable(**{**table, **texts, "rows": tuple(rows)})


def read_table(name: str) -> dict[str, Any]:
    """A data file of this folder."""
    return tomllib.loads(resources.files("lvt_pipeline.reproduce").joinpath(name).read_text("utf-8"))


TABLES = {name: _read(table) for name, table in read_table("published.toml").items()}
