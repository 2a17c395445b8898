"""Stage `evaluate`: how good a tokenizer, a prior and its samples are, next to what simple predictors reach.

Paper sections 4.1 to 4.3. Everything is measured on the first `frames` frames of the evaluated clips, teacher-forced
bits and both baselines on exactly the same codes. The result is one JSON file:

- `reconstruction`: MSE in [0, 1], PSNR, SSIM and LPIPS of decoded codes against the frames they were made from, both as
  bytes, also frame by frame; and the MSE of the best single picture for all of these frames, which a tokenizer without
  codes could reach.
- `prior`: bits per code, the sum of -log2 p over all codes of frames `priming_frames` and later, divided by their
  number; also by codebook, frame and slice.
- `actions`: of a prior with actions, whether it obeys them. See `evaluation.actions.measuring`.
- `baselines`: `unigram_bits` is the entropy of each codebook over these very codes, averaged over the codebooks;
  `previous_frame_bits` is what the smoothed "same code as in the previous frame" predictor, fitted on the training
  split, needs for them. See `evaluation.metrics`.
- `beats`: whether the prior needs fewer bits than each baseline.
- `codes`: perplexity, usage and dead codes of each codebook over the training split, and how often an evaluated code
  repeats.
- `samples`: error of the decoded samples against what really happened, frame by frame, with the reconstruction's and
  that of repeating the last priming frame; and how much samples of one clip differ. A sample is one possible future, so
  the error is a sanity check, not a score.
- `fvd`: distances between sets of videos, Fréchet and (`kvd`) kernel distances, with the card of the protocol. See
  `evaluation.distances.sampled_fvd`.
- `training_clips`: how many of the evaluated clips the models were trained on, which has to be asked for; absent when
  there is none.
- `missing`: the measurements that were not made, with their requirements.
- `per_clip`: the values of single clips that the means above are means of, for `lvt compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, clips_of_split
from lvt_pipeline.codes.usage import codes_holding, perplexity, usage
from lvt_pipeline.config import to_plain
from lvt_pipeline.evaluation.actions.measuring import measure_actions, own_actions_of
from lvt_pipeline.evaluation.bits import baselines_by_clip, count_training_codes, measure_baselines, measure_prior
from lvt_pipeline.evaluation.distances.fvd import FeatureCache
from lvt_pipeline.evaluation.distances.networks import NetworkError
from lvt_pipeline.evaluation.distances.sampled_fvd import measure_fvd, measure_reconstruction_fvd
from lvt_pipeline.evaluation.metrics import CodeCounts, pool
from lvt_pipeline.evaluation.pixels import measure_reconstruction
from lvt_pipeline.evaluation.results import is_unchanged, plain, summary_line, without_metric, write_results
from lvt_pipeline.evaluation.samples import measure_samples
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Opened, Sources, open_sources, require_held_out, trained_clips
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.actions import Rows
from lvt_pipeline.runs.compatibility import clips_with_class, label_numbers

STAGE = "evaluate"
FILE_MARK = b'"short_clips": '  # near the beginning of every file with results
# 2: SSIM, LPIPS, FVD, bits by frame and slice, dead codes, diversity, values of single clips; 3: KVD.
VERSION = 3
JOB = Job(stage=STAGE, version=VERSION, kind="evaluation")
CACHE = Path(".lvt") / "features"  # next to the result: features of reference videos; may be deleted
DEFAULTS = EvaluateSettings()


def evaluate(
    sources: Sources,
    out: Path,
    settings: EvaluateSettings = DEFAULTS,
    *,
    allow_training_clips: bool = False,
    batch_size: int = 8,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Provenance:
    """Measure everything that the sources allow and write it to the JSON file `out`, unless nothing changed.

    Args:
        allow_training_clips: evaluate clips although the models were trained on them; the result counts them.
        batch_size: clips per pass; it does not change the result.

    Raises:
        MismatchError: the artefacts do not belong together.
        LVTError: no clip has enough frames, some were for training, or a model gives numbers that are not finite.
        NetworkError: a network of the user failed. Everything else has been measured and written.
    """
    clock = Clock()
    require_output_file(out, STAGE, sources.paths, mark=FILE_MARK)
    record = write_evaluation(
        open_sources(sources, settings, device),
        out,
        settings,
        allow_training_clips=allow_training_clips,
        batch_size=batch_size,
        clock=clock,
        progress=progress,
    )
    raise_failures(record, out)
    return record


def raise_failures(record: Provenance, out: Path) -> None:
    """Report the networks that failed while a result was made.

    Raises:
        NetworkError: there are some.
    """
    if failed := record.counts.get("failed"):
        raise NetworkError(f"{'; '.join(failed)}; everything else is in {out}")


def write_evaluation(
    opened: Opened,
    out: Path,
    settings: EvaluateSettings,
    *,
    allow_training_clips: bool = False,
    batch_size: int = 8,
    clock: Clock | None = None,
    progress: Progress = SILENT,
) -> Provenance:
    """`evaluate` with sources that are open. Networks that failed are in the record's `failed`, and nothing is raised
    for them."""
    clips, num_short = clips_of_split(opened.store, settings.split, settings.frames, progress=progress)
    if opened.prior is not None and opened.sources.prior is not None:
        clips = clips_with_class(clips, opened.sources.prior, opened.prior, progress)
    clips = clips[: settings.max_clips]
    trained = trained_clips(opened, clips)
    if not allow_training_clips:
        require_held_out(opened, clips, trained)
    if trained:
        progress.say(f"{len(trained)} of these clips were used for training; the scores are optimistic")
    with JOB.open_file(out, settings, opened.inputs, clock=clock) as work:
        if work.is_current and is_unchanged(out, work.record):
            return work.record
        if (opened.sources.frames is None) != (opened.sources.vqvae is None):
            progress.say("reconstruction is not measured: it needs both the frames and the VQ-VAE run")
        measuring = _Measuring(opened, clips, settings, FeatureCache(out.parent / CACHE), batch_size, progress)
        results = {
            "split": clips[0].split,
            "clips": len(clips),
            "short_clips": num_short,
            **({"training_clips": len(trained)} if trained else {}),
            "frames": settings.frames,
            "priming_frames": settings.priming_frames,
            **measuring.everything(),
            "settings": to_plain(settings),
            "inputs": opened.inputs,
        }
        results = plain(results)
        failed = {"failed": list(measuring.failures.values())} if measuring.failures else {}
        counts = {"clips": len(clips), "codes": results["baselines"]["codes"], "summary": summary_line(results)}
        return write_results(work, results, counts | failed)


@dataclass
class _Measuring:
    """One evaluation: the results so far, why networks of the user failed, and what else is missing, by measurement."""

    opened: Opened
    clips: Sequence[CodeClip]
    settings: EvaluateSettings
    cache: FeatureCache
    batch_size: int
    progress: Progress
    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def everything(self) -> dict[str, Any]:
        """All parts of the result that the sources allow, and the measurements that are missing."""
        opened, settings, progress = self.opened, self.settings, self.progress
        by_clip: dict[str, dict[str, Any]] = {"evaluated": {"clip": [clip.id for clip in self.clips]}, "samples": {}}
        if opened.pixels is not None:
            self.results["reconstruction"], found = measure_reconstruction(
                opened.pixels, self.clips, settings.frames, opened.lpips, progress
            )
            by_clip["evaluated"] |= found
        by_clip["evaluated"] |= self._add_codes()
        if opened.sampled is not None:
            parts, self.failures = measure_continuations(
                opened, opened.sampled, settings, self.cache, progress=progress
            )
            by_clip["samples"] = parts.pop("per_clip")
            self.results |= parts
        elif opened.pixels is not None and opened.features is not None:
            measured = opened.pixels, self.clips, settings.frames, opened.features, self.cache, progress
            self.results |= _fvd(lambda: measure_reconstruction_fvd(*measured), self.failures)
        if opened.lpips is not None and opened.lpips.failure:
            self.failures["LPIPS"] = opened.lpips.failure
            if "reconstruction" in self.results:
                self.results["reconstruction"] = without_metric(self.results["reconstruction"], "lpips")
            by_clip["evaluated"] = without_metric(by_clip["evaluated"], "lpips")
        failed = {name: f"failed: {reason}" for name, reason in self.failures.items()}
        missing = missing_measurements(opened) | self.missing | failed
        return self.results | {"missing": missing, "per_clip": by_clip}

    def _add_codes(self) -> dict[str, list[float]]:
        """Bits of the prior and of its baselines, and how the codebooks are used; returns the bits of each clip."""
        opened, settings, store = self.opened, self.settings, self.opened.store
        size, priming = store.codebook_size, settings.priming_frames
        each = (CodeCounts.of(store.read(clip, 0, settings.frames), size, priming) for clip in self.clips)
        counts = pool(each, store.num_codebooks, size)
        split, num_clips, training_counts = count_training_codes(store, self.progress)
        if split != "train":
            self.progress.say(f"{store.path} has no train clip; the previous-frame baseline is fitted on all clips")
        fitted_on = {"split": split, "clips": num_clips, "codes": training_counts.num_codes}
        by_clip = {}
        if opened.prior is not None and opened.sources.prior is not None:
            labels = label_numbers(self.clips, opened.sources.prior, opened.prior)
            actions = own_actions_of(opened, self.clips, settings.frames)
            self.results["prior"], by_clip["bits"] = measure_prior(
                store, self.clips, opened.prior, labels, settings, self.batch_size, self.progress, actions=actions
            )
            if actions is not None:
                self._add_actions(labels, actions)
            assert self.results["prior"]["codes"] == counts.num_codes, "prior and baselines count the same codes"
        baselines = measure_baselines(counts, training_counts) | {"fitted_on": fitted_on}
        self.results["baselines"] = baselines
        if "prior" in self.results:
            bits = self.results["prior"]["bits_per_dim"]
            self.results["beats"] = {name: bits < baselines[f"{name}_bits"] for name in ("unigram", "previous_frame")}
        self.results["codes"] = {
            "tokenizer": store.tokenizer,
            "codebook_size": store.codebook_size,
            "num_codebooks": store.num_codebooks,
            "perplexity": perplexity(training_counts.occurrences),
            "usage": usage(training_counts.occurrences),
            "dead_codes": training_counts.dead_codes,
            "codes_holding_80_percent": codes_holding(training_counts.occurrences),
            "share_same_as_previous_frame": counts.share_same_as_previous_frame,
        }
        return by_clip | baselines_by_clip(store, self.clips, counts, training_counts, settings)

    def _add_actions(self, labels: Sequence[int] | None, actions: Sequence[Rows]) -> None:
        found, missing = measure_actions(
            self.opened, self.clips, labels, actions, self.settings, self.batch_size, self.progress
        )
        self.results |= {"actions": found} if found else {}
        self.missing |= {"actions": missing} if missing else {}


def measure_continuations(
    opened: Opened,
    sampled: CodeStore,
    settings: EvaluateSettings,
    cache: FeatureCache,
    *,
    only: Collection[str] | None = None,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Errors and distances of samples from the clips that they continue.

    Args:
        only: ids of the real clips whose samples count; all by default.

    Returns:
        `samples`, `per_clip` and `fvd`, as far as the sources allow; and why networks of the user failed, by name of
        the measurement.
    """
    failures: dict[str, str] = {}
    samples, per_clip = measure_samples(
        sampled, opened.store, opened.pixels, opened.lpips, only=only, progress=progress
    )
    results: dict[str, Any] = {"samples": samples, "per_clip": per_clip}
    if opened.lpips is not None and opened.lpips.failure:
        failures["LPIPS"] = opened.lpips.failure
        results = {name: without_metric(part, "lpips") for name, part in results.items()}
    if opened.pixels is not None and opened.features is not None:
        measured = sampled, opened.pixels, opened.features, cache, settings.priming_pixels
        results |= _fvd(lambda: measure_fvd(*measured, only=only, progress=progress), failures)
    return results, failures


def _fvd(measure: Callable[[], dict[str, Any]], failures: dict[str, str]) -> dict[str, Any]:
    """The `fvd` part of a result; nothing, and a line in `failures`, when the network fails."""
    try:
        return {"fvd": measure()}
    except NetworkError as error:
        failures["FVD"] = str(error)
        return {}


def missing_measurements(opened: Opened) -> dict[str, str]:
    """The measurements that these sources do not allow, with the sources that they need."""
    has_pixels, has_i3d = opened.pixels is not None, opened.features is not None
    pixels = [] if has_pixels else ["the frames (--frames)", "the VQ-VAE run (--vqvae)"]
    needs = {
        "reconstruction": pixels,
        "LPIPS": pixels + ([] if opened.lpips is not None else ["a TorchScript network (--lpips)"]),
        "FVD of samples" if has_pixels and has_i3d else "FVD": pixels
        + ([] if opened.sampled is not None else ["samples (--samples)"])
        + ([] if has_i3d else ["a TorchScript I3D (--i3d) or another network (--features)"]),
    }
    return {name: "needs " + " and ".join(things) for name, things in needs.items() if things}
