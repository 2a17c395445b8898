"""Stage `report`: a work directory as one page that needs nothing else (paper, figures 5 to 8 and tables 1 to 4).

Pictures, videos and charts are inside the HTML file, so it opens from a disk, a mail or a phone without loading
anything. A stage that is missing, unfinished or broken gets a line that says so and the command that helps; the rest is
shown all the same. Several work directories side by side are a page of their own, see `comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lvt_pipeline.errors import LVTError
from lvt_pipeline.evaluation.compare import names_of
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, fingerprint, lvt_version
from lvt_pipeline.report import sections
from lvt_pipeline.report.clips import clips_section
from lvt_pipeline.report.comparison import gather_comparison
from lvt_pipeline.report.evaluation import evaluation_section
from lvt_pipeline.report.parts import Part, problem
from lvt_pipeline.report.samples import samples_section
from lvt_pipeline.report.work import MissingPart, WorkDir, stage_records
from lvt_pipeline.storage import write_bytes
from lvt_pipeline.workspace.layout import REPORT_VERSION

STAGE = "report"
FILE_MARK = b'<meta name="generator" content="lvt '  # near the beginning of every page
VERSION = REPORT_VERSION
JOB = Job(stage=STAGE, version=VERSION, kind="report")
SECTIONS: Mapping[str, Callable[[WorkDir], Part]] = {
    "data": sections.data_section,
    "tokenizer": sections.tokenizer_section,
    "codes": sections.codes_section,
    "prior": sections.prior_section,
    "samples": samples_section,
    "evaluation": evaluation_section,
    "clips": clips_section,
}


def write_report(work_dir: Path, out: Path, *, progress: Progress = SILENT) -> Provenance:
    """Write the page about one work directory. Equal artefacts give equal bytes.

    Raises:
        ArtefactError: no stage has made anything in `work_dir`, or `out` is something else than a report.
    """
    clock, work = Clock(), WorkDir(work_dir)
    require_output_file(out, STAGE, work.artefacts, mark=FILE_MARK)
    work.require_artefacts()
    page = gather(work, progress)
    not_up_to_date = [record["role"] for record in page["records"] if record["state"] != "done"]
    return _write(out, render(page, "report.html.j2"), work.fingerprints, not_up_to_date, clock)


def write_comparison(work_dirs: Sequence[Path], out: Path, *, progress: Progress = SILENT) -> Provenance:
    """Write the page about several work directories side by side; each is compared with the first.

    Raises:
        ArtefactError: no stage has made anything in one of them, or `out` is something else than a report.
        ConfigError: there are too many, or one is given twice.
    """
    clock, works = Clock(), [WorkDir(path) for path in work_dirs]
    require_output_file(out, STAGE, [path for work in works for path in work.artefacts], mark=FILE_MARK)
    for work in works:
        work.require_artefacts()
    page = gather_comparison(works, progress) | {"version": lvt_version()}
    inputs = {
        f"{name}/{role}": value
        for name, work in zip(names_of(work_dirs), works, strict=True)
        for role, value in work.fingerprints.items()
    }
    not_up_to_date = [
        f"{run['name']}/{item['role']}" for run in page["runs"] for item in run["records"] if item["state"] != "done"
    ]
    return _write(out, render(page, "comparison.html.j2"), inputs, not_up_to_date, clock)


def gather(work: WorkDir, progress: Progress = SILENT) -> Part:
    """Everything that the page about a work directory shows."""
    found: dict[str, Part] = {}
    with progress.bar("report", len(SECTIONS), "sections") as bar:
        for name, build in SECTIONS.items():
            found[name] = _section_or_problem(build, work)
            bar.advance()
    records = stage_records(work)
    return {
        "title": "/".join(work.path.resolve().parts[-2:]).lstrip("/"),
        "summary": sections.summary(work, found),
        "version": lvt_version(),
        "cards": sections.cards(found),
        "attention": sections.attention(found, records),
        "records": records,
        **found,
    }


def _section_or_problem(build: Callable[[WorkDir], Part], work: WorkDir) -> Part:
    try:
        return build(work)
    except MissingPart as missing:
        return problem(str(missing), missing.command)
    except LVTError as error:
        return problem(str(error))


def render(page: Mapping[str, Any], template: str) -> str:
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


def _write(out: Path, html: str, inputs: Mapping[str, str], not_up_to_date: Sequence[str], clock: Clock) -> Provenance:
    with JOB.open_file(out, {}, inputs, clock=clock) as work:
        write_bytes(out, html.encode(errors="replace"))  # an id may hold half of a surrogate pair
        counts = {"bytes": out.stat().st_size, "not_up_to_date": list(not_up_to_date)}
        return work.finish(fingerprint(html), counts=counts)
