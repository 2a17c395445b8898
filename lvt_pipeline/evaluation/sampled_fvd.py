"""FVD of samples, of the tokenizer's reconstructions, and of repeating the last frame, on the same clips.

The priming frames of a sampled clip are either the real ones, the natural reading of the protocol, or their
reconstructions, which is what a program gets that decodes all codes. Both are measured unless one is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.data.codes import CodeClip, CodeStore
from lvt_pipeline.data.frames import FrameShards
from lvt_pipeline.evaluation.fvd import (
    SHORTEST_CLIP,
    FeatureCache,
    FeatureNetwork,
    Gaussian,
    frechet_distance,
    network_label,
)
from lvt_pipeline.evaluation.pixels import real_frames, repeat_last
from lvt_pipeline.evaluation.samples import priming_frames_of, siblings_of
from lvt_pipeline.progress import SILENT, Progress

if TYPE_CHECKING:
    from lvt_pipeline.models.vqvae import VQVAE

PrimingPixels = Literal["both", "real", "reconstructed"]
FEWEST_CLIPS = 2  # a covariance needs two


def measure_fvd(
    sampled: CodeStore,
    store: CodeStore,
    shards: FrameShards,
    tokenizer: VQVAE,
    network: FeatureNetwork,
    cache: FeatureCache,
    priming_pixels: PrimingPixels = "both",
    progress: Progress = SILENT,
    only: Collection[str] | None = None,
) -> dict[str, Any]:
    """Distances of samples and baselines from the real clips, with the card of the protocol.

    `real_priming` and `reconstructed_priming` are the samples', by where their priming frames come from;
    `reconstruction` is the tokenizer's ceiling; `copy` repeats the last priming frame. `left_out` counts real clips
    that are shorter than their samples. When too few clips are left, `missing` says so instead.

    Args:
        only: ids of the real clips that are compared; all that were sampled by default.
    """
    priming_frames = priming_frames_of(sampled)
    groups = siblings_of(sampled, store, only)
    num_frames = max(clip.length for siblings in groups.values() for clip in siblings)
    chosen: list[CodeClip] = []
    samples: list[tuple[CodeClip, CodeClip]] = []
    left_out = 0
    for clip_id, siblings in groups.items():
        if clip_id not in store or store.clip(clip_id).length < num_frames:
            left_out += 1
            continue
        chosen.append(store.clip(clip_id))
        samples += [(chosen[-1], clip) for clip in siblings if clip.length == num_frames]
    if len(chosen) < FEWEST_CLIPS or len(samples) < FEWEST_CLIPS:
        return {"missing": f"a covariance needs {FEWEST_CLIPS} clips of {num_frames} frames, there are {len(chosen)}"}

    def real(clip: CodeClip) -> NDArray[np.uint8]:
        return real_frames(store, clip, shards, num_frames)

    def decoded(clips: CodeStore, clip: CodeClip) -> NDArray[np.uint8]:
        return tokenizer.decode(clips.read(clip, 0, num_frames)).numpy()

    def drawn(with_real: bool) -> Iterator[NDArray[np.uint8]]:
        for origin, clip in samples:
            video = decoded(sampled, clip)
            if with_real:
                video[:priming_frames] = real(origin)[:priming_frames]
            yield video

    sources = [(clip.id, shards[clip.id].fingerprint) for clip in chosen]
    basis = {"network": network.fingerprint, "frames": num_frames, "clips": sources}
    reference = cache.recall(
        {**basis, "of": "real"}, lambda: network.features(_told(map(real, chosen), "real", chosen, progress))
    )
    target = Gaussian.fit(reference)

    def distance(features: NDArray[np.float64]) -> float:
        return frechet_distance(target, Gaussian.fit(features))

    results: dict[str, Any] = {"label": network_label(network.network.sha256, reference.shape[1])}
    for name, with_real in (("real", True), ("reconstructed", False)):
        if priming_pixels in ("both", name):
            videos = _told(drawn(with_real), f"{name} priming", samples, progress)
            results[f"{name}_priming"] = distance(network.features(videos))
    results["reconstruction"] = distance(
        cache.recall(
            {**basis, "of": "reconstruction", "tokenizer": store.tokenizer},
            lambda: network.features(
                _told((decoded(store, clip) for clip in chosen), "reconstruction", chosen, progress)
            ),
        )
    )
    if priming_frames:
        results["copy"] = distance(
            cache.recall(
                {**basis, "of": "copy", "priming_frames": priming_frames},
                lambda: network.features(
                    _told((repeat_last(real(clip), priming_frames) for clip in chosen), "copy", chosen, progress)
                ),
            )
        )
    results["card"] = {
        **network.card,
        "features": reference.shape[1],
        "covariance": "N - 1",
        "frames": num_frames,
        "priming_frames": priming_frames,
        "priming_pixels": priming_pixels,
        "evaluated_frames": "the whole clip, priming frames included",
        "real_clips": len(chosen),
        "left_out": left_out,
        "samples": len(samples),
        "seed": sampled.provenance.settings.get("seed"),
        "temperature": sampled.provenance.settings.get("temperature"),
        "pixels": "bytes, rounded; decoded in memory, never compressed",
    }
    if num_frames < SHORTEST_CLIP:
        results["warning"] = f"clips of {num_frames} frames: I3D needs {SHORTEST_CLIP} or more, the protocol has 16"
    return results


def _told(
    videos: Iterator[NDArray[np.uint8]], task: str, items: Sequence[Any], progress: Progress
) -> Iterator[NDArray[np.uint8]]:
    """The same videos, with a bar."""
    with progress.bar(f"FVD, {task}", len(items), "videos") as bar:
        for video in videos:
            yield video
            bar.advance()
