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
_BYTES_AT_ONCE = 64  # inputs of a product of bytes come in multiples of this, because torch reads whole vectors
_MOST_KEYS = 512  # that torch's attention takes at once; sums over more would depend on which keys come first

_LARGE_KEYS = 2**17  # numbers; the paper's layers have 2**18


class RowProduct:
    """A linear layer for few rows, with the weight arranged once: x W^T + b, perhaps ReLU.

    With a handful of rows a product costs little more than reading the weight, if the processor finds it in the order
    it wants. torch's ordinary product packs it again in every call, which takes up to three times as long. The packed
    product gives every row the same bits whatever the number of rows, and so does the one of bytes. Where nothing is
    packed (GPUs, other processors), fewer than `rows` rows are filled up, so that at least groups of one size agree.

    Args:
        weights: what the weight is kept as. "bfloat16" also rounds x, but on a CPU without products of bfloat16 the
            rounded weight is kept as float32. "int8" has one scale per output, and rounds x to bfloat16.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rows: int, weights: Weights = "float32", relu: bool = False
    ) -> None:
        self._rows, self._relu = rows, relu
        self._dtype = torch.float32 if weights == "float32" else torch.bfloat16
        if weights == "bfloat16" and weight.device.type == "cpu" and not packs_bfloat16():
            weight, self._dtype = weight.bfloat16().float(), torch.float32
        self._bias = None if bias is None else bias.to(self._dtype)
        self._scale: Tensor | None = None
        if weights == "int8":
            self._scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()
            levels = (weight / self._scale[:, None]).round().clamp(-128, 127).to(torch.int8)
            self._weight = F.pad(levels, (0, -weight.shape[1] % _BYTES_AT_ONCE)).contiguous()
            return
        self._is_packed = weight.device.type == "cpu" and _CAN_PACK
        self._weight = weight.to(self._dtype).contiguous()
        if self._is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out), float32 or bfloat16."""
        x = x.to(self._dtype)
        if self._scale is not None:
            product = self._of_bytes(x, self._scale)
        elif self._is_packed:
            after = "relu" if self._relu else "none"
            packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, after, [], "")
            return packed
        else:
            filled = F.pad(x, (0, 0, 0, max(0, self._rows - len(x))))
            product = F.linear(filled, self._weight, self._bias)[: len(x)]
        return product.relu_() if self._relu else product

    def _of_bytes(self, x: Tensor, scale: Tensor) -> Tensor:
        missing = self._weight.shape[1] - x.shape[1]
        x = F.pad(x, (0, missing)) if missing else x.contiguous()
        product = torch._weight_int8pack_mm(x, self._weight, scale)
        return product if self._bias is None else product.add_(self._bias)


def packs_bfloat16() -> bool:
    """Whether weights of bfloat16 are kept as such on this CPU, and not as float32."""
    return bool(_CAN_PACK and torch.ops.mkldnn._is_mkldnn_bf16_supported())


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


def has_few_row_attention(num_keys: int, width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `few_row_attention` is quicker than products of several queries, for keys (N, width) of all heads.

    In float32 it is where reading the keys takes longer than starting a product for each query.
    """
    is_large = dtype == torch.bfloat16 or num_keys * width >= _LARGE_KEYS
    return device.type == "cpu" and num_keys <= _MOST_KEYS and is_large


def few_row_attention(queries: Tensor, cache: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v for few queries, one by one: with several, torch would add products in another order.

    Args:
        queries: bfloat16 or float32 (S * W, n_a * d_a).
        cache: keys and values of the same dtype, (2, S * n_a, N, d_a).
        bias: float32 (S, n_a, W, N).

    Returns:
        (S * W, n_a * d_a), whose rows have the same bits whatever W is.
    """
    return (_float_attention if queries.dtype == torch.float32 else _half_attention)(queries, cache, bias)


def _float_attention(queries: Tensor, cache: Tensor, bias: Tensor) -> Tensor:
    """For each position of all clips, two products that read keys and values once and in order."""
    streams, _, window, _ = bias.shape
    parts = []
    for query, b in zip(queries.view(streams, window, -1).unbind(1), bias.unbind(2), strict=True):
        scores = torch.bmm(cache[0], query.reshape(cache.shape[1], 1, -1).transpose(1, 2)).transpose(1, 2)
        weights = scores.add_(b.reshape(scores.shape)).softmax(-1)
        parts.append(torch.bmm(weights, cache[1]).view(streams, -1))
    return torch.stack(parts, 1).flatten(0, 1) if window > 1 else parts[0]


def _half_attention(queries: Tensor, cache: Tensor, bias: Tensor) -> Tensor:
    """torch's fused operation, once for all clips, or for each clip with its positions as if they were clips."""
    streams, heads, window, _ = bias.shape
    query = queries.view(streams, window, heads, 1, -1)
    keys, values = cache.view(2, streams, heads, *cache.shape[2:])
    if window == 1:
        mixed = F.scaled_dot_product_attention(query[:, 0], keys, values, attn_mask=bias, scale=1.0)
        return mixed.reshape(queries.shape)
    parts = []
    for q, k, v, b in zip(query, keys, values, bias.transpose(1, 2), strict=True):
        k, v = (kept.expand(window, -1, -1, -1) for kept in (k, v))
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=b[:, :, None], scale=1.0))
    return torch.stack(parts).reshape(queries.shape)


def require_weights(weights: Weights, device: torch.device) -> None:
    """Refuse a kind of weights that a device has no products for.

    Raises:
        ConfigError: int8 anywhere but on a CPU.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights={weights!r} is not one of {', '.join(get_args(Weights))}")
    if weights == "int8" and device.type != "cpu":
        raise ConfigError(f"weights=int8 needs a CPU, found device {device}; use bfloat16 or float32")


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
