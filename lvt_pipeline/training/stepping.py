"""Optimizer steps: the learning rate, batches prepared ahead, gradients of all parts and ranks, moving averages."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor, nn

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.training.distributed import Ranks
from lvt_pipeline.training.settings import TrainingSettings
from lvt_pipeline.training.sharding import checkpoint_activations, local_part, shard, whole_tensor
from lvt_pipeline.training.task import StepLoss, Task, step_seed

WSD_DECAY_SHARE = 5  # one step in this many decays unless `decay_steps` is set
PREFETCHED_BATCHES = 2


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Learning rate of a step counted from 1: linear warm-up, then the schedule.

    "constant" stays. "cosine" falls along half a cosine to `min_lr_ratio` at `max_steps`. "wsd" (warm-up, stable,
    decay) stays until the last `decay_steps` and falls linearly in them, so a run can be made longer from any
    checkpoint of its stable part.
    """
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    # The last step still changes the weights a little: both reach their end one step later.
    if settings.schedule == "cosine":
        progress = (step - settings.warmup_steps - 1) / max(1, settings.max_steps - settings.warmup_steps)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        decay_steps = settings.decay_steps or max(1, settings.max_steps // WSD_DECAY_SHARE)
        left = min(1.0, max(0.0, (settings.max_steps - step + 1) / decay_steps))
    return settings.learning_rate * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left)


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer over two groups of parameters: those that decay (two axes or more) and those that do not."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in parameters if value.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
    ]
    rate, betas, eps = settings.learning_rate, settings.betas, settings.eps
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, alpha=settings.alpha, momentum=settings.momentum, eps=eps)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    # The fused form is quicker and rounds otherwise, so float32 keeps the numbers it has always had.
    return kind(groups, lr=rate, betas=betas, eps=eps, fused=settings.precision == "bfloat16")


class BatchLoader:
    """Gives parts of batches in order, and prepares the next ones in a thread meanwhile."""

    def __init__(
        self, make: Callable[[int, range], dict[str, Tensor]], parts: Iterator[tuple[int, range]], device: torch.device
    ) -> None:
        """
        Args:
            make: rows of the batch of a step, on the CPU; called in the thread.
            parts: step and rows of every part to come.
        """
        self._make, self._parts, self._device = make, parts, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lvt-batches")
        self._queue: deque[Future[dict[str, Tensor]]] = deque()

    def __enter__(self) -> BatchLoader:
        for _ in range(PREFETCHED_BATCHES):
            self._request()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _request(self) -> None:
        part = next(self._parts, None)
        if part is not None:
            self._queue.append(self._thread.submit(self._load, *part))

    def _load(self, step: int, rows: range) -> dict[str, Tensor]:
        batch = self._make(step, rows)
        return {name: value.pin_memory() for name, value in batch.items()} if self._device.type == "cuda" else batch

    def next(self) -> tuple[dict[str, Tensor], float]:
        """The next part on the device, and the seconds spent waiting for it."""
        start = time.perf_counter()
        batch = self._queue.popleft().result()
        waited = time.perf_counter() - start
        self._request()
        return {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}, waited


class Stepper:
    """The model of a training with its optimizer and moving average, and how they take a step.

    Attributes:
        model: the weights being trained; sharded under "fsdp".
        average: their moving average, None when the settings ask for none.
        names: of the numbers of a step, in order.
        is_sharded: whether each rank holds its part of the weights only.

    Raises:
        ConfigError: the batch size does not divide among the processes and accumulation steps.
    """

    def __init__(self, task: Task, settings: TrainingSettings, ranks: Ranks) -> None:
        parts = settings.gradient_accumulation_steps * ranks.size
        if settings.batch_size % parts:
            raise ConfigError(
                f"training.batch_size={settings.batch_size} does not divide among {ranks.size} processes and "
                f"gradient_accumulation_steps={settings.gradient_accumulation_steps}"
            )
        self.task, self.settings, self.ranks = task, settings, ranks
        self.model = task.model
        self.is_sharded = settings.parallel == "fsdp" and ranks.size > 1
        self.average = copy.deepcopy(self.model) if settings.ema_decay is not None else None
        # Rank 0 evaluates a sharded model, and samples with it, by giving its weights to this one.
        self.whole = copy.deepcopy(self.model) if self.is_sharded and ranks.rank == 0 else None
        if settings.activation_checkpointing:
            checkpoint_activations(self.model)
        if self.is_sharded:
            for model in (self.model, *([] if self.average is None else [self.average])):
                shard(model, ranks)
        self.optimizer = make_optimizer(self.model, settings)
        self.names = ("loss", *task.metric_names, *(("grad_norm",) if settings.grad_clip is not None else ()))
        self._parameters = [value for value in self.model.parameters() if value.requires_grad]
        self._loss: Callable[[nn.Module, Mapping[str, Tensor]], StepLoss] = (
            torch.compile(task.loss) if settings.compile else task.loss
        )
        self._part_size = settings.batch_size // parts
        self._is_joint = parts > 1

    def parts_after(self, step: int) -> Iterator[tuple[int, range]]:
        """This rank's parts of all the batches after a step: (step, rows)."""
        for number in range(step + 1, self.settings.max_steps + 1):
            for part in range(self.settings.gradient_accumulation_steps):
                start = (part * self.ranks.size + self.ranks.rank) * self._part_size
                yield number, range(start, start + self._part_size)

    def take_step(self, step: int, loader: BatchLoader) -> tuple[Tensor | None, float]:
        """Change the weights by the batch of a step.

        Returns:
            the numbers of `names` as float64 (N,) on the device, None for a batch without a target; and the seconds
            spent waiting for the batch.
        """
        settings = self.settings
        torch.manual_seed(step_seed(settings.seed, step))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(2 + len(self.task.metric_names), dtype=torch.float64, device=self.ranks.device)
        seconds_waited = 0.0
        for _ in range(settings.gradient_accumulation_steps):
            batch, waited = loader.next()
            seconds_waited += waited
            totals += self._backward(batch)
        norm = self._join_parts(totals)
        if norm is None:
            return None, seconds_waited
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        self.optimizer.step()
        self._move_average()
        return torch.cat([totals[1:] / totals[0], norm]), seconds_waited

    def _backward(self, batch: Mapping[str, Tensor]) -> Tensor | float:
        """Add the gradient of a part; returns its weight, loss and metrics, all times its weight."""
        with torch.autocast(
            self.ranks.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16"
        ):
            result = self._loss(self.model, batch)
        if result.loss is None:
            assert not self.is_sharded, "sharded ranks compute every part together"
            return 0.0
        # Parts are summed by weight and divided later, so the gradient is that of the mean over the whole batch.
        (result.loss * result.weight if self._is_joint else result.loss).backward()  # type: ignore[no-untyped-call]
        values = [result.loss.detach(), *(result.metrics[name].detach() for name in self.task.metric_names)]
        return torch.stack([torch.ones_like(values[0]), *values]).double() * result.weight

    def _join_parts(self, totals: Tensor) -> Tensor | None:
        """Make the gradient that of the whole batch; returns its norm (no number without clipping), None if empty."""
        if self.ranks.size > 1:
            self.ranks.sum_(totals)
            if not self.is_sharded:  # then the backward pass has done it
                self._sum_gradients()
        gradients = [value.grad for value in self._parameters if value.grad is not None]
        if not gradients or (self.ranks.size > 1 and totals[0].item() == 0):
            return None
        if self._is_joint:
            for gradient in gradients:
                local_part(gradient).div_(totals[0])
        if self.settings.grad_clip is None:
            return totals.new_zeros(0)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.settings.grad_clip)
        return whole_tensor(norm).double().reshape(1)

    def _sum_gradients(self) -> None:
        """Add up the gradients of ranks that hold all weights, in one message."""
        for value in self._parameters:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        gradients = [value.grad for value in self._parameters if value.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.ranks.sum_(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _move_average(self) -> None:
        if self.average is None:
            return
        assert self.settings.ema_decay is not None
        for average, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            local_part(average).lerp_(local_part(value), 1 - self.settings.ema_decay)
        for copied, buffer in zip(self.average.buffers(), self.model.buffers(), strict=True):
            copied.copy_(buffer)

    def broken_weight(self) -> str:
        """Name of a weight that is not finite in any rank, "" when all are finite."""
        names, values = zip(*self.model.named_parameters(), strict=True)
        are_broken = self.ranks.agree([not bool(local_part(value).isfinite().all()) for value in values])
        return str(names[are_broken.index(True)]) if any(are_broken) else ""
