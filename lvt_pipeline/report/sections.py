"""What the sections of a report hold, gathered from a work directory. See `report`.

Samples are in `report_samples`, single clips in `report_clips`, the numbers of `eval.json` in `report_evaluation`.

Every function takes the work directory and returns plain values for the template; it raises `MissingPart` when there is
nothing to show yet, and any other `LVTError` when what is there cannot be used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from markupsafe import Markup

from lvt_pipeline.codes.usage import codes_holding, perplexity, usage
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.evaluation.metrics import CodeCounts
from lvt_pipeline.frames.records import FrameClip
from lvt_pipeline.progress import format_seconds
from lvt_pipeline.provenance import short
from lvt_pipeline.report.charts import Reference, Series, line_chart, usage_charts
from lvt_pipeline.report.evaluation import EvaluationSection, evaluation_cards
from lvt_pipeline.report.parts import Card, Figure, Problem, data_uri, problems_of, series_of
from lvt_pipeline.report.samples import SamplesSection
from lvt_pipeline.report.wording import spoken_range
from lvt_pipeline.report.work_dir import MissingPart, StageRecord, WorkDir, read_metrics, record_of
from lvt_pipeline.runs.layout import METRICS_NAME
from lvt_pipeline.runs.read import read_run, read_run_config
from lvt_pipeline.video.pictures import png_bytes

SHOWN_PICTURES = 8
SHOWN_FAILURES = 30
DETAILS = (  # key in the log, title, axis
    ("loss", "Training loss", "loss"),
    ("grad_norm", "Gradient norm before clipping", "norm"),
    ("learning_rate", "Learning rate", "per step"),
    ("steps_per_second", "Speed", "steps per second"),
)
COUNTED_FRAMES = 20_000  # of the training split, for the usage charts: enough for any codebook, quick for any store


@dataclass(frozen=True)
class DataSection:
    num_clips: int
    num_frames: int
    facts: Sequence[tuple[str, str]]
    splits: Sequence[tuple[str, int, int]]
    failures: Sequence[tuple[str, str, str]]
    num_failures: int
    reasons: str
    is_problem: bool = False


def data_section(work: WorkDir) -> DataSection:
    """The clips: how many, of what size, and those that gave no frames."""
    if not work.artefacts["frames"].exists():
        work.require("manifest")
        record = record_of(work.artefacts["manifest"])
        listed = f" {record.counts['clips']} clips are listed." if record and "clips" in record.counts else ""
        raise MissingPart(f"frames does not exist yet.{listed}", work.command("frames"))
    shards = work.frames()
    clips = shards.clips
    facts = [("Clips", f"{len(clips):,}"), ("Frames", f"{shards.num_frames:,}")]
    if clips:
        sizes = sorted({(clip.width, clip.height) for clip in clips})
        lengths = sorted(clip.num_frames for clip in clips)
        rates = Counter(round(clip.fps, 2) for clip in clips)
        facts += [
            ("Frame size", ", ".join(f"{width}×{height}" for width, height in sizes)),
            ("Frames per clip", spoken_range(lengths[0], lengths[-1])),
            ("Frames per second", ", ".join(f"{rate:g}" for rate, _ in rates.most_common(3))),
            ("Decoder", ", ".join(sorted({clip.decoder for clip in clips}))),
        ]
        labels = {clip.label for clip in clips} - {None}
        if labels:
            facts.append(("Labels", str(len(labels))))
    splits = []
    for name in ("train", "val", "test"):
        members = shards.split(name)
        splits.append((name, len(members), sum(clip.num_frames for clip in members)))
    reasons = Counter(failure.reason for failure in shards.failures)
    return DataSection(
        num_clips=len(clips),
        num_frames=shards.num_frames,
        facts=facts,
        splits=splits,
        failures=[(failure.id, failure.reason, failure.message) for failure in shards.failures[:SHOWN_FAILURES]],
        num_failures=len(shards.failures),
        reasons=", ".join(f"{count} {reason}" for reason, count in reasons.most_common()),
    )


@dataclass(frozen=True)
class Pair:
    """An original frame above its reconstruction, as one PNG."""

    name: str
    image: str


@dataclass(frozen=True)
class TokenizerSection:
    facts: Sequence[tuple[str, str]]
    charts: Sequence[Figure]
    details: Sequence[Figure]
    pairs: Sequence[Pair]
    pairs_split: str
    note: str
    warning: str = ""
    is_problem: bool = False


def tokenizer_section(work: WorkDir) -> TokenizerSection:
    """How the VQ-VAE learnt, and frames above their reconstructions."""
    run = work.require("vqvae")
    training, validation = read_metrics(run / METRICS_NAME)
    charts = []
    error = line_chart(
        [
            # The training loss is in [-1, 1], where a squared difference is four times as large.
            series_of("training", training, "reconstruction_loss", 1 / 4),
            series_of("validation", validation, "mse"),
        ],
        title="Reconstruction error over training",
        x_label="step",
        y_label="MSE in [0, 1]",
    )
    if error:
        charts.append(Figure("Reconstruction error", Markup(error)))
    books = max((len(line["perplexity"]) for line in validation if "perplexity" in line), default=0)
    in_use = line_chart(
        [
            Series(
                f"codebook {book}" if books > 1 else "perplexity",
                [line["step"] for line in validation if "perplexity" in line],
                [line["perplexity"][book] for line in validation if "perplexity" in line],
            )
            for book in range(min(books, 4))
        ]
        or [series_of("training batches", training, "batch_perplexity")],
        title="Perplexity of the codebooks over training",
        x_label="step",
        y_label="codes in use",
    )
    if in_use:
        charts.append(
            Figure(
                "Perplexity",
                Markup(in_use),
                "How many equally frequent codes would be as hard to guess, on validation frames."
                if books
                else "How many equally frequent codes would be as hard to guess, on training batches.",
            )
        )
    pairs: list[Pair] = []
    split = note = ""
    try:
        pairs, split = _reconstructions(work)
    except LVTError as problem:
        note = f"No reconstructions: {problem}"
    return TokenizerSection(
        _run_facts(run), charts, _training_details(training), pairs, split, note, _collapse_warning(run)
    )


def _collapse_warning(run: Path) -> str:
    """What to say when the finished run lists codebooks that collapsed; empty when it lists none."""
    record = record_of(run)
    collapsed = list(record.counts.get("collapsed", [])) if record is not None else []
    if not collapsed:
        return ""
    which = ", ".join(map(str, collapsed))
    named = f"Codebook {which} has" if len(collapsed) == 1 else f"Codebooks {which} have"
    return (
        f"{named} collapsed: validation frames use less than a tenth of the codes they could use, and everything after "
        "this tokenizer works with what is left. Train a new run; when it happened, lvt train-vqvae said what to try."
    )


def _reconstructions(work: WorkDir) -> tuple[list[Pair], str]:
    """Frames of held-out clips, spread over clips and time, above what the tokenizer makes of them."""
    shards, tokenizer = work.frames(), work.tokenizer()
    split = next((name for name in ("test", "val", "train") if shards.split(name)), "")
    clips = shards.split(split) if split else []
    chosen: list[tuple[FrameClip, int]] = []
    for number in range(min(SHOWN_PICTURES, sum(clip.num_frames for clip in clips))):
        clip = clips[number * len(clips) // SHOWN_PICTURES]
        chosen.append((clip, (number * 7) % clip.num_frames))
    if not chosen:
        raise ArtefactError("there are no frames")
    real = np.concatenate([shards.read(clip, frame, frame + 1) for clip, frame in chosen])
    decoded = tokenizer.decode(tokenizer.encode(real)).numpy()
    pictures = np.stack([real, decoded], axis=1)
    return [
        Pair(f"{clip.id}, frame {frame}", data_uri(png_bytes(rearrange(picture, "k h w c -> (k h) w c")), "image/png"))
        for (clip, frame), picture in zip(chosen, pictures, strict=True)
    ], split


@dataclass(frozen=True)
class CodebookUse:
    """How one codebook is used: share of codes that occur, perplexity, and how many codes hold 80 % of positions."""

    usage: float
    perplexity: float
    holding: int


@dataclass(frozen=True)
class CodesSection:
    codes_per_frame: str
    codebook_size: int
    facts: Sequence[tuple[str, str]]
    charts: Sequence[Figure]
    books: Sequence[CodebookUse]
    note: str
    is_problem: bool = False


def codes_section(work: WorkDir) -> CodesSection:
    """The code store, and how its codebooks are used (figure 5)."""
    store = work.store()
    stored = sum(store.provenance.outputs.values())
    num_codes = store.num_frames * math.prod(store.schema.frame_shape)
    per_frame = "×".join(map(str, store.schema.frame_shape))
    facts = [
        ("Clips", f"{len(store):,}"),
        ("Frames", f"{store.num_frames:,}"),
        ("Codes per frame", per_frame),
        ("Codebook size", f"{store.codebook_size}"),
        ("On disk", f"{stored / 1e6:.1f} MB, {8 * stored / max(num_codes, 1):.2f} bits per code"),
        ("Generation", f"{store.generation}"),
        ("Tokenizer", short(store.tokenizer)),
    ]
    split, clips = ("train", store.split("train")) if store.split("train") else ("all", store.clips)
    counts = CodeCounts.empty(store.num_codebooks, store.codebook_size)
    counted = 0
    for clip in clips:
        if counted >= COUNTED_FRAMES:
            break
        counts += CodeCounts.of(store.read(clip), store.codebook_size)
        counted += clip.length
    occurrences = counts.occurrences
    charts = [
        Figure(f"Codebook {book}" if store.num_codebooks > 1 else "Codebook", Markup(svg))
        for book, svg in enumerate(usage_charts(occurrences))
    ]
    books = [
        CodebookUse(*facts_of_book)
        for facts_of_book in zip(usage(occurrences), perplexity(occurrences), codes_holding(occurrences), strict=True)
    ]
    still = [share for share in counts.share_same_as_previous_frame if not math.isnan(share)]
    note = f"Counted over {counted:,} frames of {split} clips."
    if still:
        note += f" {sum(still) / len(still):.0%} of codes are the same as in the previous frame."
    return CodesSection(per_frame, store.codebook_size, facts, charts, books, note)


@dataclass(frozen=True)
class PriorSection:
    facts: Sequence[tuple[str, str]]
    charts: Sequence[Figure]
    details: Sequence[Figure]
    note: str
    is_problem: bool = False


def prior_section(work: WorkDir) -> PriorSection:
    """How the prior learnt, with the lines it has to get below."""
    run = work.require("prior")
    training, validation = read_metrics(run / METRICS_NAME)
    references, note = [], "Baselines are drawn once lvt evaluate has measured them."
    try:
        baselines = work.results()["baselines"]
        references = [
            Reference("unigram", float(baselines["unigram_bits"])),
            Reference("previous frame", float(baselines["previous_frame_bits"])),
        ]
        note = ""
    except (LVTError, KeyError, TypeError, ValueError):
        pass  # the curve is worth showing without them
    chart = line_chart(
        [series_of("training", training, "bits_per_dim"), series_of("validation", validation, "bits_per_dim")],
        title="Bits per code of the prior over training",
        x_label="step",
        y_label="bits per code",
        references=references,
    )
    caption = (
        "Training: one random slice of each clip, as it comes. Validation: fixed clips, every slice. "
        "Both baselines are measured on the codes that the evaluation counts."
    )
    charts = [Figure("Bits per code", Markup(chart), caption)] if chart else []
    return PriorSection(_run_facts(run), charts, _training_details(training), note)


def summary(work: WorkDir, found: Mapping[str, Any]) -> str:
    """One sentence under the title."""
    parts = []
    data = found["data"]
    if isinstance(data, DataSection):
        parts.append(f"{data.num_clips:,} clips, {data.num_frames:,} frames")
    codes = found["codes"]
    if isinstance(codes, CodesSection):
        parts.append(f"{codes.codes_per_frame} codes per frame")
    samples = found["samples"]
    if isinstance(samples, SamplesSection):
        parts.append(f"{samples.num_samples:,} sampled videos")
    seconds = sum(record.seconds for path in work.artefacts.values() if (record := record_of(path)) is not None)
    if seconds:
        parts.append(f"{format_seconds(seconds)} of computing")
    return " · ".join(parts)


def cards(found: Mapping[str, Any]) -> list[Card]:
    """The key numbers, each beside what it has to beat."""
    evaluation, codes, data = found["evaluation"], found["codes"], found["data"]
    result = []
    if isinstance(evaluation, EvaluationSection):
        result += evaluation_cards(evaluation.results)
    if isinstance(codes, CodesSection):
        mean = sum(book.perplexity for book in codes.books) / len(codes.books)
        shares = ", ".join(f"{book.usage:.0%}" for book in codes.books)
        result.append(
            Card("Codebook perplexity", f"{mean:.1f}", f"of {codes.codebook_size}", (), f"{shares} of the codes in use")
        )
    if isinstance(data, DataSection):
        note = f"{data.num_failures} failed: {data.reasons}" if data.num_failures else "none failed"
        total = data.num_clips + data.num_failures
        result.append(Card("Clips with frames", f"{data.num_clips:,}", f"of {total:,}", (), note))
    return result


def attention(found: Mapping[str, Any], records: Sequence[StageRecord]) -> list[tuple[str, str, str]]:
    """What a reader should know first: a tab's name, a sentence and a command, if one helps."""
    result = [(tab, problem.message, problem.command or "") for tab, problem in problems_of(records)]
    tokenizer, evaluation = found["tokenizer"], found["evaluation"]
    if isinstance(tokenizer, TokenizerSection) and tokenizer.warning:
        result.append(("tokenizer", tokenizer.warning, ""))
    if isinstance(evaluation, EvaluationSection):
        result += [("evaluation", warning, "") for warning in evaluation.warnings]
    damaged = {tab: part.message for tab, part in found.items() if isinstance(part, Problem) and part.command is None}
    told = {message: tab for tab, message in reversed(damaged.items())}  # one broken file may spoil several tabs
    return result + [(tab, message, "") for message, tab in reversed(told.items())]


def _training_details(training: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Curves that tell how a training went rather than how good it is."""
    charts = []
    for key, title, label in DETAILS:
        chart = line_chart([series_of(title, training, key)], title=title, x_label="step", y_label=label)
        if chart:
            charts.append(Figure(title, Markup(chart)))
    return charts


def _run_facts(run: Path) -> list[tuple[str, str]]:
    """Size and progress of a training."""
    state, record = read_run(run), record_of(run)
    facts = [("Steps", f"{state['step']:,} of {state['max_steps']:,}, {state['status']}")]
    if record is not None:
        if "parameters" in record.counts:
            facts.append(("Parameters", f"{record.counts['parameters']:,}"))
        facts.append(("Training time", format_seconds(record.seconds)))
    training = read_run_config(run).get("training", {})
    for name, key in (("Batch", "batch_size"), ("Learning rate", "learning_rate"), ("Optimizer", "optimizer")):
        if key in training:
            facts.append((name, f"{training[key]}"))
    return facts
