"""lvt sample: continue clips. Reads a prior run and a code store for priming; writes a code store."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import required_setting, setting
from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Console, Result
from stages.options import AT, DEVICE, OVERWRITE
from stages.running import RunnerOptions


@stage_command("sample")
def command(
    *,
    prior: Path = required_setting("Run directory from `lvt train-prior`."),
    codes: Place = required_setting("Code store whose clips provide the priming frames."),
    out: Place = required_setting("Code store of samples to create or resume, such as samples.zarr."),
    settings: SampleSettings,
    batch_size: int = setting(8, "Number of clips per pass.", at_least=1),
    lookahead: int | None = setting(
        None,
        "Speculative decoding: pixels of a clip per pass. It does not change the samples.  [default: by --batch-size]",
        at_least=1,
    ),
    at: int | None = AT,
    device: str = DEVICE,
    runner_options: RunnerOptions,
    overwrite: bool = OVERWRITE,
) -> Result:
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
        runner=runner_options.start(),
        progress=Console(),
    )
    return Result.of(record, count_of(record.counts["clips"], "sample"), out)
