"""How many numbers a network holds."""

from __future__ import annotations

from torch import nn


def num_parameters(model: nn.Module) -> int:
    """Parameters of a model or of a part of it.

    The code vectors of codebooks count although no gradient reaches them; the statistics that they follow do not.
    """
    trained = sum(parameter.numel() for parameter in model.parameters())
    vectors = sum(value.numel() for name, value in model.named_buffers() if name.rpartition(".")[2] == "table")
    return trained + vectors
