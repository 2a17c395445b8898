"""Bits and samples under the true actions, under those of another clip, and under none.

If a prior uses its actions, codes need fewer bits under the true ones, samples under them are closer to what really
happened, and a probe that reads actions from codes finds them in the samples. Everything is measured on the same
clips, so differences are paired; intervals are those of `evaluation.compare`.

- `bits_per_dim`: under `true` actions, `shuffled` ones (of another evaluated clip) and `none`; `bits_saved`: how many
  bits the true ones save against the other two.
- `samples`: of some clips, with the same random numbers under true and shuffled actions: share of codes that are those
  of the real clip and, with pixels, PSNR; differences are true minus shuffled.
- `probe`: squared error of the actions that `probe.TrainedProbe` reads, in units of their variance; `mean_action` is
  the error of always guessing the mean. `sampled_shuffled` is measured against the shuffled actions.
- `steered`: one clip continued under its own actions, under these mirrored about the mean, and under zeros.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.config import build, without_none
from lvt_pipeline.evaluation.actions.probe import TrainedProbe
from lvt_pipeline.evaluation.bits import measure_prior
from lvt_pipeline.evaluation.compare import mean_interval
from lvt_pipeline.evaluation.metrics import psnr, squared_errors
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Opened
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.models.prior.conditions import ActionEmbedding
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.runs.actions import Rows, own_actions

SAMPLED_CLIPS = 8
SEQUENCES = ("own", "mirrored", "zero")
LEAST_ERROR = 1e-8  # of a squared error in [0, 1], so that a perfect sample has a finite PSNR


@dataclass
class ActionsOfClips:
    """A conditioned prior, clips with known actions, and these.

    Attributes:
        labels: the class of each clip; None without classes.
        actions: (frames, d) of each clip.
        shuffled: those of another clip.
    """

    opened: Opened
    model: Prior
    clips: Sequence[CodeClip]
    labels: Sequence[int] | None
    actions: Sequence[Rows]

    @property
    def shuffled(self) -> list[Rows]:
        """The actions of another clip for each clip, the same every time."""
        order = np.random.default_rng(0).permutation(len(self.clips))
        giver = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
        return [self.actions[giver[number]] for number in range(len(self.clips))]

    def first(self, count: int) -> ActionsOfClips:
        """Some of the clips, spread evenly."""
        chosen = sorted({number * len(self.clips) // count for number in range(count)})
        return replace(
            self,
            clips=[self.clips[number] for number in chosen],
            labels=None if self.labels is None else [self.labels[number] for number in chosen],
            actions=[self.actions[number] for number in chosen],
        )


def own_actions_of(opened: Opened, clips: Sequence[CodeClip], frames: int) -> list[Rows] | None:
    """The recorded actions (frames, d) of each clip; None for a prior without."""
    prior, model = opened.sources.prior, opened.prior
    if prior is None or model is None or not model.config.actions:
        return None
    return [own_actions(opened.store, clip, prior, model.config, 0, frames) for clip in clips]


def measure_actions(
    opened: Opened,
    clips: Sequence[CodeClip],
    labels: Sequence[int] | None,
    actions: Sequence[Rows],
    settings: EvaluateSettings,
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], str]:
    """The results that are described above, or {} and the reason why nothing is measured."""
    known = [number for number, rows in enumerate(actions) if np.isfinite(rows[:-1]).all(-1).any()]
    if len(known) < 2:
        return {}, "needs at least two evaluated clips with actions"
    assert opened.prior is not None
    chosen = ActionsOfClips(
        opened,
        opened.prior,
        [clips[number] for number in known],
        None if labels is None else [labels[number] for number in known],
        [actions[number] for number in known],
    )
    results = _measure_bits(chosen, settings, batch_size, progress)
    few = chosen.first(min(settings.action_clips or SAMPLED_CLIPS, len(known)))
    sampling = _sampling(opened, settings)
    sampled = {
        name: _sample(few, rows, sampling, progress)
        for name, rows in (("true", few.actions), ("shuffled", few.shuffled))
    }
    results["samples"] = _measure_samples(few, sampled, sampling)
    results["probe"] = _measure_probe(few, sampled, sampling)
    results["steered"] = _steer(few.first(1), sampling, progress)
    return results, ""


def steered_codes(steered: Mapping[str, Any]) -> NDArray[np.uint16]:
    """The codes (sequences, T, h, w, n_c) of the part `steered` of a result."""
    return np.frombuffer(zlib.decompress(base64.b64decode(steered["codes"])), "<u2").reshape(steered["shape"])


def _measure_bits(
    chosen: ActionsOfClips, settings: EvaluateSettings, batch_size: int, progress: Progress
) -> dict[str, Any]:
    bits: dict[str, NDArray[np.float64]] = {}
    for name, rows in (("true", chosen.actions), ("shuffled", chosen.shuffled), ("none", None)):
        opened = chosen.opened
        measured = measure_prior(
            opened.store, chosen.clips, chosen.model, chosen.labels, settings, batch_size, progress, actions=rows
        )
        bits[name] = np.array(measured[1])
    return {
        "clips": len(chosen.clips),
        "bits_per_dim": {name: float(values.mean()) for name, values in bits.items()},
        "bits_saved": {name: asdict(mean_interval(bits[name] - bits["true"])) for name in ("shuffled", "none")},
    }


def _sampling(opened: Opened, settings: EvaluateSettings) -> SampleSettings:
    """As the evaluated samples were drawn where there are some, else as by default; of the evaluated length."""
    recorded = {} if opened.sampled is None else without_none(opened.sampled.provenance.settings)
    own: SampleSettings = build(SampleSettings, dict(recorded), where="settings of the samples")
    priming = max(1, min(own.priming_frames, settings.frames - 1))
    return replace(own, frames=settings.frames, priming_frames=priming)


def _sample(
    few: ActionsOfClips, actions: Sequence[Rows], sampling: SampleSettings, progress: Progress
) -> NDArray[np.int64]:
    """Codes (clips, T, h, w, n_c); the random numbers of a clip do not depend on the actions."""
    store, priming = few.opened.store, sampling.priming_frames
    result: NDArray[np.int64] = few.model.sample(
        np.stack([store.read(clip, 0, priming) for clip in few.clips]).astype(np.int64),
        frames=sampling.frames,
        seed=sampling.seed,
        **sampling.sampling,
        labels=few.labels,
        actions=np.stack(actions),
        clip_ids=[clip.id for clip in few.clips],
        progress=progress,
    ).numpy()
    return result


def _measure_samples(
    few: ActionsOfClips, sampled: Mapping[str, NDArray[np.int64]], sampling: SampleSettings
) -> dict[str, Any]:
    store, pixels, priming = few.opened.store, few.opened.pixels, sampling.priming_frames
    equal: dict[str, list[float]] = {name: [] for name in sampled}
    errors: dict[str, list[float]] = {name: [] for name in sampled}
    for number, clip in enumerate(few.clips):
        real = store.read(clip, priming, sampling.frames)
        for name, codes in sampled.items():
            later = codes[number, priming:]
            equal[name].append(float((later == real).mean()))
            if pixels is not None:
                video = pixels.real(clip, sampling.frames - priming, priming)
                error = squared_errors(video, pixels.decoded(later.astype(store.dtype))).mean()
                errors[name].append(max(float(error), LEAST_ERROR))
    results: dict[str, Any] = {
        "clips": len(few.clips),
        "frames": sampling.frames,
        "priming_frames": priming,
        "same_codes": {name: float(np.mean(values)) for name, values in equal.items()},
        "delta_same_codes": asdict(mean_interval(np.array(equal["true"]) - np.array(equal["shuffled"]))),
    }
    if pixels is not None:
        by_clip = {name: np.array([psnr(value) for value in values]) for name, values in errors.items()}
        results["psnr"] = {name: psnr(float(np.mean(values))) for name, values in errors.items()}
        results["delta_psnr"] = asdict(mean_interval(by_clip["true"] - by_clip["shuffled"]))
    return results


def _measure_probe(
    few: ActionsOfClips, sampled: Mapping[str, NDArray[np.int64]], sampling: SampleSettings
) -> dict[str, Any]:
    store, pixels, config = few.opened.store, few.opened.pixels, few.model.config
    probe = TrainedProbe(store, config.actions or (), _scale_of(few.model))
    last = sampling.priming_frames - 1  # its action leads to the first sampled frame
    found: dict[str, list[float]] = {}
    for number, (clip, own, other) in enumerate(zip(few.clips, few.actions, few.shuffled, strict=True)):
        real = store.read(clip, 0, sampling.frames)
        read = {"real": (real, own), "sampled": (sampled["true"][number], own)}
        read["sampled_shuffled"] = sampled["shuffled"][number], other
        if pixels is not None:
            read["reconstructed"] = pixels.tokenizer.encode(pixels.decoded(real)).numpy(), own
        for name, (codes, actions) in read.items():
            error, guessed = probe.error(codes, actions, last)
            found.setdefault(name, []).append(error)
            if name == "real":
                found.setdefault("mean_action", []).append(guessed)
    return {"training_pairs": probe.num_pairs} | {name: _mean(values) for name, values in found.items()}


def _scale_of(model: Prior) -> ActionEmbedding:
    assert model.encoder.actions is not None
    return model.encoder.actions


def _mean(values: Sequence[float]) -> float:
    """The mean of those that are numbers; a clip may have no known action after its priming frames."""
    return float(np.mean([value for value in values if math.isfinite(value)] or [math.nan]))


def _steer(one: ActionsOfClips, sampling: SampleSettings, progress: Progress) -> dict[str, Any]:
    mean, own = _scale_of(one.model).mean.cpu().numpy(), one.actions[0]
    sequences = [own, 2 * mean - own, np.zeros_like(own)]  # in the order of SEQUENCES
    three = replace(one, clips=[*one.clips] * 3, labels=one.labels and [*one.labels] * 3)
    codes = _sample(three, sequences, sampling, progress)
    packed = base64.b64encode(zlib.compress(codes.astype("<u2").tobytes(), 9)).decode("ascii")
    return {
        "clip": one.clips[0].id,
        "priming_frames": sampling.priming_frames,
        "sequences": SEQUENCES,
        "shape": list(codes.shape),
        "codes": packed,
    }
