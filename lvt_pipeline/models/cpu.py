"""What makes the two networks quick on processors: attention that stays in the cache, and packed weights.

Nothing here is needed on other devices, and nothing outside this file knows how it is done.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lvt_pipeline.errors import ConfigError

Weights = Literal["float32", "bfloat16", "int8"]

# The operators torch's own compiler uses for packed weights; they have no public name.
_CAN_PACK: bool = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_reorder_linear_weight"
)
_FEWEST_ROWS = 4
_ZERO = 128  # bytes of activations count from here
_MOST_KEYS = 512  # that torch's attention takes at once; sums over more would depend on which keys come first


class RowProduct:
    """A linear layer for few rows, with the weight packed once: x W^T + b, perhaps ReLU.

    With a handful of rows a product costs little more than reading the weight, if the processor finds it in the order
    it wants. torch's ordinary product packs it again in every call, which takes up to three times as long. The packed
    product gives every row the same bits whatever the number of rows. Where nothing is packed (GPUs, other processors),
    fewer than `rows` rows are filled up, so that at least groups of one size agree.

    Args:
        weights: what the weight is kept as. "bfloat16" also rounds x. "int8" has one scale per output, x one per row.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rows: int, weights: Weights = "float32", relu: bool = False
    ) -> None:
        self._rows, self._relu = rows, relu
        self._dtype = torch.float32 if weights == "float32" else torch.bfloat16
        self._scale: Tensor | None = None
        self._is_packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and _CAN_PACK
        if weights == "int8":
            self._scale = weight.abs().amax(1).clamp(min=1e-12) / 127
            self._zeros = torch.zeros(len(weight), dtype=torch.int32)
            levels = (weight / self._scale[:, None]).round().to(torch.int8)
            self._weight = torch.ops.onednn.qlinear_prepack(levels, [rows, weight.shape[1]])
            self._bias = bias
            return
        self._bias = None if bias is None else bias.to(self._dtype)
        weight = weight.to(self._dtype).contiguous()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if self._is_packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out), float32 or bfloat16 as the weight; of "int8" float32."""
        if self._scale is not None:
            return self._in_bytes(x.float())
        x = x.to(self._dtype)
        if self._is_packed:
            after = "relu" if self._relu else "none"
            packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, after, [], "")
            return packed
        filled = F.pad(x, (0, 0, 0, max(0, self._rows - len(x))))
        product = F.linear(filled, self._weight, self._bias)[: len(x)]
        return product.relu_() if self._relu else product

    def _in_bytes(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(1, keepdim=True).div_(127).clamp_(min=1e-12)
        levels = (x / scale).add_(_ZERO + 0.5).to(torch.uint8)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, _ZERO, self._weight, self._scale, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        product.mul_(scale)
        if self._bias is not None:
            product.add_(self._bias)
        return product.relu_() if self._relu else product


def few_row_bmm(a: Tensor, b: Tensor) -> Tensor:
    """torch.bmm whose rows have the same bits whatever their number: with fewer than four, it would round otherwise."""
    rows = a.shape[1]
    return torch.bmm(F.pad(a, (0, 0, 0, max(0, _FEWEST_ROWS - rows))), b)[:, :rows]


def has_bfloat16_products(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32: processors without them convert and convert back."""
    is_quick: bool = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return is_quick


def encoder_precision(weights: Weights, device: torch.device) -> torch.autocast:
    """In which precision the encoder computes when the decoder's products use these weights."""
    is_narrow = weights != "float32" and has_bfloat16_products(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=is_narrow)


def has_few_row_attention(num_keys: int, device: torch.device) -> bool:
    """Whether `few_row_attention` is quick for that number of keys."""
    return device.type == "cpu" and has_bfloat16_products(device) and num_keys <= _MOST_KEYS


def few_row_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v for few queries (B, n_a, W, d_a), whose rows have the same bits whatever their number.

    Args:
        query, key, value: bfloat16. Keys and values are read once, in order, which bounds the time.
        bias: float32 (B, n_a, W, N).
    """
    rows = query.shape[2]
    if rows == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    # Each query on its own, as if it were a clip: with several, torch adds the products in another order.
    parts = []
    for q, k, v, b in zip(query.transpose(1, 2), key, value, bias.transpose(1, 2), strict=True):
        k, v = (kept.expand(rows, -1, -1, -1) for kept in (k, v))
        parts.append(F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=b[:, :, None], scale=1.0))
    return torch.stack(parts)[:, :, :, 0].transpose(1, 2)


def require_weights(weights: Weights, device: torch.device) -> None:
    """Refuse a kind of weights that a device has no products for.

    Raises:
        ConfigError: int8 anywhere but on a CPU with oneDNN.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights={weights!r} is not one of {', '.join(get_args(Weights))}")
    if weights == "int8" and not (device.type == "cpu" and _CAN_PACK):
        raise ConfigError(f"weights=int8 needs an x86 CPU, found device {device}; use bfloat16 or float32")


def has_cpu_attention(x: Tensor) -> bool:
    """Whether `cpu_attention` computes on such tensors."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def cpu_attention(projected: Tensor, bias: Tensor, num_heads: int, scale: float) -> Tensor:
    """softmax(q k^T * scale + bias) v of all heads, (B, N, n_a*d_a).

    Args:
        projected: float32 or bfloat16 (B, N, 3*n_a*d_a) on the CPU, queries before keys before values. Products are of
            its dtype, the softmax is float32.
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
            _heads(out, 1, num_heads)[0].copy_(torch.bmm(_weights(q, k, bias, scale, weights).to(v.dtype), v))
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
            to_v.copy_(torch.bmm(weights.to(g.dtype).transpose(1, 2), g))
            to_weights.copy_(torch.bmm(g, v.transpose(1, 2)))
            # Of the softmax: ds = p * (dp - sum(dp * p)), and that sum is g . mixed.
            to_weights.sub_((g * out).sum(-1, keepdim=True)).mul_(weights)
            to_bias += to_weights
            to_scores = to_weights.to(g.dtype)
            to_q.copy_(torch.bmm(to_scores, k).mul_(ctx.scale))
            to_k.copy_(torch.bmm(to_scores.transpose(1, 2), q).mul_(ctx.scale))
        return to_projected, to_bias, None, None


def _heads(joined: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Views (n_a, N, d_a) of the parts of one clip's (N, parts*n_a*d_a)."""
    return joined.view(len(joined), parts, num_heads, -1).permute(1, 2, 0, 3).unbind(0)


def _weights(query: Tensor, key: Tensor, bias: Tensor, scale: float, out: Tensor) -> Tensor:
    """Attention weights (n_a, n, N) of one clip, float32, written to `out`."""
    if query.dtype == torch.float32:
        torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale, out=out)
    else:
        torch.add(bias, torch.bmm(query.contiguous(), key.contiguous().transpose(1, 2)), alpha=scale, out=out)
    return torch.softmax(out, -1, out=out)
