"""Features of the earlier slices for each pixel of a slice: the prior's encoder (paper, section 3.2).

A strided convolution reads the codes of earlier slices. No one-hot tensor is made: a convolution of one-hot codes is a
sum of rows of its weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.models.prior.attention import BlockStack, linear, sinusoidal_positions
from lvt_pipeline.models.prior.conditions import ActionEmbedding
from lvt_pipeline.models.prior.config import PriorConfig, Triple
from lvt_pipeline.models.prior.subscale import PAD


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


class ContextEncoder(nn.Module):
    """Features of the earlier slices for each pixel of a slice. No cross-attention: outputs align with pixels."""

    def __init__(self, config: PriorConfig, num_slices: int) -> None:
        super().__init__()
        width = config.embedding_width
        self.context = ContextConvolution(config.num_codebooks, config.codebook_size, width, config.kernel)
        self.slice_embedding = nn.Embedding(num_slices, width)
        self.class_embedding = nn.Embedding(config.label_rows, width) if config.num_classes else None
        self.project = linear(width * (2 if config.num_classes else 1), config.width, bias=False)
        self.blocks = BlockStack(config.encoder_layers, config.block_shape, causal=False, **config.block_options)
        self.has_position = config.encoder_position
        self.acts_inside = config.is_frame_by_frame
        acting_width = config.width * (4 * config.encoder_layers if self.acts_inside else 1)
        self.actions = (
            ActionEmbedding(config.action_width, config.action_steps, acting_width) if config.action_width else None
        )

    def forward(
        self,
        rows: Tensor,
        table: Tensor,
        slice_indices: Tensor,
        labels: Tensor | None,
        slice_shape: Triple,
        acting: Tensor | None = None,
    ) -> Tensor:
        """(B, P, d) from the context rows (B, P, used*n_c), slice numbers (B,), labels (B,) and what acts.

        What acts changes scale and offset inside the blocks where a slice is one frame, (B, 1, 4 * layers * d).
        Otherwise their attention, which is not causal, would show a frame what acts on later frames of the slice:
        there it is added behind them, (B, P, d), and the decoder, which is causal, passes it on.
        """
        x = self.context(rows, table) + self.slice_embedding(slice_indices)[:, None]
        if self.class_embedding is not None:
            assert labels is not None
            x = torch.cat([x, self.class_embedding(labels)[:, None].expand(-1, x.shape[1], -1)], dim=-1)
        x = self.project(x)
        if self.has_position:
            x = x + sinusoidal_positions(slice_shape, x.shape[-1]).to(x.device)
        inside = acting.chunk(len(self.blocks.layers), dim=-1) if acting is not None and self.acts_inside else ()
        output: Tensor = self.blocks(x, slice_shape, inside)
        return output if acting is None or self.acts_inside else output + acting
