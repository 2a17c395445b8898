"""FVD and KVD of samples, of the tokenizer's reconstructions, and of repeating the last priming frame, on equal clips.

The priming frames of a sample are either the real ones, the natural reading of the protocol, or their reconstructions,
which is what a program gets that decodes all codes. Both are measured unless one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.evaluation.distances.fvd import (
    SHORTEST_CLIP,
    FeatureCache,
    FeatureNetwork,
    Gaussian,
    frechet_distance,
    network_label,
)
from lvt_pipeline.evaluation.distances.kvd import CARD as KERNEL_CARD
from lvt_pipeline.evaluation.distances.kvd import kernel_distance
from lvt_pipeline.evaluation.pixels import Pixels, repeat_last
from lvt_pipeline.evaluation.samples import first_frame_of, priming_frames_of, siblings_of
from lvt_pipeline.evaluation.settings import PrimingPixels
from lvt_pipeline.progress import SILENT, Progress

FEWEST_CLIPS = 2  # a covariance needs two


def measure_fvd(
    sampled: CodeStore,
    pixels: Pixels,
    network: FeatureNetwork,
    cache: FeatureCache,
    priming_pixels: PrimingPixels = "both",
    *,
    only: Collection[str] | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Distances of samples and baselines from the real clips, with the card of the protocol. The same names under `kvd`
    are kernel distances with their intervals, from the same features.

    `real_priming` and `reconstructed_priming` are the samples', by the source of their priming frames;
    `reconstruction` is the tokenizer's ceiling; `copy` repeats the last priming frame. `left_out` counts real clips
    that are shorter than their samples. When too few clips are left, `missing` states that instead.

    Args:
        pixels: of the store whose clips the samples continue.
        only: ids of the real clips that are compared; all that were sampled by default.

    Raises:
        NetworkError: the network failed.
    """
    if start := first_frame_of(sampled):
        return {"missing": f"the samples start at frame {start} of their clips; FVD compares the first frames of clips"}
    chosen, samples, left_out, num_frames = _comparable(sampled, pixels, only)
    if len(chosen) < FEWEST_CLIPS or len(samples) < FEWEST_CLIPS:
        return _too_few(chosen, num_frames)
    real = _RealClips(chosen, num_frames, pixels, network, cache, progress)
    for name in ("real", "reconstructed"):
        if priming_pixels in ("both", name):
            videos = _sampled_videos(sampled, pixels, samples, num_frames, has_real_priming=name == "real")
            shown = _with_bar(videos, f"{name} priming", samples, progress)
            real.compare(f"{name}_priming", network.features(shown), [origin for origin, _ in samples])
    real.compare_reconstructions()
    if priming_frames := priming_frames_of(sampled):
        real.compare_copies(priming_frames)
    card = {**real.card, **_sampling_card(sampled, priming_pixels, left_out, len(samples))}
    return real.results(card) | _warning(num_frames)


def _sampled_videos(
    sampled: CodeStore,
    pixels: Pixels,
    samples: Sequence[tuple[CodeClip, CodeClip]],
    num_frames: int,
    *,
    has_real_priming: bool,
) -> Iterator[NDArray[np.uint8]]:
    """The decoded samples, uint8 (T, H, W, 3), with real or reconstructed priming frames."""
    priming_frames = priming_frames_of(sampled)
    for origin, clip in samples:
        video = pixels.decoded(sampled.read(clip, 0, num_frames))
        if has_real_priming:
            video[:priming_frames] = pixels.real(origin, num_frames)[:priming_frames]
        yield video


def _sampling_card(
    sampled: CodeStore, priming_pixels: PrimingPixels, left_out: int, num_samples: int
) -> dict[str, Any]:
    """The part of the card that describes the samples."""
    settings = sampled.provenance.settings
    return {
        "priming_frames": priming_frames_of(sampled),
        "priming_pixels": priming_pixels,
        "evaluated_frames": "the whole clip, priming frames included",
        "left_out": left_out,
        "samples": num_samples,
        "seed": settings.get("seed"),
        "temperature": settings.get("temperature"),
    }


def measure_reconstruction_fvd(
    pixels: Pixels,
    clips: Sequence[CodeClip],
    num_frames: int,
    network: FeatureNetwork,
    cache: FeatureCache,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """The tokenizer's own distance, which needs no sample (paper, tables 1 and 4): `reconstruction` and the card.

    Args:
        clips: each of `num_frames` frames or more.

    Raises:
        NetworkError: the network failed.
    """
    if len(clips) < FEWEST_CLIPS:
        return _too_few(clips, num_frames)
    real = _RealClips(clips, num_frames, pixels, network, cache, progress)
    real.compare_reconstructions()
    return real.results(real.card) | _warning(num_frames)


def _comparable(
    sampled: CodeStore, pixels: Pixels, only: Collection[str] | None
) -> tuple[list[CodeClip], list[tuple[CodeClip, CodeClip]], int, int]:
    """Real clips as long as the samples, their samples with them, how many clips are shorter, and that length."""
    groups = siblings_of(sampled, pixels.store, only)
    num_frames = max(clip.length for siblings in groups.values() for clip in siblings)
    chosen: list[CodeClip] = []
    samples: list[tuple[CodeClip, CodeClip]] = []
    for clip_id, siblings in groups.items():
        if clip_id in pixels.store and (origin := pixels.store.clip(clip_id)).length >= num_frames:
            chosen.append(origin)
            samples += [(origin, clip) for clip in siblings if clip.length == num_frames]
    return chosen, samples, len(groups) - len(chosen), num_frames


class _RealClips:
    """The clips that everything is compared with: their features, and those of the baselines on the same clips."""

    def __init__(
        self,
        clips: Sequence[CodeClip],
        num_frames: int,
        pixels: Pixels,
        network: FeatureNetwork,
        cache: FeatureCache,
        progress: Progress,
    ) -> None:
        self._clips, self._num_frames, self._pixels = clips, num_frames, pixels
        self._network, self._cache, self._progress = network, cache, progress
        self._basis = {
            "network": network.fingerprint,
            "frames": num_frames,
            "clips": [(clip.id, pixels.shards[clip.id].fingerprint) for clip in clips],
        }
        features = self._features({"of": "real"}, self._frames)
        self._real, self._target = features, Gaussian.fit(features)
        self._distances: dict[str, float] = {}
        self._kernel_distances: dict[str, dict[str, float]] = {}
        self._label = network_label(network, features.shape[1])
        self.card = {
            **network.card,
            "features": features.shape[1],
            "covariance": "N - 1",
            "kvd": KERNEL_CARD,
            "frames": num_frames,
            "real_clips": len(clips),
            "pixels": "bytes, rounded; decoded in memory, never compressed",
        }

    def results(self, card: Mapping[str, Any]) -> dict[str, Any]:
        return {"label": self._label, **self._distances, "kvd": self._kernel_distances, "card": card}

    def compare(self, name: str, features: NDArray[np.float64], origins: Sequence[CodeClip]) -> None:
        """Measure a set of videos; `origins` are the clips that they belong to, in the order of the clips."""
        self._distances[name] = frechet_distance(self._target, Gaussian.fit(features))
        place = {clip.id: number for number, clip in enumerate(self._clips)}
        clips, owners = np.unique([place[origin.id] for origin in origins], return_inverse=True)
        if len(clips) >= FEWEST_CLIPS:
            self._kernel_distances[name] = asdict(kernel_distance(self._real[clips], features, owners))

    def compare_reconstructions(self) -> None:
        made_of = {"of": "reconstruction", "tokenizer": self._pixels.store.tokenizer}
        features = self._features(made_of, lambda clip: self._pixels.reconstructed(clip, self._num_frames))
        self.compare("reconstruction", features, self._clips)

    def compare_copies(self, priming_frames: int) -> None:
        made_of = {"of": "copy", "priming_frames": priming_frames}
        features = self._features(made_of, lambda clip: repeat_last(self._frames(clip), priming_frames))
        self.compare("copy", features, self._clips)

    def _frames(self, clip: CodeClip) -> NDArray[np.uint8]:
        return self._pixels.real(clip, self._num_frames)

    def _features(
        self, made_of: Mapping[str, Any], video: Callable[[CodeClip], NDArray[np.uint8]]
    ) -> NDArray[np.float64]:
        def compute() -> NDArray[np.float64]:
            videos = map(video, self._clips)
            return self._network.features(_with_bar(videos, made_of["of"], self._clips, self._progress))

        return self._cache.recall({**self._basis, **made_of}, compute)


def _too_few(clips: Sequence[CodeClip], num_frames: int) -> dict[str, Any]:
    return {"missing": f"a covariance needs {FEWEST_CLIPS} clips of {num_frames} frames, found {len(clips)}"}


def _warning(num_frames: int) -> dict[str, Any]:
    if num_frames >= SHORTEST_CLIP:
        return {}
    return {"warning": f"clips of {num_frames} frames: I3D needs {SHORTEST_CLIP} or more, the protocol has 16"}


def _with_bar(
    videos: Iterator[NDArray[np.uint8]], task: str, items: Sequence[Any], progress: Progress
) -> Iterator[NDArray[np.uint8]]:
    """The same videos, with a progress bar."""
    with progress.bar(f"FVD, {task}", len(items), "videos") as bar:
        for video in videos:
            yield video
            bar.advance()
