"""Stage `report`: a work directory as one page that needs nothing else (paper, figures 5 to 8 and tables 1 to 4).

Pictures, videos and charts lie inside the HTML file, so it opens from a disk, a mail or a phone without asking anyone
for anything. A stage that is missing, unfinished or broken gets a line that says so and the command that helps; it
never keeps the rest from being shown. What the sections hold is gathered in `report_sections`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.evaluation import report_sections as sections
from lvt_pipeline.evaluation.report_parts import Card, Problem
from lvt_pipeline.evaluation.report_samples import SamplesSection, samples_section
from lvt_pipeline.evaluation.work_dir import MissingPart, StageRecord, WorkDir, record_of, stage_records
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, fingerprint, lvt_version, write_record
from lvt_pipeline.storage import write_bytes

STAGE = "report"
VERSION = 1

Section = TypeVar("Section")


def write_report(work_dir: Path, out: Path, *, progress: Progress = SILENT) -> Provenance:
    """Write the page. Equal artefacts give equal bytes.

    Raises:
        ArtefactError: `work_dir` holds nothing that a stage makes.
    """
    started = time.monotonic()
    work = WorkDir(work_dir)
    if not work_dir.is_dir():
        raise ArtefactError(f"{work_dir} does not exist; give a work directory that lvt run made")
    if not any(path.exists() for path in work.artefacts.values()):
        names = ", ".join(path.name for path in work.artefacts.values())
        raise ArtefactError(f"{work_dir} is not a work directory: it has none of {names}")
    page = gather(work, progress)
    html = render(page)
    write_bytes(out, html.encode())
    record = Provenance(
        kind="report",
        stage=STAGE,
        version=VERSION,
        settings={},
        inputs=report_inputs(work_dir),
        fingerprint=fingerprint(html),
        outputs={out.name: out.stat().st_size},
        counts={
            "bytes": out.stat().st_size,
            "not_up_to_date": [record.role for record in page.records if record.state != "done"],
        },
        seconds=round(time.monotonic() - started, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_record(out, record)
    return record


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
    data: sections.DataSection | Problem
    tokenizer: sections.TokenizerSection | Problem
    codes: sections.CodesSection | Problem
    prior: sections.PriorSection | Problem
    samples: SamplesSection | Problem
    metrics: sections.MetricsSection | Problem
    records: Sequence[StageRecord]


def gather(work: WorkDir, progress: Progress = SILENT) -> Page:
    """Look at everything in a work directory, part by part."""
    parts: list[tuple[str, Callable[[WorkDir], Any]]] = [
        ("data", sections.data_section),
        ("tokenizer", sections.tokenizer_section),
        ("codes", sections.codes_section),
        ("prior", sections.prior_section),
        ("samples", samples_section),
        ("metrics", sections.metrics_section),
    ]
    found: dict[str, Any] = {}
    with progress.bar("report", len(parts), "sections") as bar:
        for name, build in parts:
            found[name] = _guarded(build, work)
            bar.advance()
    return Page(
        title=work.path.resolve().name,
        summary=sections.summary(work, found),
        version=lvt_version(),
        cards=sections.cards(found),
        records=stage_records(work),
        **found,
    )


def render(page: Page) -> str:
    """The page as HTML. Everything that came from a file is escaped."""
    environment = Environment(
        loader=PackageLoader("lvt_pipeline.evaluation", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(page=page)


def _guarded(build: Callable[[WorkDir], Section], work: WorkDir) -> Section | Problem:
    try:
        return build(work)
    except MissingPart as missing:
        return Problem(str(missing), missing.command)
    except LVTError as error:
        return Problem(str(error), None)
