"""Several work directories on one page: numbers with intervals, curves over each other, the same clips in step.

Differences and their intervals are those of `lvt compare`. A run that has not come far yet takes part with what it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from markupsafe import Markup

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.errors import ConfigError, LVTError
from lvt_pipeline.evaluation.compare import (
    METRICS,
    Comparison,
    Difference,
    Evaluation,
    Measured,
    compare_evaluations,
    names_of,
    read_evaluation,
    values_of_clips,
)
from lvt_pipeline.progress import SILENT, Progress, format_seconds
from lvt_pipeline.provenance import short
from lvt_pipeline.report.charts import line_chart, spoken_number
from lvt_pipeline.report.clips import METRIC_OF, ClipOrder, choose
from lvt_pipeline.report.evaluation import bits_charts, horizon_charts
from lvt_pipeline.report.parts import Check, Figure, Problem, Table, problems_of, series_of
from lvt_pipeline.report.samples import (
    CHOSEN_BY,
    MOST_EMBEDDED_BYTES,
    SHOWN_CLIPS,
    ClipPlayer,
    checked_samples,
    clip_player,
    videos_of_run,
)
from lvt_pipeline.report.wording import spoken_value
from lvt_pipeline.report.work_dir import (
    MADE,
    StageRecord,
    WorkDir,
    read_metrics,
    record_of,
    settings_text,
    stage_records,
)
from lvt_pipeline.runs.layout import METRICS_NAME

MOST_RUNS = 4  # as many as there are colours and markers
COUNTS = ("clips", "frames", "steps", "parameters")  # of a record, where it has them
VERDICTS = {
    "better": ("better", "✓ better"),
    "worse": ("worse", "✗ worse"),
    "within noise": ("plain", "within noise"),
    "not comparable": ("plain", "not comparable"),
}
CURVES = (  # artefact, split of its log, key, factor, title, axis
    ("vqvae", "val", "mse", 1.0, "Reconstruction error, validation", "MSE in [0, 1]"),
    # The training loss is in [-1, 1], where a squared difference is four times as large.
    ("vqvae", "train", "reconstruction_loss", 1 / 4, "Reconstruction error, training", "MSE in [0, 1]"),
    ("vqvae", "val", "perplexity", 1.0, "Perplexity, mean over codebooks", "codes in use"),
    ("prior", "val", "bits_per_dim", 1.0, "Bits per code of the prior, validation", "bits per code"),
    ("prior", "train", "bits_per_dim", 1.0, "Bits per code of the prior, training", "bits per code"),
)


@dataclass(frozen=True)
class ComparedRun:
    """One work directory of the page."""

    name: str
    path: str
    records: Sequence[StageRecord]


@dataclass(frozen=True)
class ComparedClips:
    clips: Sequence[ClipPlayer]
    orders: Sequence[ClipOrder]
    note: str
    is_problem: bool = False


@dataclass(frozen=True)
class ComparisonPage:
    """Everything the template shows."""

    title: str
    version: str
    summary: str
    runs: Sequence[ComparedRun]
    attention: Sequence[tuple[str, str, str]]
    numbers: Table | Problem
    notes: Sequence[str]
    facts: Table
    settings: Table
    charts: Sequence[Figure]
    clips: ComparedClips | Problem


def gather_comparison(works: Sequence[WorkDir], version: str, progress: Progress = SILENT) -> ComparisonPage:
    """Look at several work directories beside each other.

    Raises:
        ConfigError: more than `MOST_RUNS`, or the same one twice.
    """
    if len(works) > MOST_RUNS:
        raise ConfigError(f"a page compares at most {MOST_RUNS} work directories, found {len(works)}; lvt compare any")
    if len({work.path.resolve() for work in works}) < len(works):
        raise ConfigError("the same work directory was given twice; give different ones")
    runs = dict(zip(names_of([work.path for work in works]), works, strict=True))
    evaluations: list[Evaluation] = []
    notes = []
    for name, work in runs.items():
        try:
            evaluations.append(read_evaluation(name, work.path))
        except LVTError as problem:
            notes.append(f"{name} is left out of the numbers: {problem}")
    comparison = compare_evaluations(evaluations) if evaluations else None
    numbers: Table | Problem = Problem("None of them was evaluated yet.", works[0].command("evaluation"))
    if comparison is not None:
        numbers = _numbers(comparison)
        notes.append(
            f"[low, high]: {comparison.level:.0%} bootstrap interval over clips; of FVD over runs. Differences are "
            "paired where the clips are the same. Another training seed may differ by more than another set of clips."
        )
        if any(key.startswith("sample_") for key in comparison.table):
            notes.append(
                "Sample errors are against the one future that happened: colder samples come closer, also bad ones."
            )
    for evaluation in evaluations:
        label = str(evaluation.fact("fvd.label") or "FVD")
        if not label.startswith("FVD"):
            notes.append(f"What is called FVD is in {evaluation.name} {label}.")
    with progress.bar("report", 2, "sections") as bar:
        clips = _guarded_clips(runs, comparison)
        bar.advance()
        charts = _charts(runs, evaluations)
        bar.advance()
    compared = [ComparedRun(name, str(work.path), stage_records(work)) for name, work in runs.items()]
    return ComparisonPage(
        title=" · ".join(runs),
        version=version,
        summary=f"{len(runs)} work directories" + (f", each against {evaluations[0].name}" if evaluations else ""),
        runs=compared,
        attention=[
            ("provenance", f"{run.name}: {problem.message}", problem.command or "")
            for run in compared
            for _, problem in problems_of(run.records)
        ],
        numbers=numbers,
        notes=notes,
        facts=_facts(runs),
        settings=_changed_settings(runs),
        charts=charts,
        clips=clips,
    )


def _numbers(comparison: Comparison) -> Table:
    """One column for the first evaluation, two for each other: its value, and its difference."""
    first, *others = comparison.evaluations
    titles = {metric.key: f"{metric.title}\u00a0{'↓' if metric.lower_is_better else '↑'}" for metric in METRICS}
    found = {(item.of, item.metric): item for item in comparison.differences}
    rows: list[Sequence[str | Check]] = []
    for key, measured in comparison.table.items():
        cells: list[str | Check] = [titles[key], _measured_cell(measured[0])]
        for evaluation, value in zip(others, measured[1:], strict=True):
            cells += [_measured_cell(value), _difference_cell(found.get((evaluation.name, key)))]
        rows.append(cells)
    header = ["", first.name]
    for evaluation in others:
        header += [evaluation.name, f"{evaluation.name} − {first.name}"]
    clips = ", ".join(f"{item.name} {item.results['clips']} {item.results['split']}" for item in comparison.evaluations)
    return Table("Key numbers", header, rows, f"Clips: {clips}. ↓ less is better, ↑ more is better.")


def _measured_cell(measured: Measured | None) -> str | Check:
    if measured is None:
        return "–"
    if measured.low is None or measured.high is None:
        return f"{measured.mean:.4g}"
    return Check("value", f"{measured.mean:.4g}", f"[{measured.low:.4g}, {measured.high:.4g}]")


def _difference_cell(difference: Difference | None) -> str | Check:
    if difference is None:
        return "–"
    kind, verdict = VERDICTS[difference.verdict]
    if difference.mean is None or difference.low is None or difference.high is None:
        return Check(kind, verdict, difference.reason)
    if difference.low == difference.high == 0:
        return Check("plain", "equal", f"on all {difference.values}")
    note = f"{difference.mean:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]"
    how = f"{'paired, ' if difference.is_paired else ''}{difference.values}"
    return Check(kind, verdict, f"{note}, {how}{'; ' + difference.reason if difference.reason else ''}")


def _facts(runs: Mapping[str, WorkDir]) -> Table:
    """What the runs are: sizes, steps, times, and which parts are the very same."""
    rows: list[Sequence[str | Check]] = []
    first = next(iter(runs))
    for role in ("frames", "vqvae", "codes", "prior", "samples"):
        records = {name: record_of(work.artefacts[role]) for name, work in runs.items()}
        origin = records[first]
        cells: list[str | Check] = []
        for name, record in records.items():
            if record is None:
                cells.append("–")
                continue
            told = " · ".join(f"{spoken_value(record.counts[key])} {key}" for key in COUNTS if key in record.counts)
            is_same = name != first and origin is not None and record.fingerprint == origin.fingerprint
            notes = [f"same as {first}" if is_same else short(record.fingerprint), format_seconds(record.seconds)]
            cells.append(Check("value", told, " · ".join(notes)))
        if any(cell != "–" for cell in cells):
            rows.append((MADE[role].title, *cells))
    return Table("What they are", ["", *runs], rows, "Below the sizes: fingerprint of what came out, and time it took.")


def _changed_settings(runs: Mapping[str, WorkDir]) -> Table:
    """Settings of the same stage that are not the same everywhere."""
    rows: list[Sequence[str | Check]] = []
    for role, title in ((made.role, made.title) for made in MADE.values()):
        records = [record_of(work.artefacts[role]) for work in runs.values()]
        texts = [
            dict(line.split(" = ", 1) for line in settings_text(record.settings).splitlines()) if record else None
            for record in records
        ]
        for name in dict.fromkeys(name for found in texts if found is not None for name in found):
            cells = ["–" if found is None else found.get(name, "–") for found in texts]
            known = {cell for cell, found in zip(cells, texts, strict=True) if found is not None}
            if len(known) > 1:
                rows.append((f"{title}: {name}", *cells))
    note = "" if rows else "Every setting is the same in all of them."
    return Table("Settings that differ", ["", *runs], rows, note)


def _charts(runs: Mapping[str, WorkDir], evaluations: Sequence[Evaluation]) -> list[Figure]:
    """Curves of the runs over each other; a run keeps its colour and marker in all of them."""
    charts = []
    for role, split, key, factor, title, label in CURVES:
        series = []
        for number, (name, work) in enumerate(runs.items()):
            training, validation = read_metrics(work.artefacts[role] / METRICS_NAME)
            lines = training if split == "train" else validation
            series.append(series_of(name, lines, key, factor, style=number))
        chart = line_chart(series, title=title, x_label="step", y_label=label, always_named=True)
        if chart:
            charts.append(Figure(title, Markup(chart)))
    by_name = {evaluation.name: evaluation.results for evaluation in evaluations}
    with suppress(KeyError, TypeError, ValueError, AttributeError):  # an evaluation of another version has no curves
        charts += bits_charts([(name, by_name.get(name, {})) for name in runs])
        charts += horizon_charts([(name, by_name.get(name, {}).get("samples", {})) for name in runs], only_samples=True)
    return charts


@dataclass(frozen=True)
class _Sampled:
    """The samples of one run, by id of the real clip."""

    name: str
    work: WorkDir
    groups: Mapping[str, Sequence[CodeClip]]
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def _guarded_clips(runs: Mapping[str, WorkDir], comparison: Comparison | None) -> ComparedClips | Problem:
    by_name = {} if comparison is None else {item.name: item.results for item in comparison.evaluations}
    sampled, problems = [], []
    for name, work in runs.items():
        try:
            values = values_of_clips(by_name[name]) if name in by_name else {}
            sampled.append(_Sampled(name, work, checked_samples(work), values))
        except LVTError as problem:
            problems.append(f"{name}: {problem}")
    if len(sampled) < 2:
        return Problem(f"Fewer than two have samples to look at. {' '.join(problems)}", None)
    shared = [clip for clip in sampled[0].groups if all(clip in other.groups for other in sampled[1:])]
    if not shared:
        return Problem("They have no sampled clip in common: sample the same clips to see them side by side.", None)
    try:
        return _clips(sampled, shared, comparison, problems)
    except LVTError as problem:
        return Problem(str(problem), None)


def _clips(
    sampled: Sequence[_Sampled], shared: Sequence[str], comparison: Comparison | None, problems: Sequence[str]
) -> ComparedClips:
    """Players of the clips that all have samples of, with how much each run gains on the first."""
    gains, orders = _gains(sampled, comparison)
    by_key = {key: values for (key, number), values in gains.items() if number == 1}
    chosen_by = next((key for key in CHOSEN_BY if key in by_key), None)
    choice = choose(
        shared,
        {chosen_by: by_key[chosen_by]} if chosen_by else {},
        SHOWN_CLIPS,
        f" of {sampled[1].name} against {sampled[0].name}",
    )
    clips: list[ClipPlayer] = []
    embedded = 0
    for index in choice.indices:
        name = shared[index]
        told = []
        for key, metric in METRIC_OF.items():
            found = [run.values.get(key, {}).get(name) for run in sampled]
            if any(value is not None for value in found):
                cells = ["–" if value is None else spoken_number(value) for value in found]
                told.append((metric.title, " · ".join(cells)))
        order = {f"{key}-{number}": values[name] for (key, number), values in gains.items() if name in values}
        videos = [videos_of_run(run.work, run.name, run.groups[name]) for run in sampled]
        shown = clip_player(name, len(clips) + 1, videos, told, order)
        embedded += shown.num_bytes
        if clips and embedded * 3 / 4 > MOST_EMBEDDED_BYTES:
            break
        clips.append(shown)
    notes = [f"{len(shared):,} clips were sampled by all of them."] if choice.reason else []
    if len(clips) < len(choice.indices):
        notes.append(f"{len(clips)} are shown: more would make the page larger than 20 MB.")
    elif choice.reason:
        notes.append(choice.reason)
    notes += [f"Not shown, {problem}" for problem in problems]
    return ComparedClips(clips, orders, " ".join(notes))


def _gains(
    sampled: Sequence[_Sampled], comparison: Comparison | None
) -> tuple[dict[tuple[str, int], dict[str, float]], list[ClipOrder]]:
    """Value minus the first run's, by metric and number of the run, of metrics that compare; and orders by them."""
    comparable = set()
    if comparison is not None:
        comparable = {(item.of, item.against, item.metric) for item in comparison.differences if item.mean is not None}
    first = sampled[0]
    gains: dict[tuple[str, int], dict[str, float]] = {}
    orders = []
    for number, run in enumerate(sampled[1:], 1):
        for key, values in run.values.items():
            if (run.name, first.name, key) not in comparable:
                continue
            base = first.values.get(key, {})
            gains[key, number] = {clip: value - base[clip] for clip, value in values.items() if clip in base}
            metric = METRIC_OF[key]
            for word, is_rising in (("gains", metric.lower_is_better), ("loses", not metric.lower_is_better)):
                orders.append(ClipOrder(f"{key}-{number}", f"{metric.title}, {run.name} {word} most", is_rising))
    return gains, orders
