"""How samples differ from what really happened, and from each other.

A sample is one possible future, so its error against the real one is a sanity check, not a score; several samples of
one clip that hardly differ from each other are a sign that the prior has collapsed, or that the future is certain.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import MismatchError
from lvt_pipeline.evaluation.distances.networks import PerceptualDistance
from lvt_pipeline.evaluation.metrics import CodeCounts, mean_pairwise_squared_error, share_of_differing_pairs
from lvt_pipeline.evaluation.pixels import Horizon, Pixels, errors_by_frame, repeat_last
from lvt_pipeline.jobs.sample import STAGE as SAMPLE_STAGE
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import short


def measure_samples(
    sampled: CodeStore,
    store: CodeStore,
    pixels: Pixels | None = None,
    lpips: PerceptualDistance | None = None,
    *,
    only: Collection[str] | None = None,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Samples against the real clips they continue: the results, and the values of each real clip.

    Lists `..._by_frame` hold one number per frame, averaged over the samples whose real clip is that long (nan where
    none is): of the decoded samples, of the decoded real codes, and of the last priming frame repeated. The plain
    values average the frames after the priming ones.

    `diversity` compares samples of one clip, when there are several: the share of their codes that differ, and the
    squared difference of their pixels in [0, 1], over all pairs and the frames after the priming ones.

    Args:
        pixels: of `store`; without them only codes are compared.
        only: ids of the real clips whose samples count; all by default.

    Raises:
        MismatchError: the store has no sample of such a clip.
    """
    groups = siblings_of(sampled, store, only)
    num_frames = max(clip.length for siblings in groups.values() for clip in siblings)
    measuring = _Comparing(sampled, store, pixels, lpips, num_frames)
    with progress.bar("samples", sum(map(len, groups.values())), "clips") as bar:
        for clip_id, siblings in groups.items():
            measuring.add(clip_id, siblings)
            bar.advance(len(siblings))
    return measuring.results(), measuring.per_clip


class _Comparing:
    """Sums over the samples that were added, one real clip after the other."""

    def __init__(
        self,
        sampled: CodeStore,
        store: CodeStore,
        pixels: Pixels | None,
        lpips: PerceptualDistance | None,
        num_frames: int,
    ) -> None:
        self._sampled, self._store, self._pixels, self._lpips = sampled, store, pixels, lpips
        self._priming = priming_frames_of(sampled)
        self._num_frames, self._num_samples = num_frames, 0
        empty = CodeCounts.empty(store.num_codebooks, store.codebook_size)
        self._sampled_counts, self._real_counts = empty, empty
        self._horizon = Horizon(num_frames)
        self._code_diversity: list[float] = []
        self._pixel_diversity: list[float] = []
        self.per_clip: dict[str, list[Any]] = {}

    def add(self, clip_id: str, siblings: Sequence[CodeClip]) -> None:
        """Add all samples of one real clip."""
        self._num_samples += len(siblings)
        codes = [self._sampled.read(clip) for clip in siblings]
        for some in codes:
            self._sampled_counts += self._transitions(some)
        decoded = [] if self._pixels is None else [self._pixels.decoded(some) for some in codes]
        if len(codes) > 1 and len({len(some) for some in codes}) == 1:
            self._code_diversity.append(share_of_differing_pairs(np.stack(codes)[:, self._priming :]))
            if decoded:
                self._pixel_diversity.append(mean_pairwise_squared_error(np.stack(decoded)[:, self._priming :]))
        if clip_id in self._store:
            self._add_real(self._store.clip(clip_id), siblings, decoded)

    def _add_real(self, origin: CodeClip, siblings: Sequence[CodeClip], decoded: Sequence[NDArray[np.uint8]]) -> None:
        """What really happened, as codes and, where there are pixels, as errors of the samples."""
        start = first_frame_of(self._sampled)
        length = min(origin.length - start, max(clip.length for clip in siblings))
        real_codes = self._store.read(origin, start, start + length)
        for clip in siblings:
            self._real_counts += self._transitions(real_codes[: clip.length])
        if self._pixels is None:
            return
        own: dict[str, Any] = {"clip": origin.id, "frames": self._pixels.shards[origin.id].fingerprint}
        own |= self._errors(self._pixels.real(origin, length, start), decoded, self._pixels.decoded(real_codes))
        for name, value in own.items():
            self.per_clip.setdefault(name, []).append(value)

    def _errors(
        self, real: NDArray[np.uint8], decoded: Sequence[NDArray[np.uint8]], reconstruction: NDArray[np.uint8]
    ) -> dict[str, float]:
        """Mean errors of a clip's samples after the priming frames, nan if there is none; adds to the horizon.

        Reconstruction and copy count once per sample, so that every kind of video averages over the same clips.
        """
        own: dict[str, list[float]] = {}
        fixed = {"reconstruction": errors_by_frame(real, reconstruction, self._lpips)}
        if 0 < self._priming <= len(real):
            fixed["copy"] = errors_by_frame(real, repeat_last(real, self._priming), self._lpips)
        for video in decoded:
            length = min(len(real), len(video))
            found = errors_by_frame(real[:length], video[:length], self._lpips)
            self._horizon.add("sampled", found)
            for kind, errors in fixed.items():
                if kind != "copy" or self._priming <= length:
                    self._horizon.add(kind, {metric: values[:length] for metric, values in errors.items()})
            for metric, values in found.items():
                later = values[self._priming :]
                own.setdefault(f"sample_{metric}", []).append(float(later.mean()) if len(later) else math.nan)
        return {name: float(np.mean(values)) for name, values in own.items()}

    def results(self) -> dict[str, Any]:
        """The numbers over all clips that were added."""
        results: dict[str, Any] = {
            "clips": self._num_samples,
            "frames": self._num_frames,
            "priming_frames": self._priming,
            "share_same_as_previous_frame": _mean_share(self._sampled_counts),
            "real_share_same_as_previous_frame": _mean_share(self._real_counts),
        }
        for kind, prefix in (("sampled", ""), ("reconstruction", "reconstruction_"), ("copy", "copy_")):
            results |= self._horizon.results(kind, prefix, self._priming)
        if self._code_diversity:
            diversity = {"clips": len(self._code_diversity), "codes": float(np.mean(self._code_diversity))}
            if self._pixel_diversity:
                diversity["mse"] = float(np.mean(self._pixel_diversity))
            results["diversity"] = diversity
        return results

    def _transitions(self, codes: NDArray[Any]) -> CodeCounts:
        """Counts of the frames after the priming ones, and never of frame 0, which has no frame before it."""
        return CodeCounts.of(codes, self._store.codebook_size, max(self._priming, 1))


def siblings_of(sampled: CodeStore, store: CodeStore, only: Collection[str] | None = None) -> dict[str, list[CodeClip]]:
    """The samples of each real clip, in order; a sample whose clip is not in the store has its own id as key.

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
        raise MismatchError(f"{sampled.path} has no sample of an evaluated clip; sample more clips")
    return result


def original_of(clip: CodeClip, store: CodeStore) -> CodeClip | None:
    """The real clip that a sample continues: the one of the same id, without the sample's number if it has one."""
    for clip_id in (clip.id, clip.id.rpartition("#")[0]):
        if clip_id in store:
            return store.clip(clip_id)
    return None


def priming_frames_of(sampled: CodeStore) -> int:
    """How many priming frames the samples of a store start from."""
    return int(sampled.provenance.counts.get("priming_frames", 0))


def first_frame_of(sampled: CodeStore) -> int:
    """The frame of their clips at which the samples of a store start."""
    return int(sampled.provenance.counts.get("start", 0))


def require_samples_of(store: CodeStore, sampled: CodeStore, prior: tuple[Path, str] | None = None) -> None:
    """Refuse a store that does not hold samples of these very codes, according to its record.

    Args:
        prior: run directory and fingerprint of the prior that is evaluated with them, if there is one.

    Raises:
        MismatchError: another command made it, or it continues other codes or comes from another prior.
    """
    record = sampled.provenance
    if record.stage != SAMPLE_STAGE:
        raise MismatchError(
            f"{sampled.path} was made by lvt {record.stage} and does not hold samples; give a store of lvt sample"
        )
    require_same_codes(store, sampled)
    made_from = record.inputs.get("codes", "")
    if made_from != store.fingerprint:
        raise MismatchError(
            f"{sampled.path} holds samples that continue clips of codes {short(made_from)} but {store.path} is "
            f"{short(store.fingerprint)}; run lvt sample again with these codes"
        )
    if prior is not None and record.inputs.get("prior") != prior[1]:
        raise MismatchError(
            f"{sampled.path} was sampled from prior {short(record.inputs.get('prior', ''))} but {prior[0]} is "
            f"{short(prior[1])}; run lvt sample again with this prior, or evaluate the samples without --prior"
        )


def require_same_codes(store: CodeStore, sampled: CodeStore) -> None:
    """Refuse samples of another kind of codes.

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
