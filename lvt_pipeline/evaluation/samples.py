"""How samples differ from what really happened, and from each other.

A sample is one possible future, so its error against the real one is a sanity check, not a score; several samples of
one clip that hardly differ from each other are a sign that the prior has collapsed, or that the future is certain.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.store import CodeClip, CodeStore
from lvt_pipeline.errors import MismatchError
from lvt_pipeline.evaluation.metrics import CodeCounts, mean_pairwise_squared_error, share_of_differing_pairs
from lvt_pipeline.evaluation.networks import PerceptualDistance
from lvt_pipeline.evaluation.pixels import Horizon, errors_by_frame, real_frames, repeat_last
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.progress import SILENT, Progress

if TYPE_CHECKING:
    from lvt_pipeline.models.vqvae.model import VQVAE


def measure_samples(
    sampled: CodeStore,
    store: CodeStore,
    shards: FrameShards | None = None,
    tokenizer: VQVAE | None = None,
    progress: Progress = SILENT,
    lpips: PerceptualDistance | None = None,
    only: Collection[str] | None = None,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Samples against the real clips they continue: the results, and the values of each real clip.

    Lists `..._by_frame` hold one number per frame, averaged over the samples whose real clip is that long (nan where
    none is): of the decoded samples, of the decoded real codes, and of the last priming frame repeated. The plain
    values average the frames after the priming ones.

    `diversity` compares samples of one clip, when there are several: the share of their codes that differ, and the
    squared difference of their pixels in [0, 1], over all pairs and the frames after the priming ones.

    Args:
        only: ids of the real clips whose samples count; all by default.

    Raises:
        MismatchError: the store holds no sample of such a clip.
    """
    priming_frames = priming_frames_of(sampled)
    groups = siblings_of(sampled, store, only)
    num_samples = sum(map(len, groups.values()))
    num_frames = max(clip.length for siblings in groups.values() for clip in siblings)
    results: dict[str, Any] = {"clips": num_samples, "frames": num_frames, "priming_frames": priming_frames}
    books, size = store.num_codebooks, store.codebook_size
    sampled_counts, real_counts = CodeCounts.empty(books, size), CodeCounts.empty(books, size)
    horizon = Horizon(num_frames)
    per_clip: dict[str, list[Any]] = {}
    code_diversity, pixel_diversity = [], []
    with progress.bar("samples", num_samples, "clips") as bar:
        for clip_id, siblings in groups.items():
            codes = [sampled.read(clip) for clip in siblings]
            for some in codes:
                sampled_counts += CodeCounts.of(some, size, max(priming_frames, 1))
            if len({len(some) for some in codes}) == 1 < len(codes):
                code_diversity.append(share_of_differing_pairs(np.stack(codes)[:, priming_frames:]))
            decoded = [] if tokenizer is None else [tokenizer.decode(some).numpy() for some in codes]
            if len(decoded) > 1 and len({len(some) for some in decoded}) == 1:
                pixel_diversity.append(mean_pairwise_squared_error(np.stack(decoded)[:, priming_frames:]))
            if clip_id in store:
                origin = store.clip(clip_id)
                length = min(origin.length, max(clip.length for clip in siblings))
                real_codes = store.read(origin, 0, length)
                for clip in siblings:
                    real_counts += CodeCounts.of(real_codes[: clip.length], size, max(priming_frames, 1))
                if shards is not None and tokenizer is not None:
                    real = real_frames(store, origin, shards, length)
                    own = _compare(real, decoded, tokenizer.decode(real_codes).numpy(), priming_frames, horizon, lpips)
                    per_clip.setdefault("clip", []).append(clip_id)
                    per_clip.setdefault("frames", []).append(shards[clip_id].fingerprint)
                    for name, value in own.items():
                        per_clip.setdefault(name, []).append(value)
            bar.advance(len(siblings))
    results["share_same_as_previous_frame"] = _mean_share(sampled_counts)
    results["real_share_same_as_previous_frame"] = _mean_share(real_counts)
    for kind, prefix in (("sampled", ""), ("reconstruction", "reconstruction_"), ("copy", "copy_")):
        results |= horizon.results(kind, prefix, priming_frames)
    if code_diversity:
        results["diversity"] = {"clips": len(code_diversity), "codes": float(np.mean(code_diversity))}
        if pixel_diversity:
            results["diversity"]["mse"] = float(np.mean(pixel_diversity))
    return results, per_clip


def _compare(
    real: NDArray[np.uint8],
    decoded: Sequence[NDArray[np.uint8]],
    reconstruction: NDArray[np.uint8],
    priming_frames: int,
    horizon: Horizon,
    lpips: PerceptualDistance | None,
) -> dict[str, float]:
    """Add the samples of one clip to `horizon`; their mean errors after the priming frames, nan if there is none.

    What is not sampled counts once per sample, so that every kind of video averages over the same clips.
    """
    own: dict[str, list[float]] = {}
    fixed = {"reconstruction": errors_by_frame(real, reconstruction, lpips)}
    if 0 < priming_frames <= len(real):
        fixed["copy"] = errors_by_frame(real, repeat_last(real, priming_frames), lpips)
    for video in decoded:
        length = min(len(real), len(video))
        found = errors_by_frame(real[:length], video[:length], lpips)
        horizon.add("sampled", found)
        for kind, errors in fixed.items():
            if kind != "copy" or priming_frames <= length:
                horizon.add(kind, {metric: values[:length] for metric, values in errors.items()})
        for metric, values in found.items():
            later = values[priming_frames:]
            own.setdefault(f"sample_{metric}", []).append(float(later.mean()) if len(later) else math.nan)
    return {name: float(np.mean(values)) for name, values in own.items()}


def siblings_of(sampled: CodeStore, store: CodeStore, only: Collection[str] | None = None) -> dict[str, list[CodeClip]]:
    """The samples of each real clip, in order; a sample whose clip is not in the store stands under its own id.

    Args:
        only: ids of the real clips whose samples are wanted; all by default.

    Raises:
        MismatchError: there is none.
    """
    result: dict[str, list[CodeClip]] = {}
    for clip in sampled.clips:
        origin = original_of(clip, store)
        name = clip.id if origin is None else origin.id
        if only is None or name in only:
            result.setdefault(name, []).append(clip)
    if not result:
        raise MismatchError(f"{sampled.path} holds no sample of a clip that is evaluated; sample more clips")
    return result


def original_of(clip: CodeClip, store: CodeStore) -> CodeClip | None:
    """The real clip that a sample continues: the one of the same id, without the sample's number if it has one."""
    for clip_id in (clip.id, clip.id.rpartition("#")[0]):
        if clip_id in store:
            return store.clip(clip_id)
    return None


def priming_frames_of(sampled: CodeStore) -> int:
    """How many frames the samples of a store were given."""
    return int(sampled.provenance.counts.get("priming_frames", 0))


def check_samples(store: CodeStore, sampled: CodeStore) -> None:
    """Refuse samples of other codes.

    Raises:
        MismatchError: another tokenizer, grid or number of codebooks.
    """
    if store.tokenizer != sampled.tokenizer or store.schema.frame_shape != sampled.schema.frame_shape:
        raise MismatchError(
            f"{sampled.path} does not hold samples of codes like those in {store.path}; sample again from this store"
        )


def _mean_share(counts: CodeCounts) -> float:
    """Mean over codebooks of the share of codes that stay; 0 when there was no transition."""
    shares = [share for share in counts.share_same_as_previous_frame if not math.isnan(share)]
    return float(np.mean(shares)) if shares else 0.0
