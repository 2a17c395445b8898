"""The latent video generator: a subscale video transformer over codes (paper, sections 3.2 and 4.4).

For one slice of the video (see `subscale.py`): an encoder reads the slices before it, a causal decoder reads the pixels
of the slice itself, and the channel predictor gives the n_c codes of a pixel one after another. No one-hot tensor is
ever made: a convolution of one-hot codes is a sum of rows of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.attention import KINDS, AttentionKind, BlockStack, sinusoidal_positions
from lvt_pipeline.models.quantize import integer_codes
from lvt_pipeline.models.subscale import PAD, Subscale, Triple, ordinary_tensors, subscale
from lvt_pipeline.progress import SILENT, Progress

Codes = Tensor | np.ndarray[Any, Any]
Labels = Tensor | np.ndarray[Any, Any] | Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Shape of the prior. Defaults are the paper's single-frame model.

    The paper's three orders: single frame (frames, 1, 1) with kernel (7, 1, 1); spatiotemporal (4, 2, 2) with
    (5, 3, 3) and block (4, 8, 8); spatial (1, 2, 2) with (1, 3, 3).
    """

    frames: int = 16  # T
    grid: tuple[int, int] = (16, 16)  # (h, w)
    num_codebooks: int = 4  # n_c
    codebook_size: int = 512  # K
    subscale: tuple[int, int, int] = (16, 1, 1)  # (s_t, s_h, s_w)
    kernel: tuple[int, int, int] = (7, 1, 1)  # of the context convolution, odd
    block: tuple[int, int, int] | None = None  # attention block; unset: the whole slice
    width: int = 512  # d
    head_width: int = 128  # d_a
    num_heads: int = 8  # n_a; num_heads * head_width need not equal the width
    embedding_width: int = 128  # d_e
    encoder_layers: int = 8
    decoder_layers: int = 8
    attention: Literal["query-key", "key-only", "distance-only"] = "query-key"
    head: Literal["separate", "shared", "tied"] = "separate"  # the output projection P of each codebook
    num_classes: int = 0  # 0: not conditioned on a class
    encoder_position: bool = False  # sinusoidal positions in the encoder too; the released model has none
    qkv_init: Literal["reference", "standard"] = "reference"
    priming_frames: int = 1  # n_prime: frames that are never a target in training

    def __post_init__(self) -> None:
        sizes = ("frames", "num_codebooks", "codebook_size", "width", "head_width", "num_heads", "embedding_width")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("encoder_layers", "decoder_layers", "num_classes", "priming_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.priming_frames >= self.frames:
            raise ConfigError(f"priming_frames={self.priming_frames} leaves nothing to learn in {self.frames} frames")
        if self.attention not in KINDS:
            raise ConfigError(f"attention={self.attention!r} is not one of {', '.join(KINDS)}")
        if self.head not in ("separate", "shared", "tied"):
            raise ConfigError(f"head={self.head!r} is not one of separate, shared, tied")
        slice_shape = subscale((self.frames, *self.grid), self.subscale, self.kernel).slice_shape
        if any(size < 1 or length % size for size, length in zip(self.block_shape, slice_shape, strict=True)):
            raise ConfigError(f"attention blocks {self.block} do not tile slices of shape {slice_shape}")

    @property
    def block_shape(self) -> Triple:
        """The attention block: `block`, or the whole slice of a clip of `frames` frames."""
        if self.block is not None:
            return self.block
        (s_t, s_h, s_w), (h, w) = self.subscale, self.grid
        return self.frames // s_t, h // s_h, w // s_w


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


class ContextConvolution(nn.Module):
    """The strided convolution over the one-hot context, computed as a sum of rows.

    `weight` keeps the shape of the convolution, (d_e, n_c*K, k_t, k_h, k_w), one-hot channel j*K + code.
    """

    def __init__(self, num_codebooks: int, codebook_size: int, width: int, kernel: Triple) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.weight = nn.Parameter(torch.empty(width, num_codebooks * codebook_size, *kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight)

    def table(self, taps: Tensor) -> Tensor:
        """Rows to sum, (used*n_c*K + 1, d_e): one per used kernel entry and one-hot channel, then zeros for padding."""
        used = self.weight.flatten(2)[:, :, taps]
        return F.pad(rearrange(used, "d c q -> (q c) d"), (0, 0, 0, 1))

    def rows(self, codes: Tensor, context: Tensor) -> Tensor:
        """Row numbers of `table` to sum for each output pixel.

        Args:
            codes: int64 (B, T*h*w, n_c), whole videos.
            context: int64 (B, P, used), flat video positions or `PAD`.

        Returns:
            int64 (B, P, used*n_c).
        """
        batch, length, num_codebooks = codes.shape
        num_taps = context.shape[-1]
        start = torch.arange(batch, device=codes.device)[:, None, None] * length
        seen = codes.reshape(batch * length, num_codebooks)[context.clamp(min=0) + start]
        base = torch.arange(num_taps * num_codebooks, device=codes.device) * self.codebook_size
        rows = seen + base.reshape(num_taps, num_codebooks)
        rows = rows.masked_fill(context.eq(PAD)[..., None], num_taps * num_codebooks * self.codebook_size)
        return rows.flatten(2)

    def forward(self, rows: Tensor, table: Tensor) -> Tensor:
        """(B, P, d_e) from `rows` and `table`."""
        batch, pixels, _ = rows.shape
        summed = F.embedding_bag(rows.flatten(0, 1), table, mode="sum")
        return summed.reshape(batch, pixels, -1) + self.bias


class Encoder(nn.Module):
    """What the earlier slices say about each pixel of a slice. No cross-attention: outputs align with pixels."""

    def __init__(self, config: PriorConfig, num_slices: int, slice_shape: Triple) -> None:
        super().__init__()
        width = config.embedding_width
        self.context = ContextConvolution(config.num_codebooks, config.codebook_size, width, config.kernel)
        self.slice_embedding = nn.Embedding(num_slices, width)
        self.class_embedding = nn.Embedding(config.num_classes, width) if config.num_classes else None
        self.project = _linear(width * (2 if config.num_classes else 1), config.width, bias=False)
        self.blocks = BlockStack(config.encoder_layers, config.block_shape, causal=False, **_block_options(config))
        self.has_position = config.encoder_position

    def forward(
        self, rows: Tensor, table: Tensor, slice_indices: Tensor, labels: Tensor | None, slice_shape: Triple
    ) -> Tensor:
        """(B, P, d) from the context rows (B, P, used*n_c), slice numbers (B,) and labels (B,)."""
        x = self.context(rows, table) + self.slice_embedding(slice_indices)[:, None]
        if self.class_embedding is not None:
            assert labels is not None
            x = torch.cat([x, self.class_embedding(labels)[:, None].expand(-1, x.shape[1], -1)], dim=-1)
        x = self.project(x)
        if self.has_position:
            x = x + sinusoidal_positions(slice_shape, x.shape[-1]).to(x.device)
        output: Tensor = self.blocks(x, slice_shape)
        return output


class CausalConvolution(nn.Module):
    """A 3x3x3 convolution that sees pixels before its own in raster order only.

    Output (t, y, x) reads times t-2..t, rows y-2..y and columns x-1..x+1, except itself and its right neighbour. The
    stored weight has the full kernel; its entries at and right of the centre of the last row never take part.
    """

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, in_width, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight)
        mask = torch.ones(3, 3, 3)
        mask[-1, -1, 1:] = 0
        self.register_buffer("mask", mask, persistent=False)

    def masked_weight(self) -> Tensor:
        """The weight with the entries that would see the present or the future at 0."""
        assert isinstance(self.mask, Tensor)
        return self.weight * self.mask

    def forward(self, x: Tensor, slice_shape: Triple) -> Tensor:
        """(B, P, d_e) in raster order -> (B, P, d)."""
        t, h, _ = slice_shape
        weight = self.masked_weight()
        if t == 1:  # both earlier times are padding
            image = rearrange(x, "b (h w) d -> b d h w", h=h)
            output = F.conv2d(F.pad(image, (1, 1, 2, 0)), weight[:, :, -1], self.bias)
            return rearrange(output, "b d h w -> b (h w) d")
        video = rearrange(x, "b (t h w) d -> b d t h w", t=t, h=h)
        output = F.conv3d(F.pad(video, (1, 1, 2, 0, 2, 0)), weight, self.bias)
        return rearrange(output, "b d t h w -> b (t h w) d")


class Decoder(nn.Module):
    """Reads the slice's own pixels, each seeing earlier ones only, together with the encoder's output."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(
            nn.Embedding(config.codebook_size, config.embedding_width) for _ in range(config.num_codebooks)
        )
        self.causal_convolution = CausalConvolution(config.embedding_width, config.width)
        self.project = _linear(config.width, config.width, bias=False)
        self.blocks = BlockStack(config.decoder_layers, config.block_shape, causal=True, **_block_options(config))

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the codebooks' embeddings: (..., n_c) -> (..., d_e)."""
        parts = [embedding(codes[..., j]) for j, embedding in enumerate(self.embeddings)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def forward(self, codes: Tensor, encoded: Tensor, slice_shape: Triple) -> Tensor:
        """(B, P, d) from the slice's codes (B, P, n_c) and the encoder's output (B, P, d)."""
        x = self.causal_convolution(self.embed(codes), slice_shape)
        x = x + sinusoidal_positions(slice_shape, x.shape[-1]).to(x.device) + self.project(encoded)
        output: Tensor = self.blocks(x, slice_shape)
        return output


class ChannelPredictor(nn.Module):
    """The codes of one pixel, codebook after codebook: u_j = ReLU(U_j [y; onehot codes before j] + b_j), then P_j u_j.

    `head` decides P: "separate" per codebook, "shared" by all, or "tied" to the decoder's embeddings.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        d, size, count = config.width, config.codebook_size, config.num_codebooks
        self.codebook_size = size
        self.head = config.head
        self.norm = nn.LayerNorm(d)
        self.mixers = nn.ModuleList(_linear(d + j * size, d) for j in range(count))
        num_outputs = count if config.head == "separate" else 1
        out_width = config.embedding_width if config.head == "tied" else size
        self.outputs = nn.ModuleList(_linear(d, out_width) for _ in range(num_outputs))

    def logits(self, y: Tensor, codes: Tensor, j: int, embeddings: nn.ModuleList) -> Tensor:
        """Logits of codebook j, (N, K).

        Args:
            y: decoder output after `norm`, (N, d).
            codes: int64 (N, n_c); only those of codebooks before j are read.
            embeddings: the decoder's, for the tied head.
        """
        width = y.shape[-1]
        mixer = self.mixers[j]
        assert isinstance(mixer, nn.Linear)
        mixed = F.linear(y, mixer.weight[:, :width], mixer.bias)
        if j:
            columns = mixer.weight[:, width:].T
            offsets = torch.arange(j, device=codes.device) * self.codebook_size
            mixed = mixed + F.embedding_bag(codes[:, :j] + offsets, columns, mode="sum")
        return self.outputs_of(F.relu(mixed), j, embeddings)

    def outputs_of(self, u: Tensor, j: int, embeddings: nn.ModuleList) -> Tensor:
        """Logits of codebook j, (N, K), from u_j (N, d)."""
        logits: Tensor = self.outputs[j if self.head == "separate" else 0](u)
        if self.head == "tied":
            embedding = embeddings[j]
            assert isinstance(embedding, nn.Embedding)
            logits = F.linear(logits, embedding.weight)
        return logits


class Prior(nn.Module):
    """p(codes of a video), autoregressive over slices, pixels and codebooks.

    Raises:
        ConfigError: see `PriorConfig`.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        geometry = self.geometry(config.frames)
        self.encoder = Encoder(config, geometry.num_slices, geometry.slice_shape)
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
        return subscale((frames, *config.grid), config.subscale, config.kernel)

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
        codes, labels = self._checked(codes, labels)
        frames = codes.shape[1]
        if not 0 <= priming_frames < frames:
            raise ShapeError(f"priming_frames={priming_frames} leaves nothing to predict in clips of {frames} frames")
        geometry = self.geometry(frames)
        num_primed = geometry.num_primed(priming_frames)
        with_targets = (num_primed < geometry.num_pixels).nonzero().squeeze(1)
        clips = torch.arange(len(codes)).repeat_interleave(len(with_targets))
        slices = with_targets.repeat(len(codes))
        codes = codes.to(self.device)
        total = torch.zeros(self.config.num_codebooks, dtype=torch.float64)
        for start in range(0, len(clips), batch_size):
            clip, index = clips[start : start + batch_size], slices[start : start + batch_size]
            some_labels = labels[clip.to(labels.device)] if labels is not None else None
            nats = self._slice_nats(codes[clip.to(self.device)], index.to(self.device), some_labels).cpu().double()
            is_target = torch.arange(geometry.num_pixels) >= num_primed[index][:, None]
            total += nats[is_target].sum(0)
        count = len(codes) * (frames - priming_frames) * math.prod(self.config.grid) * self.config.num_codebooks
        return total, count

    def sample(
        self,
        priming: Codes,
        frames: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        labels: Labels = None,
        uniforms: Codes | None = None,
        clip_ids: Sequence[str] | None = None,
        sample_ids: Sequence[int] | None = None,
        progress: Progress = SILENT,
    ) -> Tensor:
        """Continue clips; see `sampler.sample`."""
        from lvt_pipeline.models.sampler import sample  # the sampler imports this module

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
            progress=progress,
        )

    def checked_labels(self, labels: Labels, batch: int) -> Tensor | None:
        """Labels as int64 (B,) on the model's device, None for a model without classes.

        Raises:
            ShapeError: they are missing, not wanted, or not (B,) numbers in [0, num_classes).
        """
        num_classes = self.config.num_classes
        if labels is None:
            if num_classes:
                raise ShapeError(f"this prior is conditioned on {num_classes} classes; give a label for every clip")
            return None
        if not num_classes:
            raise ShapeError("this prior is not conditioned on classes; leave the labels out")
        tensor = torch.as_tensor(labels)
        if tensor.shape != (batch,) or tensor.is_floating_point():
            raise ShapeError(f"labels are integers ({batch},), found {tensor.dtype} {tuple(tensor.shape)}")
        if batch and not 0 <= int(tensor.min()) <= int(tensor.max()) < num_classes:
            raise ShapeError(f"labels lie in [0, {num_classes}), found {tensor.tolist()}")
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


def _linear(in_width: int, out_width: int, bias: bool = True) -> nn.Linear:
    """A linear layer with the released model's start: Xavier-uniform weight, zero bias."""
    layer = nn.Linear(in_width, out_width, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _block_options(config: PriorConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "width": config.width,
        "num_heads": config.num_heads,
        "head_width": config.head_width,
        "kind": config.attention,
        "qkv_init": config.qkv_init,
    }
    return options


__all__ = ["AttentionKind", "Prior", "PriorConfig", "SliceLoss", "count_parameters"]
