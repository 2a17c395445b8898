"""lvt evaluate: measure a tokenizer and a prior. Reads stores and runs; writes eval.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.progress import format_seconds
from lvt_pipeline.settings import required_setting, setting
from lvt_pipeline.storage import Place
from stages.command import is_given, stage_command
from stages.console import Console, Result
from stages.options import AT, DEVICE


@stage_command("evaluate")
def command(
    *,
    codes: Place = required_setting("Code store from `lvt encode-dataset`."),
    prior: Path | None = setting(None, "Prior run. Adds bits/dim and its baselines."),
    frames: Place | None = setting(None, "Frame folder. With --vqvae, adds MSE and PSNR of the reconstruction."),
    vqvae: Path | None = setting(None, "VQ-VAE run that made the codes."),
    samples: Place | None = setting(None, "Store from `lvt sample`. Adds the error of the samples over the horizon."),
    out: Path = setting(Path("eval.json"), "JSON file to write."),
    settings: EvaluateSettings,
    i3d: Path | None = setting(None, "TorchScript network of FVD. With --frames and --vqvae, adds FVD."),
    features: Path | None = setting(None, "Any TorchScript network of videos in place of --i3d."),
    lpips: Path | None = setting(None, "TorchScript network of LPIPS. Adds LPIPS to every error in pixels."),
    protocol: Literal["bair", "kinetics600"] | None = setting(
        None,
        "Protocol of the paper: 16 frames, 5 priming frames, and several runs of samples, which the command makes. "
        "Needs --prior.",
    ),
    runs: int | None = setting(
        None, "Number of sampling runs of the protocol, each with its own seed.", at_least=1, unset="10"
    ),
    allow_training_clips: bool = setting(
        False, "Measure clips that the models were trained on, which is refused otherwise. The result is marked."
    ),
    at: int | None = AT,
    device: str = DEVICE,
) -> Result:
    """Measure reconstruction and sample errors, bits/dim, code usage and FVD, next to simple predictors.

    Example: lvt evaluate --codes data.zarr --prior runs/prior -o eval.json
    """
    _require_fitting_options(protocol, prior, runs)
    from lvt_pipeline.evaluation.evaluate import evaluate
    from lvt_pipeline.evaluation.protocols.evaluate import evaluate_protocol
    from lvt_pipeline.evaluation.protocols.results import PROTOCOLS
    from lvt_pipeline.evaluation.results import protocol_line, summary_line
    from lvt_pipeline.evaluation.sources import Sources
    from lvt_pipeline.storage import read_json

    networks = {"i3d": i3d, "features": features, "lpips": lpips}
    sources = Sources(codes=codes, generation=at, prior=prior, frames=frames, vqvae=vqvae, samples=samples, **networks)
    options: dict[str, Any] = {"device": device, "progress": Console()}
    if protocol is not None:
        record = evaluate_protocol(sources, out, PROTOCOLS[protocol], settings, num_runs=runs, **options)
    else:
        record = evaluate(sources, out, settings, allow_training_clips=allow_training_clips, **options)
    results = read_json(out)
    line = f"{summary_line(results)} " if protocol is None else f"{protocol_line(results)}\n"
    return Result(results, f"{line}-> {out} in {format_seconds(record.seconds)}")


def _require_fitting_options(protocol: str | None, prior: Path | None, runs: int | None) -> None:
    """A protocol sets some values itself; a value that would be ignored is a mistake."""
    if protocol is None:
        if runs is not None:
            raise click.UsageError("--runs belongs to --protocol")
        return
    for name in ("samples", "settings__frames", "settings__priming_frames", "allow_training_clips"):
        if is_given(name):
            option = {"settings__frames": "num-frames"}.get(name, name.removeprefix("settings__").replace("_", "-"))
            raise click.UsageError(f"--{option} and --protocol exclude each other")
    if prior is None:
        raise click.UsageError("--protocol makes samples and needs --prior")
