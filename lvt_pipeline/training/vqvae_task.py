"""Frames, loss and validation of a VQ-VAE training (paper, sections 3.1 and 4.2).

A batch is one random frame of each of `batch_size` random training clips, every clip once an epoch. Validation is the
reconstruction of fixed frames of the val split; the test split is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.codes.loading.order import clip_batch
from lvt_pipeline.codes.usage import perplexity, usage
from lvt_pipeline.errors import LVTError, ShapeError
from lvt_pipeline.frames.records import FrameClip
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.machine import available_memory
from lvt_pipeline.models.vqvae.kmeans import ITERATIONS
from lvt_pipeline.models.vqvae.model import VQVAE, to_images, tokenizer_fingerprint
from lvt_pipeline.models.vqvae.quantize import SlicedQuantizer
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME
from lvt_pipeline.storage import Place
from lvt_pipeline.training.monitors import CodebookWatch
from lvt_pipeline.training.settings import TrainingSettings, VQVAETraining
from lvt_pipeline.training.task import StepLoss, step_seed
from lvt_pipeline.video.tiles import picture_grid

MEMORY_SHARE = 4  # frames are kept in memory if they take less than this fraction (one part in 4) of it
PICTURE_FRAMES = 8
KMEANS_LATENTS = 32  # latents per code, at least, that k-means starts from


def vqvae_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
    """Loss of frames uint8 (B, H, W, 3) under a VQ-VAE; its codebooks move when it is in training mode."""
    frames = batch["frames"]
    output = model(to_images(frames))
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
    """A VQ-VAE and its training frames. See `training.task.Task`."""

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
        self._is_frozen = isinstance(settings, VQVAETraining) and settings.freeze == "encoder"
        if self._is_frozen:
            model.encoder.requires_grad_(False)
            model.quantizer.requires_grad_(False)
        books = range(model.num_codebooks)
        self.metric_names: tuple[str, ...] = (
            *("reconstruction_loss", "commitment_loss", "batch_perplexity"),
            *(f"batch_{name}_{j}" for name in ("perplexity", "usage") for j in books),
        )
        self._watch = CodebookWatch(model.config, progress)
        self._settings = settings
        self._shards = shards
        self._clips = shards.split("train")
        height, width = frame_size(self._clips, shards.root)
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
        self._val_frames = spread_frames(shards, validation, settings.eval_items)
        self._shown_frames = spread_frames(shards, validation or self._clips, PICTURE_FRAMES)

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
        if self._is_frozen:
            assert isinstance(model, VQVAE)
            model.quantizer.eval()  # its tables move in training mode
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
            images = to_images(torch.from_numpy(self._val_frames[start : start + self._settings.batch_size]).to(device))
            output = model(images)
            # Both are in [-1, 1]; in [0, 1] a difference is half as large.
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
        """Codebooks that were reported as collapsed before are not reported again."""
        self._watch.remember(evaluation.get("collapsed", []))

    def picture(self, model: nn.Module) -> NDArray[np.uint8]:
        """A row of frames above their reconstructions, uint8 (H, W, 3)."""
        assert isinstance(model, VQVAE)
        reconstructed = model.decode(model.encode(self._shown_frames)).numpy()
        return picture_grid(np.stack([self._shown_frames, reconstructed]), scale=2)

    def _draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return clip_batch(self._num_frames, self._settings.batch_size, self._settings.seed, step - 1)


@torch.no_grad()
def start_codebooks(task: VQVAETask, progress: Progress = SILENT) -> None:
    """Start the codebooks of an untrained model from k-means over the latents of its first training batches.

    It happens before the first step and depends on the seed and the data alone, so a run that is resumed, or that was
    killed before its first checkpoint, has the same tables as one that never stopped. All data-parallel ranks use
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
        parts.append(model.encode_latents(to_images(frames)))
    generator = torch.Generator().manual_seed(step_seed(task.seed, 0))  # steps are counted from 1
    with progress.bar("k-means start", model.num_codebooks * (model.codebook_size + ITERATIONS), "centres") as bar:
        model.quantizer.start_from(torch.cat(parts), parts[0][:, 0].numel(), generator, bar.advance)


def frame_size(clips: Sequence[FrameClip], root: Place) -> tuple[int, int]:
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


def spread_frames(shards: FrameShards, clips: Sequence[FrameClip], count: int) -> NDArray[np.uint8]:
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


def _count(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs, int64 (K,)."""
    return torch.bincount(codes.reshape(-1), minlength=codebook_size)


def _perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of code counts (K,): how many equally frequent codes would be as hard to guess."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(shares, shares).sum())
