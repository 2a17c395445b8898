"""Train the frame VQ-VAE (paper, sections 3.1 and 4.2): frames in, a run directory out.

A batch is one random frame of each of `batch_size` random training clips, every clip once an epoch. Validation is the
reconstruction of fixed frames of the val split; the test split is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.codes.loading.order import clip_batch
from lvt_pipeline.codes.usage import perplexity, usage
from lvt_pipeline.errors import LVTError, ShapeError
from lvt_pipeline.frames.records import FrameClip
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.job import Job
from lvt_pipeline.machine import available_memory
from lvt_pipeline.models.device import choose_device
from lvt_pipeline.models.vqvae.kmeans import ITERATIONS
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.models.vqvae.quantize import SlicedQuantizer
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME
from lvt_pipeline.runs.directory import RunDirectory, RunPlan
from lvt_pipeline.runs.read import VQVAE_KIND
from lvt_pipeline.training.distributed import joined_workers
from lvt_pipeline.training.dry_run import count_by_part, measure_step
from lvt_pipeline.training.monitors import CodebookWatch
from lvt_pipeline.training.session import SessionOptions, run_training
from lvt_pipeline.training.settings import HARMLESS_SETTINGS, TrainingSettings, VQVAERunSettings
from lvt_pipeline.training.task import StepLoss, seeded, step_seed
from lvt_pipeline.video.tiles import picture_grid

STAGE = "train-vqvae"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind=VQVAE_KIND)

MEMORY_SHARE = 4  # frames are kept in memory if they take less than one part in so many of what is available
PICTURE_FRAMES = 8
KMEANS_LATENTS = 32  # latents per code, at least, that k-means starts from
DRY_RUN_SIZE = 64  # pixels, when a dry run has no frames to look at


def train_vqvae(
    frames: Path,
    out: Path,
    settings: VQVAERunSettings | None = None,
    *,
    device: str = "auto",
    max_seconds: float | None = None,
    overwrite: bool = False,
    allow_config_change: bool = False,
    track: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Provenance:
    """Train a VQ-VAE, or go on with an interrupted training. Calling it again for a finished run does nothing.

    Args:
        frames: frame shards from `lvt ingest`.
        out: run directory.
        device: "auto", "cpu", "cuda" or "cuda:N". Under `torchrun` every process takes its own part of each batch.
        max_seconds: save and stop after this time.
        overwrite: train from nothing, whatever is in `out`.
        allow_config_change: go on although settings of the training have changed; the run says so ever after.
        track: "tensorboard", "wandb": where the metrics are shown as well.

    Returns:
        the record of the run; its fingerprint is that of all weights, `counts["tokenizer"]` that of what decides codes.

    Raises:
        LVTError: there is no training frame.
        Stopped: a signal or the time limit asked; the step is saved.
        ChangedRunError: the run was started with other settings or frames.
        TrainingError: the loss is not finite any more.
    """
    settings = settings or VQVAERunSettings()
    require_output_folder(out, JOB.stage, (frames,))
    shards = FrameShards(frames)
    plan = RunPlan(
        job=JOB,
        settings=settings,
        resolved=settings,
        inputs={"frames": shards.fingerprint},
        max_steps=settings.training.max_steps,
        harmless=HARMLESS_SETTINGS,
        facts={},
    )
    options = SessionOptions(
        max_seconds=max_seconds,
        overwrite=overwrite,
        allow_config_change=allow_config_change,
        track=track,
        progress=progress,
    )
    with joined_workers(device) as workers:

        def make_task(run: RunDirectory) -> VQVAETask:
            with seeded(settings.training.seed, workers.device):
                model = VQVAE(settings.model).to(workers.device)
            task = VQVAETask(model, shards, settings.training, progress=progress)
            if settings.model.codebook_init == "kmeans" and run.latest_checkpoint() is None:
                start_codebooks(task, progress)
            return task

        return run_training(out, plan, workers, options, make_task)


def dry_run_vqvae(
    settings: VQVAERunSettings | None = None, *, frames: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Size, memory and speed of a training, writing nothing.

    Args:
        frames: what would be trained on; random frames of 64x64 when not given.

    Returns:
        "parameters", "parameters_by_part", "batch_size", "frame_size", "grid", "codes_per_step", and what
        `dry_run.measure_step` tells about memory and time.
    """
    settings = settings or VQVAERunSettings()
    chosen = choose_device(device)
    size = (DRY_RUN_SIZE, DRY_RUN_SIZE)
    shards = FrameShards(frames) if frames is not None else None
    if shards is not None:
        size = _frame_size(shards.split("train"), shards.root)

    def make_batch(count: int) -> dict[str, Tensor]:
        if shards is None:
            return {"frames": torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8)}
        found = _spread_frames(shards, shards.split("train"), count)
        return {"frames": torch.from_numpy(np.resize(found, (count, *size, 3)))}  # repeated where there are too few

    with seeded(settings.training.seed, chosen):
        model = VQVAE(settings.model).to(chosen)
        facts = measure_step(
            model,
            settings.training,
            make_batch,
            vqvae_loss,
            chosen,
        )
    grid = (size[0] // 4, size[1] // 4)
    return {
        "parameters": sum(_count_parameters(model).values()),
        "parameters_by_part": _count_parameters(model),
        "batch_size": settings.training.batch_size,
        "frame_size": list(size),
        "grid": list(grid),
        "codes_per_step": settings.training.batch_size * math.prod(grid) * settings.model.num_codebooks,
        **facts,
    }


@torch.no_grad()
def start_codebooks(task: VQVAETask, progress: Progress = SILENT) -> None:
    """Start the codebooks of an untrained model from k-means over the latents of its first training batches.

    It happens before the first step and depends on the seed and the data alone, so a run that is resumed, or that was
    killed before its first checkpoint, has the same tables as one that never stopped. Data-parallel workers all look at
    whole batches. FSQ has no tables: nothing happens.
    """
    model = task.model
    assert isinstance(model, VQVAE)
    if not isinstance(model.quantizer, SlicedQuantizer):
        return
    wanted = KMEANS_LATENTS * model.codebook_size
    parts: list[Tensor] = []
    rows = range(task.units_per_step)
    while sum(part[:, 0].numel() for part in parts) < wanted:
        frames = task.batch(len(parts) + 1, rows)["frames"].to(model.device)
        parts.append(model.encode_latents(_to_images(frames)))
    generator = torch.Generator().manual_seed(step_seed(task.seed, 0))  # steps are counted from 1
    with progress.bar("k-means start", model.num_codebooks * (model.codebook_size + ITERATIONS), "centres") as bar:
        model.quantizer.start_from(torch.cat(parts), parts[0][:, 0].numel(), generator, bar.advance)


def vqvae_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
    """Loss of frames uint8 (B, H, W, 3) under a VQ-VAE; its codebooks move when it is in training mode."""
    frames = batch["frames"]
    output = model(_to_images(frames))
    with torch.no_grad():
        codebook_size = model.codebook_size
        assert isinstance(codebook_size, int)
        counts = [_count(codes, codebook_size) for codes in output.codes.unbind(-1)]
        perplexities = torch.stack([_perplexity(row) for row in counts])
        usages = torch.stack([(row > 0).double().mean() for row in counts])
    metrics = {
        "reconstruction_loss": output.reconstruction_loss,
        "commitment_loss": output.commitment_loss,
        "batch_perplexity": perplexities.mean(),
    }
    metrics |= {f"batch_perplexity_{j}": value for j, value in enumerate(perplexities)}
    metrics |= {f"batch_usage_{j}": value for j, value in enumerate(usages)}
    return StepLoss(output.loss, len(frames), metrics)


class VQVAETask:
    """A VQ-VAE and the frames it learns from. See `training.Task`."""

    unit = row_unit = "frames"
    score = "mse"

    def __init__(
        self, model: nn.Module, shards: FrameShards, settings: TrainingSettings, *, progress: Progress = SILENT
    ) -> None:
        """Bring the training frames into memory if they are small enough, and choose the validation frames.

        Raises:
            LVTError: there is no training frame.
        """
        assert isinstance(model, VQVAE)
        self.model: nn.Module = model
        self.seed = settings.seed
        self.units_per_step = settings.batch_size
        books = range(model.num_codebooks)
        self.metric_names: tuple[str, ...] = (
            *("reconstruction_loss", "commitment_loss", "batch_perplexity"),
            *(f"batch_{name}_{j}" for name in ("perplexity", "usage") for j in books),
        )
        self._watch = CodebookWatch(model.config, progress)
        self._settings = settings
        self._shards = shards
        self._clips = shards.split("train")
        height, width = _frame_size(self._clips, shards.root)
        self._num_frames = np.array([clip.num_frames for clip in self._clips], np.int64)
        self._first_frame = np.cumsum([0, *self._num_frames])[:-1]
        self._frames: NDArray[np.uint8] | None = None
        if int(self._num_frames.sum()) * height * width * 3 <= available_memory() // MEMORY_SHARE:
            self._frames = np.empty((int(self._num_frames.sum()), height, width, 3), np.uint8)
            with progress.bar("reading frames", len(self._clips), "clips") as bar:
                for clip, first in zip(self._clips, self._first_frame, strict=True):
                    self._frames[first : first + clip.num_frames] = shards.read(clip)
                    bar.advance()
        validation = shards.split("val")
        if not validation:
            progress.say(f"{shards.root} has no val clips: nothing is validated, and no checkpoint is called best")
        self._val_frames = _spread_frames(shards, validation, settings.eval_items)
        self._shown_frames = _spread_frames(shards, validation or self._clips, PICTURE_FRAMES)

    def batch(self, step: int, rows: range) -> dict[str, Tensor]:
        """Frames uint8 (B, H, W, 3) of some rows of a step's batch."""
        clips, starts = self._draw(step)
        chosen = list(zip(clips[rows.start : rows.stop], starts[rows.start : rows.stop], strict=True))
        if self._frames is not None:
            frames = self._frames[[self._first_frame[clip] + start for clip, start in chosen]]
        else:
            frames = np.concatenate([self._shards.read(self._clips[clip], start, start + 1) for clip, start in chosen])
        return {"frames": torch.from_numpy(frames)}

    def batch_clips(self, step: int) -> list[str]:
        """Clip and frame of every row of a step's batch."""
        return [f"{self._clips[clip].id} (frame {start})" for clip, start in zip(*self._draw(step), strict=True)]

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
        """See `vqvae_loss`."""
        return vqvae_loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Reconstruction of the validation frames.

        Returns:
            "mse" over pixels and channels in [0, 1], "psnr" in dB, per codebook "perplexity" and "usage" (share of
            codes that occur), and the numbers of the "collapsed" codebooks.
        """
        if not len(self._val_frames):
            return {}
        assert isinstance(model, VQVAE)
        device = model.device
        squares = 0.0
        counts = torch.zeros(model.num_codebooks, model.codebook_size, dtype=torch.int64)
        for start in range(0, len(self._val_frames), self._settings.batch_size):
            images = _to_images(
                torch.from_numpy(self._val_frames[start : start + self._settings.batch_size]).to(device)
            )
            output = model(images)
            # Both lie in [-1, 1]; in [0, 1] a difference is half as large.
            squares += float(((output.reconstruction.float() - images) / 2).square().double().sum())
            for j, codes in enumerate(output.codes.unbind(-1)):
                counts[j] += _count(codes, model.codebook_size).cpu()
        mse = squares / self._val_frames.size
        return {
            "mse": mse,
            "psnr": -10 * math.log10(max(mse, 1e-12)),
            "perplexity": perplexity(counts.numpy()),
            "usage": usage(counts.numpy()),
            "collapsed": self._watch.look(counts.numpy(), model.quantizer.is_settled),
        }

    def facts(self, weights: Mapping[str, Mapping[str, Tensor]], evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """Counts for the record: fingerprint of the tokenizer, clips, and the last evaluation."""
        assert isinstance(self.model, VQVAE)
        self.model.load_state_dict(weights.get(EMA_NAME, weights[MODEL_NAME]))
        return {
            "tokenizer": tokenizer_fingerprint(self.model),
            "train_clips": len(self._clips),
            **{f"val_{name}": evaluation[name] for name in ("mse", "psnr") if name in evaluation},
            **{name: evaluation[name] for name in ("perplexity", "usage", "collapsed") if name in evaluation},
        }

    def remember(self, evaluation: Mapping[str, Any]) -> None:
        """Codebooks that were called collapsed before are not called so again."""
        self._watch.remember(evaluation.get("collapsed", []))

    def picture(self, model: nn.Module) -> NDArray[np.uint8]:
        """A row of frames above their reconstructions, uint8 (H, W, 3)."""
        assert isinstance(model, VQVAE)
        reconstructed = model.decode(model.encode(self._shown_frames)).numpy()
        return picture_grid(np.stack([self._shown_frames, reconstructed]), scale=2)

    def _draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return clip_batch(self._num_frames, self._settings.batch_size, self._settings.seed, step - 1)


def _count_parameters(model: nn.Module) -> dict[str, int]:
    counts = count_by_part(model)
    return {"encoder": counts["encoder"], "decoder": counts["decoder"], "codebook": counts["quantizer"]}


def _frame_size(clips: Sequence[FrameClip], root: Path) -> tuple[int, int]:
    """(H, W) of all clips.

    Raises:
        LVTError: there is none.
        ShapeError: they differ.
    """
    if not clips:
        raise LVTError(f"{root} has no clips in split train; add videos, or ingest with another split")
    sizes = {(clip.height, clip.width) for clip in clips}
    if len(sizes) > 1:
        raise ShapeError(f"{root} has frames of several sizes {sorted(sizes)}; ingest with one size")
    return sizes.pop()


def _spread_frames(shards: FrameShards, clips: Sequence[FrameClip], count: int) -> NDArray[np.uint8]:
    """At most `count` frames spread evenly over clips and time, uint8 (N, H, W, 3); always the same ones."""
    total = sum(clip.num_frames for clip in clips)
    if not total:
        return np.empty((0, 0, 0, 3), np.uint8)
    starts = np.cumsum([0, *(clip.num_frames for clip in clips)])
    wanted = ((np.arange(min(count, total)) + 0.5) * total / min(count, total)).astype(np.int64)
    owners = np.searchsorted(starts, wanted, side="right") - 1
    return np.concatenate(
        [
            shards.read(clips[owner], int(frame - starts[owner]), int(frame - starts[owner]) + 1)
            for owner, frame in zip(owners, wanted, strict=True)
        ]
    )


def _to_images(frames: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return rearrange(frames.float() / 127.5 - 1, "b h w c -> b c h w").contiguous()


def _count(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs, int64 (K,)."""
    return torch.bincount(codes.reshape(-1), minlength=codebook_size)


def _perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of code counts (K,): how many equally frequent codes would be as hard to guess."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(shares, shares).sum())
