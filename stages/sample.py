"""lvt sample: continue clips. Reads a prior run and a code store for priming; writes a code store."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, clock, device_option, echo_facts, json_option, out_option, overwrite_option


@click.command("sample")
@click.option("--prior", type=PATH, required=True, help="Run directory from `lvt train-prior`.")
@click.option("--codes", type=PATH, required=True, help="Code store whose clips give the priming frames.")
@out_option("Code store of samples to create or resume, such as samples.zarr.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which clips to continue; the next split with clips is taken when this one is empty.",
)
@click.option("--num-clips", type=click.IntRange(min=1), default=8, show_default=True, help="Clips to continue.")
@click.option("--samples-per-clip", type=click.IntRange(min=1), default=1, show_default=True, help="Samples of each.")
@click.option("--frames", type=click.IntRange(min=1), default=16, show_default=True, help="Length with priming.")
@click.option("--priming-frames", type=click.IntRange(min=0), default=5, show_default=True, help="Frames given.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed and clip, same sample.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Clips per pass.")
@device_option
@overwrite_option
@json_option
def command(
    prior: Path,
    codes: Path,
    out: Path,
    split: str,
    num_clips: int,
    samples_per_clip: int,
    frames: int,
    priming_frames: int,
    temperature: float,
    seed: int,
    batch_size: int,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Sample continuations of real clips in code space (paper, section 3.2).

    Example: lvt sample --prior runs/prior --codes data.zarr -o samples.zarr
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.engine.sampling import SampleSettings, sample_clips

    settings = build(
        SampleSettings,
        {
            "split": split,
            "num_clips": num_clips,
            "samples_per_clip": samples_per_clip,
            "frames": frames,
            "priming_frames": priming_frames,
            "temperature": temperature,
            "seed": seed,
        },
    )
    record = sample_clips(
        prior, codes, out, settings, batch_size=batch_size, device=device, overwrite=overwrite, progress=Console()
    )
    echo_facts(record.to_json(), as_json, f"{record.counts['clips']} samples -> {out} in {clock(record.seconds)}")
