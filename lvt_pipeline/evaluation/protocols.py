"""The paper's protocol (section 4.1): 16 frames, 5 given for FVD and 1 for bits/dim, mean and spread over 10 runs.

A run samples one continuation of every clip with its own seed, keeps it as a code store, and measures it. Beside the
result `eval.json` lies

    eval.runs/teacher-forced.json      bits/dim, baselines and reconstruction, which no seed changes
    eval.runs/run-00/samples.zarr      code store of the first run
    eval.runs/run-00/run.json          its errors and distances

so a stopped evaluation goes on where it was, and what is finished and unchanged is never done again. The baselines
stand on the same clips: the last given frame repeated, the tokenizer's reconstruction (no sample can look better), and
the unigram and previous-frame predictors of codes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError, ConfigError
from lvt_pipeline.evaluation.evaluate import (
    CACHE,
    DEFAULTS,
    FILE_MARK,
    STAGE,
    VERSION,
    evaluate,
    finished,
    plain,
    summary_line,
)
from lvt_pipeline.evaluation.fvd import FeatureCache, FeatureNetwork
from lvt_pipeline.evaluation.networks import PerceptualDistance, load_scripted
from lvt_pipeline.evaluation.sampled_fvd import measure_fvd
from lvt_pipeline.evaluation.samples import measure_samples
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.sample import SampleSettings, sample_clips
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, differences, fingerprint, write_record
from lvt_pipeline.runs.read import load_vqvae, run_fingerprint
from lvt_pipeline.storage import exclusive_lock, read_json, write_json

RUN_STAGE, RUN_VERSION = "evaluate-run", 1
RUN_METRICS = ("mse", "psnr", "ssim", "lpips", "share_same_as_previous_frame")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a paper's numbers were measured on, and the numbers of its best model with four codebooks."""

    name: str
    frames: int = 16
    priming_frames: int = 5  # given to the samples
    bits_priming_frames: int = 1  # not counted in bits/dim
    runs: int = 10
    clips: int | None = None  # clips of the test split in the paper
    clips_are_exact: bool = True
    published: Mapping[str, float] = field(default_factory=dict)


PROTOCOLS = {
    "bair": Protocol(
        name="bair",
        clips=256,
        published={
            "bits_per_dim": 1.53,
            "fvd": 125.76,
            "fvd_std": 2.90,
            "copy_fvd": 320.90,
            "reconstruction_mse": 0.0004,
            "reconstruction_fvd": 47.41,
        },
    ),
    "kinetics600": Protocol(
        name="kinetics600",
        clips=50_000,
        clips_are_exact=False,
        published={
            "bits_per_dim": 2.14,
            "fvd": 224.73,
            "copy_fvd": 271.00,
            "reconstruction_mse": 0.0004,
            "reconstruction_fvd": 25.95,
        },
    ),
}


def evaluate_protocol(
    codes: Path,
    out: Path,
    protocol: Protocol,
    settings: EvaluateSettings = DEFAULTS,
    *,
    prior: Path,
    frames: Path | None = None,
    vqvae: Path | None = None,
    i3d: Path | None = None,
    lpips: Path | None = None,
    num_runs: int | None = None,
    first_seed: int = 0,
    generation: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Provenance:
    """Sample and measure every run, and write the result to the JSON file `out`. What is finished is not done again.

    Args:
        settings: `split`, `max_clips`, `resize` and `priming_pixels` are used; frames come from the protocol.
        frames, vqvae: without them only codes are measured.
        num_runs: fewer or more runs than the paper; the result says so.
        first_seed: runs have this seed and the ones after it.

    Raises:
        MismatchError: the artefacts do not belong together.
        Stopped: a signal came; finished runs and samples are kept.
    """
    started = time.monotonic()
    num_runs = protocol.runs if num_runs is None else num_runs
    if num_runs < 1:
        raise ConfigError(f"num_runs={num_runs} must be at least 1")
    seeds = range(first_seed, first_seed + num_runs)
    settings = _as_in(protocol, settings)
    require_output_file(out, STAGE, (codes, prior, frames, vqvae, i3d, lpips), mark=FILE_MARK)
    folder = runs_folder(out)
    with exclusive_lock(folder):
        forced_path = folder / "teacher-forced.json"
        forced = evaluate(
            codes,
            forced_path,
            settings,
            prior=prior,
            frames=frames,
            vqvae=vqvae,
            lpips=lpips,
            generation=generation,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
        without_seed = read_json(forced_path)
        measuring = _Measuring(
            open_codes(codes, generation), frames, vqvae, i3d, lpips, settings, FeatureCache(out.parent / CACHE), device
        )
        # Sampling also takes clips that are too short to be evaluated.
        evaluated = frozenset(without_seed["per_clip"]["evaluated"]["clip"])
        runs: list[Mapping[str, Any]] = []
        for seed in seeds:
            place = folder / f"run-{seed:02d}"
            sampling = SampleSettings(
                frames=protocol.frames,
                priming_frames=protocol.priming_frames,
                split=without_seed["split"],
                num_clips=settings.max_clips,
                seed=seed,
            )
            progress.say(f"run {len(runs) + 1} of {num_runs}, seed {seed}")
            sample_clips(
                prior,
                codes,
                place / "samples.zarr",
                sampling,
                generation=generation,
                batch_size=batch_size,
                device=device,
                overwrite=_is_of_other_codes(place / "samples.zarr", measuring.store),
                progress=progress,
            )
            runs.append(measuring.run(place, evaluated, progress) | {"seed": seed})
        inputs = dict(forced.inputs) | {
            name: value for run in runs for name, value in run["inputs"].items() if name in ("i3d", "lpips")
        }
        inputs |= {f"samples-{run['seed']:02d}": run["inputs"]["samples"] for run in runs}
        plain_settings = recorded_settings(protocol, settings, seeds)
        old = finished(out)
        if old is not None and not differences(old, VERSION, plain_settings, inputs):
            return old
        results = _combined(without_seed, runs, protocol, out)
        results = plain({**results, "settings": plain_settings, "inputs": inputs})
        write_json(out, results)
        record = Provenance(
            kind="evaluation",
            stage=STAGE,
            version=VERSION,
            settings=plain_settings,
            inputs=inputs,
            fingerprint=fingerprint(results),
            outputs={out.name: out.stat().st_size},
            counts={
                "clips": results["clips"],
                "codes": results["baselines"]["codes"],
                "runs": num_runs,
                "summary": f"protocol {protocol.name}, {num_runs} runs: {summary_line(results)}",
            },
            seconds=round(time.monotonic() - started, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_record(out, record)
    return record


def recorded_settings(protocol: Protocol, settings: EvaluateSettings, seeds: Sequence[int]) -> dict[str, Any]:
    """The settings that the record of such an evaluation names."""
    return to_plain(_as_in(protocol, settings)) | {
        "protocol": protocol.name,
        "sample_priming_frames": protocol.priming_frames,
        "seeds": list(seeds),
    }


def runs_folder(out: Path) -> Path:
    """Where the runs of a result lie: `eval.json` -> `eval.runs`."""
    return out.with_name(f"{out.stem}.runs")


def protocol_line(results: Mapping[str, Any]) -> str:
    """The main numbers of a result in a few lines: ours, what bounds them, and what is not as in the paper."""
    found = results["protocol"]
    published = found["published"]
    runs = len(found["runs"])
    lines = [
        f"protocol {found['name']}: {found['frames']} frames, {found['priming_frames']} given, {runs} runs",
        summary_line(results),
    ]
    for name, mean in found["mean"].items():
        spread = "" if found["std"][name] is None else f" ± {found['std'][name]:.4g}"
        bounds = [
            f"{kind} {found['baselines'][key]:.4g}"
            for kind in ("reconstruction", "copy")
            if found["baselines"].get(key := f"{kind}_{'fvd' if name.startswith('fvd') else name}") is not None
        ]
        lines.append(f"  {name}: {_spoken(mean)}{spread}" + (f" ({', '.join(bounds)})" if bounds else ""))
    if published:
        lines.append(
            "  published, four codebooks: " + ", ".join(f"{name} {value}" for name, value in published.items())
        )
    if found["deviations"]:
        lines.append("  not as in the paper: " + "; ".join(found["deviations"]))
    return "\n".join(lines)


def _as_in(protocol: Protocol, settings: EvaluateSettings) -> EvaluateSettings:
    return replace(settings, frames=protocol.frames, priming_frames=protocol.bits_priming_frames)


class _Measuring:
    """Measures the samples of a run; opens what that needs once, and only when a run has to be measured."""

    def __init__(
        self,
        store: CodeStore,
        frames: Path | None,
        vqvae: Path | None,
        i3d: Path | None,
        lpips: Path | None,
        settings: EvaluateSettings,
        cache: FeatureCache,
        device: str,
    ) -> None:
        self.store = store
        self._settings, self._cache = settings, cache
        has_pixels = frames is not None and vqvae is not None
        self._shards = FrameShards(frames) if frames is not None and has_pixels else None
        self._tokenizer = load_vqvae(vqvae, device=device) if vqvae is not None and has_pixels else None
        self._perceptual = None if lpips is None else PerceptualDistance(load_scripted(lpips, device))
        self._features = None if i3d is None else FeatureNetwork(load_scripted(i3d, device), settings.resize)
        self._inputs = {"codes": store.fingerprint}
        if self._shards is not None and vqvae is not None:
            self._inputs |= {"frames": self._shards.fingerprint, "vqvae": run_fingerprint(vqvae)}
        if self._perceptual is not None:
            self._inputs["lpips"] = self._perceptual.network.sha256
        if self._features is not None:
            self._inputs["i3d"] = self._features.network.sha256

    def run(self, place: Path, clips: frozenset[str], progress: Progress) -> dict[str, Any]:
        """What `place/run.json` holds, measured now unless it is there and unchanged."""
        started = time.monotonic()
        sampled = open_codes(place / "samples.zarr")
        inputs = self._inputs | {"samples": sampled.fingerprint}
        settings = {
            "resize": self._settings.resize,
            "priming_pixels": self._settings.priming_pixels,
            "clips": fingerprint(sorted(clips)),
        }
        path = place / "run.json"
        old = finished(path)
        if old is not None and not differences(old, RUN_VERSION, settings, inputs):
            known: dict[str, Any] = read_json(path)
            return known
        samples, per_clip = measure_samples(
            sampled, self.store, self._shards, self._tokenizer, progress, self._perceptual, clips
        )
        results: dict[str, Any] = {"samples": samples, "per_clip": per_clip, "inputs": inputs}
        if self._shards is not None and self._tokenizer is not None and self._features is not None:
            results["fvd"] = measure_fvd(
                sampled,
                self.store,
                self._shards,
                self._tokenizer,
                self._features,
                self._cache,
                self._settings.priming_pixels,
                progress,
                clips,
            )
        results = plain(results)
        write_json(path, results)
        record = Provenance(
            kind="evaluation",
            stage=RUN_STAGE,
            version=RUN_VERSION,
            settings=settings,
            inputs=inputs,
            fingerprint=fingerprint(results),
            outputs={path.name: path.stat().st_size},
            counts={"clips": len(sampled.clips)},
            seconds=round(time.monotonic() - started, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_record(path, record)
        return results


def _combined(
    forced: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], protocol: Protocol, out: Path
) -> dict[str, Any]:
    """The result file: what no seed changes, the first run's samples, and the numbers of all runs."""
    results = {key: value for key, value in forced.items() if key not in ("settings", "inputs")}
    rows = [_row(run, out) for run in runs]
    names = [name for name in rows[0] if name not in ("seed", "samples") and all(_is_number(row[name]) for row in rows)]
    first = runs[0]
    samples = first["samples"]
    baselines = {name: forced["baselines"][name] for name in ("unigram_bits", "previous_frame_bits")}
    baselines |= {
        f"{kind}_{metric}": samples[f"{kind}_{metric}"]
        for kind in ("reconstruction", "copy")
        for metric in ("mse", "psnr", "ssim", "lpips")
        if f"{kind}_{metric}" in samples
    }
    results["samples"] = samples
    if "fvd" in first:
        baselines |= {f"{kind}_fvd": first["fvd"][kind] for kind in ("reconstruction", "copy") if kind in first["fvd"]}
        results["fvd"] = dict(first["fvd"])
        for kind in ("real_priming", "reconstructed_priming"):
            if f"fvd_{kind}" in names:
                results["fvd"][kind] = statistics.fmean(row[f"fvd_{kind}"] for row in rows)
        if "card" in first["fvd"]:
            card = {key: value for key, value in first["fvd"]["card"].items() if key != "seed"}
            results["fvd"]["card"] = card | {"runs": len(runs), "seeds": [run["seed"] for run in runs]}
    results["missing"] = {
        name: needs.replace("samples (--samples) and ", "")
        for name, needs in forced["missing"].items()
        if name != "FVD" or "fvd" not in results
    }
    results["per_clip"] = {"evaluated": forced["per_clip"]["evaluated"], "samples": _over_runs(runs)}
    results["protocol"] = {
        "name": protocol.name,
        "frames": protocol.frames,
        "priming_frames": protocol.priming_frames,
        "bits_priming_frames": protocol.bits_priming_frames,
        "runs": rows,
        "mean": {name: statistics.fmean(row[name] for row in rows) for name in names},
        "std": {name: _spread([row[name] for row in rows]) for name in names},
        "baselines": baselines,
        "published": dict(protocol.published),
        "deviations": _deviations(results, len(runs), protocol),
    }
    return results


def _row(run: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The numbers of one run that are averaged over runs."""
    row: dict[str, Any] = {
        "seed": run["seed"],
        "samples": f"{runs_folder(out).name}/run-{run['seed']:02d}/samples.zarr",
    }
    row |= {name: run["samples"][name] for name in RUN_METRICS if name in run["samples"]}
    kinds = ("real_priming", "reconstructed_priming")
    return row | {f"fvd_{kind}": run["fvd"][kind] for kind in kinds if kind in run.get("fvd", {})}


def _over_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Values of single clips, averaged over the runs; the runs have the same clips in the same order."""
    first: Mapping[str, list[Any]] = runs[0]["per_clip"]

    def averaged(name: str) -> list[Any]:
        if name in ("clip", "frames"):
            return first[name]
        columns = zip(*(run["per_clip"][name] for run in runs), strict=True)
        return [statistics.fmean(values) if all(map(_is_number, values)) else math.nan for values in columns]

    return {name: averaged(name) for name in first}


def _deviations(results: Mapping[str, Any], num_runs: int, protocol: Protocol) -> list[str]:
    """In what the evaluation is not the paper's."""
    found = []
    clips = results["clips"]
    if protocol.clips is not None and (
        clips != protocol.clips if protocol.clips_are_exact else clips < protocol.clips / 2
    ):
        about = "" if protocol.clips_are_exact else "about "
        found.append(f"{clips} clips, the paper has {about}{protocol.clips:,}")
    sampled = results["samples"]["clips"]
    if sampled != clips:
        found.append(f"samples of {sampled} of the {clips} clips")
    if results["split"] != "test":
        found.append(f"{results['split']} clips, the paper has test clips")
    if num_runs != protocol.runs:
        found.append(f"{num_runs} runs, the paper has {protocol.runs}")
    label = str(results.get("fvd", {}).get("label", "FVD"))
    if not label.startswith("FVD"):
        found.append(label)
    return found


def _is_of_other_codes(samples: Path, store: CodeStore) -> bool:
    """Whether finished samples were made from codes of another tokenizer, which a store cannot hold beside these."""
    if not samples.exists():
        return False
    try:
        return open_codes(samples).tokenizer != store.tokenizer
    except ArtefactError:
        return False  # unfinished: sampling goes on with it, or says what is wrong


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation with N - 1; none of a single run."""
    return statistics.stdev(values) if len(values) > 1 else None


def _spoken(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


__all__ = ["PROTOCOLS", "Protocol", "evaluate_protocol", "protocol_line", "recorded_settings", "runs_folder"]
