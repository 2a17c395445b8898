"""lvt continue: continue a video file. Reads a video and two runs; writes one video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from lvt_pipeline.errors import LVTError
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.workspace.layout import Layout
from lvt_pipeline.workspace.settings import sample_settings_of
from stages.console import Console, echo_facts
from stages.options import device_option, given_fields, json_option, out_option, settings_options, stage_command
from stages.values import PATH, Real, Whole

# These are about clips of a store.
OF_STORES = ("split", "num_clips", "clips", "start", "samples_per_clip")


@stage_command("continue")
@click.argument("video", type=PATH)
@out_option("Video to write: .mp4 or .gif; .png is a strip of frames.")
@click.option("--work-dir", type=PATH, help="Work directory with a trained VQ-VAE and a trained prior.")
@click.option("--vqvae", type=PATH, show_default="that of the work directory", help="VQ-VAE run.")
@click.option("--prior", type=PATH, show_default="that of the work directory", help="Prior run.")
@click.option(
    "--start",
    type=Real(0),
    metavar="SECONDS",
    show_default="the last frames",
    help="Time in the video at which the priming frames begin.",
)
@click.option("--samples", type=Whole(1, 100), default=1, show_default=True, help="Number of samples, shown as a grid.")
@settings_options(SampleSettings, leave_out=OF_STORES)
@click.option("--scale", type=Whole(1, 64), default=4, show_default=True, help="Factor by which pixels are enlarged.")
@device_option
@json_option
def command(
    video: Path,
    out: Path,
    work_dir: Path | None,
    vqvae: Path | None,
    prior: Path | None,
    start: float | None,
    samples: int,
    settings: SampleSettings,
    scale: int,
    device: str,
    as_json: bool,
) -> None:
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
    echo_facts(done.to_json(), as_json, f"{summary} ({done.samples} samples)" if done.samples > 1 else summary)
