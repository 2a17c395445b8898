"""Stage `evaluate`: how good a tokenizer, a prior and its samples are, beside what simple predictors reach.

Paper sections 4.1 to 4.3. Everything is measured on the first `frames` frames of the evaluated clips, teacher-forced
bits and both baselines on exactly the same codes. The result is one JSON file:

- `reconstruction`: MSE in [0, 1], PSNR, SSIM and LPIPS of decoded codes against the frames they were made from, both as
  bytes, also frame by frame; beside them the MSE of the best single picture for all of these frames, which a tokenizer
  without codes could reach.
- `prior`: bits/dim, the sum of -log2 p over all codes of frames `priming_frames` and later, divided by their number;
  also by codebook, frame and slice.
- `baselines`: `unigram_bits` is the entropy of each codebook over these very codes, averaged over the codebooks;
  `previous_frame_bits` is what the smoothed "same code as in the previous frame" predictor, fitted on the training
  split, needs for them. See `evaluation.metrics`.
- `beats`: whether the prior needs fewer bits than each baseline.
- `codes`: perplexity, usage and dead codes of each codebook over the training split, and how often an evaluated code
  repeats.
- `samples`: error of the decoded samples against what really happened, frame by frame, beside the reconstruction's and
  that of repeating the last priming frame; and how much samples of one clip differ. A sample is one possible future, so
  the error is a sanity check, not a score.
- `fvd`: distances between sets of videos, with the card of the protocol. See `evaluation.sampled_fvd`.
- `training_clips`: how many of the measured clips the models have learnt from, which has to be asked for; absent when
  there is none.
- `missing`: what was not measured, and what it needs.
- `per_clip`: the values of single clips that the means above are means of, for `lvt compare`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from lvt_pipeline.codes.selection import clips_of_split
from lvt_pipeline.codes.store import CodeClip, CodeStore, open_codes
from lvt_pipeline.codes.usage import codes_holding, perplexity, usage
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.evaluation.code_bits import baselines_by_clip, measure_baselines, measure_prior
from lvt_pipeline.evaluation.fvd import FeatureCache, FeatureNetwork
from lvt_pipeline.evaluation.metrics import CodeCounts
from lvt_pipeline.evaluation.networks import PerceptualDistance, load_scripted
from lvt_pipeline.evaluation.pixels import measure_reconstruction
from lvt_pipeline.evaluation.sampled_fvd import measure_fvd, measure_reconstruction_fvd
from lvt_pipeline.evaluation.samples import check_samples, measure_samples, original_of
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.outputs import require_output_file
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
from lvt_pipeline.runs.compatibility import check_frames_count, check_prior, check_tokenizer, label_numbers
from lvt_pipeline.runs.read import load_prior, load_vqvae, run_fingerprint
from lvt_pipeline.runs.trained_clips import find_trained_clips
from lvt_pipeline.storage import read_json, write_json

STAGE = "evaluate"
FILE_MARK = b'"short_clips": '  # near the beginning of every file with results
VERSION = 2  # 2: SSIM, LPIPS, FVD, bits by frame and slice, dead codes, diversity, values of single clips
DEFAULTS = EvaluateSettings()
CACHE = Path(".lvt") / "features"  # beside the result: features of reference videos; may be deleted


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
    """Measure whatever is given and write it to the JSON file `out`. When nothing changed, nothing is done.

    Args:
        codes: code store.
        prior: adds bits/dim beside the baselines.
        frames, vqvae: together they add the reconstruction.
        samples: store made by `lvt sample`; with `frames` and `vqvae` its error is measured in pixels too.
        i3d: TorchScript network of FVD; with frames and a VQ-VAE run it adds that of the samples, or, without
            samples, that of the reconstruction alone.
        lpips: TorchScript network of LPIPS; adds it to every error in pixels.
        allow_training_clips: measure clips although the models have learnt from them; the result says how many.
        generation: which generation of `codes` is read; the current one by default.
        batch_size: clips per pass; it does not change the result.

    Raises:
        MismatchError: the artefacts do not belong together.
        LVTError: no clip has enough frames; or clips, of the split or of the samples, were for training.
    """
    started = time.monotonic()
    require_output_file(out, STAGE, (codes, prior, frames, vqvae, samples, i3d, lpips), mark=FILE_MARK)
    store = open_codes(codes, generation)
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
        check_samples(store, sampled)
        inputs["samples"] = sampled.fingerprint
    features = perceptual = None
    if i3d is not None:
        features = FeatureNetwork(load_scripted(i3d, device), settings.resize)
        inputs["i3d"] = features.network.sha256
    if lpips is not None:
        perceptual = PerceptualDistance(load_scripted(lpips, device))
        inputs["lpips"] = perceptual.network.sha256
    clips, num_short = clips_of_split(store, settings.split, settings.frames, progress=progress)
    clips = clips[: settings.max_clips]
    trained = _trained_ids(store, clips, sampled, prior)
    if trained and not allow_training_clips:
        _refuse_training_clips(store, trained, clips, prior)
    if trained:
        progress.say(
            f"{len(trained)} of the clips that are measured were trained on: this does not tell what was learnt"
        )
    old = finished(out)
    if old is not None and not differences(old, VERSION, to_plain(settings), inputs):
        return old
    if (shards is None) != (tokenizer is None):
        progress.say("reconstruction is not measured: it needs both the frames and the VQ-VAE run")

    results: dict[str, Any] = {
        "split": clips[0].split,
        "clips": len(clips),
        "short_clips": num_short,
        **({"training_clips": len(trained)} if trained else {}),
        "frames": settings.frames,
        "priming_frames": settings.priming_frames,
    }
    by_clip: dict[str, list[Any]] = {"clip": [clip.id for clip in clips]}
    by_sampled_clip: dict[str, list[Any]] = {}
    if shards is not None and tokenizer is not None:
        results["reconstruction"], found = measure_reconstruction(
            store, clips, shards, tokenizer, settings.frames, progress, perceptual
        )
        by_clip |= found
    counts = _count(store, clips, settings.frames, settings.priming_frames)
    fitted_on, training_counts = _training_counts(store, progress)
    if model is not None and prior is not None:
        labels = label_numbers(clips, prior, model)
        results["prior"], by_clip["bits"] = measure_prior(store, clips, model, labels, settings, batch_size, progress)
        assert results["prior"]["codes"] == counts.num_codes, "the prior and its baselines count the same codes"
    results["baselines"] = measure_baselines(counts, training_counts) | {"fitted_on": fitted_on}
    by_clip |= baselines_by_clip(store, clips, counts, training_counts, settings)
    if "prior" in results:
        bits = results["prior"]["bits_per_dim"]
        results["beats"] = {name: bits < results["baselines"][f"{name}_bits"] for name in ("unigram", "previous_frame")}
    results["codes"] = {
        "tokenizer": store.tokenizer,
        "codebook_size": store.codebook_size,
        "num_codebooks": store.num_codebooks,
        "perplexity": perplexity(training_counts.occurrences),
        "usage": usage(training_counts.occurrences),
        "dead_codes": training_counts.dead_codes,
        "codes_holding_80_percent": codes_holding(training_counts.occurrences),
        "share_same_as_previous_frame": counts.share_same_as_previous_frame,
    }
    if sampled is not None:
        results["samples"], by_sampled_clip = measure_samples(sampled, store, shards, tokenizer, progress, perceptual)
    if shards is not None and tokenizer is not None and features is not None:
        cache = FeatureCache(out.parent / CACHE)
        if sampled is not None:
            results["fvd"] = measure_fvd(
                sampled, store, shards, tokenizer, features, cache, settings.priming_pixels, progress
            )
        else:
            results["fvd"] = measure_reconstruction_fvd(
                store, clips, shards, tokenizer, features, cache, settings.frames, progress
            )
    has_pixels = shards is not None and tokenizer is not None
    results["missing"] = _missing(has_pixels, sampled is not None, i3d is not None, lpips is not None)
    results["per_clip"] = {"evaluated": by_clip, "samples": by_sampled_clip}
    results = plain({**results, "settings": to_plain(settings), "inputs": inputs})
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
    if "training_clips" in results:
        parts.append(f"{results['training_clips']} clips of the training measured: this says little")
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
        parts += [f"{name.upper()} {reconstruction[name]:.3f}" for name in ("ssim", "lpips") if name in reconstruction]
    if "fvd" in results:
        parts.append(spoken_fvd(results["fvd"]))
    if results.get("missing"):
        parts.append("not measured: " + "; ".join(f"{name} {needs}" for name, needs in results["missing"].items()))
    return ", ".join(parts)


def spoken_fvd(found: Mapping[str, Any]) -> str:
    """The distance of an `fvd` part, honestly named."""
    if "missing" in found:
        return f"no FVD: {found['missing']}"
    label = str(found["label"])
    name = "FVD"
    if not label.startswith("FVD"):
        name = "Fréchet distance (not FVD)" if label.startswith("not") else "FVD, if the network is I3D,"
    kinds = [(kind, found[f"{kind}_priming"]) for kind in ("real", "reconstructed") if f"{kind}_priming" in found]
    if not kinds:
        return f"{name} of the reconstruction {found['reconstruction']:.5g}"
    values = " or ".join(f"{value:.5g} ({kind} priming frames)" for kind, value in kinds)
    against = [f"{kind} {found[kind]:.5g}" for kind in ("reconstruction", "copy") if kind in found]
    return f"{name} {values} against {', '.join(against)}"


def _trained_ids(
    store: CodeStore, clips: Sequence[CodeClip], sampled: CodeStore | None, prior: Path | None
) -> list[str]:
    """Ids of training clips among those that are measured and those that samples continue."""
    continued = [] if sampled is None else [original_of(sample, store) for sample in sampled.clips]
    looked_at = {clip.id: clip for clip in (*clips, *continued) if clip is not None}
    return [clip.id for clip in find_trained_clips(list(looked_at.values()), prior)]


def _refuse_training_clips(
    store: CodeStore, trained: Sequence[str], clips: Sequence[CodeClip], prior: Path | None
) -> NoReturn:
    measured = {clip.id for clip in clips}
    where = "of these clips" if trained[0] in measured else "of the clips that the samples continue"
    learnt = "are in the train split" + (f", or {prior} has learnt from their content" if prior is not None else "")
    raise LVTError(
        f"{len(trained)} {where} of {store.path} {learnt} ({', '.join(trained[:3])}): a result would not say what was "
        "learnt; give a store with test clips (lvt manifest build --test-share makes a split), or measure them all the "
        "same by --allow-training-clips"
    )


def _missing(has_pixels: bool, has_samples: bool, has_i3d: bool, has_lpips: bool) -> dict[str, str]:
    """What was not measured, and what it needs."""
    pixels = [] if has_pixels else ["the frames (--frames)", "the VQ-VAE run (--vqvae)"]
    needs = {
        "reconstruction": pixels,
        "LPIPS": pixels + ([] if has_lpips else ["a TorchScript network (--lpips)"]),
        "FVD of samples" if has_pixels and has_i3d else "FVD": pixels
        + ([] if has_samples else ["samples (--samples)"])
        + ([] if has_i3d else ["a TorchScript I3D (--i3d)"]),
    }
    return {name: "needs " + " and ".join(things) for name, things in needs.items() if things}


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


def finished(out: Path) -> Provenance | None:
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


def plain(value: Any) -> Any:
    """Numbers that JSON cannot write (infinite, not a number) become null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
