"""Stage `evaluate`: how good a tokenizer, a prior and its samples are, beside what simple predictors reach.

Paper sections 4.1 to 4.3. Everything is measured on the first `frames` frames of the evaluated clips, teacher-forced
bits and both baselines on exactly the same codes. The result is one JSON file:

- `reconstruction`: MSE in [0, 1] and PSNR of decoded codes against the frames they were made from, both as bytes;
  beside it the MSE of the best single picture for all of these frames, which a tokenizer without codes could reach.
- `prior`: bits/dim, the sum of -log2 p over all codes of frames `priming_frames` and later, divided by their number.
- `baselines`: `unigram_bits` is the entropy of each codebook over these very codes, averaged over the codebooks;
  `previous_frame_bits` is what the smoothed "same code as in the previous frame" predictor, fitted on the training
  split, needs for them. See `evaluation.metrics`.
- `beats`: whether the prior needs fewer bits than each baseline.
- `codes`: perplexity and usage of each codebook over the training split, and how often an evaluated code repeats.
- `samples`: error of the decoded samples against what really happened, frame by frame, beside the reconstruction's and
  that of repeating the last priming frame. A sample is one possible future, so this is a sanity check, not a score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.config import to_plain
from lvt_pipeline.data.code_usage import codes_holding, entropy_bits, perplexity, usage
from lvt_pipeline.data.code_writer import codes_fingerprint
from lvt_pipeline.data.codes import CodeClip, CodeStore, open_codes
from lvt_pipeline.data.frames import FrameShards
from lvt_pipeline.data.selection import clips_of_split
from lvt_pipeline.errors import ArtefactError, ConfigError, MismatchError
from lvt_pipeline.evaluation.metrics import (
    CodeCounts,
    PreviousFrameBaseline,
    psnr,
    squared_errors,
)
from lvt_pipeline.matching import check_frames_count, check_prior, check_tokenizer, label_numbers
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import (
    Provenance,
    differences,
    fingerprint,
    missing_outputs,
    read_record,
    record_path,
    write_record,
)
from lvt_pipeline.runs import load_prior, load_vqvae, run_fingerprint
from lvt_pipeline.storage import read_json, write_json

if TYPE_CHECKING:
    from lvt_pipeline.models.prior import Prior
    from lvt_pipeline.models.vqvae import VQVAE

STAGE = "evaluate"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured. Defaults are the paper's: 16 frames, the first of them given."""

    frames: int = 16  # first frames of every clip; shorter clips are left out and counted
    priming_frames: int = 1  # frames whose codes are not counted in bits/dim and baselines
    split: Literal["train", "val", "test"] = "test"
    max_clips: int | None = None  # first clips of the split; unset: all

    def __post_init__(self) -> None:
        if not 1 <= self.priming_frames < self.frames:
            raise ConfigError(f"priming_frames={self.priming_frames} must be from 1 to frames - 1 = {self.frames - 1}")
        if self.max_clips is not None and self.max_clips < 1:
            raise ConfigError(f"max_clips={self.max_clips} must be at least 1")


def evaluate(
    codes: Path,
    out: Path,
    settings: EvaluateSettings = EvaluateSettings(),
    *,
    prior: Path | None = None,
    frames: Path | None = None,
    vqvae: Path | None = None,
    samples: Path | None = None,
    batch_size: int = 8,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Provenance:
    """Measure whatever is given and write it to the JSON file `out`. When nothing changed, nothing is done.

    Args:
        codes: code store.
        prior: adds bits/dim beside the baselines.
        frames, vqvae: together they add the reconstruction.
        samples: store made by `lvt sample`; with `frames` and `vqvae` its error is measured in pixels too.
        batch_size: clips per pass; it does not change the result.

    Raises:
        MismatchError: the artefacts do not belong together.
        LVTError: no clip has enough frames.
    """
    started = time.monotonic()
    store = open_codes(codes)
    inputs = {"codes": store.fingerprint}
    model = tokenizer = shards = sampled = None
    if prior is not None:
        model = load_prior(prior, device=device)
        check_prior(store, prior, model)
        check_frames_count(prior, model, settings.frames)
        inputs["prior"] = run_fingerprint(prior)
    if frames is not None:
        shards = FrameShards(frames)
        inputs["frames"] = shards.fingerprint
    if vqvae is not None:
        tokenizer = load_vqvae(vqvae, device=device)
        check_tokenizer(store, vqvae, tokenizer)
        inputs["vqvae"] = run_fingerprint(vqvae)
    if samples is not None:
        sampled = open_codes(samples)
        _check_samples(store, sampled)
        inputs["samples"] = sampled.fingerprint
    old = _finished(out)
    if old is not None and not differences(old, VERSION, to_plain(settings), inputs):
        return old
    if (shards is None) != (tokenizer is None):
        progress.say("reconstruction is not measured: it needs both the frames and the VQ-VAE run")

    clips, num_short = clips_of_split(store, settings.split, settings.frames, progress=progress)
    clips = clips[: settings.max_clips]
    results: dict[str, Any] = {
        "split": clips[0].split,
        "clips": len(clips),
        "short_clips": num_short,
        "frames": settings.frames,
        "priming_frames": settings.priming_frames,
    }
    if shards is not None and tokenizer is not None:
        results["reconstruction"] = measure_reconstruction(store, clips, shards, tokenizer, settings.frames, progress)
    counts = _count(store, clips, settings.frames, settings.priming_frames)
    fitted_on, training_counts = _training_counts(store, progress)
    if model is not None and prior is not None:
        labels = label_numbers(clips, prior, model)
        results["prior"] = measure_prior(store, clips, model, labels, settings, batch_size, progress)
        assert results["prior"]["codes"] == counts.num_codes, "the prior and its baselines count the same codes"
    results["baselines"] = measure_baselines(counts, training_counts) | {"fitted_on": fitted_on}
    if "prior" in results:
        bits = results["prior"]["bits_per_dim"]
        results["beats"] = {name: bits < results["baselines"][f"{name}_bits"] for name in ("unigram", "previous_frame")}
    results["codes"] = {
        "codebook_size": store.codebook_size,
        "num_codebooks": store.num_codebooks,
        "perplexity": perplexity(training_counts.occurrences),
        "usage": usage(training_counts.occurrences),
        "codes_holding_80_percent": codes_holding(training_counts.occurrences),
        "share_same_as_previous_frame": counts.share_same_as_previous_frame,
    }
    if sampled is not None:
        results["samples"] = measure_samples(sampled, store, shards, tokenizer, progress)
    results = _plain({**results, "settings": to_plain(settings), "inputs": inputs})
    write_json(out, results)
    record = Provenance(
        kind="evaluation",
        stage=STAGE,
        version=VERSION,
        settings=to_plain(settings),
        inputs=inputs,
        fingerprint=fingerprint(results),
        outputs={out.name: out.stat().st_size},
        counts={"clips": len(clips), "codes": counts.num_codes, "summary": summary_line(results)},
        seconds=round(time.monotonic() - started, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_record(out, record)
    return record


def summary_line(results: Mapping[str, Any]) -> str:
    """The main numbers of an `eval.json` in one line."""
    parts = [f"{results['clips']} {results['split']} clips"]
    baselines = results["baselines"]
    named = f"unigram {baselines['unigram_bits']:.3f}, previous frame {baselines['previous_frame_bits']:.3f}"
    if "prior" in results:
        verdict = "beats both" if all(results["beats"].values()) else "does not beat both"
        parts.append(f"{results['prior']['bits_per_dim']:.3f} bits per code ({verdict}: {named})")
    else:
        parts.append(f"bits per code of the baselines: {named}")
    if "reconstruction" in results:
        reconstruction = results["reconstruction"]
        decibels = "∞" if reconstruction["psnr"] is None else f"{reconstruction['psnr']:.2f}"
        parts.append(f"MSE {reconstruction['mse']:.5f}, PSNR {decibels} dB")
    return ", ".join(parts)


def measure_reconstruction(
    store: CodeStore,
    clips: Sequence[CodeClip],
    shards: FrameShards,
    tokenizer: VQVAE,
    num_frames: int,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """MSE in [0, 1] and PSNR of decoded codes against the frames they came from, both as bytes.

    `psnr` is that of `mse`, which is one mean over all pixel values of all frames. `mean_picture_mse` is the error of
    the best single picture for all of these frames: their mean.

    Raises:
        MismatchError: the codes were made from other frames.
    """
    total = count = 0.0
    pixel_sum: NDArray[np.float64] | float = 0.0
    square_sum: NDArray[np.float64] | float = 0.0
    with progress.bar("reconstruct", len(clips), "clips") as bar:
        for clip in clips:
            real = real_frames(store, clip, shards, num_frames)
            decoded = tokenizer.decode(store.read(clip, 0, num_frames)).numpy()
            errors = squared_errors(real, decoded)
            total += float(errors.sum())
            count += errors.size
            scaled = real / 255.0
            pixel_sum = pixel_sum + scaled.sum(0)
            square_sum = square_sum + (scaled**2).sum(0)
            bar.advance()
    num_pictures = len(clips) * num_frames
    variance = np.asarray(square_sum) / num_pictures - (np.asarray(pixel_sum) / num_pictures) ** 2
    mse = total / count
    return {
        "mse": mse,
        "psnr": psnr(mse),
        "clips": len(clips),
        "frames": num_pictures,
        "mean_picture_mse": max(float(variance.mean()), 0.0),
    }


def real_frames(store: CodeStore, clip: CodeClip, shards: FrameShards, num_frames: int) -> NDArray[np.uint8]:
    """The first frames that a clip's codes were made from, uint8 (T, H, W, 3); fewer when the clip is shorter.

    Raises:
        MismatchError: the codes were made from other frames than those on disk now.
    """
    try:
        source = shards[clip.id]
    except ArtefactError as error:
        raise MismatchError(f"{store.path} does not belong to {shards.root}: {error}") from error
    if codes_fingerprint(source.fingerprint, store.tokenizer) != clip.fingerprint:
        raise MismatchError(
            f"clip {clip.id} of {store.path} was made from other frames than those in {shards.root}; "
            "encode the dataset again"
        )
    return shards.read(source, 0, num_frames)


def measure_prior(
    store: CodeStore,
    clips: Sequence[CodeClip],
    model: Prior,
    labels: Sequence[int] | None,
    settings: EvaluateSettings,
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Bits/dim of a prior: one global sum over all clips divided by one global count (paper, section 4.1)."""
    total = np.zeros(store.num_codebooks)
    num_codes = 0
    with progress.bar("bits/dim", len(clips), "clips") as bar:
        for start in range(0, len(clips), batch_size):
            batch = clips[start : start + batch_size]
            codes = np.stack([store.read(clip, 0, settings.frames) for clip in batch])
            some_labels = None if labels is None else labels[start : start + batch_size]
            nats, count = model.nats_per_codebook(codes.astype(np.int64), settings.priming_frames, some_labels)
            total += nats.numpy()
            num_codes += count
            bar.advance(len(batch))
    bits = total / math.log(2)
    return {
        "bits_per_dim": float(bits.sum()) / num_codes,
        "per_codebook": (bits * store.num_codebooks / num_codes).tolist(),
        "clips": len(clips),
        "codes": num_codes,
        "uniform_bits": math.log2(store.codebook_size),
    }


def measure_baselines(counts: CodeCounts, training_counts: CodeCounts) -> dict[str, Any]:
    """Bits per code of the two baselines.

    Args:
        counts: the codes that bits/dim counts; the unigram is theirs.
        training_counts: what the previous-frame predictor is fitted on.
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


def measure_samples(
    sampled: CodeStore,
    store: CodeStore,
    shards: FrameShards | None = None,
    tokenizer: VQVAE | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """How samples differ from what really happened.

    Lists `..._by_frame` hold one MSE in [0, 1] per frame, averaged over the samples whose real clip is that long (null
    where none is): of the decoded samples, of the decoded real codes, and of the last priming frame repeated. The plain
    `mse` values average the frames after the priming ones.
    """
    priming_frames = int(sampled.provenance.counts.get("priming_frames", 0))
    num_frames = max(clip.length for clip in sampled.clips)
    results: dict[str, Any] = {"clips": len(sampled.clips), "frames": num_frames, "priming_frames": priming_frames}
    books, size = store.num_codebooks, store.codebook_size
    sampled_counts, real_counts = CodeCounts.empty(books, size), CodeCounts.empty(books, size)
    errors = _ErrorsByFrame(num_frames)
    with progress.bar("samples", len(sampled.clips), "clips") as bar:
        for clip in sampled.clips:
            codes = sampled.read(clip)
            sampled_counts += CodeCounts.of(codes, size, max(priming_frames, 1))
            origin = original_of(clip, store)
            if origin is not None:
                real_codes = store.read(origin, 0, min(origin.length, clip.length))
                real_counts += CodeCounts.of(real_codes, size, max(priming_frames, 1))
                if shards is not None and tokenizer is not None:
                    real = real_frames(store, origin, shards, clip.length)
                    length = len(real)
                    errors.add("sampled", squared_errors(real, tokenizer.decode(codes[:length]).numpy()))
                    errors.add("reconstruction", squared_errors(real, tokenizer.decode(real_codes[:length]).numpy()))
                    if 0 < priming_frames <= length:
                        last = np.broadcast_to(real[priming_frames - 1], real.shape)
                        repeated = np.concatenate([real[:priming_frames], last[priming_frames:]])
                        errors.add("copy", squared_errors(real, repeated))
            bar.advance()
    results["share_same_as_previous_frame"] = float(np.nanmean(_or_nan(sampled_counts.share_same_as_previous_frame)))
    results["real_share_same_as_previous_frame"] = float(np.nanmean(_or_nan(real_counts.share_same_as_previous_frame)))
    names = {"sampled": "mse", "reconstruction": "reconstruction_mse", "copy": "copy_mse"}
    for kind, name in names.items():
        by_frame = errors.means(kind)
        later = [value for value in by_frame[priming_frames:] if not math.isnan(value)]
        if later:
            results[name] = float(np.mean(later))
            results[f"{name}_by_frame"] = by_frame
    return results


def original_of(clip: CodeClip, store: CodeStore) -> CodeClip | None:
    """The real clip that a sample continues: the one of the same id, without the sample's number if it has one."""
    for clip_id in (clip.id, clip.id.rpartition("#")[0]):
        if clip_id in store:
            return store.clip(clip_id)
    return None


class _ErrorsByFrame:
    """Sums of squared errors per frame index, for several kinds of video."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.float64]] = {}

    def add(self, kind: str, errors: NDArray[np.float64]) -> None:
        """Add a clip's errors (T, H, W, 3)."""
        sums = self._sums.setdefault(kind, np.zeros(self._num_frames))
        counts = self._counts.setdefault(kind, np.zeros(self._num_frames))
        sums[: len(errors)] += errors.mean((1, 2, 3))
        counts[: len(errors)] += 1

    def means(self, kind: str) -> list[float]:
        """Mean per frame, nan where nothing was added; empty for a kind that was never added."""
        if kind not in self._sums:
            return []
        return [s / c if c else math.nan for s, c in zip(self._sums[kind], self._counts[kind], strict=True)]


def _or_nan(values: Sequence[float]) -> Sequence[float]:
    """`values`, or one zero when all are nan, so that a mean over them never warns."""
    return values if any(not math.isnan(value) for value in values) else [0.0]


def _check_samples(store: CodeStore, sampled: CodeStore) -> None:
    if store.tokenizer != sampled.tokenizer or store.schema.frame_shape != sampled.schema.frame_shape:
        raise MismatchError(
            f"{sampled.path} does not hold samples of codes like those in {store.path}; sample again from this store"
        )


def _count(store: CodeStore, clips: Sequence[CodeClip], num_frames: int, first_frame: int) -> CodeCounts:
    counts = CodeCounts.empty(store.num_codebooks, store.codebook_size)
    for clip in clips:
        counts += CodeCounts.of(store.read(clip, 0, num_frames), store.codebook_size, first_frame)
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


def _finished(out: Path) -> Provenance | None:
    """The record of an earlier evaluation whose file is still what it wrote."""
    if not out.exists() or not record_path(out).exists():
        return None
    try:
        record = read_record(out)
        return (
            record if not missing_outputs(out, record) and fingerprint(read_json(out)) == record.fingerprint else None
        )
    except ArtefactError:
        return None


def _plain(value: Any) -> Any:
    """Numbers that JSON cannot write (infinite, not a number) become null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
