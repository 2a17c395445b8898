"""Several work directories on one page: numbers with intervals, curves over each other, the same clips in step.

Differences and their intervals are those of `lvt compare`. A run with few stages so far takes part with what it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

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
from lvt_pipeline.evaluation.results import is_fvd
from lvt_pipeline.progress import SILENT, Progress, count_of, format_seconds
from lvt_pipeline.provenance import short
from lvt_pipeline.report.clips import METRIC_OF, evenly_chosen, order, sample_metric
from lvt_pipeline.report.evaluation import bits_charts, horizon_charts
from lvt_pipeline.report.numbers import format_fact, format_number
from lvt_pipeline.report.parts import Part, chart, check, problem, problems_of, table
from lvt_pipeline.report.plots.page_charts import line_chart
from lvt_pipeline.report.samples import SHOWN_CLIPS, checked_samples, clip_player, videos_of_run, within_budget
from lvt_pipeline.report.work import SHOWN, TRAINING_LOSS_TO_MSE, WorkDir, settings_text, stage_records

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
    ("vqvae", "train", "reconstruction_loss", TRAINING_LOSS_TO_MSE, "Reconstruction error, training", "MSE in [0, 1]"),
    ("vqvae", "val", "perplexity", 1.0, "Perplexity, mean over codebooks", "perplexity"),
    ("prior", "val", "bits_per_dim", 1.0, "Bits per code of the prior, validation", "bits per code"),
    ("prior", "train", "bits_per_dim", 1.0, "Bits per code of the prior, training", "bits per code"),
)


def gather_comparison(works: Sequence[WorkDir], progress: Progress = SILENT) -> Part:
    """Everything that the page about several work directories shows.

    Raises:
        ConfigError: more than `MOST_RUNS`, or the same one twice.
    """
    _require_few_and_different(works)
    runs = dict(zip(names_of([work.path for work in works]), works, strict=True))
    evaluations, notes = _evaluations(runs)
    comparison = compare_evaluations(evaluations) if evaluations else None
    numbers = problem("None of them has been evaluated yet.", works[0].layout.command("evaluation"))
    if comparison is not None:
        numbers = _numbers(comparison)
        notes += _notes(comparison)
    with progress.bar("report", 2, "sections") as bar:
        clips = _clips_or_problem(runs, comparison)
        bar.advance()
        charts = _charts(runs, evaluations)
        bar.advance()
    compared: list[Part] = [
        {"name": name, "path": str(work.path), "records": stage_records(work)} for name, work in runs.items()
    ]
    return {
        "title": " · ".join(runs),
        "summary": f"{len(runs)} work directories" + (f", each against {evaluations[0].name}" if evaluations else ""),
        "runs": compared,
        "attention": [
            ("provenance", f"{run['name']}: {sentence}", command)
            for run in compared
            for _, sentence, command in problems_of(run["records"])
        ],
        "numbers": numbers,
        "notes": notes,
        "facts": _facts(runs),
        "settings": _changed_settings(runs),
        "charts": charts,
        "clips": clips,
    }


def _require_few_and_different(works: Sequence[WorkDir]) -> None:
    if len(works) > MOST_RUNS:
        raise ConfigError(
            f"a page compares at most {MOST_RUNS} work directories, found {len(works)}; lvt compare takes any number"
        )
    if len({work.path.resolve() for work in works}) < len(works):
        raise ConfigError("the same work directory was given twice; give different ones")


def _evaluations(runs: Mapping[str, WorkDir]) -> tuple[list[Evaluation], list[str]]:
    """The evaluations that can be read, and notes about the others."""
    evaluations, notes = [], []
    for name, work in runs.items():
        try:
            evaluations.append(read_evaluation(name, work.path))
        except LVTError as error:
            notes.append(f"{name} is left out of the numbers: {error}")
    return evaluations, notes


def _notes(comparison: Comparison) -> list[str]:
    """How to read the numbers."""
    notes = [
        f"[low, high]: {comparison.level:.0%} bootstrap interval over clips; of FVD over runs. Differences are "
        "paired where the clips are the same. Another training seed may differ by more than another set of clips."
    ]
    if any(key.startswith("sample_") for key in comparison.table):
        notes.append(
            "Sample errors are measured against the one future that happened: colder samples have smaller errors "
            "without being better videos."
        )
    for evaluation in comparison.evaluations:
        label = evaluation.fact("fvd.label")
        if not is_fvd(label):
            notes.append(f"The distance called FVD is, in {evaluation.name}, {label}.")
    return notes


def _numbers(comparison: Comparison) -> Part:
    """One column for the first evaluation, two for each of the others: its value, and its difference."""
    first, *others = comparison.evaluations
    titles = {metric.key: f"{metric.title}\u00a0{'↓' if metric.lower_is_better else '↑'}" for metric in METRICS}
    found = {(item.of, item.metric): item for item in comparison.differences}
    rows: list[Sequence[str | Part]] = []
    for key, measured in comparison.table.items():
        cells: list[str | Part] = [titles[key], _measured_cell(measured[0])]
        for evaluation, value in zip(others, measured[1:], strict=True):
            cells += [_measured_cell(value), _difference_cell(found.get((evaluation.name, key)))]
        rows.append(cells)
    header = ["", first.name]
    for evaluation in others:
        header += [evaluation.name, f"{evaluation.name} − {first.name}"]
    clips = ", ".join(f"{item.name} {item.results['clips']} {item.results['split']}" for item in comparison.evaluations)
    return table("Key numbers", header, rows, f"Clips: {clips}. ↓ less is better, ↑ more is better.")


def _measured_cell(measured: Measured | None) -> str | Part:
    if measured is None or not measured.interval:
        return "–" if measured is None else measured.text
    return check("value", f"{measured.mean:.4g}", measured.interval)


def _difference_cell(difference: Difference | None) -> str | Part:
    if difference is None:
        return "–"
    kind, verdict = VERDICTS[difference.verdict]
    if not difference.text:
        return check(kind, verdict, difference.reason)
    if difference.low == difference.high == 0:
        return check("plain", "equal", f"on all {difference.values}")
    how = f"{'paired, ' if difference.is_paired else ''}{difference.values}"
    reason = f"; {difference.reason}" if difference.reason else ""
    return check(kind, verdict, f"{difference.text}, {how}{reason}")


def _facts(runs: Mapping[str, WorkDir]) -> Part:
    """Sizes, steps and times of the runs, and which parts are the very same."""
    rows: list[Sequence[str | Part]] = []
    first = next(iter(runs))
    for artefact in SHOWN:
        if artefact.role not in ("frames", "vqvae", "codes", "prior", "samples"):
            continue
        records = {name: work.records[artefact.role] for name, work in runs.items()}
        origin = records[first]
        cells: list[str | Part] = []
        for name, record in records.items():
            if record is None:
                cells.append("–")
                continue
            sizes = " · ".join(f"{format_fact(record.counts[key])} {key}" for key in COUNTS if key in record.counts)
            is_same = name != first and origin is not None and record.fingerprint == origin.fingerprint
            which = f"same as {first}" if is_same else short(record.fingerprint)
            cells.append(check("value", sizes, f"{which} · {format_seconds(record.seconds)}"))
        if any(cell != "–" for cell in cells):
            rows.append((artefact.title, *cells))
    return table("Artefacts", ["", *runs], rows, "Below the sizes: fingerprint of the output, and the time it took.")


def _changed_settings(runs: Mapping[str, WorkDir]) -> Part:
    """Settings of the same stage that are not the same everywhere."""
    rows: list[Sequence[str | Part]] = []
    for artefact in SHOWN:
        records = [work.records[artefact.role] for work in runs.values()]
        texts = [
            dict(line.split(" = ", 1) for line in settings_text(record.settings).splitlines()) if record else None
            for record in records
        ]
        for name in dict.fromkeys(name for found in texts if found is not None for name in found):
            cells = ["–" if found is None else found.get(name, "–") for found in texts]
            known = {cell for cell, found in zip(cells, texts, strict=True) if found is not None}
            if len(known) > 1:
                rows.append((f"{artefact.title}: {name}", *cells))
    note = "" if rows else "Every setting is the same in all of them."
    return table("Settings that differ", ["", *runs], rows, note)


def _charts(runs: Mapping[str, WorkDir], evaluations: Sequence[Evaluation]) -> list[Part]:
    """Curves of the runs over each other; a run keeps its colour and marker in all of them."""
    charts: list[Part] = []
    logs = {name: {role: work.metrics(role) for role in ("vqvae", "prior")} for name, work in runs.items()}
    for role, split, key, factor, title, label in CURVES:
        series = [logs[name][role].curve(split, name, key, factor, style=number) for number, name in enumerate(runs)]
        charts += chart(title, line_chart(series, title=title, x_label="step", y_label=label, always_named=True))
    by_name = {evaluation.name: evaluation.results for evaluation in evaluations}
    with suppress(KeyError, TypeError, ValueError, AttributeError):  # a damaged evaluation has no curves
        charts += bits_charts({name: by_name.get(name, {}) for name in runs})
        charts += horizon_charts({name: by_name.get(name, {}).get("samples", {}) for name in runs})
    return charts


@dataclass(frozen=True)
class _Sampled:
    """The samples of one run, and values of its clips by metric, by id of the real clip."""

    name: str
    work: WorkDir
    groups: Mapping[str, Sequence[CodeClip]]
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def _clips_or_problem(runs: Mapping[str, WorkDir], comparison: Comparison | None) -> Part:
    by_name = {} if comparison is None else {item.name: item.results for item in comparison.evaluations}
    sampled, problems = [], []
    for name, work in runs.items():
        try:
            values = values_of_clips(by_name[name]) if name in by_name else {}
            sampled.append(_Sampled(name, work, checked_samples(work), values))
        except LVTError as error:
            problems.append(f"{name}: {error}")
    if len(sampled) < 2:
        return problem(f"Fewer than two of them have samples. {' '.join(problems)}")
    shared = [clip for clip in sampled[0].groups if all(clip in other.groups for other in sampled[1:])]
    if not shared:
        return problem("They have no sampled clip in common: sample the same clips to compare them.")
    try:
        return _clips(sampled, shared, comparison, problems)
    except LVTError as error:
        return problem(str(error))


def _clips(
    sampled: Sequence[_Sampled], shared: Sequence[str], comparison: Comparison | None, problems: Sequence[str]
) -> Part:
    """Players of the clips of which all have samples, with how much each run gains on the first."""
    gains, orders = _gains(sampled, comparison)
    by_key = {key: values for (key, number), values in gains.items() if number == 1}
    key = sample_metric(by_key)
    of_what = f" of {sampled[1].name} against {sampled[0].name}"
    names, reason = evenly_chosen(shared, {key: by_key[key]} if key else {}, SHOWN_CLIPS, of_what)

    def player(name: str, place: int) -> Part:
        numbers = []
        for key, metric in METRIC_OF.items():
            found = [run.values.get(key, {}).get(name) for run in sampled]
            if any(value is not None for value in found):
                cells = ["–" if value is None else format_number(value) for value in found]
                numbers.append((metric.title, " · ".join(cells)))
        gained = {f"{key}-{number}": values[name] for (key, number), values in gains.items() if name in values}
        videos = [videos_of_run(run.work, run.name, run.groups[name]) for run in sampled]
        return clip_player(name, place, videos, numbers, gained)

    clips = within_budget(player, names)
    notes = [f"All of them sampled {count_of(len(shared), 'clip')}."] if reason else []
    if len(clips) < len(names):
        notes.append(f"{len(clips)} are shown: more would make the page larger than 20 MB.")
    elif reason:
        notes.append(reason)
    notes += [f"Not shown, {item}" for item in problems]
    return {"clips": clips, "orders": orders, "note": " ".join(notes)}


def _gains(
    sampled: Sequence[_Sampled], comparison: Comparison | None
) -> tuple[dict[tuple[str, int], dict[str, float]], list[Part]]:
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
                orders.append(order(f"{key}-{number}", f"{metric.title}, {run.name} {word} most", is_rising))
    return gains, orders
