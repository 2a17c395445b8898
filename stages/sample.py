"""lvt sample: continue clips. Reads a prior run and a code store for priming; writes a code store."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.jobs.runner import Runner
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.storage import Place
from stages.console import Console, echo_record
from stages.options import (
    at_option,
    device_option,
    json_option,
    out_option,
    overwrite_option,
    settings_options,
    stage_command,
)
from stages.running import runner_options
from stages.values import PATH, STORE, Whole


@stage_command("sample")
@click.option("--prior", type=PATH, required=True, help="Run directory from `lvt train-prior`.")
@click.option("--codes", type=STORE, required=True, help="Code store whose clips provide the priming frames.")
@out_option("Code store of samples to create or resume, such as samples.zarr.", kind=STORE)
@settings_options(SampleSettings)
@click.option("--batch-size", type=Whole(1), default=8, show_default=True, help="Number of clips per pass.")
@click.option(
    "--lookahead",
    type=Whole(1),
    help="Speculative decoding: pixels of a clip per pass. It does not change the samples.  [default: by --batch-size]",
)
@at_option
@device_option
@runner_options()
@overwrite_option
@json_option
def command(
    prior: Path,
    codes: Place,
    out: Place,
    settings: SampleSettings,
    batch_size: int,
    lookahead: int | None,
    at: int | None,
    device: str,
    runner: Runner,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Sample continuations of real clips in code space (paper, section 3.2).

    Example: lvt sample --prior runs/prior --codes data.zarr -o samples.zarr
    """
    from lvt_pipeline.jobs.sample import sample_clips

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
        runner=runner,
        progress=Console(),
    )
    echo_record(record, as_json, count_of(record.counts["clips"], "sample"), out)
