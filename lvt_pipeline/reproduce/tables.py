"""A table of the paper with our numbers next to the published ones: as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lvt_pipeline.evaluation.results import is_fvd
from lvt_pipeline.progress import count_of
from lvt_pipeline.reproduce.published import (
    COLUMNS,
    DATASETS,
    NOTHING,
    SHORT_NAMES,
    TEST_CLIPS,
    Column,
    Dataset,
    PublishedTable,
    parse_number,
)
from lvt_pipeline.storage import write_bytes, write_json

NONE = "–"  # a cell without a number
NEEDS_I3D = "needs --i3d FILE"


@dataclass(frozen=True)
class Measured:
    """A number of ours: its mean and, over several runs, its standard deviation."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class FilledRow:
    """One row: its title, our measurements, the paper's numbers.

    Attributes:
        published: as printed; a column that the paper's table does not have here is absent.
        experiment: name of our prior or tokenizer.
        is_extra: not a row of the paper; it stands below the others.
    """

    labels: Sequence[str]
    ours: Mapping[Column, Measured] = field(default_factory=dict)
    published: Mapping[Column, str] = field(default_factory=dict)
    experiment: str | None = None
    is_extra: bool = False


@dataclass(frozen=True, kw_only=True)
class FilledTable:
    """A table of the paper and ours in one.

    Attributes:
        data: what our numbers were measured on, in words.
        dataset: the paper's dataset that our data are, if they are one.
        fvd_label: what our Fréchet distances may be called; none: not measured.
        notes: lines below the table.
    """

    name: str
    paper: PublishedTable
    data: str
    dataset: Dataset | None
    scale: str
    clips: int
    split: str
    runs: int | None
    fvd_label: str | None
    rows: Sequence[FilledRow]
    notes: Sequence[str] = ()

    @property
    def title(self) -> str:
        """The paper's number and title."""
        return f"Table {self.paper.number}: {self.paper.title} (Rakhimov et al. 2020, section {self.paper.section})"

    @property
    def heading(self) -> list[str]:
        """Where both kinds of numbers come from, so that nobody mistakes one for the other."""
        runs = "" if self.runs is None else f", {count_of(self.runs, 'run')} of sampling"
        lines = [
            f"ours: {self.data}, preset {self.scale}, {count_of(self.clips, f'{self.split} clip')}{runs}",
            f"paper: {DATASETS[self.paper.dataset]}, {TEST_CLIPS[self.paper.dataset]} test clips, as it was printed",
        ]
        if self.dataset != self.paper.dataset:
            lines.append("Other data than the paper's: compare our rows with each other, not with the published ones.")
        elif self.scale != "paper":
            lines.append("The paper's data, smaller networks: compare our rows with each other first.")
        return lines

    def column_titles(self, column: Column) -> tuple[str, str]:
        """Titles of our half and the published half of a column."""
        ours = "ours"
        if column == "fvd":
            if self.fvd_label is None:
                ours = f"ours: {NEEDS_I3D}"
            elif not is_fvd(self.fvd_label):
                ours = "ours: not FVD" if self.fvd_label.startswith("not") else "ours: if the network is I3D"
        return ours, f"paper, {SHORT_NAMES[self.paper.dataset]}"

    def to_json(self) -> dict[str, Any]:
        """Plain data; published numbers as printed and parsed."""

        def published(row: FilledRow, column: Column) -> dict[str, Any] | None:
            if column not in row.published:
                return None
            mean, std = parse_number(row.published[column])
            return {"printed": row.published[column], "mean": mean, "std": std}

        def measured(row: FilledRow, column: Column) -> dict[str, Any] | None:
            return asdict(row.ours[column]) if column in row.ours else None

        return {
            "target": self.name,
            "title": self.title,
            "ours": {
                "data": self.data,
                "is_dataset_of_paper": self.dataset == self.paper.dataset,
                "scale": self.scale,
                "clips": self.clips,
                "split": self.split,
                "runs": self.runs,
                "fvd": self.fvd_label or NEEDS_I3D,
            },
            "published": SHORT_NAMES[self.paper.dataset],
            "rows": [
                {
                    "labels": dict(zip(self.paper.labels, row.labels, strict=True)),
                    "experiment": row.experiment,
                    "is_extra": row.is_extra,
                    "ours": {column: measured(row, column) for column in self.paper.columns},
                    "published": {column: published(row, column) for column in self.paper.columns},
                }
                for row in self.rows
            ],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """For a terminal."""
        header = [*self.paper.labels]
        groups = [""] * len(header)
        for column in self.paper.columns:
            header += self.column_titles(column)
            groups += [COLUMNS[column], ""]
        body = [self._cells(row) for row in self.rows]
        widths = [max(len(row[number]) for row in [header, *body]) for number in range(len(header))]
        for number, group in enumerate(groups):  # a group's title may be wider than its two columns
            if group:
                widths[number + 1] += max(0, len(group) - widths[number] - 2 - widths[number + 1])
        lines = [self.title, *self.heading, "", _group_line(groups, widths)]
        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        lines += [_aligned(header, widths), rule]
        was_extra = False
        for row, cells in zip(self.rows, body, strict=True):
            if row.is_extra and not was_extra:
                lines.append(rule)
            was_extra = row.is_extra
            lines.append(_aligned(cells, widths))
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    def to_markdown(self) -> str:
        """For a page."""
        header = [*self.paper.labels]
        for column in self.paper.columns:
            header += [f"{COLUMNS[column]}, {title}" for title in self.column_titles(column)]
        rows = [header, ["---"] * len(header), *map(self._cells, self.rows)]
        table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"**{self.title}**", "", *(f"{line}  " for line in self.heading), "", *table, "", *notes])

    def to_csv(self) -> str:
        """For a program: means and deviations in columns of their own, empty where there is none."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        kinds = [(column, whose) for column in self.paper.columns for whose in ("ours", "published")]
        titles = [f"{column}_{whose}{part}" for column, whose in kinds for part in ("", "_std")]
        writer.writerow([*self.paper.labels, "experiment", *titles])
        for row in self.rows:
            values: list[float | None] = []
            for column, whose in kinds:
                if whose == "ours":
                    found = row.ours.get(column)
                    values += [None, None] if found is None else [found.mean, found.std]
                else:
                    values += parse_number(row.published.get(column, NOTHING))
            writer.writerow([*row.labels, row.experiment or "", *("" if value is None else value for value in values)])
        return stream.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write `folder/<name>.md`, `.csv` and `.json`; returns their paths."""
        paths = [folder / f"{self.name}.{kind}" for kind in ("md", "csv", "json")]
        write_bytes(paths[0], (self.to_markdown().rstrip("\n") + "\n").encode())
        write_bytes(paths[1], self.to_csv().encode())
        write_json(paths[2], self.to_json())
        return paths

    def _cells(self, row: FilledRow) -> list[str]:
        cells = list(row.labels)
        for column in self.paper.columns:
            found = row.ours.get(column)
            cells.append(NONE if found is None else spoken(column, found))
            cells.append(row.published.get(column, NONE).replace(NOTHING, NONE))
        return cells


def spoken(column: Column, value: Measured) -> str:
    """A number of ours with the digits of its column."""
    match column:
        case "mse":
            text, digits = f"{value.mean:.5f}", 5
        case "bits":
            text, digits = f"{value.mean:.3f}", 3
        case "parameters":
            return in_millions(value.mean)
        case "fvd":
            text, digits = f"{value.mean:.2f}", 2
        case "seconds":
            text, digits = f"{value.mean:.3g}", 2
    return text if value.std is None else f"{text} ± {value.std:.{digits}f}"


def in_millions(parameters: float) -> str:
    """Millions with two decimals, cut off as in the paper: 33,095,168 is 33.09."""
    return f"{math.floor(parameters / 1e4) / 100:.2f}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _group_line(groups: Sequence[str], widths: Sequence[int]) -> str:
    """Each title above the first of its two columns."""
    line, start = "", 0
    for group, width in zip(groups, widths, strict=True):
        if group:
            line = line.ljust(start) + group
        start += width + 2
    return line
