"""Stage `evaluate`: how good a tokenizer, a prior and its samples are, next to what simple predictors reach.

Paper sections 4.1 to 4.3. Everything is measured on the first `frames` frames of the evaluated clips, teacher-forced
bits and both baselines on exactly the same codes. The result is one JSON file:

- `reconstruction`: MSE in [0, 1], PSNR, SSIM and LPIPS of decoded codes against the frames they were made from, both as
  bytes, also frame by frame; and the MSE of the best single picture for all of these frames, which a tokenizer without
  codes could reach.
- `prior`: bits per code, the sum of -log2 p over all codes of frames `priming_frames` and later, divided by their
  number; also by codebook, frame and slice.
- `baselines`: `unigram_bits` is the entropy of each codebook over these very codes, averaged over the codebooks;
  `previous_frame_bits` is what the smoothed "same code as in the previous frame" predictor, fitted on the training
  split, needs for them. See `evaluation.metrics`.
- `beats`: whether the prior needs fewer bits than each baseline.
- `codes`: perplexity, usage and dead codes of each codebook over the training split, and how often an evaluated code
  repeats.
- `samples`: error of the decoded samples against what really happened, frame by frame, with the reconstruction's and
  that of repeating the last priming frame; and how much samples of one clip differ. A sample is one possible future, so
  the error is a sanity check, not a score.
- `fvd`: distances between sets of videos, with the card of the protocol. See `evaluation.sampled_fvd`.
- `training_clips`: how many of the evaluated clips the models were trained on, which has to be asked for; absent when
  there is none.
- `missing`: what was not measured, and what it needs.
- `per_clip`: the values of single clips that the means above are means of, for `lvt compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, clips_of_split
from lvt_pipeline.codes.usage import codes_holding, perplexity, usage
from lvt_pipeline.config import to_plain
from lvt_pipeline.evaluation.bits import baselines_by_clip, measure_baselines, measure_prior
from lvt_pipeline.evaluation.fvd import FeatureCache
from lvt_pipeline.evaluation.metrics import CodeCounts
from lvt_pipeline.evaluation.networks import NetworkError
from lvt_pipeline.evaluation.pixels import measure_reconstruction
from lvt_pipeline.evaluation.results import is_unchanged, plain, without_metric, write_results
from lvt_pipeline.evaluation.sampled_fvd import measure_fvd, measure_reconstruction_fvd
from lvt_pipeline.evaluation.samples import measure_samples
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Opened, Sources, open_sources, require_held_out, trained_clips
from lvt_pipeline.evaluation.summary import summary_line
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.compatibility import clips_with_class, label_numbers

STAGE = "evaluate"
FILE_MARK = b'"short_clips": '  # near the beginning of every file with results
VERSION = 2  # 2: SSIM, LPIPS, FVD, bits by frame and slice, dead codes, diversity, values of single clips
JOB = Job(stage=STAGE, version=VERSION, kind="evaluation")
CACHE = Path(".lvt") / "features"  # next to the result: features of reference videos; may be deleted
DEFAULTS = EvaluateSettings()


def evaluate(
    codes: Path,
    out: Path,
    settings: EvaluateSettings = DEFAULTS,
    *,
    prior: Path | None = None,
    frames: Path | None = None,
    vqvae: Path | None = None,
    samples: Path | None = None,
    i3d: Path | None = None,
    lpips: Path | None = None,
    allow_training_clips: bool = False,
    generation: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Provenance:
    """Measure everything that is given and write it to the JSON file `out`. When nothing changed, nothing is done.

    Args:
        codes: code store.
        prior: adds bits per code, compared with the baselines.
        frames, vqvae: together they add the reconstruction.
        samples: store made by `lvt sample` from these codes; with `frames` and `vqvae` also measured in pixels.
        i3d: TorchScript network of FVD; with frames and a VQ-VAE run it adds that of the samples, or, without
            samples, that of the reconstruction alone.
        lpips: TorchScript network of LPIPS; adds it to every error in pixels.
        allow_training_clips: evaluate clips although the models were trained on them; the result counts them.
        generation: of `codes`; the current one by default.
        batch_size: clips per pass; it does not change the result.

    Raises:
        MismatchError: the artefacts do not belong together.
        LVTError: no clip has enough frames, some were for training, or a model gives numbers that are not finite.
        NetworkError: a network of the user failed. Everything else has been measured and written.
    """
    clock = Clock()
    require_output_file(out, STAGE, (codes, prior, frames, vqvae, samples, i3d, lpips), mark=FILE_MARK)
    sources = Sources(
        codes=codes,
        generation=generation,
        prior=prior,
        frames=frames,
        vqvae=vqvae,
        samples=samples,
        i3d=i3d,
        lpips=lpips,
    )
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


class _Measuring:
    """One evaluation: the results so far, and what failed.

    Attributes:
        failures: by name of the measurement, why a network of the user could not measure it.
    """

    def __init__(
        self,
        opened: Opened,
        clips: Sequence[CodeClip],
        settings: EvaluateSettings,
        cache: FeatureCache,
        batch_size: int,
        progress: Progress,
    ) -> None:
        self._opened, self._clips, self._settings = opened, clips, settings
        self._cache, self._batch_size, self._progress = cache, batch_size, progress
        self._results: dict[str, Any] = {}
        self._by_clip: dict[str, list[Any]] = {"clip": [clip.id for clip in clips]}
        self._by_sampled_clip: dict[str, list[Any]] = {}
        self.failures: dict[str, str] = {}

    def everything(self) -> dict[str, Any]:
        """All parts of the result that the sources allow, and what is missing."""
        self._add_reconstruction()
        self._add_codes()
        self._add_samples()
        self._add_fvd()
        if self._opened.lpips is not None and self._opened.lpips.failure:
            self.failures["LPIPS"] = self._opened.lpips.failure
            for part in ("reconstruction", "samples"):
                if part in self._results:
                    self._results[part] = without_metric(self._results[part], "lpips")
            self._by_clip = without_metric(self._by_clip, "lpips")
            self._by_sampled_clip = without_metric(self._by_sampled_clip, "lpips")
        self._results["missing"] = missing_measurements(self._opened) | {
            name: f"failed: {reason}" for name, reason in self.failures.items()
        }
        self._results["per_clip"] = {"evaluated": self._by_clip, "samples": self._by_sampled_clip}
        return self._results

    def _add_reconstruction(self) -> None:
        opened = self._opened
        if opened.pixels is not None:
            self._results["reconstruction"], found = measure_reconstruction(
                opened.pixels, self._clips, self._settings.frames, opened.lpips, self._progress
            )
            self._by_clip |= found

    def _add_codes(self) -> None:
        """Bits of the prior and of its baselines, and how the codebooks are used."""
        opened, settings, store = self._opened, self._settings, self._opened.store
        counts = _evaluated_counts(store, self._clips, settings)
        fitted_on, training_counts = _training_counts(store, self._progress)
        if opened.prior is not None and opened.sources.prior is not None:
            labels = label_numbers(self._clips, opened.sources.prior, opened.prior)
            self._results["prior"], self._by_clip["bits"] = measure_prior(
                store, self._clips, opened.prior, labels, settings, self._batch_size, self._progress
            )
            assert self._results["prior"]["codes"] == counts.num_codes, "prior and baselines count the same codes"
        baselines = measure_baselines(counts, training_counts) | {"fitted_on": fitted_on}
        self._results["baselines"] = baselines
        self._by_clip |= baselines_by_clip(store, self._clips, counts, training_counts, settings)
        if "prior" in self._results:
            bits = self._results["prior"]["bits_per_dim"]
            self._results["beats"] = {name: bits < baselines[f"{name}_bits"] for name in ("unigram", "previous_frame")}
        self._results["codes"] = {
            "tokenizer": store.tokenizer,
            "codebook_size": store.codebook_size,
            "num_codebooks": store.num_codebooks,
            "perplexity": perplexity(training_counts.occurrences),
            "usage": usage(training_counts.occurrences),
            "dead_codes": training_counts.dead_codes,
            "codes_holding_80_percent": codes_holding(training_counts.occurrences),
            "share_same_as_previous_frame": counts.share_same_as_previous_frame,
        }

    def _add_samples(self) -> None:
        opened = self._opened
        if opened.sampled is not None:
            self._results["samples"], self._by_sampled_clip = measure_samples(
                opened.sampled, opened.store, opened.pixels, opened.lpips, progress=self._progress
            )

    def _add_fvd(self) -> None:
        opened, settings, progress = self._opened, self._settings, self._progress
        if opened.pixels is None or opened.features is None:
            return
        try:
            if opened.sampled is not None:
                found = measure_fvd(
                    opened.sampled,
                    opened.pixels,
                    opened.features,
                    self._cache,
                    settings.priming_pixels,
                    progress=progress,
                )
            else:
                found = measure_reconstruction_fvd(
                    opened.pixels, self._clips, settings.frames, opened.features, self._cache, progress
                )
        except NetworkError as error:
            self.failures["FVD"] = str(error)
        else:
            self._results["fvd"] = found


def missing_measurements(opened: Opened) -> dict[str, str]:
    """What cannot be measured with these sources, and what it needs."""
    has_pixels, has_i3d = opened.pixels is not None, opened.features is not None
    pixels = [] if has_pixels else ["the frames (--frames)", "the VQ-VAE run (--vqvae)"]
    needs = {
        "reconstruction": pixels,
        "LPIPS": pixels + ([] if opened.lpips is not None else ["a TorchScript network (--lpips)"]),
        "FVD of samples" if has_pixels and has_i3d else "FVD": pixels
        + ([] if opened.sampled is not None else ["samples (--samples)"])
        + ([] if has_i3d else ["a TorchScript I3D (--i3d)"]),
    }
    return {name: "needs " + " and ".join(things) for name, things in needs.items() if things}


def _evaluated_counts(store: CodeStore, clips: Sequence[CodeClip], settings: EvaluateSettings) -> CodeCounts:
    counts = CodeCounts.empty(store.num_codebooks, store.codebook_size)
    for clip in clips:
        codes = store.read(clip, 0, settings.frames)
        counts += CodeCounts.of(codes, store.codebook_size, settings.priming_frames)
    return counts


def _training_counts(store: CodeStore, progress: Progress) -> tuple[dict[str, Any], CodeCounts]:
    """Counts of all training codes, or of all codes when there is no training split; and what was counted."""
    split, clips = "train", store.split("train")
    if not clips:
        split, clips = "all", list(store.clips)
        progress.say(f"{store.path} has no train clip; the previous-frame baseline is fitted on all clips")
    counts = CodeCounts.empty(store.num_codebooks, store.codebook_size)
    with progress.bar("count training codes", len(clips), "clips") as bar:
        for clip in clips:
            counts += CodeCounts.of(store.read(clip), store.codebook_size)
            bar.advance()
    return {"split": split, "clips": len(clips), "codes": counts.num_codes}, counts
