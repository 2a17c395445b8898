"""Training steps of both networks, as lvt takes them, on frames and codes that are random and stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lvt_pipeline.config import build, merge, read_preset
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE
from lvt_pipeline.training.distributed import Ranks
from lvt_pipeline.training.prior_settings import resolve_settings
from lvt_pipeline.training.prior_task import prior_loss
from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings
from lvt_pipeline.training.stepping import BatchLoader, Stepper
from lvt_pipeline.training.task import StepLoss
from lvt_pipeline.training.vqvae_task import vqvae_loss

Network = Literal["tokenizer", "prior"]
Size = Literal["paper", "tiny"]
PRESETS = {
    ("tokenizer", "paper"): ("vqvae", "bair-vqvae-nc4"),
    ("tokenizer", "tiny"): ("vqvae", "tiny"),
    ("prior", "paper"): ("prior", "single-frame"),
    ("prior", "tiny"): ("prior", "tiny"),
}
FRAME = 64  # pixels of a side
NOTHING: Mapping[str, Any] = {}
STEPS = 1_000_000  # more than any measurement takes


class FixedTask:
    """A network that learns from the same batch in every step. See `training.task.Task`."""

    unit = row_unit = "items"
    score = "loss"

    def __init__(self, network: Network, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.model = model
        self._loss = prior_loss if network == "prior" else vqvae_loss
        self._batch = batch
        self.units_per_step = len(next(iter(batch.values())))
        self.metric_names = tuple(self.loss(model, batch).metrics)

    def batch(self, step: int, rows: range) -> dict[str, Tensor]:
        """The batch."""
        return self._batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
        """As the trainings compute it."""
        return self._loss(model, batch)


def config_of(network: Network, size: Size, is_released: bool = False) -> VQVAEConfig | PriorConfig:
    """The network of a preset; where codes decide, those of the paper.

    Args:
        is_released: without what the paper's released networks do not have.
    """
    tables = read_preset(*PRESETS[network, size])
    if network == "tokenizer":
        tokenizer = build(VQVAERunSettings, tables).model
        return replace(tokenizer, dead_code="none") if is_released else tokenizer
    prior = resolve_settings(build(PriorRunSettings, tables)).model
    return replace(prior, kernel_reach="centred", encoder_position=False) if is_released else prior


def batch_of(network: Network, size: Size, batch_size: int) -> dict[str, Tensor]:
    """Random frames uint8 (B, 64, 64, 3), or codes (B, T, h, w, n_c) and the slice of each clip."""
    generator = torch.Generator().manual_seed(1)
    config = config_of(network, size)
    if isinstance(config, VQVAEConfig):
        return {"frames": torch.randint(256, (batch_size, FRAME, FRAME, 3), generator=generator, dtype=torch.uint8)}
    shape = (batch_size, config.frames, *config.grid, config.num_codebooks)
    codes = torch.randint(config.codebook_size, shape, generator=generator)
    return {"codes": codes, "slices": torch.full((batch_size,), config.frames // 2)}


def lvt_step(
    network: Network, size: Size, batch_size: int, training: Mapping[str, Any] = NOTHING, is_released: bool = False
) -> Callable[[], object]:
    """One step of the training of a preset: loss, gradient, clipping, optimizer, moving average.

    Args:
        training: changes of the preset's table of that name; None unsets.
        is_released: see `config_of`.
    """
    changes = {"training": {"batch_size": batch_size, "max_steps": STEPS, **training}}
    tables = merge(read_preset(*PRESETS[network, size]), changes)
    settings = build(PriorRunSettings if network == "prior" else VQVAERunSettings, tables).training
    config = config_of(network, size, is_released)
    torch.manual_seed(0)
    model: nn.Module = VQVAE(config) if isinstance(config, VQVAEConfig) else Prior(config)
    task = FixedTask(network, model, batch_of(network, size, batch_size))
    stepper = Stepper(task, settings, Ranks(0, 1, torch.device("cpu")))  # type: ignore[arg-type]
    loader = BatchLoader(task.batch, stepper.parts_after(0), torch.device("cpu")).__enter__()
    return lambda: stepper.take_step(1, loader)
