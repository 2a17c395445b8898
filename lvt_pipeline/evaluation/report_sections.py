"""What the sections of a report hold, gathered from a work directory. See `report`; samples are in `report_samples`.

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

from lvt_pipeline.data.code_usage import codes_holding, perplexity, usage
from lvt_pipeline.data.frames import FrameClip
from lvt_pipeline.data.pictures import png_bytes
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.evaluation.charts import Reference, Series, line_chart, usage_charts
from lvt_pipeline.evaluation.metrics import CodeCounts
from lvt_pipeline.evaluation.report_parts import Card, Figure, data_uri, series_of
from lvt_pipeline.evaluation.report_samples import SamplesSection
from lvt_pipeline.evaluation.wording import spoken_change, spoken_decibels, spoken_range, spoken_seconds
from lvt_pipeline.evaluation.work_dir import MissingPart, WorkDir, read_metrics, record_of
from lvt_pipeline.provenance import short
from lvt_pipeline.runs import METRICS_NAME, read_run, read_run_config

SHOWN_PICTURES = 8
SHOWN_FAILURES = 30
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
    return TokenizerSection(_run_facts(run), charts, pairs, split, note, _collapse_warning(run))


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
    return PriorSection(_run_facts(run), [Figure("Bits per code", Markup(chart), caption)] if chart else [], note)


@dataclass(frozen=True)
class Bar:
    """One bar of the comparison: width in percent of the longest."""

    label: str
    value: str
    width: float
    kind: str  # prior or baseline
    definition: str


@dataclass(frozen=True)
class MetricsSection:
    results: Mapping[str, Any]
    bars: Sequence[Bar]
    rows: Sequence[tuple[str, str, str, str]]  # metric, ours, baseline, verdict
    per_codebook: Sequence[tuple[str, str, str, str]]
    note: str
    is_problem: bool = False


def metrics_section(work: WorkDir) -> MetricsSection:
    """Every number of `eval.json` beside its baseline."""
    results = work.results()
    try:
        return _metrics(results)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"eval.json is not a result of this version's lvt evaluate ({error!r}); run it again"
        ) from error


def _metrics(results: Mapping[str, Any]) -> MetricsSection:
    baselines, prior = results["baselines"], results.get("prior")
    uniform = math.log2(results["codes"]["codebook_size"])
    measured = [
        ("uniform", uniform, "baseline", "Every code equally likely: log2 K."),
        (
            "unigram",
            float(baselines["unigram_bits"]),
            "baseline",
            "Entropy of each codebook over exactly these codes: the best that any model without context can do.",
        ),
        (
            "same as previous frame",
            float(baselines["previous_frame_bits"]),
            "baseline",
            "With probability α the code of the same place one frame earlier, else a draw from the add-one smoothed "
            f"unigram; fitted on {baselines['fitted_on']['split']} clips, one α per codebook.",
        ),
    ]
    if prior:
        measured.append(("this prior", float(prior["bits_per_dim"]), "prior", "Teacher-forced, on the same codes."))
    longest = max(bits for _, bits, _, _ in measured) or 1.0
    bars = [
        Bar(label, f"{bits:.3f}", 100 * bits / longest, kind, definition) for label, bits, kind, definition in measured
    ]
    rows: list[tuple[str, str, str, str]] = []
    if prior:
        for name, key in (("unigram", "unigram"), ("same as previous frame", "previous_frame")):
            bits, other = float(prior["bits_per_dim"]), float(baselines[f"{key}_bits"])
            rows.append((f"Bits per code, against {name}", f"{bits:.3f}", f"{other:.3f}", _verdict(bits < other)))
    if "reconstruction" in results:
        found = results["reconstruction"]
        mse, flat = float(found["mse"]), float(found["mean_picture_mse"])
        rows.append(
            (
                "Reconstruction MSE in [0, 1], against the mean picture",
                f"{mse:.5f}",
                f"{flat:.5f}",
                _verdict(mse < flat),
            )
        )
        rows.append(
            ("Reconstruction PSNR", f"{spoken_decibels(mse)} dB", f"{spoken_decibels(flat)} dB", _verdict(mse < flat))
        )
    samples = results.get("samples", {})
    if "mse" in samples and "copy_mse" in samples:
        mse, copied = float(samples["mse"]), float(samples["copy_mse"])
        rows.append(
            (
                "Sampled frames PSNR, against repeating the last given frame",
                f"{spoken_decibels(mse)} dB",
                f"{spoken_decibels(copied)} dB",
                _verdict(mse < copied),
            )
        )
    if "share_same_as_previous_frame" in samples:
        rows.append(
            (
                "Codes that stay from frame to frame: sampled, real",
                f"{samples['share_same_as_previous_frame']:.1%}",
                f"{samples['real_share_same_as_previous_frame']:.1%}",
                "plain",
            )
        )
    per_codebook = [
        (
            str(book),
            f"{unigram:.3f}",
            f"{previous:.3f}",
            f"{prior['per_codebook'][book]:.3f}" if prior else "–",
        )
        for book, (unigram, previous) in enumerate(
            zip(baselines["unigram_bits_per_codebook"], baselines["previous_frame_bits_per_codebook"], strict=True)
        )
    ]
    note = (
        f"Measured on {results['clips']} {results['split']} clips: {int(baselines['codes']):,} codes of frames "
        f"{int(results['priming_frames']) + 1} to {results['frames']}."
    )
    return MetricsSection(results, bars, rows, per_codebook, note)


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
        parts.append(f"{samples.num_samples} sampled videos")
    seconds = sum(record.seconds for path in work.artefacts.values() if (record := record_of(path)) is not None)
    if seconds:
        parts.append(f"{spoken_seconds(seconds)} of computing")
    return " · ".join(parts)


def cards(found: Mapping[str, Any]) -> list[Card]:
    """The key numbers, each beside what it has to beat."""
    metrics, codes, data = found["metrics"], found["codes"], found["data"]
    result = []
    if isinstance(metrics, MetricsSection):
        result += _result_cards(metrics.results)
    if isinstance(codes, CodesSection):
        mean = sum(book.perplexity for book in codes.books) / len(codes.books)
        shares = ", ".join(f"{book.usage:.0%}" for book in codes.books)
        note = f"{shares} of the codes occur"
        result.append(Card("Codebook perplexity", f"{mean:.1f}", f"of {codes.codebook_size}", "plain", note))
    if isinstance(data, DataSection):
        note = f"{data.num_failures} failed: {data.reasons}" if data.num_failures else "none failed"
        total = data.num_clips + data.num_failures
        result.append(Card("Clips with frames", f"{data.num_clips:,}", f"of {total:,}", "plain", note))
    return result


def _result_cards(results: Mapping[str, Any]) -> list[Card]:
    result = []
    if "prior" in results:
        bits = float(results["prior"]["bits_per_dim"])
        for name, key in (("the unigram", "unigram"), ("“same as previous frame”", "previous_frame")):
            other = float(results["baselines"][f"{key}_bits"])
            note = spoken_change(bits, other)
            result.append(Card("Bits per code", f"{bits:.3f}", "bits", _verdict(bits < other), note, name))
    if "reconstruction" in results:
        mse, flat = float(results["reconstruction"]["mse"]), float(results["reconstruction"]["mean_picture_mse"])
        note = f"MSE {mse:.5f}, against {flat:.5f}"
        decibels = spoken_decibels(mse)
        result.append(Card("Reconstruction PSNR", decibels, "dB", _verdict(mse < flat), note, "the mean picture"))
    samples = results.get("samples", {})
    if "mse" in samples and "copy_mse" in samples:
        mse, copied = float(samples["mse"]), float(samples["copy_mse"])
        note = f"{spoken_decibels(copied)} dB; a sample is one future of many, so this is no score"
        decibels = spoken_decibels(mse)
        result.append(Card("Sampled frames PSNR", decibels, "dB", _verdict(mse < copied), note, "a still last frame"))
    return result


def _run_facts(run: Path) -> list[tuple[str, str]]:
    """Size and progress of a training."""
    state, record = read_run(run), record_of(run)
    facts = [("Steps", f"{state['step']:,} of {state['max_steps']:,}, {state['status']}")]
    if record is not None:
        if "parameters" in record.counts:
            facts.append(("Parameters", f"{record.counts['parameters']:,}"))
        facts.append(("Training time", spoken_seconds(record.seconds)))
    training = read_run_config(run).get("training", {})
    for name, key in (("Batch", "batch_size"), ("Learning rate", "learning_rate"), ("Optimizer", "optimizer")):
        if key in training:
            facts.append((name, f"{training[key]}"))
    return facts


def _verdict(is_better: bool) -> str:
    return "better" if is_better else "worse"
