"""What makes the two networks quick on processors: attention that stays in the cache, and packed weights.

Nothing here is needed on other devices, and nothing outside this file knows how it is done.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# The operators torch's own compiler uses for packed weights; they have no public name.
_CAN_PACK: bool = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_reorder_linear_weight"
)


class RowProduct:
    """A linear layer for few rows: x W^T + b, with the weight packed once.

    With a handful of rows a product costs little more than reading the weight, if the processor finds it in the order
    it wants. torch's ordinary product packs it again in every call, which takes up to three times as long. On other
    devices this is the ordinary product.

    Fewer than `rows` rows are filled up: products of other sizes round differently, and a clip's codes must not depend
    on how many others are sampled with it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self._rows = rows
        self._bias = bias
        self._is_packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and _CAN_PACK
        if self._is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        else:
            self._weight = weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = filled_up(x.reshape(-1, x.shape[-1]), self._rows)
        if self._is_packed:
            product = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        else:
            product = F.linear(rows, self._weight, self._bias)
        result: Tensor = product[: x.numel() // x.shape[-1]].reshape(*x.shape[:-1], -1)
        return result


def filled_up(x: Tensor, rows: int) -> Tensor:
    """(N, d) with rows of zeros added up to `rows`."""
    return x if len(x) >= rows else F.pad(x, (0, 0, 0, rows - len(x)))


def has_cpu_attention(x: Tensor) -> bool:
    """Whether `cpu_attention` computes on such tensors."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def cpu_attention(projected: Tensor, bias: Tensor, num_heads: int, scale: float) -> Tensor:
    """softmax(q k^T * scale + bias) v of all heads, (B, N, n_a*d_a).

    Args:
        projected: float32 (B, N, 3*n_a*d_a) on the CPU, queries before keys before values.
        bias: float32 (n_a, N, N).
    """
    mixed: Tensor = _CPUAttention.apply(projected, bias, num_heads, scale)  # type: ignore[no-untyped-call]
    return mixed


class _CPUAttention(torch.autograd.Function):
    """Attention one clip at a time, so that a clip's scores stay in the processor's cache.

    torch has no fused kernel on the CPU for a bias that needs a gradient; its fallback spends most of a training step
    on fresh memory for (B, n_a, N, N) tensors. The scores are computed again in the backward pass instead of kept.
    Queries, keys and values stay in the one tensor that the projection made, and so do their gradients.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, bias: Tensor, num_heads: int, scale: float) -> Tensor:
        ctx.num_heads, ctx.scale = num_heads, scale
        batch, size, width = projected.shape
        mixed = projected.new_empty(batch, size, width // 3)
        weights = torch.empty_like(bias)
        for joined, out in zip(projected, mixed, strict=True):
            q, k, v = _heads(joined, 3, num_heads)
            _heads(out, 1, num_heads)[0].copy_(torch.bmm(_weights(q, k, bias, scale, weights), v))
        ctx.save_for_backward(projected, bias, mixed)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        projected, bias, mixed = ctx.saved_tensors
        to_projected, to_bias = torch.empty_like(projected), torch.zeros_like(bias)
        weights, to_weights = torch.empty_like(bias), torch.empty_like(bias)
        for joined, to_joined, given, made in zip(projected, to_projected, gradient, mixed, strict=True):
            q, k, v = _heads(joined, 3, ctx.num_heads)
            to_q, to_k, to_v = _heads(to_joined, 3, ctx.num_heads)
            (g,), (out,) = _heads(given, 1, ctx.num_heads), _heads(made, 1, ctx.num_heads)
            _weights(q, k, bias, ctx.scale, weights)
            to_v.copy_(torch.bmm(weights.transpose(1, 2), g))
            torch.bmm(g, v.transpose(1, 2), out=to_weights)
            # Of the softmax: ds = p * (dp - sum(dp * p)), and that sum is g . mixed.
            to_weights.sub_((g * out).sum(-1, keepdim=True)).mul_(weights)
            to_bias += to_weights
            to_q.copy_(torch.bmm(to_weights, k).mul_(ctx.scale))
            to_k.copy_(torch.bmm(to_weights.transpose(1, 2), q).mul_(ctx.scale))
        return to_projected, to_bias, None, None


def _heads(joined: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Views (n_a, N, d_a) of the parts of one clip's (N, parts*n_a*d_a)."""
    return joined.view(len(joined), parts, num_heads, -1).permute(1, 2, 0, 3).unbind(0)


def _weights(query: Tensor, key: Tensor, bias: Tensor, scale: float, out: Tensor) -> Tensor:
    """Attention weights (n_a, n, N) of one clip, written to `out`."""
    torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale, out=out)
    return torch.softmax(out, -1, out=out)
