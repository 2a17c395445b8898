"""The pixels of a slice, each seeing earlier ones only: the prior's decoder (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.models.prior.adaptive import AdaptiveEmbedding, code_table
from lvt_pipeline.models.prior.attention import BlockStack, linear, sinusoidal_positions
from lvt_pipeline.models.prior.config import PriorConfig, Triple


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


class SliceDecoder(nn.Module):
    """Reads the slice's own pixels, each seeing earlier ones only, together with the encoder's output."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(_code_embedding(config) for _ in range(config.num_codebooks))
        self.causal_convolution = CausalConvolution(config.embedding_width, config.width)
        self.project = linear(config.width, config.width, bias=False)
        self.blocks = BlockStack(config.decoder_layers, config.block_shape, causal=True, **config.block_options)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the codebooks' embeddings: (..., n_c) -> (..., d_e)."""
        return embed(codes, [code_table(embedding) for embedding in self.embeddings])

    def forward(self, codes: Tensor, encoded: Tensor, slice_shape: Triple) -> Tensor:
        """(B, P, d) from the slice's codes (B, P, n_c) and the encoder's output (B, P, d)."""
        x = self.causal_convolution(self.embed(codes), slice_shape)
        x = x + sinusoidal_positions(slice_shape, x.shape[-1]).to(x.device) + self.project(encoded)
        output: Tensor = self.blocks(x, slice_shape)
        return output


def embed(codes: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Sum of the rows of each codebook's table (K, d_e): int64 (..., n_c) -> (..., d_e)."""
    parts = [F.embedding(codes[..., j], table) for j, table in enumerate(tables)]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _code_embedding(config: PriorConfig) -> nn.Module:
    if config.decoder_input == "adaptive":
        assert config.cutoffs is not None
        return AdaptiveEmbedding(config.codebook_size, config.embedding_width, config.cutoffs, config.cluster_ratio)
    return nn.Embedding(config.codebook_size, config.embedding_width)
