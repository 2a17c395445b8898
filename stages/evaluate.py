"""lvt evaluate: measure a tokenizer and a prior. Reads stores and runs; writes eval.json."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from stages.console import PATH, Console, at_option, clock, device_option, echo_facts, json_option, out_option


@click.command("evaluate")
@click.option("--codes", type=PATH, required=True, help="Code store from `lvt encode-dataset`.")
@click.option("--prior", type=PATH, help="Prior run: adds bits/dim beside its baselines.")
@click.option("--frames", type=PATH, help="Frame shards: with --vqvae, adds MSE and PSNR of the reconstruction.")
@click.option("--vqvae", type=PATH, help="VQ-VAE run that made the codes.")
@click.option("--samples", type=PATH, help="Store from `lvt sample`: adds the samples' error over the horizon.")
@out_option("JSON file to write.", required=False, default="eval.json")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which clips; when it has none, test or val. train needs --allow-training-clips.",
)
@click.option("--num-frames", type=click.IntRange(min=2), default=16, show_default=True, help="First frames of a clip.")
@click.option("--priming-frames", type=click.IntRange(min=1), default=1, show_default=True, help="Frames not counted.")
@click.option("--max-clips", type=click.IntRange(min=1), help="Only the first clips of the split. [all]")
@click.option("--i3d", type=PATH, help="TorchScript network of FVD: with --frames and --vqvae, adds FVD.")
@click.option("--lpips", type=PATH, help="TorchScript network of LPIPS: adds it to every error in pixels.")
@click.option(
    "--resize",
    type=click.Choice(["tf1", "half-pixel"]),
    default="tf1",
    show_default=True,
    help="How frames grow to 224x224 for FVD: as the published TensorFlow 1 code, or as PyTorch and TensorFlow 2.",
)
@click.option(
    "--priming-pixels",
    type=click.Choice(["both", "real", "reconstructed"]),
    default="both",
    show_default=True,
    help="Where the given frames of a sampled clip come from in FVD.",
)
@click.option(
    "--protocol",
    type=click.Choice(["bair", "kinetics600"]),
    help="The paper's: 16 frames, 5 given, and several runs of samples, which it draws itself. Needs --prior.",
)
@click.option(
    "--allow-training-clips",
    is_flag=True,
    help="Measure clips that the models have learnt from, which is refused otherwise; the result says so.",
)
@click.option("--runs", type=click.IntRange(min=1), help="Runs of the protocol, each with its own seed. [10]")
@at_option
@device_option
@json_option
def command(
    codes: Path,
    prior: Path | None,
    frames: Path | None,
    vqvae: Path | None,
    samples: Path | None,
    out: Path,
    split: str,
    num_frames: int,
    priming_frames: int,
    max_clips: int | None,
    i3d: Path | None,
    lpips: Path | None,
    resize: str,
    priming_pixels: str,
    protocol: str | None,
    allow_training_clips: bool,
    runs: int | None,
    at: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Errors of the reconstruction and of samples, bits/dim, code usage, FVD, and what simple predictors reach.

    Example: lvt evaluate --codes data.zarr --prior runs/prior -o eval.json
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.evaluation.evaluate import evaluate
    from lvt_pipeline.evaluation.settings import EvaluateSettings
    from lvt_pipeline.evaluation.summary import summary_line
    from lvt_pipeline.storage import read_json

    settings = build(
        EvaluateSettings,
        {
            "split": split,
            "frames": num_frames,
            "priming_frames": priming_frames,
            "max_clips": max_clips,
            "resize": resize,
            "priming_pixels": priming_pixels,
        },
    )
    if protocol is not None:
        _refuse_beside_protocol()
        if prior is None:
            raise click.UsageError("--protocol draws samples and needs --prior")
        from lvt_pipeline.evaluation.protocols import PROTOCOLS, evaluate_protocol, protocol_line

        record = evaluate_protocol(
            codes,
            out,
            PROTOCOLS[protocol],
            settings,
            prior=prior,
            frames=frames,
            vqvae=vqvae,
            i3d=i3d,
            lpips=lpips,
            num_runs=runs,
            generation=at,
            device=device,
            progress=Console(),
        )
        results = read_json(out)
        echo_facts(results, as_json, f"{protocol_line(results)}\n-> {out} in {clock(record.seconds)}")
        return
    if runs is not None:
        raise click.UsageError("--runs belongs to --protocol")
    record = evaluate(
        codes,
        out,
        settings,
        prior=prior,
        frames=frames,
        vqvae=vqvae,
        samples=samples,
        i3d=i3d,
        lpips=lpips,
        allow_training_clips=allow_training_clips,
        generation=at,
        device=device,
        progress=Console(),
    )
    results = read_json(out)
    echo_facts(results, as_json, f"{summary_line(results)} -> {out} in {clock(record.seconds)}")


def _refuse_beside_protocol() -> None:
    """A protocol sets these itself; a value that would be ignored is a mistake."""
    context = click.get_current_context()
    for name in ("samples", "num_frames", "priming_frames", "allow_training_clips"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} and --protocol exclude each other")
