"""The paper's protocols, and the result of one: the numbers of its runs, their mean and spread, and the deviations
from the paper's protocol."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvt_pipeline.evaluation.results import is_fvd, is_number
from lvt_pipeline.progress import count_of

RUN_METRICS = ("mse", "psnr", "ssim", "lpips", "share_same_as_previous_frame")
FVD_KINDS = ("real_priming", "reconstructed_priming")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a paper's numbers were measured on, and the numbers of its best model with four codebooks."""

    name: str
    frames: int = 16
    priming_frames: int = 5  # of the samples
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


def combined_results(
    forced: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], protocol: Protocol, out: Path
) -> dict[str, Any]:
    """The result file: what no seed changes, the first run's samples, and the numbers of all runs.

    Args:
        forced: the teacher-forced result.
        runs: the result of each run, with its `seed`.
        out: where the result is written; the runs are in the folder next to it.
    """
    results = {key: value for key, value in forced.items() if key not in ("settings", "inputs")}
    rows = [_row(run, out) for run in runs]
    names = [
        name for name in rows[0] if name not in ("seed", "samples") and all(is_number(row.get(name)) for row in rows)
    ]
    first = runs[0]
    results["samples"] = first["samples"]
    if "fvd" in first:
        results["fvd"] = _mean_fvd(runs, rows, names)
    results["missing"] = {
        name: needs.replace("samples (--samples) and ", "")
        for name, needs in forced["missing"].items()
        if name != "FVD" or "fvd" not in results
    }
    results["missing"] |= {name: f"failed: {why}" for run in runs for name, why in run.get("failures", {}).items()}
    results["per_clip"] = {"evaluated": forced["per_clip"]["evaluated"], "samples": _over_runs(runs)}
    results["protocol"] = {
        "name": protocol.name,
        "frames": protocol.frames,
        "priming_frames": protocol.priming_frames,
        "bits_priming_frames": protocol.bits_priming_frames,
        "runs": rows,
        "mean": {name: statistics.fmean(row[name] for row in rows) for name in names},
        "std": {name: _spread([row[name] for row in rows]) for name in names},
        "baselines": _baselines(forced, first),
        "published": dict(protocol.published),
        "deviations": _deviations(results, len(runs), protocol),
    }
    return results


def runs_folder(out: Path) -> Path:
    """The folder with the runs of a result: `eval.json` -> `eval.runs`."""
    return out.with_name(f"{out.stem}.runs")


def _baselines(forced: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float]:
    """What bounds the samples of every run, on the same clips."""
    samples, fvd = first["samples"], first.get("fvd", {})
    found = {name: forced["baselines"][name] for name in ("unigram_bits", "previous_frame_bits")}
    found |= {
        f"{kind}_{metric}": samples[f"{kind}_{metric}"]
        for kind in ("reconstruction", "copy")
        for metric in ("mse", "psnr", "ssim", "lpips")
        if f"{kind}_{metric}" in samples
    }
    found |= {f"{kind}_fvd": fvd[kind] for kind in ("reconstruction", "copy") if kind in fvd}
    kernel = fvd.get("kvd", {})
    return found | {f"{kind}_kvd": kernel[kind]["value"] for kind in ("reconstruction", "copy") if kind in kernel}


def _mean_fvd(
    runs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """The first run's distances, those of samples averaged over the runs, and the card of all runs.

    The ends of the intervals of kernel distances are averaged too: they are of clips, and the runs have the same clips.
    """
    found = dict(runs[0]["fvd"])
    kernel = [run["fvd"].get("kvd", {}) for run in runs]
    found["kvd"] = {
        kind: {end: statistics.fmean(each[kind][end] for each in kernel) for end in kernel[0][kind]}
        for kind in kernel[0]
        if all(kind in each for each in kernel)
    }
    for kind in FVD_KINDS:
        if f"fvd_{kind}" in names:
            found[kind] = statistics.fmean(row[f"fvd_{kind}"] for row in rows)
    if "card" in found:
        card = {key: value for key, value in found["card"].items() if key != "seed"}
        found["card"] = card | {"runs": len(runs), "seeds": [run["seed"] for run in runs]}
    return found


def _row(run: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The numbers of one run that are averaged over runs."""
    row: dict[str, Any] = {
        "seed": run["seed"],
        "samples": f"{runs_folder(out).name}/run-{run['seed']:02d}/samples.zarr",
    }
    row |= {name: run["samples"][name] for name in RUN_METRICS if name in run["samples"]}
    fvd = run.get("fvd", {})
    row |= {f"fvd_{kind}": fvd[kind] for kind in FVD_KINDS if kind in fvd}
    return row | {f"kvd_{kind}": fvd["kvd"][kind]["value"] for kind in FVD_KINDS if kind in fvd.get("kvd", {})}


def _over_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Values of single clips, averaged over the runs; the runs have the same clips in the same order."""
    first: Mapping[str, list[Any]] = runs[0]["per_clip"]

    def averaged(name: str) -> list[Any]:
        if name in ("clip", "frames"):
            return first[name]
        columns = zip(*(run["per_clip"][name] for run in runs), strict=True)
        return [statistics.fmean(values) if all(map(is_number, values)) else math.nan for values in columns]

    return {name: averaged(name) for name in first}


def _deviations(results: Mapping[str, Any], num_runs: int, protocol: Protocol) -> list[str]:
    """How the evaluation differs from the paper's."""
    found = []
    clips = results["clips"]
    if protocol.clips is not None and (
        clips != protocol.clips if protocol.clips_are_exact else clips < protocol.clips / 2
    ):
        about = "" if protocol.clips_are_exact else "about "
        found.append(f"{count_of(clips, 'clip')}, the paper has {about}{protocol.clips:,}")
    sampled = results["samples"]["clips"]
    if sampled != clips:
        found.append(f"samples of {sampled} of the {count_of(clips, 'clip')}")
    if results["split"] != "test":
        found.append(f"{results['split']} clips, the paper has test clips")
    if num_runs != protocol.runs:
        found.append(f"{count_of(num_runs, 'run')}, the paper has {protocol.runs}")
    label = results.get("fvd", {}).get("label")
    if not is_fvd(label):
        found.append(str(label))
    return found


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation with N - 1; none of a single run."""
    return statistics.stdev(values) if len(values) > 1 else None
