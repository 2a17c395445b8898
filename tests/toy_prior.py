"""A toy prior for tests of the networks and of the sampler."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior

TOY = PriorConfig(
    frames=4,
    grid=(4, 4),
    num_codebooks=3,
    codebook_size=11,
    subscale=(4, 1, 1),
    width=24,
    head_width=8,
    num_heads=2,
    embedding_width=12,
    encoder_layers=1,
    decoder_layers=2,
)
ORDERS: dict[str, dict[str, Any]] = {
    "single-frame": {"subscale": (4, 1, 1), "kernel": (7, 1, 1)},
    "spatiotemporal": {"subscale": (2, 2, 2), "kernel": (5, 3, 3)},
    "spatial": {"subscale": (1, 2, 2), "kernel": (1, 3, 3)},
    "spatial-blocks": {"subscale": (1, 2, 2), "kernel": (1, 3, 3), "block": (2, 2, 1)},
}


def make_prior(**settings: Any) -> Prior:
    """A toy prior with opinions: every parameter away from its start."""
    torch.manual_seed(0)
    model = Prior(dataclasses.replace(TOY, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_codes(batch: int, model: Prior, frames: int | None = None, seed: int = 1) -> Tensor:
    """int64 (B, frames, h, w, n_c) for a model; unset: its own frames."""
    config = model.config
    shape = (batch, frames or config.frames, *config.grid, config.num_codebooks)
    return torch.randint(0, config.codebook_size, shape, generator=torch.Generator().manual_seed(seed))
