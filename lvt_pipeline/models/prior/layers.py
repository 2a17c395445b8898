"""Layers with the released model's start."""

from __future__ import annotations

from torch import nn


def linear(in_width: int, out_width: int, bias: bool = True) -> nn.Linear:
    """A linear layer with the released model's start: Xavier-uniform weight, zero bias."""
    layer = nn.Linear(in_width, out_width, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
