"""Transformer blocks: block-local self-attention with a learned relative bias (paper, sections 3.2 and 4.4).

The paper compares three scores (its Table 7): "query-key", "key-only" (one learned query per head) and "distance-only"
(the relative bias alone). Pixels stand in raster order on one axis everywhere, (B, N, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.models.cpu import cpu_attention, has_cpu_attention
from lvt_pipeline.models.prior.config import Triple

AttentionKind = Literal["query-key", "key-only", "distance-only"]

MASKED_SCORE = -1e4  # of keys after the query, before softmax; their weight is exactly 0 in float32


def sinusoidal_positions(shape: Triple, width: int) -> Tensor:
    """Fixed encoding of (time, row, column) inside a slice, float32 (t*h*w, width).

    Each axis owns 2m channels, m = width // 6, sines before cosines, with frequencies 10000^(-j/m). Channels left over
    at the end are 0.
    """
    per_axis = width // 6
    encoding = torch.zeros(*shape, width)
    if per_axis:
        frequencies = 10000.0 ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)
        for axis, length in enumerate(shape):
            angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
            waves = torch.cat([angles.sin(), angles.cos()], dim=1).float()
            start = 2 * per_axis * axis
            view = [1, 1, 1, 2 * per_axis]
            view[axis] = length
            encoding[..., start : start + 2 * per_axis] = waves.reshape(view)
    return encoding.reshape(-1, width)


def linear(in_width: int, out_width: int, bias: bool = True) -> nn.Linear:
    """A linear layer with the released model's start: Xavier-uniform weight, zero bias."""
    layer = nn.Linear(in_width, out_width, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RelativeBias(nn.Module):
    """A score per head that depends on the distance between query and key: one table per axis, summed."""

    def __init__(self, num_heads: int, block: Triple) -> None:
        super().__init__()
        self.block = block
        self.time = nn.Parameter(torch.zeros(num_heads, 2 * block[0] - 1))
        self.row = nn.Parameter(torch.zeros(num_heads, 2 * block[1] - 1))
        self.column = nn.Parameter(torch.zeros(num_heads, 2 * block[2] - 1))
        for name, size in zip("thw", block, strict=True):
            place = torch.arange(size)
            self.register_buffer(f"distance_{name}", place[:, None] - place[None, :] + size - 1, persistent=False)

    def forward(self) -> Tensor:
        """Float (n_a, N, N) over (query, key) of a block with N pixels."""
        t = self._axis(self.time, self.distance_t)[:, :, None, None, :, None, None]
        y = self._axis(self.row, self.distance_h)[:, None, :, None, None, :, None]
        x = self._axis(self.column, self.distance_w)[:, None, None, :, None, None, :]
        return (t + y + x).reshape(len(self.time), math.prod(self.block), math.prod(self.block))

    @staticmethod
    def _axis(table: Tensor, distance: Tensor | nn.Module) -> Tensor:
        assert isinstance(distance, Tensor)
        return table.index_select(1, distance.reshape(-1)).reshape(len(table), *distance.shape)


class Attention(nn.Module):
    """Multi-head self-attention inside the blocks of a slice.

    Args:
        width: of the input and output.
        num_heads: n_a.
        head_width: d_a; n_a * d_a need not equal the width.
        block: (t_b, h_b, w_b), tiling the slice.
        causal: a query sees keys up to its own raster place only.
        kind: how scores are made.
        qkv_init: "reference" draws the (n_a, width, d_a) tensors with the small spread the released code has,
            sqrt(2 / (width*d_a + n_a*d_a)); "standard" is Xavier per head.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_width: int,
        block: Triple,
        *,
        causal: bool,
        kind: AttentionKind = "query-key",
        qkv_init: Literal["reference", "standard"] = "reference",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.num_heads = num_heads
        self.head_width = head_width
        self.block = block
        self.causal = causal
        fan = width * head_width + num_heads * head_width if qkv_init == "reference" else width + head_width
        names = {"query-key": ("w_q", "w_k", "w_v"), "key-only": ("w_k", "w_v"), "distance-only": ("w_v",)}[kind]
        for name in names:
            weight = torch.empty(num_heads, width, head_width).normal_(std=math.sqrt(2 / fan))
            self.register_parameter(name, nn.Parameter(weight))
        self.projections = names
        if kind == "key-only":
            self.u = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_heads, head_width)))
        self.bias = RelativeBias(num_heads, block)
        self.out = nn.Linear(num_heads * head_width, width, bias=False)
        nn.init.xavier_uniform_(self.out.weight)
        size = math.prod(block)
        mask = torch.full((size, size), MASKED_SCORE).triu(1) if causal else torch.zeros(size, size)
        self.register_buffer("mask", mask, persistent=False)

    def scores_bias(self) -> Tensor:
        """Relative bias and causal mask together, float (n_a, N, N)."""
        bias: Tensor = self.bias()
        assert isinstance(self.mask, Tensor)
        return bias + self.mask if self.causal else bias

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values (those the kind has, in this order) of x (B, N, width), (B, N, parts*n_a*d_a)."""
        weights = [self.get_parameter(name) for name in self.projections]
        if torch.is_autocast_enabled(x.device.type):  # rows of the narrower numbers are copied sooner than columns
            narrow = [weight.to(torch.get_autocast_dtype(x.device.type)).transpose(0, 1) for weight in weights]
            return x @ torch.cat(narrow, dim=1).flatten(1)
        return F.linear(x, torch.cat([rearrange(weight, "m d a -> (m a) d") for weight in weights]))

    def split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """The parts of what `project` gave, each (B, n_a, N, d_a)."""
        parts = rearrange(projected, "b n (p m a) -> p b m n a", p=len(self.projections), m=self.num_heads)
        return parts.unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within blocks: (B, N, width) of whole blocks -> (B, N, width)."""
        output: Tensor = self.out(self.attend(self.project(x), self.scores_bias()))
        return output

    def attend(self, projected: Tensor, bias: Tensor) -> Tensor:
        """Weighted values of all heads (B, N, n_a*d_a) for what `project` gave and bias (n_a, N, N)."""
        scale = 1 / math.sqrt(self.head_width)
        if self.kind == "query-key" and has_cpu_attention(projected):
            return cpu_attention(projected, bias, self.num_heads, scale)
        parts = self.split(projected)
        value = parts[-1]
        if self.kind == "distance-only":
            # The weights do not depend on the input: one softmax and one product for the whole batch.
            columns = rearrange(value, "b m n a -> m n (b a)")
            weights = bias.softmax(-1).to(value.dtype)
            return rearrange(weights @ columns, "m n (b a) -> b n (m a)", b=len(value))
        if self.kind == "key-only":
            scores = torch.einsum("ma,bmna->bmn", self.u * scale, parts[0])[:, :, None, :] + bias
            by_head = scores.softmax(-1).to(value.dtype) @ value
        else:
            by_head = F.scaled_dot_product_attention(parts[0], parts[1], value, attn_mask=bias.to(value.dtype))
        return rearrange(by_head, "b m n a -> b n (m a)")


class Block(nn.Module):
    """Pre-norm attention and feed-forward, both with a skip. The feed-forward's hidden width is the width."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        width = attention.out.out_features
        self.norm1 = nn.LayerNorm(width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, acting: Tensor | None = None) -> Tensor:
        """(B, N, width) of whole blocks -> the same shape.

        Args:
            acting: (B, 1, 4 * width), changes of scale and offset of the inputs of attention and feed-forward.
        """
        if acting is None:
            return self.feed_forward(x + self.attention(self.norm1(x)))
        scale1, offset1, scale2, offset2 = acting.chunk(4, dim=-1)
        x = x + self.attention(self.norm1(x) * (1 + scale1) + offset1)
        change: Tensor = self.linear2(F.relu(self.linear1(self.norm2(x) * (1 + scale2) + offset2)))
        return x + change

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half: x + W2 ReLU(W1 LN(x) + b1) + b2."""
        change: Tensor = self.linear2(F.relu(self.linear1(self.norm2(x))))
        return x + change


class BlockStack(nn.Module):
    """Transformer blocks over a slice, attention within non-overlapping blocks of it.

    Args:
        options: the other arguments of `Attention`.
    """

    def __init__(self, num_layers: int, block: Triple, **options: Any) -> None:
        super().__init__()
        self.block = block
        self.layers = nn.ModuleList(Block(Attention(block=block, **options)) for _ in range(num_layers))

    def forward(self, x: Tensor, slice_shape: Triple, acting: Sequence[Tensor] = ()) -> Tensor:
        """(B, N, width) in raster order of the slice -> the same.

        Args:
            acting: what `Block` takes, one for each layer.
        """
        batch = len(x)
        x = split_blocks(x, slice_shape, self.block)
        for number, layer in enumerate(self.layers):
            x = layer(x, acting[number].repeat_interleave(len(x) // batch, dim=0)) if acting else layer(x)
        return join_blocks(x, slice_shape, self.block, batch)


def split_blocks(x: Tensor, slice_shape: Triple, block: Triple) -> Tensor:
    """(B, t*h*w, width) -> (B * blocks, t_b*h_b*w_b, width), blocks and their pixels in raster order."""
    if slice_shape == block:
        return x
    (t, h, w), (tb, hb, wb) = slice_shape, block
    return rearrange(
        x,
        "b (nt tb nh hb nw wb) d -> (b nt nh nw) (tb hb wb) d",
        nt=t // tb, tb=tb, nh=h // hb, hb=hb, nw=w // wb, wb=wb,
    )  # fmt: skip


def join_blocks(x: Tensor, slice_shape: Triple, block: Triple, batch: int) -> Tensor:
    """The inverse of `split_blocks`."""
    if slice_shape == block:
        return x
    (t, h, w), (tb, hb, wb) = slice_shape, block
    return rearrange(
        x,
        "(b nt nh nw) (tb hb wb) d -> b (nt tb nh hb nw wb) d",
        b=batch, nt=t // tb, tb=tb, nh=h // hb, hb=hb, nw=w // wb, wb=wb,
    )  # fmt: skip
