"""Result files of evaluations: written whole with a record, found again when nothing changed, and in a few words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvt_pipeline import lineage
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.job import Work
from lvt_pipeline.progress import count_of
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.storage import read_json, write_json

NEEDED_KEYS = {"baselines", "codes", "clips", "split"}


def read_results(path: Path) -> dict[str, Any]:
    """The numbers that `lvt evaluate` wrote.

    Raises:
        ArtefactError: the file is missing, damaged, or not a result of lvt evaluate.
    """
    results = read_json(path)
    if not isinstance(results, dict) or not results.keys() >= NEEDED_KEYS:
        raise ArtefactError(
            f"{path} is damaged or not a result of lvt evaluate in this version; run lvt evaluate again"
        )
    return results


def is_number(value: Any) -> bool:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_unchanged(out: Path, record: Provenance) -> bool:
    """Whether a finished result is unchanged since it was written. One in which a network failed is measured again."""
    try:
        return not record.counts.get("failed") and lineage.results_fingerprint(read_json(out)) == record.fingerprint
    except ArtefactError:
        return False


def write_results(work: Work, results: Mapping[str, Any], counts: Mapping[str, Any]) -> Provenance:
    """Write a result file, then its record."""
    write_json(work.out, results)
    return work.finish(lineage.results_fingerprint(results), counts=counts)


def plain(value: Any) -> Any:
    """The same with null for numbers that JSON cannot write (infinite, or not a number)."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_metric(results: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Results without the numbers of a metric: those whose name has it as a part, such as `sample_lpips`."""
    return {key: value for key, value in results.items() if metric not in key.split("_")}


def summary_line(results: Mapping[str, Any]) -> str:
    """The main numbers of an `eval.json` in one line."""
    parts = [count_of(results["clips"], f"{results['split']} clip")]
    if "training_clips" in results:
        parts.append(f"{results['training_clips']} of these clips were used for training; the scores are optimistic")
    parts.append(_bits(results))
    if "actions" in results:
        saved = results["actions"]["bits_saved"]["shuffled"]
        interval = f"{saved['low']:.3f} to {saved['high']:.3f}"
        parts.append(f"true actions save {saved['mean']:.3f} bits against shuffled ones ({interval})")
    if "reconstruction" in results:
        reconstruction = results["reconstruction"]
        decibels = "∞" if reconstruction["psnr"] is None else f"{reconstruction['psnr']:.2f}"
        parts.append(f"MSE {reconstruction['mse']:.5f}, PSNR {decibels} dB")
        parts += [f"{name.upper()} {reconstruction[name]:.3f}" for name in ("ssim", "lpips") if name in reconstruction]
    if "fvd" in results:
        parts.append(format_fvd(results["fvd"]))
    if results.get("missing"):
        parts.append("not measured: " + "; ".join(f"{name} {needs}" for name, needs in results["missing"].items()))
    return ", ".join(parts)


def _bits(results: Mapping[str, Any]) -> str:
    baselines = results["baselines"]
    named = f"unigram {baselines['unigram_bits']:.3f}, previous frame {baselines['previous_frame_bits']:.3f}"
    if "prior" not in results:
        return f"bits per code of the baselines: {named}"
    verdict = "beats both" if all(results["beats"].values()) else "does not beat both"
    return f"{results['prior']['bits_per_dim']:.3f} bits per code ({verdict}: {named})"


def is_fvd(label: Any) -> bool:
    """Whether the distances of a result may be called FVD, by their `label`; a result without a label has none."""
    return str(label or "FVD").startswith("FVD")


def format_fvd(found: Mapping[str, Any]) -> str:
    """The distance of an `fvd` part under the name that its network allows."""
    if "missing" in found:
        return f"no FVD: {found['missing']}"
    label = str(found["label"])
    name = "FVD"
    if not is_fvd(label):
        name = "Fréchet distance (not FVD)" if label.startswith("not") else "FVD, if the network is I3D,"
    kinds = [(kind, found[f"{kind}_priming"]) for kind in ("real", "reconstructed") if f"{kind}_priming" in found]
    if not kinds:
        kernel = _format_kernel_distance(found, "reconstruction")
        return f"{name} of the reconstruction {found['reconstruction']:.5g}{kernel}"
    values = " or ".join(f"{value:.5g} ({kind} priming frames)" for kind, value in kinds)
    against = [f"{kind} {found[kind]:.5g}" for kind in ("reconstruction", "copy") if kind in found]
    kernel = _format_kernel_distance(found, f"{kinds[0][0]}_priming")
    return f"{name} {values} against {', '.join(against)}{kernel}"


def _format_kernel_distance(found: Mapping[str, Any], kind: str) -> str:
    """The unbiased distance of one kind with its interval, to follow the Fréchet distance."""
    distance = found.get("kvd", {}).get(kind)
    if distance is None:
        return ""
    name = "KVD" if is_fvd(found["label"]) else "kernel distance"
    return f"; {name} {distance['value']:.4g} [{distance['low']:.4g}, {distance['high']:.4g}]"


def protocol_line(results: Mapping[str, Any]) -> str:
    """The main numbers of a protocol in a few lines: ours, what bounds them, and how they differ from the paper's."""
    found = results["protocol"]
    lines = [
        f"protocol {found['name']}: {found['frames']} frames, {found['priming_frames']} of them priming frames, "
        f"{count_of(len(found['runs']), 'run')}",
        summary_line(results),
        *(_protocol_row(found, name) for name in found["mean"]),
    ]
    if found["published"]:
        published = ", ".join(f"{name} {value}" for name, value in found["published"].items())
        lines.append(f"  published, four codebooks: {published}")
    if found["deviations"]:
        lines.append("  differs from the paper: " + "; ".join(found["deviations"]))
    return "\n".join(lines)


def _protocol_row(found: Mapping[str, Any], name: str) -> str:
    mean, std = found["mean"][name], found["std"][name]
    spread = "" if std is None else f" ± {std:.4g}"
    metric = name[:3] if name.startswith(("fvd", "kvd")) else name
    bounds = [
        f"{kind} {found['baselines'][key]:.4g}"
        for kind in ("reconstruction", "copy")
        if found["baselines"].get(key := f"{kind}_{metric}") is not None
    ]
    value = f"{mean:.2f}" if math.fabs(mean) >= 10 else f"{mean:.4g}"
    return f"  {name}: {value}{spread}" + (f" ({', '.join(bounds)})" if bounds else "")
