"""The optimizer of a training and its learning rate at every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.training.settings import TrainingSettings

WSD_DECAY_SHARE = 5  # one step in so many decays when wsd is not told how many


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Learning rate of a step counted from 1: linear warm-up, then what the schedule says.

    "constant" stays. "cosine" falls along half a cosine to `min_lr_ratio` at `max_steps`. "wsd" (warm-up, stable,
    decay) stays until the last `decay_steps` and falls linearly in them, so a run can be made longer from any
    checkpoint of its stable part.
    """
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    # The last step still learns a little: both reach their end one step later.
    if settings.schedule == "cosine":
        progress = (step - settings.warmup_steps - 1) / max(1, settings.max_steps - settings.warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif settings.schedule == "wsd":
        decay_steps = settings.decay_steps or max(1, settings.max_steps // WSD_DECAY_SHARE)
        left = min(1.0, max(0.0, (settings.max_steps - step + 1) / decay_steps))
    else:
        raise ConfigError(f"training.schedule={settings.schedule!r} is not one of constant, cosine, wsd")
    return settings.learning_rate * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left)


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer over two groups of parameters: those that decay (two axes or more) and those that do not."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in parameters if value.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
    ]
    rate, betas, eps = settings.learning_rate, settings.betas, settings.eps
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps)
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=betas, eps=eps)
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, alpha=settings.alpha, momentum=settings.momentum, eps=eps)
    raise ConfigError(f"training.optimizer={settings.optimizer!r} is not one of adamw, adam, rmsprop")
