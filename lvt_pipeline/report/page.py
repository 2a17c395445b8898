"""Stage `report`: a work directory as one page that needs nothing else (paper, figures 5 to 8 and tables 1 to 4).

Pictures, videos and charts lie inside the HTML file, so it opens from a disk, a mail or a phone without asking anyone
for anything. A stage that is missing, unfinished or broken gets a line that says so and the command that helps; it
never keeps the rest from being shown. What the sections hold is gathered in `report_sections`; several work directories
beside each other are a page of their own, see `report_comparison`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.evaluation.compare import names_of
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, fingerprint, lvt_version, write_record
from lvt_pipeline.report import sections
from lvt_pipeline.report.clips import ClipsSection, clips_section
from lvt_pipeline.report.comparison import ComparisonPage, gather_comparison
from lvt_pipeline.report.evaluation import EvaluationSection, evaluation_section
from lvt_pipeline.report.parts import Card, Problem
from lvt_pipeline.report.samples import SamplesSection, samples_section
from lvt_pipeline.report.work_dir import MADE, MissingPart, StageRecord, WorkDir, record_of, stage_records
from lvt_pipeline.storage import write_bytes

STAGE = "report"
FILE_MARK = b'<meta name="generator" content="lvt '  # near the beginning of every page
VERSION = 2  # 2: tabs, single clips, everything that lvt evaluate measures

Section = TypeVar("Section")


def write_report(work_dir: Path, out: Path, *, progress: Progress = SILENT) -> Provenance:
    """Write the page about one work directory. Equal artefacts give equal bytes.

    Raises:
        ArtefactError: `work_dir` holds nothing that a stage makes.
    """
    started = time.monotonic()
    require_output_file(out, STAGE, WorkDir(work_dir).artefacts.values(), mark=FILE_MARK)
    page = gather(_opened(work_dir), progress)
    not_up_to_date = [record.role for record in page.records if record.state != "done"]
    return _write(out, render(page, "report.html.j2"), report_inputs(work_dir), not_up_to_date, started)


def write_comparison(work_dirs: Sequence[Path], out: Path, *, progress: Progress = SILENT) -> Provenance:
    """Write the page about several work directories beside each other; each is compared with the first.

    Raises:
        ArtefactError: one holds nothing that a stage makes.
        ConfigError: there are too many, or one is there twice.
    """
    started = time.monotonic()
    inputs_of_all = [path for work in work_dirs for path in WorkDir(work).artefacts.values()]
    require_output_file(out, STAGE, inputs_of_all, mark=FILE_MARK)
    page = gather_comparison([_opened(path) for path in work_dirs], lvt_version(), progress)
    inputs = {
        f"{name}/{role}": value
        for name, path in zip(names_of(work_dirs), work_dirs, strict=True)
        for role, value in report_inputs(path).items()
    }
    not_up_to_date = [f"{run.name}/{item.role}" for run in page.runs for item in run.records if item.state != "done"]
    return _write(out, render(page, "comparison.html.j2"), inputs, not_up_to_date, started)


def report_inputs(work_dir: Path) -> dict[str, str]:
    """Fingerprints of the finished artefacts of a work directory, by role: what a report is made of."""
    records = {role: record_of(path) for role, path in WorkDir(work_dir).artefacts.items()}
    return {role: record.fingerprint for role, record in records.items() if record is not None}


@dataclass(frozen=True)
class Page:
    """Everything the template shows."""

    title: str
    summary: str
    version: str
    cards: Sequence[Card]
    attention: Sequence[tuple[str, str, str]]
    data: sections.DataSection | Problem
    tokenizer: sections.TokenizerSection | Problem
    codes: sections.CodesSection | Problem
    prior: sections.PriorSection | Problem
    samples: SamplesSection | Problem
    evaluation: EvaluationSection | Problem
    clips: ClipsSection | Problem
    records: Sequence[StageRecord]

    def records_of(self, tab: str) -> list[StageRecord]:
        """What made the artefacts that a tab shows."""
        return [record for record in self.records if MADE[record.role].tab == tab]


def gather(work: WorkDir, progress: Progress = SILENT) -> Page:
    """Look at everything in a work directory, part by part."""
    parts: list[tuple[str, Callable[[WorkDir], Any]]] = [
        ("data", sections.data_section),
        ("tokenizer", sections.tokenizer_section),
        ("codes", sections.codes_section),
        ("prior", sections.prior_section),
        ("samples", samples_section),
        ("evaluation", evaluation_section),
        ("clips", clips_section),
    ]
    found: dict[str, Any] = {}
    with progress.bar("report", len(parts), "sections") as bar:
        for name, build in parts:
            found[name] = _guarded(build, work)
            bar.advance()
    records = stage_records(work)
    return Page(
        title=work.path.resolve().name,
        summary=sections.summary(work, found),
        version=lvt_version(),
        cards=sections.cards(found),
        attention=sections.attention(found, records),
        records=records,
        **found,
    )


def render(page: Page | ComparisonPage, template: str) -> str:
    """The page as HTML. Everything that came from a file is escaped."""
    return _environment().get_template(template).render(page=page)


@cache
def _environment() -> Environment:
    """Templates, compiled once."""
    return Environment(
        loader=PackageLoader("lvt_pipeline.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def _opened(work_dir: Path) -> WorkDir:
    """The work directory at a path that a user gave."""
    work = WorkDir(work_dir)
    if not work_dir.exists():
        raise ArtefactError(f"{work_dir} does not exist; give a work directory that lvt run made")
    if not any(path.exists() for path in work.artefacts.values()):
        names = ", ".join(path.name for path in work.artefacts.values())
        raise ArtefactError(f"{work_dir} is not a work directory: it has none of {names}")
    return work


def _write(
    out: Path, html: str, inputs: Mapping[str, str], not_up_to_date: Sequence[str], started: float
) -> Provenance:
    write_bytes(out, html.encode())
    size = out.stat().st_size
    record = Provenance(
        kind="report",
        stage=STAGE,
        version=VERSION,
        settings={},
        inputs=dict(inputs),
        fingerprint=fingerprint(html),
        outputs={out.name: size},
        counts={"bytes": size, "not_up_to_date": list(not_up_to_date)},
        seconds=round(time.monotonic() - started, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_record(out, record)
    return record


def _guarded(build: Callable[[WorkDir], Section], work: WorkDir) -> Section | Problem:
    try:
        return build(work)
    except MissingPart as missing:
        return Problem(str(missing), missing.command)
    except LVTError as error:
        return Problem(str(error), None)
