"""lvt sample: continue clips. Reads a prior run and a code store for priming; writes a code store."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import (
    PATH,
    Console,
    at_option,
    clock,
    device_option,
    echo_facts,
    json_option,
    out_option,
    overwrite_option,
)


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Read an option such as 0.9,1,1,1."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers separated by commas", ctx, param) from None


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
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Below 1: safer, above 1: wilder.",
)
@click.option(
    "--codebook-temperatures",
    metavar="T,T,...",
    callback=_numbers,
    help="A temperature per codebook, in place of --temperature.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Draw among the k likeliest codes; 1 is greedy. [off]")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Draw among the likeliest codes that together hold this probability. [off]",
)
@click.option(
    "--guidance",
    type=float,
    help="Classifier-free guidance, such as 2, for a prior trained with classes and class_dropout. [off]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed and clip, same sample.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Clips per pass.")
@click.option(
    "--lookahead",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Pixels of a clip drawn per pass where guesses come true: the same samples but for rounding, sooner for one "
    "or a few clips (try 16).",
)
@at_option
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
    codebook_temperatures: tuple[float, ...] | None,
    top_k: int | None,
    top_p: float | None,
    guidance: float | None,
    seed: int,
    batch_size: int,
    lookahead: int,
    at: int | None,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Sample continuations of real clips in code space (paper, section 3.2).

    Example: lvt sample --prior runs/prior --codes data.zarr -o samples.zarr
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.jobs.sample import SampleSettings, sample_clips

    optional = {
        "codebook_temperatures": codebook_temperatures,
        "top_k": top_k,
        "top_p": top_p,
        "guidance": guidance,
    }
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
            **{name: value for name, value in optional.items() if value is not None},
        },
    )
    record = sample_clips(
        prior,
        codes,
        out,
        settings,
        batch_size=batch_size,
        lookahead=lookahead,
        generation=at,
        device=device,
        overwrite=overwrite,
        progress=Console(),
    )
    echo_facts(record.to_json(), as_json, f"{record.counts['clips']} samples -> {out} in {clock(record.seconds)}")
