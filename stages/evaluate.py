"""lvt evaluate: measure a tokenizer and a prior. Reads stores and runs; writes eval.json."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, clock, device_option, echo_facts, json_option, out_option


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
    help="Which clips; the next split with clips is taken when this one is empty.",
)
@click.option("--num-frames", type=click.IntRange(min=2), default=16, show_default=True, help="First frames of a clip.")
@click.option("--priming-frames", type=click.IntRange(min=1), default=1, show_default=True, help="Frames not counted.")
@click.option("--max-clips", type=click.IntRange(min=1), help="Only the first clips of the split. [all]")
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
    device: str,
    as_json: bool,
) -> None:
    """Reconstruction MSE and PSNR, bits/dim, code usage, and what simple predictors reach on the same codes.

    Example: lvt evaluate --codes data.zarr --prior runs/prior -o eval.json
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.evaluation.evaluate import EvaluateSettings, evaluate, summary_line
    from lvt_pipeline.storage import read_json

    settings = build(
        EvaluateSettings,
        {"split": split, "frames": num_frames, "priming_frames": priming_frames, "max_clips": max_clips},
    )
    record = evaluate(
        codes,
        out,
        settings,
        prior=prior,
        frames=frames,
        vqvae=vqvae,
        samples=samples,
        device=device,
        progress=Console(),
    )
    results = read_json(out)
    echo_facts(results, as_json, f"{summary_line(results)} -> {out} in {clock(record.seconds)}")
