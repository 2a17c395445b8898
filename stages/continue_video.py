"""lvt continue: continue a video file. Reads a video and two runs; writes one video."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from lvt_pipeline.errors import LVTError
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import required_setting, setting
from lvt_pipeline.workspace.layout import Layout
from lvt_pipeline.workspace.settings import sample_settings_of
from stages.command import given_fields, settings_option, stage_command
from stages.console import Console, Result
from stages.options import DEVICE

# These are about clips of a store.
OF_STORES = ("split", "num_clips", "clips", "start", "samples_per_clip")


@stage_command("continue")
def command(
    video: Path,
    *,
    out: Path = required_setting("Video to write: .mp4 or .gif; .png is a strip of frames."),
    work_dir: Path | None = setting(None, "Work directory with a trained VQ-VAE and a trained prior."),
    vqvae: Path | None = setting(None, "VQ-VAE run.", unset="that of the work directory"),
    prior: Path | None = setting(None, "Prior run.", unset="that of the work directory"),
    start: float | None = setting(
        None,
        "Time in the video at which the priming frames begin.",
        at_least=0,
        example="SECONDS",
        unset="the last frames",
    ),
    samples: int = setting(1, "Number of samples, shown as a grid.", at_least=1, at_most=100),
    settings: SampleSettings = settings_option(leave_out=OF_STORES),
    scale: int = setting(4, "Factor by which pixels are enlarged.", at_least=1, at_most=64),
    device: str = DEVICE,
) -> Result:
    """Continue VIDEO: its last frames, and sampled ones after them, in one video.

    Frames of the video have a blue edge, sampled frames an orange one. With --work-dir, options that are not given
    have the values of that directory's table `sample`.

    Example: lvt continue my.mp4 -o out.mp4 --work-dir work --num-frames 32
    """
    from lvt_pipeline.jobs.continue_video import continue_video

    codes = None
    if work_dir is not None:
        if not work_dir.is_dir():
            raise LVTError(f"{work_dir} does not exist; give a work directory of lvt run")
        layout = Layout(work_dir)
        codes = layout["codes"] if layout["codes"].is_dir() and vqvae is None and prior is None else None
        vqvae, prior = vqvae or layout["vqvae"], prior or layout["prior"]
        settings = sample_settings_of(work_dir, settings, [*OF_STORES, *given_fields(SampleSettings)])
    if vqvae is None or prior is None:
        raise click.UsageError("give --work-dir, or both --vqvae and --prior", click.get_current_context())
    done = continue_video(
        video,
        out,
        vqvae,
        prior,
        replace(settings, samples_per_clip=samples),
        codes=codes,
        start_seconds=start,
        scale=scale,
        device=device,
        progress=Console(),
    )
    sampled = done.frames - done.priming_frames
    summary = f"{count_of(done.priming_frames, 'frame')} of {video} and {count_of(sampled, 'sampled frame')} -> {out}"
    return Result(asdict(done), f"{summary} ({done.samples} samples)" if done.samples > 1 else summary)
