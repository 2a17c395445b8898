"""The latent video generator: a subscale video transformer over codes (paper, sections 3.2 and 4.4).

For one slice of the video (see `subscale.py`): an encoder reads the slices before it, a causal decoder reads the pixels
of the slice itself, and the channel predictor gives the n_c codes of a pixel one after another. No one-hot tensor is
ever made: a convolution of one-hot codes is a sum of rows of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.prior.channels import ChannelPredictor
from lvt_pipeline.models.prior.config import PriorConfig, Triple
from lvt_pipeline.models.prior.context import Encoder
from lvt_pipeline.models.prior.decoder import Decoder
from lvt_pipeline.models.prior.subscale import Subscale, ordinary_tensors, subscale
from lvt_pipeline.models.sampling.sampler import sample
from lvt_pipeline.models.vqvae.quantize import integer_codes
from lvt_pipeline.progress import SILENT, Progress

Codes = Tensor | np.ndarray[Any, Any]
Labels = Tensor | np.ndarray[Any, Any] | Sequence[int] | None


class SliceLoss(NamedTuple):
    """Loss of one training step.

    Attributes:
        loss: nats per code, mean over the codebooks; None when the batch has no target.
        num_targets: codes that were predicted (pixels times n_c).
        per_codebook: float (n_c,), nats per code of each codebook, without gradient; None when there is no target.
    """

    loss: Tensor | None
    num_targets: int
    per_codebook: Tensor | None


class Prior(nn.Module):
    """p(codes of a video), autoregressive over slices, pixels and codebooks.

    Raises:
        ConfigError: see `PriorConfig`.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        geometry = self.geometry(config.frames)
        self.encoder = Encoder(config, geometry.num_slices)
        self.decoder = Decoder(config)
        self.predictor = ChannelPredictor(config)
        self._tables: dict[tuple[Triple, str], tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.context.weight.device

    @property
    def trainable_slices(self) -> list[int]:
        """Slices with at least one pixel outside the priming frames; the others are never trained."""
        geometry = self.geometry(self.config.frames)
        primed = geometry.num_primed(self.config.priming_frames)
        return [index for index in range(geometry.num_slices) if int(primed[index]) < geometry.num_pixels]

    def geometry(self, frames: int) -> Subscale:
        """Slices and contexts of clips with `frames` frames.

        Raises:
            ShapeError: the model cannot take clips of that length.
        """
        config = self.config
        if config.subscale[0] > 1 and frames != config.frames:
            raise ShapeError(f"this prior takes clips of exactly {config.frames} frames, found {frames}")
        if frames < 1 or frames % config.block_shape[0]:
            raise ShapeError(
                f"this prior takes clips of a multiple of {config.block_shape[0]} frames (its attention block), "
                f"found {frames}"
            )
        return subscale((frames, *config.grid), config.subscale, config.kernel, config.kernel_reach)

    def forward(self, codes: Codes, slice_indices: Tensor, labels: Labels = None) -> SliceLoss:
        """As `slice_loss`; lets a wrapper for data-parallel training call the module."""
        return self.slice_loss(codes, slice_indices, labels)

    def slice_loss(self, codes: Codes, slice_indices: Tensor, labels: Labels = None) -> SliceLoss:
        """Loss of one training step: one slice of every clip, teacher-forced, priming frames not counted.

        Args:
            codes: integers (B, T, h, w, n_c).
            slice_indices: int (B,), the slice drawn for each clip; see `trainable_slices`.
            labels: int (B,) for a class-conditional prior.

        Raises:
            ShapeError: shapes, dtypes or ranges do not fit the model.
        """
        codes, labels = self._checked(codes, labels)
        geometry = self.geometry(codes.shape[1])
        slice_indices = torch.as_tensor(slice_indices)
        if slice_indices.shape != codes.shape[:1] or slice_indices.is_floating_point():
            raise ShapeError(f"slice_indices are integers ({len(codes)},), found {tuple(slice_indices.shape)}")
        chosen = slice_indices.to("cpu", torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < geometry.num_slices:
            raise ShapeError(f"slice_indices lie in [0, {geometry.num_slices}), found {chosen.tolist()}")
        num_primed = geometry.num_primed(self.config.priming_frames)[chosen]
        num_targets = int((geometry.num_pixels - num_primed).sum()) * self.config.num_codebooks
        if not num_targets:
            return SliceLoss(None, 0, None)
        nats = self._slice_nats(codes.to(self.device), chosen.to(self.device), labels)
        is_target = torch.arange(geometry.num_pixels) >= num_primed[:, None]
        if bool(is_target.all()):
            per_codebook = nats.mean((0, 1))
        else:
            weights = is_target.to(nats.device, nats.dtype) * (self.config.num_codebooks / num_targets)
            per_codebook = torch.einsum("bpj,bp->j", nats, weights)
        return SliceLoss(per_codebook.mean(), num_targets, per_codebook.detach())

    def logits(self, codes: Codes, labels: Labels = None) -> Tensor:
        """Teacher-forced logits of every code of every slice, float32 (B, T, h, w, n_c, K).

        The logits of a code depend only on codes before it in generation order.

        Args:
            codes: integers (B, T, h, w, n_c).
            labels: int (B,) for a class-conditional prior.

        Raises:
            ShapeError: shapes, dtypes or ranges do not fit the model.
        """
        codes, labels = self._checked(codes, labels)
        codes = codes.to(self.device)
        batch = len(codes)
        geometry = self.geometry(codes.shape[1])
        positions, _, _ = self._device_tables(geometry)
        slices = []
        for index in range(geometry.num_slices):
            slice_indices = torch.full((batch,), index, device=self.device)
            parts = self._slice_logits(codes, slice_indices, labels)
            slices.append(torch.stack(parts, dim=1).float().reshape(batch, geometry.num_pixels, len(parts), -1))
        in_video_order = torch.cat(slices, dim=1)[:, positions.flatten().argsort()]
        return in_video_order.reshape(*codes.shape, self.config.codebook_size)

    def bits_per_dim(self, codes: Codes, priming_frames: int = 1, labels: Labels = None, batch_size: int = 16) -> float:
        """Mean bits per code of the frames after the first `priming_frames`, teacher-forced.

        A code is one latent pixel of one codebook, so models with different n_c are not comparable.

        Args:
            codes: integers (B, T, h, w, n_c).
            batch_size: slices per pass.
        """
        nats, count = self.nats(codes, priming_frames, labels, batch_size)
        return nats / count / math.log(2)

    @torch.no_grad()
    def nats(
        self, codes: Codes, priming_frames: int = 1, labels: Labels = None, batch_size: int = 16
    ) -> tuple[float, int]:
        """Sum of -ln p over the codes after the priming frames, and their number; add both up over a test set.

        Raises:
            ShapeError: shapes do not fit the model, or no frame is left to predict.
        """
        per_codebook, count = self.nats_per_codebook(codes, priming_frames, labels, batch_size)
        return float(per_codebook.sum()), count

    @torch.no_grad()
    def nats_per_codebook(
        self, codes: Codes, priming_frames: int = 1, labels: Labels = None, batch_size: int = 16
    ) -> tuple[Tensor, int]:
        """As `nats`, the sum split by codebook: float64 (n_c,), and the number of codes of all codebooks together."""
        nats, count = self.nats_by_code(codes, priming_frames, labels, batch_size)
        return nats.sum((0, 1, 2, 3)), count

    @torch.no_grad()
    def nats_by_code(
        self, codes: Codes, priming_frames: int = 1, labels: Labels = None, batch_size: int = 16
    ) -> tuple[Tensor, int]:
        """-ln p of every code, float64 (B, T, h, w, n_c) on the CPU, 0 in priming frames; and how many were predicted.

        Raises:
            ShapeError: shapes do not fit the model, or no frame is left to predict.
        """
        codes, labels = self._checked(codes, labels)
        frames = codes.shape[1]
        if not 0 <= priming_frames < frames:
            raise ShapeError(f"priming_frames={priming_frames} leaves nothing to predict in clips of {frames} frames")
        geometry = self.geometry(frames)
        num_primed = geometry.num_primed(priming_frames)
        with_targets = (num_primed < geometry.num_pixels).nonzero().squeeze(1)
        clips = torch.arange(len(codes)).repeat_interleave(len(with_targets))
        slices = with_targets.repeat(len(codes))
        result = torch.zeros(len(codes), math.prod(codes.shape[1:4]), self.config.num_codebooks, dtype=torch.float64)
        shape = codes.shape
        codes = codes.to(self.device)
        for start in range(0, len(clips), batch_size):
            clip, index = clips[start : start + batch_size], slices[start : start + batch_size]
            some_labels = labels[clip.to(labels.device)] if labels is not None else None
            nats = self._slice_nats(codes[clip.to(self.device)], index.to(self.device), some_labels).cpu().double()
            is_target = torch.arange(geometry.num_pixels) >= num_primed[index][:, None]
            result[clip[:, None], geometry.positions[index]] = torch.where(is_target[..., None], nats, 0.0)
        count = len(codes) * (frames - priming_frames) * math.prod(self.config.grid) * self.config.num_codebooks
        return result.reshape(shape), count

    def sample(
        self,
        priming: Codes,
        frames: int | None = None,
        seed: int = 0,
        temperature: float | Sequence[float] = 1.0,
        labels: Labels = None,
        uniforms: Codes | None = None,
        clip_ids: Sequence[str] | None = None,
        sample_ids: Sequence[int] | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        lookahead: int = 1,
        progress: Progress = SILENT,
    ) -> Tensor:
        """Continue clips; see `sampler.sample`."""
        return sample(
            self,
            priming,
            frames=frames,
            seed=seed,
            temperature=temperature,
            labels=labels,
            uniforms=uniforms,
            clip_ids=clip_ids,
            sample_ids=sample_ids,
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
            lookahead=lookahead,
            progress=progress,
        )

    def checked_labels(self, labels: Labels, batch: int) -> Tensor | None:
        """Labels as int64 (B,) on the model's device, None for a model without classes.

        A model trained with `class_dropout` also knows "no class": the number `num_classes`, or no labels at all.

        Raises:
            ShapeError: they are missing, not wanted, or not (B,) numbers of classes.
        """
        num_classes, num_rows = self.config.num_classes, self.config.label_rows
        if labels is None:
            if num_rows > num_classes:
                return torch.full((batch,), num_classes, device=self.device)
            if num_classes:
                raise ShapeError(f"this prior is conditioned on {num_classes} classes; give a label for every clip")
            return None
        if not num_classes:
            raise ShapeError("this prior is not conditioned on classes; leave the labels out")
        tensor = torch.as_tensor(labels)
        if tensor.shape != (batch,) or tensor.is_floating_point():
            raise ShapeError(f"labels are integers ({batch},), found {tensor.dtype} {tuple(tensor.shape)}")
        if batch and not 0 <= int(tensor.min()) <= int(tensor.max()) < num_rows:
            raise ShapeError(f"labels lie in [0, {num_rows}), found {tensor.tolist()}")
        return tensor.to(self.device, torch.int64)

    def context_table(self, geometry: Subscale) -> Tensor:
        """The rows that contexts of this geometry sum; the same for every slice."""
        return self.encoder.context.table(self._device_tables(geometry)[2])

    def encode_context(
        self, codes: Tensor, slice_indices: Tensor, labels: Tensor | None, geometry: Subscale, table: Tensor
    ) -> Tensor:
        """Encoder output (B, P, d) for one slice of each video.

        Args:
            codes: int64 (B, T*h*w, n_c) on the model's device; only slices before the given ones are read.
            slice_indices: int64 (B,).
        """
        _, context, _ = self._device_tables(geometry)
        rows = self.encoder.context.rows(codes, context[slice_indices])
        encoded: Tensor = self.encoder(rows, table, slice_indices, labels, geometry.slice_shape)
        return encoded

    def _slice_logits(self, codes: Tensor, slice_indices: Tensor, labels: Tensor | None) -> list[Tensor]:
        """Logits (B*P, K) of each codebook, for one slice of each clip."""
        geometry = self.geometry(codes.shape[1])
        positions, _, _ = self._device_tables(geometry)
        flat = codes.flatten(1, 3)
        encoded = self.encode_context(flat, slice_indices, labels, geometry, self.context_table(geometry))
        own = _rows_of(flat, positions[slice_indices])
        y = self.predictor.norm(self.decoder(own, encoded, geometry.slice_shape)).flatten(0, 1)
        pixels = own.flatten(0, 1)
        embeddings = self.decoder.embeddings
        return [self.predictor.logits(y, pixels, j, embeddings) for j in range(self.config.num_codebooks)]

    def _slice_nats(self, codes: Tensor, slice_indices: Tensor, labels: Tensor | None) -> Tensor:
        """-ln p of every code of one slice of each clip, float32 (B, P, n_c)."""
        positions, _, _ = self._device_tables(self.geometry(codes.shape[1]))
        targets = _rows_of(codes.flatten(1, 3), positions[slice_indices])
        parts = self._slice_logits(codes, slice_indices, labels)
        nats = [
            F.cross_entropy(logits.float(), targets[..., j].flatten(), reduction="none")
            for j, logits in enumerate(parts)
        ]
        return torch.stack(nats, dim=-1).reshape(targets.shape)

    def _checked(self, codes: Codes, labels: Labels) -> tuple[Tensor, Tensor | None]:
        config = self.config
        layout = "(B, T, h, w, n_c)"
        # Reading the range of codes that already are on an accelerator would make every training step wait for it.
        size = config.codebook_size if isinstance(codes, np.ndarray) or codes.device.type == "cpu" else None
        tensor = integer_codes(codes, layout, 5, config.num_codebooks, size)
        if tuple(tensor.shape[2:4]) != tuple(config.grid):
            raise ShapeError(f"this prior has a {config.grid} grid, found codes {tuple(tensor.shape)} as {layout}")
        return tensor, self.checked_labels(labels, len(tensor))

    def _device_tables(self, geometry: Subscale) -> tuple[Tensor, Tensor, Tensor]:
        """(positions, context, taps) of a geometry on the model's device."""
        key = (geometry.shape, str(self.device))
        if key not in self._tables:
            tables = (geometry.positions, geometry.context, geometry.taps)
            with ordinary_tensors():
                self._tables[key] = tuple(table.to(self.device) for table in tables)  # type: ignore[assignment]
        return self._tables[key]


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _rows_of(flat: Tensor, positions: Tensor) -> Tensor:
    """(B, P, n_c): the codes of videos (B, T*h*w, n_c) at positions (B, P)."""
    return flat.take_along_dim(positions[..., None], dim=1)


__all__ = ["Codes", "Labels", "Prior", "PriorConfig", "SliceLoss", "count_parameters"]
