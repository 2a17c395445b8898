"""Train the frame VQ-VAE (paper, sections 3.1 and 4.2): frames in, a run directory out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.job import Job
from lvt_pipeline.models.device import choose_device
from lvt_pipeline.models.vqvae.config import DOWNSAMPLING
from lvt_pipeline.models.vqvae.model import VQVAE
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.directory import RunDirectory, RunPlan
from lvt_pipeline.runs.read import VQVAE_KIND
from lvt_pipeline.runs.reopening import recorded_start
from lvt_pipeline.runs.warm_start import WarmStart
from lvt_pipeline.storage import Place
from lvt_pipeline.training.distributed import joined_ranks
from lvt_pipeline.training.dry_run import measure_step, size_of
from lvt_pipeline.training.session import SessionOptions, run_training
from lvt_pipeline.training.settings import HARMLESS_SETTINGS, VQVAERunSettings
from lvt_pipeline.training.task import seeded
from lvt_pipeline.training.vqvae_task import VQVAETask, frame_size, spread_frames, start_codebooks, vqvae_loss

STAGE = "train-vqvae"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind=VQVAE_KIND)

DRY_RUN_SIZE = 64  # pixels, when a dry run has no frames


def train_vqvae(
    frames: Place,
    out: Path,
    settings: VQVAERunSettings = VQVAERunSettings(),
    *,
    init_from: Path | None = None,
    device: str = "auto",
    max_seconds: float | None = None,
    overwrite: bool = False,
    allow_config_change: bool = False,
    track: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Provenance:
    """Train a VQ-VAE, or resume an interrupted training. Calling it again for a finished run does nothing.

    Args:
        frames: frame shards from `lvt ingest`.
        out: run directory.
        init_from: run whose weights a new run starts from, where names and shapes fit; the optimizer starts fresh.
        device: "auto", "cpu", "cuda" or "cuda:N". Under `torchrun` every process takes its own part of each batch.
        max_seconds: save and stop after this time.
        overwrite: train from nothing, whatever is in `out`.
        allow_config_change: resume although settings of the training have changed; the run lists the changes.
        track: further places for the metrics: "tensorboard", "wandb".

    Returns:
        the record of the run; its fingerprint covers all weights, `counts["tokenizer"]` those that decide codes.

    Raises:
        LVTError: there is no training frame.
        Stopped: a signal or the time limit asked; the step is saved.
        ChangedRunError: the run was started with other settings or inputs.
        ConfigError: the settings do not fit each other.
        TrainingError: the loss is not finite any more, or has exploded.
    """
    require_output_folder(out, STAGE, (frames, init_from))
    shards = FrameShards(frames)
    _require_start(settings, init_from, None if overwrite else out)
    options = SessionOptions(
        start=_warm_start(init_from, settings) if init_from is not None else None,
        max_seconds=max_seconds,
        overwrite=overwrite,
        allow_config_change=allow_config_change,
        track=track,
        progress=progress,
    )
    with joined_ranks(device) as ranks:

        def make_task(run: RunDirectory) -> VQVAETask:
            with seeded(settings.training.seed, ranks.device):
                model = VQVAE(settings.model).to(ranks.device)
            task = VQVAETask(model, shards, settings.training, progress=progress)
            needs_start = settings.model.codebook_init == "kmeans" and init_from is None
            if needs_start and run.latest_checkpoint() is None:
                start_codebooks(task, progress)
            return task

        return run_training(out, _plan(settings, shards), ranks, options, make_task)


def _require_start(settings: VQVAERunSettings, init_from: Path | None, resumed: Path | None) -> None:
    """Refuse to freeze the encoder of a network that starts from nothing."""
    is_started = init_from is not None or (resumed is not None and recorded_start(resumed) is not None)
    if settings.training.freeze is not None and not is_started:
        raise ConfigError("training.freeze=encoder keeps the encoder of an earlier run; give that run as --init-from")


def _plan(settings: VQVAERunSettings, shards: FrameShards) -> RunPlan:
    return RunPlan(
        job=JOB,
        settings=settings,
        resolved=settings,
        inputs={"frames": shards.fingerprint},
        max_steps=settings.training.max_steps,
        harmless=HARMLESS_SETTINGS,
        facts={"geometry": shards.record.settings.get("geometry", {})},
    )


def _warm_start(run: Path, settings: VQVAERunSettings) -> WarmStart:
    is_frozen = settings.training.freeze == "encoder"
    return WarmStart.of(run, VQVAE_KIND, required=("encoder.", "quantizer.") if is_frozen else ())


def dry_run_vqvae(
    settings: VQVAERunSettings = VQVAERunSettings(), *, frames: Place | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Size, memory and speed of a training, writing nothing.

    Args:
        frames: training data; random frames of 64x64 when not given.

    Returns:
        "parameters", "parameters_by_part", "batch_size", "frame_size", "grid", "codes_per_step", and what
        `dry_run.measure_step` measures of memory and time.
    """
    chosen = choose_device(device)
    size = (DRY_RUN_SIZE, DRY_RUN_SIZE)
    shards = FrameShards(frames) if frames is not None else None
    if shards is not None:
        size = frame_size(shards.split("train"), shards.root)

    def make_batch(count: int) -> dict[str, Tensor]:
        if shards is None:
            return {"frames": torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8)}
        found = spread_frames(shards, shards.split("train"), count)
        return {"frames": torch.from_numpy(np.resize(found, (count, *size, 3)))}  # repeated where there are too few

    with seeded(settings.training.seed, chosen):
        model = VQVAE(settings.model).to(chosen)
        facts = measure_step(model, settings.training, make_batch, vqvae_loss, chosen)
    grid = (size[0] // DOWNSAMPLING, size[1] // DOWNSAMPLING)
    return {
        **size_of(model, settings.training),
        "frame_size": list(size),
        "grid": list(grid),
        "codes_per_step": settings.training.batch_size * math.prod(grid) * settings.model.num_codebooks,
        **facts,
    }
