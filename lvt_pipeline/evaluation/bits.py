"""Bits per code of a prior and of the baselines it has to beat, over exactly the same codes (paper, section 4.1).

Bits per code are `-log2 p` averaged over codes: positions, frames after the priming ones, and codebooks. They are split
by codebook, by frame, by slice of the prior's order and by clip; every split is an average of the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.codes.usage import entropy_bits
from lvt_pipeline.errors import LVTError
from lvt_pipeline.evaluation.metrics import CodeCounts, PreviousFrameBaseline
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.runs.actions import Rows

if TYPE_CHECKING:
    from lvt_pipeline.models.prior.model import Prior


def measure_prior(
    store: CodeStore,
    clips: Sequence[CodeClip],
    model: Prior,
    labels: Sequence[int] | None,
    settings: EvaluateSettings,
    batch_size: int = 8,
    progress: Progress = SILENT,
    *,
    actions: Sequence[Rows] | None = None,
) -> tuple[dict[str, Any], list[float]]:
    """Bits/dim of a prior: one global sum over all clips divided by one global count; and the bits per code of each.

    `per_frame` has a number for every frame, nan in the priming frames; `per_slice` one for every slice in the order of
    generation, nan for a slice that is wholly in them.

    Raises:
        LVTError: the prior gives probabilities that are not finite.
    """
    frames, priming = settings.frames, settings.priming_frames
    total = np.zeros((frames, *store.grid, store.num_codebooks))
    per_clip: list[float] = []
    with progress.bar("bits/dim", len(clips), "clips") as bar:
        for start in range(0, len(clips), batch_size):
            batch = clips[start : start + batch_size]
            codes = np.stack([store.read(clip, 0, frames) for clip in batch])
            some_labels = None if labels is None else labels[start : start + batch_size]
            some_actions = None if actions is None else np.stack(actions[start : start + batch_size])
            nats, count = model.nats_by_code(codes.astype(np.int64), priming, some_labels, actions=some_actions)
            bits = nats.numpy() / math.log(2)
            total += bits.sum(0)
            per_clip += (bits.sum((1, 2, 3, 4)) * len(batch) / count).tolist()
            bar.advance(len(batch))
    if not np.isfinite(total).all():
        raise LVTError("the prior gives probabilities that are not finite numbers; train it again, or give another run")
    return _bits_of_sums(total, len(clips), priming, model.geometry(frames).positions.numpy()) | {
        "uniform_bits": math.log2(store.codebook_size)
    }, per_clip


def _bits_of_sums(
    total: NDArray[np.float64], num_clips: int, priming: int, positions: NDArray[np.int64]
) -> dict[str, Any]:
    """Bits per code, by codebook, frame and slice.

    Args:
        total: bits of each place, summed over the clips; float64 (T, h, w, n_c).
        positions: int64 (slices, codes of a slice), indices into the T * h * w places.
    """
    counted = np.zeros_like(total)
    counted[priming:] = num_clips
    by_position, counted_by_position = (array.reshape(-1, total.shape[-1]) for array in (total, counted))
    return {
        "bits_per_dim": float(total.sum() / counted.sum()),
        "per_codebook": (total.sum((0, 1, 2)) / counted.sum((0, 1, 2))).tolist(),
        "per_frame": _ratios(total.sum((1, 2, 3)), counted.sum((1, 2, 3))),
        "per_slice": _ratios(by_position[positions].sum((1, 2)), counted_by_position[positions].sum((1, 2))),
        "clips": num_clips,
        "codes": round(counted.sum()),
    }


def measure_baselines(counts: CodeCounts, training_counts: CodeCounts) -> dict[str, Any]:
    """Bits per code of the two baselines.

    Args:
        counts: the codes that bits/dim counts; the unigram is theirs.
        training_counts: the codes that the previous-frame predictor is fitted on.
    """
    unigram = entropy_bits(counts.occurrences)
    predictor = PreviousFrameBaseline.fit(training_counts)
    per_codebook = predictor.bits(counts) / counts.occurrences.sum(1)
    return {
        "unigram_bits": float(np.mean(unigram)),
        "unigram_bits_per_codebook": unigram,
        "previous_frame_bits": float(per_codebook.mean()),
        "previous_frame_bits_per_codebook": per_codebook.tolist(),
        "previous_frame_alpha": predictor.alpha.tolist(),
        "codes": counts.num_codes,
    }


def count_training_codes(
    store: CodeStore, progress: Progress = SILENT, *, most_frames: int | None = None
) -> tuple[str, int, CodeCounts]:
    """Counts of the codes of the training split, or of all clips where there is none.

    Args:
        most_frames: counting ends with the clip that reaches this many; the whole split by default.

    Returns:
        "train" or "all", the number of its clips, and the counts.
    """
    split, clips = ("train", store.split("train")) if store.split("train") else ("all", store.clips)
    counts = CodeCounts.empty(store.num_codebooks, store.codebook_size)
    with progress.bar("count training codes", len(clips), "clips") as bar:
        for clip in clips:
            if most_frames is not None and counts.num_codes >= most_frames * math.prod(store.schema.frame_shape):
                break
            counts += CodeCounts.of(store.read(clip), store.codebook_size)
            bar.advance()
    return split, len(clips), counts


def baselines_by_clip(
    store: CodeStore,
    clips: Sequence[CodeClip],
    counts: CodeCounts,
    training_counts: CodeCounts,
    settings: EvaluateSettings,
) -> dict[str, list[float]]:
    """Bits per code of each clip under both baselines; their means are the baselines' bits."""
    occurrences = counts.occurrences
    with np.errstate(divide="ignore"):
        surprise = -np.log2(occurrences / occurrences.sum(1, keepdims=True))
    predictor = PreviousFrameBaseline.fit(training_counts)
    result: dict[str, list[float]] = {"unigram_bits": [], "previous_frame_bits": []}
    for clip in clips:
        codes = store.read(clip, 0, settings.frames)
        own = CodeCounts.of(codes, store.codebook_size, settings.priming_frames)
        occurs = own.occurrences > 0
        spent = float((own.occurrences[occurs] * surprise[occurs]).sum())
        result["unigram_bits"].append(spent / own.num_codes)
        result["previous_frame_bits"].append(float(predictor.bits(own).sum()) / own.num_codes)
    return result


def _ratios(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> list[float]:
    """Element by element; nan where nothing was counted."""
    return [float(s / c) if c else math.nan for s, c in zip(sums, counts, strict=True)]
