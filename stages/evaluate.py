"""lvt evaluate: measure a tokenizer and a prior. Reads stores and runs; writes eval.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.progress import format_seconds
from lvt_pipeline.storage import Place
from stages.console import Console, echo_facts
from stages.options import at_option, device_option, is_given, json_option, out_option, settings_options, stage_command
from stages.values import PATH, STORE, Whole


@stage_command("evaluate")
@click.option("--codes", type=STORE, required=True, help="Code store from `lvt encode-dataset`.")
@click.option("--prior", type=PATH, help="Prior run. Adds bits/dim and its baselines.")
@click.option("--frames", type=STORE, help="Frame folder. With --vqvae, adds MSE and PSNR of the reconstruction.")
@click.option("--vqvae", type=PATH, help="VQ-VAE run that made the codes.")
@click.option("--samples", type=STORE, help="Store from `lvt sample`. Adds the error of the samples over the horizon.")
@out_option("JSON file to write.", required=False, default="eval.json")
@settings_options(EvaluateSettings)
@click.option("--i3d", type=PATH, help="TorchScript network of FVD. With --frames and --vqvae, adds FVD.")
@click.option("--features", type=PATH, help="Any TorchScript network of videos in place of --i3d.")
@click.option("--lpips", type=PATH, help="TorchScript network of LPIPS. Adds LPIPS to every error in pixels.")
@click.option(
    "--protocol",
    type=click.Choice(["bair", "kinetics600"]),
    help="Protocol of the paper: 16 frames, 5 priming frames, and several runs of samples, which the command makes. "
    "Needs --prior.",
)
@click.option(
    "--runs", type=Whole(1), show_default="10", help="Number of sampling runs of the protocol, each with its own seed."
)
@click.option(
    "--allow-training-clips",
    is_flag=True,
    help="Measure clips that the models were trained on, which is refused otherwise. The result is marked.",
)
@at_option
@device_option
@json_option
def command(
    codes: Place,
    prior: Path | None,
    frames: Place | None,
    vqvae: Path | None,
    samples: Place | None,
    out: Path,
    settings: EvaluateSettings,
    i3d: Path | None,
    features: Path | None,
    lpips: Path | None,
    protocol: str | None,
    runs: int | None,
    allow_training_clips: bool,
    at: int | None,
    device: str,
    as_json: bool,
) -> None:
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
    echo_facts(results, as_json, f"{line}-> {out} in {format_seconds(record.seconds)}")


def _require_fitting_options(protocol: str | None, prior: Path | None, runs: int | None) -> None:
    """A protocol sets some values itself; a value that would be ignored is a mistake."""
    if protocol is None:
        if runs is not None:
            raise click.UsageError("--runs belongs to --protocol")
        return
    for name in ("samples", "setting__frames", "setting__priming_frames", "allow_training_clips"):
        if is_given(name):
            option = {"setting__frames": "num-frames"}.get(name, name.removeprefix("setting__").replace("_", "-"))
            raise click.UsageError(f"--{option} and --protocol exclude each other")
    if prior is None:
        raise click.UsageError("--protocol makes samples and needs --prior")
