"""The latent video generator: a subscale video transformer over codes (paper, sections 3.2 and 4.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.cpu import Weights
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.models.prior.conditions import Actions, Conditions, Labels
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.network import Codes, PriorNetwork
from lvt_pipeline.models.sampling.numbers import RandomNumbers
from lvt_pipeline.models.sampling.rule import SamplingRule
from lvt_pipeline.models.sampling.sampler import Decoders, sample
from lvt_pipeline.models.vqvae.quantize import integer_codes
from lvt_pipeline.progress import SILENT, Progress


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


class CodeNats(NamedTuple):
    """How well codes were predicted, teacher-forced. Add up sums and counts over a test set, then divide.

    Attributes:
        by_code: -ln p of every code, float64 (B, T, h, w, n_c) on the CPU, 0 in priming frames.
        num_codes: codes that were predicted, of all codebooks together.
    """

    by_code: Tensor
    num_codes: int

    @property
    def per_codebook(self) -> Tensor:
        """Sum of -ln p of each codebook, float64 (n_c,)."""
        return self.by_code.sum((0, 1, 2, 3))

    @property
    def total(self) -> float:
        """Sum of -ln p."""
        return float(self.per_codebook.sum())

    @property
    def bits_per_dim(self) -> float:
        """Mean bits per code."""
        return self.total / self.num_codes / math.log(2)


class Prior(PriorNetwork):
    """p(codes of a video), autoregressive over slices, pixels and codebooks.

    Raises:
        ConfigError: see `PriorConfig`.
    """

    def __repr__(self) -> str:
        subscale = "x".join(map(str, self.config.subscale))
        return f"Prior({self.config.frames} frames, subscale {subscale}, {num_parameters(self):,} parameters)"

    def forward(self, codes: Codes, slice_indices: Tensor, labels: Labels = None, actions: Actions = None) -> SliceLoss:
        """As `slice_loss`; lets a wrapper for data-parallel training call the module."""
        return self.slice_loss(codes, slice_indices, labels, actions)

    def slice_loss(
        self, codes: Codes, slice_indices: Tensor, labels: Labels = None, actions: Actions = None
    ) -> SliceLoss:
        """Loss of one training step: one slice of every clip, teacher-forced, priming frames not counted.

        Args:
            codes: integers (B, T, h, w, n_c).
            slice_indices: int (B,), the slice chosen for each clip; see `trainable_slices`.
            labels, actions: see `checked_conditions`.

        Raises:
            ShapeError: shapes, dtypes or ranges do not fit the model.
        """
        codes, conditions = self._checked(codes, labels, actions)
        geometry = self.geometry(codes.shape[1])
        slice_indices = torch.as_tensor(slice_indices)
        if slice_indices.shape != codes.shape[:1] or slice_indices.is_floating_point():
            raise ShapeError(f"slice_indices are integers ({len(codes)},), found {tuple(slice_indices.shape)}")
        chosen = slice_indices.to("cpu", torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < geometry.num_slices:
            raise ShapeError(f"slice_indices must be in [0, {geometry.num_slices}), found {chosen.tolist()}")
        num_primed = geometry.num_primed(self.config.priming_frames)[chosen]
        num_targets = int((geometry.num_pixels - num_primed).sum()) * self.config.num_codebooks
        if not num_targets:
            return SliceLoss(None, 0, None)
        nats = self._slice_nats(codes.to(self.device), chosen.to(self.device), conditions)
        is_target = torch.arange(geometry.num_pixels) >= num_primed[:, None]
        if bool(is_target.all()):
            per_codebook = nats.mean((0, 1))
        else:
            weights = is_target.to(nats.device, nats.dtype) * (self.config.num_codebooks / num_targets)
            per_codebook = torch.einsum("bpj,bp->j", nats, weights)
        return SliceLoss(per_codebook.mean(), num_targets, per_codebook.detach())

    def logits(self, codes: Codes, labels: Labels = None, actions: Actions = None) -> Tensor:
        """Teacher-forced logits of every code of every slice, float32 (B, T, h, w, n_c, K).

        The logits of a code depend only on codes before it in generation order, and on actions of frames before its
        own.

        Args:
            codes: integers (B, T, h, w, n_c).
            labels, actions: see `checked_conditions`.

        Raises:
            ShapeError: shapes, dtypes or ranges do not fit the model.
        """
        codes, conditions = self._checked(codes, labels, actions)
        codes = codes.to(self.device)
        batch = len(codes)
        geometry = self.geometry(codes.shape[1])
        positions, _, _ = self.device_tables(geometry)
        slices = []
        for index in range(geometry.num_slices):
            slice_indices = torch.full((batch,), index, device=self.device)
            parts = self._slice_logits(codes, slice_indices, conditions)
            slices.append(torch.stack(parts, dim=1).float().reshape(batch, geometry.num_pixels, len(parts), -1))
        in_video_order = torch.cat(slices, dim=1)[:, positions.flatten().argsort()]
        return in_video_order.reshape(*codes.shape, self.config.codebook_size)

    def bits_per_dim(
        self,
        codes: Codes,
        priming_frames: int = 1,
        labels: Labels = None,
        batch_size: int = 16,
        actions: Actions = None,
    ) -> float:
        """Mean bits per code of the frames after the first `priming_frames`, teacher-forced.

        A code is one latent pixel of one codebook, so models with different n_c are not comparable.

        Args:
            codes: integers (B, T, h, w, n_c).
            batch_size: slices per pass.
            labels, actions: see `checked_conditions`.
        """
        return self.nats_by_code(codes, priming_frames, labels, batch_size, actions).bits_per_dim

    @torch.no_grad()
    def nats_by_code(
        self,
        codes: Codes,
        priming_frames: int = 1,
        labels: Labels = None,
        batch_size: int = 16,
        actions: Actions = None,
    ) -> CodeNats:
        """-ln p of every code after the priming frames.

        Args:
            codes: integers (B, T, h, w, n_c).
            batch_size: slices per pass.

        Raises:
            ShapeError: shapes do not fit the model, or no frame is left to predict.
        """
        codes, conditions = self._checked(codes, labels, actions)
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
            chosen = clip.to(self.device)
            nats = self._slice_nats(codes[chosen], index.to(self.device), conditions.of(chosen)).cpu().double()
            is_target = torch.arange(geometry.num_pixels) >= num_primed[index][:, None]
            result[clip[:, None], geometry.positions[index]] = torch.where(is_target[..., None], nats, 0.0)
        count = len(codes) * (frames - priming_frames) * math.prod(self.config.grid) * self.config.num_codebooks
        return CodeNats(result.reshape(shape), count)

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
        lookahead: int | None = None,
        weights: Weights = "float32",
        actions: Actions = None,
        decoders: Decoders | None = None,
        progress: Progress = SILENT,
    ) -> Tensor:
        """Continue clips: sample the codes of the frames after the priming ones.

        Args:
            priming: integers (B, T0, h, w, n_c), the first frames of every clip.
            frames: length T of the result, any; unset: what the model was made for. Longer clips are sampled in
                windows, see `sampling/windows.py`.
            temperature, top_k, top_p, guidance: see `SamplingRule`; unset: the model's own distribution.
            seed, clip_ids, sample_ids, uniforms: see `RandomNumbers`.
            labels, actions, lookahead, weights, decoders: see `sampler.sample`, which also names the errors.

        Returns:
            int64 (B, T, h, w, n_c) on the CPU, the first T0 frames as given.
        """
        rule = SamplingRule(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
        numbers = RandomNumbers(seed=seed, clip_ids=clip_ids, sample_ids=sample_ids, uniforms=uniforms)
        return sample(
            self,
            priming,
            rule,
            numbers,
            frames=frames,
            labels=labels,
            actions=actions,
            lookahead=lookahead,
            weights=weights,
            decoders=decoders,
            progress=progress,
        )

    def _slice_logits(self, codes: Tensor, slice_indices: Tensor, conditions: Conditions) -> list[Tensor]:
        """Logits (B*P, K) of each codebook, for one slice of each clip."""
        geometry = self.geometry(codes.shape[1])
        positions, _, _ = self.device_tables(geometry)
        flat = codes.flatten(1, 3)
        encoded = self.encode_context(flat, slice_indices, conditions, geometry, self.context_table(geometry))
        own = _rows_of(flat, positions[slice_indices])
        y = self.predictor.norm(self.decoder(own, encoded, geometry.slice_shape)).flatten(0, 1)
        pixels = own.flatten(0, 1)
        embeddings = self.decoder.embeddings
        return [self.predictor.logits(y, pixels, j, embeddings) for j in range(self.config.num_codebooks)]

    def _slice_nats(self, codes: Tensor, slice_indices: Tensor, conditions: Conditions) -> Tensor:
        """-ln p of every code of one slice of each clip, float32 (B, P, n_c)."""
        positions, _, _ = self.device_tables(self.geometry(codes.shape[1]))
        targets = _rows_of(codes.flatten(1, 3), positions[slice_indices])
        parts = self._slice_logits(codes, slice_indices, conditions)
        nats = [
            F.cross_entropy(logits.float(), targets[..., j].flatten(), reduction="none")
            for j, logits in enumerate(parts)
        ]
        return torch.stack(nats, dim=-1).reshape(targets.shape)

    def _checked(self, codes: Codes, labels: Labels, actions: Actions) -> tuple[Tensor, Conditions]:
        config = self.config
        layout = "(B, T, h, w, n_c)"
        # Reading the range of codes that already are on an accelerator would make every training step wait for it.
        size = config.codebook_size if isinstance(codes, np.ndarray) or codes.device.type == "cpu" else None
        tensor = integer_codes(codes, layout, 5, config.num_codebooks, size)
        if tuple(tensor.shape[2:4]) != tuple(config.grid):
            raise ShapeError(f"this prior has a {config.grid} grid, found codes {tuple(tensor.shape)} as {layout}")
        return tensor, self.checked_conditions(labels, actions, *tensor.shape[:2])


def _rows_of(flat: Tensor, positions: Tensor) -> Tensor:
    """(B, P, n_c): the codes of videos (B, T*h*w, n_c) at positions (B, P)."""
    return flat.take_along_dim(positions[..., None], dim=1)


__all__ = ["CodeNats", "Codes", "Labels", "Prior", "PriorConfig", "SliceLoss"]
