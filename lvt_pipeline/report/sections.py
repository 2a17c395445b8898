"""The sections of a report on data, tokenizer, codes and prior, and its summary.

Every function takes the work directory and returns plain values for the template; it raises `MissingPart` when there is
nothing to show yet, and any other `LVTError` when what is there cannot be used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np

from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.codes.usage import codes_holding, perplexity, usage
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.evaluation.bits import count_training_codes
from lvt_pipeline.evaluation.metrics import CodeCounts
from lvt_pipeline.frames.records import FrameClip, noted
from lvt_pipeline.progress import count_of, format_seconds
from lvt_pipeline.provenance import short
from lvt_pipeline.report.evaluation import evaluation_cards
from lvt_pipeline.report.parts import Part, card, chart, problems_of
from lvt_pipeline.report.plots.codes import usage_charts
from lvt_pipeline.report.plots.engine import Reference
from lvt_pipeline.report.plots.page_charts import line_chart
from lvt_pipeline.report.work import MissingPart, RunLog, WorkDir
from lvt_pipeline.runs.read import read_run, read_run_config
from lvt_pipeline.video.notebook import data_uri
from lvt_pipeline.video.pictures import png_bytes
from lvt_pipeline.video.tiles import picture_grid

SPLITS = ("train", "val", "test")
SHOWN_PICTURES = 8
SHOWN_FAILURES = 30
SHOWN_BOOKS = 4  # as many as there are colours
DETAILS = (  # key in the log, title, axis
    ("loss", "Training loss", "loss"),
    ("grad_norm", "Gradient norm before clipping", "norm"),
    ("learning_rate", "Learning rate", "per step"),
    ("steps_per_second", "Speed", "steps per second"),
)
PERPLEXITY = "The number of equally frequent codes that would be as hard to predict"
USED_EQUALLY = "Dotted: if all codes were used equally."
COUNTED_FRAMES = 20_000  # of the training split, for the usage charts: enough for any codebook, quick for any store


def data_section(work: WorkDir) -> Part:
    """The clips: how many, of what size, and those without frames.

    Raises:
        MissingPart: there are no frames yet.
    """
    if not work.layout["frames"].exists():
        work.require("manifest")
        record = work.records["manifest"]
        listed = f" {count_of(record.counts['clips'], 'clip')} listed." if record and "clips" in record.counts else ""
        raise MissingPart(f"frames does not exist yet.{listed}", work.layout.command("frames"))
    shards = work.frames
    clips = shards.clips
    facts = [("Clips", f"{len(clips):,}"), ("Frames", f"{shards.num_frames:,}")]
    if clips:
        sizes = sorted({(clip.width, clip.height) for clip in clips})
        shortest, longest = (pick(clip.num_frames for clip in clips) for pick in (min, max))
        rates = Counter(round(clip.fps, 2) for clip in clips)
        facts += [
            ("Frame size", ", ".join(f"{width}×{height}" for width, height in sizes)),
            ("Frames per clip", f"{shortest}" if shortest == longest else f"{shortest} to {longest}"),
            ("Frames per second", ", ".join(f"{rate:g}" for rate, _ in rates.most_common(3))),
            ("Decoder", ", ".join(sorted({clip.decoder for clip in clips}))),
        ]
        if labels := {clip.label for clip in clips} - {None}:
            facts.append(("Labels", str(len(labels))))
    members = {name: shards.split(name) for name in SPLITS}
    reasons = Counter(failure.reason for failure in shards.failures)
    return {
        "num_clips": len(clips),
        "num_frames": shards.num_frames,
        "facts": facts,
        "splits": [(name, len(some), sum(clip.num_frames for clip in some)) for name, some in members.items()],
        "clip_notes": [
            (kind.replace("_", " ").replace("-", " "), some.count, some.examples) for kind, some in noted(clips).items()
        ],
        "failures": [(failure.id, failure.reason, failure.message) for failure in shards.failures[:SHOWN_FAILURES]],
        "num_failures": len(shards.failures),
        "reasons": ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()),
    }


def tokenizer_section(work: WorkDir) -> Part:
    """How the VQ-VAE was trained, and frames above their reconstructions."""
    work.require("vqvae")
    log = work.metrics("vqvae")
    error = line_chart(
        log.main_curves("vqvae"), title="Reconstruction error over training", x_label="step", y_label="MSE in [0, 1]"
    )
    books = log.codebook_curves("perplexity", SHOWN_BOOKS)
    in_use = line_chart(
        books or [log.curve("train", "training batches", "batch_perplexity")],
        title="Perplexity of the codebooks over training",
        x_label="step",
        y_label="perplexity",
    )
    pairs: list[Part] = []
    split, notes = "", [_validation_note(log, work, "frames")]
    try:
        pairs, split = _reconstructions(work)
    except LVTError as problem:
        notes.append(f"No reconstructions: {problem}")
    return {
        "facts": _run_facts(work, "vqvae"),
        "charts": [
            *chart("Reconstruction error", error),
            *chart("Perplexity", in_use, f"{PERPLEXITY}, on {'validation frames' if books else 'training batches'}."),
        ],
        "details": _training_details(log),
        "pairs": pairs,
        "pairs_split": split,
        "notes": [note for note in notes if note],
        "warning": _collapse_warning(work),
    }


def _validation_note(log: RunLog, work: WorkDir, data: str) -> str:
    """Why a training has no validation curve; empty when it has one."""
    if log.validation or not log.training:
        return ""
    try:
        clips = work.frames.split("val") if data == "frames" else work.codes.split("val")
    except LVTError:
        return "There are no validation scores."
    if clips:
        return f"There are no validation scores yet; the val split has {count_of(len(clips), 'clip')}."
    return (
        "There are no validation scores, because no clip is in the val split: training curves do not show whether the "
        "model overfits. lvt manifest build --val-share makes a split."
    )


def _collapse_warning(work: WorkDir) -> str:
    """A warning when the finished run lists codebooks that collapsed; empty when it lists none."""
    record = work.records["vqvae"]
    collapsed = list(record.counts.get("collapsed", [])) if record is not None else []
    if not collapsed:
        return ""
    which = ", ".join(map(str, collapsed))
    named = f"Codebook {which} has" if len(collapsed) == 1 else f"Codebooks {which} have"
    return (
        f"{named} collapsed: validation frames use less than a tenth of the available codes, and every later stage is "
        "limited to the rest. Train a new run; lvt train-vqvae printed what to try when it happened."
    )


def _reconstructions(work: WorkDir) -> tuple[list[Part], str]:
    """Frames of held-out clips, spread over clips and time, above their reconstructions."""
    shards, tokenizer = work.frames, work.tokenizer
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
    pictures = [picture_grid(np.stack(pair)[:, None], gap=0) for pair in zip(real, decoded, strict=True)]
    return [
        {"name": f"{clip.id}, frame {frame + 1}", "image": data_uri(png_bytes(picture), "image/png")}
        for (clip, frame), picture in zip(chosen, pictures, strict=True)
    ], split


def codes_section(work: WorkDir) -> Part:
    """The code store, and how its codebooks are used (figure 5)."""
    store = work.codes
    stored = sum(store.provenance.outputs.values())
    num_codes = store.num_frames * math.prod(store.schema.frame_shape)
    per_frame = "×".join(map(str, store.schema.frame_shape))
    counts, note = _count(store)
    occurrences = counts.occurrences
    names = [f"Codebook {book}" if store.num_codebooks > 1 else "Codebook" for book in range(store.num_codebooks)]
    return {
        "codes_per_frame": per_frame,
        "codebook_size": store.codebook_size,
        "facts": [
            ("Clips", f"{len(store):,}"),
            ("Frames", f"{store.num_frames:,}"),
            ("Codes per frame", per_frame),
            ("Codebook size", f"{store.codebook_size}"),
            ("On disk", f"{stored / 1e6:.1f} MB, {8 * stored / max(num_codes, 1):.2f} bits per code"),
            ("Generation", f"{store.generation}"),
            ("Tokenizer", short(store.tokenizer)),
        ],
        "charts": list(chain(*map(chart, names, usage_charts(occurrences), repeat(USED_EQUALLY)))),
        "books": [
            {"usage": share, "perplexity": effective, "holding": count_of(holding, "code")}
            for share, effective, holding in zip(
                usage(occurrences), perplexity(occurrences), codes_holding(occurrences), strict=True
            )
        ],
        "note": note,
    }


def _count(store: CodeStore) -> tuple[CodeCounts, str]:
    """How the codes of the training split are used, or of all clips where there is none, and a note about it."""
    split, _, counts = count_training_codes(store, most_frames=COUNTED_FRAMES)
    counted = counts.num_codes // math.prod(store.schema.frame_shape)
    still = [share for share in counts.share_same_as_previous_frame if not math.isnan(share)]
    note = f"Counted over {count_of(counted, 'frame')} of {split} clips."
    if still:
        note += f" {sum(still) / len(still):.0%} of codes are the same as in the previous frame."
    return counts, note


def prior_section(work: WorkDir) -> Part:
    """How the prior was trained, with the baselines it has to beat."""
    work.require("prior")
    log = work.metrics("prior")
    references = baseline_references(work)
    bits = line_chart(
        log.main_curves("prior"),
        title="Bits per code of the prior over training",
        x_label="step",
        y_label="bits per code",
        references=references,
    )
    notes = [_validation_note(log, work, "codes")]
    if not references:
        notes.append("The baselines appear here once lvt evaluate has measured them.")
    return {
        "facts": _run_facts(work, "prior"),
        "charts": chart(
            "Bits per code",
            bits,
            "Training: one random slice of each clip of a batch. Validation: fixed clips, every slice. Baselines: "
            "on the codes that the evaluation counts.",
        ),
        "details": _training_details(log),
        "notes": [note for note in notes if note],
    }


def baseline_references(work: WorkDir) -> list[Reference]:
    """The baselines of bits per code, if they have been measured: curves are useful without them."""
    try:
        baselines = work.results["baselines"]
        names = (("unigram", "unigram_bits"), ("previous frame", "previous_frame_bits"))
        return [Reference(name, float(baselines[key])) for name, key in names]
    except (LVTError, KeyError, TypeError, ValueError):
        return []


def _training_details(log: RunLog) -> list[Part]:
    """Curves that show how a training went rather than how good the model is."""
    charts: list[Part] = []
    for key, title, label in DETAILS:
        curve = log.curve("train", title, key)
        charts += chart(title, line_chart([curve], title=title, x_label="step", y_label=label))
    return charts


def _run_facts(work: WorkDir, role: str) -> list[tuple[str, str]]:
    """Size and progress of a training."""
    run, record = work.layout[role], work.records[role]
    state = read_run(run)
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


# The overview ------------------------------------------------------------------------------------------------------


def summary(work: WorkDir, found: Mapping[str, Part]) -> str:
    """The size of everything in one line."""
    parts = []
    if "num_clips" in found["data"]:
        data = found["data"]
        parts.append(f"{count_of(data['num_clips'], 'clip')}, {count_of(data['num_frames'], 'frame')}")
    if "codes_per_frame" in found["codes"]:
        parts.append(f"{found['codes']['codes_per_frame']} codes per frame")
    if "num_samples" in found["samples"]:
        parts.append(count_of(found["samples"]["num_samples"], "sampled video"))
    seconds = sum(record.seconds for record in work.records.values() if record is not None)
    if seconds:
        parts.append(f"{format_seconds(seconds)} of computing")
    return " · ".join(parts)


def cards(found: Mapping[str, Any]) -> list[Part]:
    """The key numbers, each with its baselines."""
    evaluation, codes, data = (found.get(name) or {} for name in ("evaluation", "codes", "data"))
    result = []
    if "results" in evaluation:
        result += evaluation_cards(evaluation["results"])
    if "books" in codes:
        books = codes["books"]
        mean = sum(book["perplexity"] for book in books) / len(books)
        shares = ", ".join(f"{book['usage']:.0%}" for book in books)
        unit = f"of {codes['codebook_size']}"
        result.append(card("Codebook perplexity", f"{mean:.1f}", unit, (), f"{shares} of the codes in use"))
    if "num_clips" in data:
        note = f"{data['num_failures']} failed: {data['reasons']}" if data["num_failures"] else "none failed"
        total = data["num_clips"] + data["num_failures"]
        result.append(card("Clips with frames", f"{data['num_clips']:,}", f"of {total:,}", (), note))
    return result


def attention(found: Mapping[str, Part], records: Sequence[Part]) -> list[tuple[str, str, str]]:
    """What a reader should know first: a tab's name, a sentence and a command, if one helps."""
    result = problems_of(records)
    if warning := found["tokenizer"].get("warning"):
        result.append(("tokenizer", warning, ""))
    result += [("evaluation", warning, "") for warning in found["evaluation"].get("warnings", ())]
    damaged = {tab: part["problem"] for tab, part in found.items() if "problem" in part and part["command"] is None}
    # One broken file may spoil several tabs: its message appears once, for the first of them.
    tabs = {message: tab for tab, message in reversed(damaged.items())}
    return result + [(tab, message, "") for message, tab in reversed(tabs.items())]
