"""The training loop that both stages share: a run that stops, goes on, and gives what never stopping gives.

A `Task` knows its model, its batches and its loss; `train` does the rest: optimizer, schedule, accumulation, several
workers, checkpoints, metrics, signals. Everything random comes from (seed, step): the loop reseeds torch before every
step, and a task draws its batches from a generator of (seed, step) alone. So a run that resumes needs no random state,
and 2N steps equal N steps, a resume, and N steps, bit for bit on a CPU (same number of threads).
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ConfigError, TrainingError
from lvt_pipeline.interrupts import StopRequest, interrupt_requested, stop_requested
from lvt_pipeline.progress import SILENT, Bar, Progress
from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME, load_state, load_weights, verify_checkpoint
from lvt_pipeline.runs.directory import RunDirectory
from lvt_pipeline.training.activation_checkpointing import checkpoint_activations
from lvt_pipeline.training.batch_loader import BatchLoader
from lvt_pipeline.training.breakdown import LossWatch, keep_breakdown
from lvt_pipeline.training.distributed import Workers
from lvt_pipeline.training.meters import Averages, Clock, memory_bytes
from lvt_pipeline.training.optimizers import learning_rate_at, make_optimizer
from lvt_pipeline.training.settings import TrainingSettings
from lvt_pipeline.training.sharding import (
    load_whole_optimizer_state,
    load_whole_weights,
    local_part,
    shard,
    whole_optimizer_state,
    whole_tensor,
    whole_weights,
)
from lvt_pipeline.training.trackers import Tracker, open_trackers
from lvt_pipeline.video.pictures import png_bytes

NAMED_CLIPS = 8  # clips of a bad batch that an error names


class StepLoss(NamedTuple):
    """What one part of a batch says.

    Attributes:
        loss: scalar mean to minimise; None when the part holds nothing to learn from.
        weight: number of items the mean is over, so that parts add up to the mean over the whole batch.
        metrics: further scalar means over the same items, named as in `Task.metric_names`.
    """

    loss: Tensor | None
    weight: float
    metrics: Mapping[str, Tensor]


class Task(Protocol):
    """What is trained, on what.

    Attributes:
        model: on the device it is trained on, or on the CPU if it is to be sharded.
        metric_names: what `loss` reports beside the loss.
        unit: what speed is counted in, such as "codes".
        units_per_step: how many of them a whole step handles.
        row_unit: what one row of a batch is, such as "windows".
        score: the evaluation metric that decides which checkpoint is best; lower is better.
    """

    model: nn.Module
    metric_names: tuple[str, ...]
    unit: str
    units_per_step: int
    row_unit: str
    score: str

    def batch(self, step: int, rows: range) -> dict[str, Tensor]:
        """Rows of the batch of a step (counted from 1), on the CPU. Depends on the step alone; called in a thread."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
        """Loss of some rows, already on the device."""

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Validation metrics as plain data, {} when there is nothing to validate on. The model is in eval mode."""

    def remember(self, evaluation: Mapping[str, Any]) -> None:
        """What the last evaluation found before the training was interrupted."""

    def picture(self, model: nn.Module) -> NDArray[np.uint8] | None:
        """What the model does now, uint8 (H, W, 3), if there is something to see. The model is in eval mode."""

    def batch_clips(self, step: int) -> list[str]:
        """Ids of the clips in the batch of a step, for error messages."""


def step_seed(seed: int, step: int) -> int:
    """A number below 2**63 for everything random in a step; steps and seeds do not resemble each other."""
    digest = hashlib.sha256(f"lvt step {seed} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block with torch's generators set by `seed`, and give the caller's random state back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def is_timing(name: str) -> bool:
    """Whether a field of a metrics line tells about speed or memory, so that it differs between equal runs."""
    return name in ("seconds", "data_wait_share", "memory_bytes") or name.endswith("_per_second")


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes:
        steps: steps taken, over all the times the run was resumed.
        seconds: wall time of those, in seconds.
        evaluation: metrics of the last evaluation, {} when there was nothing to validate on.
        weights: tensors by name for each weights file; of a sharded model on the CPU, and in worker 0 only.
        is_early: whether `patience` ended it before `max_steps`.
    """

    steps: int
    seconds: float
    evaluation: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    is_early: bool = False

    def counts(self) -> dict[str, Any]:
        """What every record of a run says about its training."""
        return {"steps": self.steps, **({"stopped_early": True} if self.is_early else {})}


def train(
    task: Task,
    settings: TrainingSettings,
    run: RunDirectory,
    workers: Workers,
    *,
    max_seconds: float | None = None,
    track: Sequence[str] = (),
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train until `max_steps` or until `patience` is at its end.

    It goes on from the latest checkpoint of the run if there is one.

    Args:
        run: an open run directory. Worker 0 writes to it, the others read their checkpoint from it.
        max_seconds: save and stop after this time, as if a signal had asked.
        track: where lines of the log go as well, see `trackers.open_trackers`.

    Raises:
        ConfigError: something of `track` is not installed.
        Stopped: a signal or the time limit asked; the step is saved.
        KeyboardInterrupt: Ctrl-C; the step is saved.
        TrainingError: the loss or the weights are not finite any more, or the loss has exploded.
        CheckpointError: the checkpoint to go on from is damaged.
    """
    with (
        seeded(settings.seed, workers.device),
        _determinism(settings.deterministic),
        stop_requested() as stop,
        interrupt_requested() as interrupt,
    ):
        loop = _Loop(task, settings, run, workers, progress)
        loop.restore()
        names = track if run.is_writer else ()
        identity = f"{run.path.absolute()} {run.started}"
        with open_trackers(names, run.path, loop.step, to_plain(settings), identity) as loop.trackers:
            return loop.run_steps(stop, interrupt, max_seconds)


@contextmanager
def _determinism(is_wanted: bool) -> Iterator[None]:
    """Only algorithms that give the same bits every time; torch raises where it has none."""
    if not is_wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it before its first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


class _Loop:
    """One training under way: what changes from step to step."""

    def __init__(
        self, task: Task, settings: TrainingSettings, run: RunDirectory, workers: Workers, progress: Progress
    ) -> None:
        parts = settings.gradient_accumulation_steps * workers.size
        if settings.batch_size % parts:
            raise ConfigError(
                f"training.batch_size={settings.batch_size} does not divide among {workers.size} workers and "
                f"gradient_accumulation_steps={settings.gradient_accumulation_steps}"
            )
        self.task, self.settings, self.run, self.workers, self.progress = task, settings, run, workers, progress
        self.model = task.model
        self.is_sharded = settings.parallel == "fsdp" and workers.size > 1
        self.average = copy.deepcopy(self.model) if settings.ema_decay is not None else None
        # Worker 0 looks at a sharded model, and draws with it, by giving its weights to this one.
        self.whole = copy.deepcopy(self.model) if self.is_sharded and workers.rank == 0 else None
        if settings.activation_checkpointing:
            checkpoint_activations(self.model)
        if self.is_sharded:
            for model in (self.model, *([] if self.average is None else [self.average])):
                shard(model, workers)
        self.parameters = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = make_optimizer(self.model, settings)
        self.loss: Callable[[nn.Module, Mapping[str, Tensor]], StepLoss] = (
            torch.compile(task.loss) if settings.compile else task.loss
        )
        self.names = ("loss", *task.metric_names, *(("grad_norm",) if settings.grad_clip is not None else ()))
        self.part_size = settings.batch_size // parts
        self.is_joint = parts > 1
        self.step = 0
        self.saved_step = -1
        self.window = Averages()
        self.pending: list[tuple[int, Tensor]] = []  # numbers still on the device
        self.clock = Clock()
        self.earlier_seconds = 0.0
        self.began = time.perf_counter()
        self.evaluation: dict[str, Any] = {}
        self.evaluated_step = -1
        self.best: dict[str, Any] | None = None
        self.watch = LossWatch(settings.explosion_factor)
        self.lowest_score: float | None = None
        self.num_worse = 0  # evaluations since the lowest score
        self.is_over = False  # patience is at its end
        self.shown: dict[str, Any] = {}  # beside the bar
        self.trackers: list[Tracker] = []

    @property
    def seconds(self) -> float:
        """Wall time of this training, over all the times it was resumed."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def restore(self) -> None:
        """Go back to the latest checkpoint, if there is one."""
        checkpoint = self.run.latest_checkpoint()
        if checkpoint is None:
            return
        verify_checkpoint(checkpoint)
        device = "cpu" if self.is_sharded else str(self.workers.device)
        load_whole_weights(self.model, load_weights(checkpoint, MODEL_NAME, device))
        if self.average is not None:
            load_whole_weights(self.average, load_weights(checkpoint, EMA_NAME, device))
        state = load_state(checkpoint)
        fresh = [{**group} for group in self.optimizer.param_groups]
        load_whole_optimizer_state(self.optimizer, state["optimizer"])
        for group, wanted in zip(self.optimizer.param_groups, fresh, strict=True):
            # The settings decide, which may have been changed on purpose; the checkpoint holds those of before.
            group.update({name: value for name, value in wanted.items() if name != "params"})
        self.step = self.saved_step = state["step"]
        self.window = Averages(state["window"]["sums"], state["window"]["steps"])
        self.earlier_seconds = state["seconds"]
        self.evaluation, self.best = state["evaluation"], state["best"]
        self.task.remember(self.evaluation)
        if "watch" in state:  # checkpoints of earlier versions have none
            self.watch.restore(state["watch"])
            self.lowest_score, self.num_worse = state["lowest_score"], state["num_worse"]
        self.is_over = self._is_patience_over()
        if self.step < self.settings.max_steps:
            self.progress.say(f"going on from step {self.step} of {self.settings.max_steps} in {self.run.path}")

    def run_steps(self, stop: StopRequest, interrupt: StopRequest, max_seconds: float | None) -> TrainingResult:
        """Take the steps that are left."""
        settings = self.settings
        with (
            BatchLoader(self.task.batch, self._parts(), self.workers.device) as loader,
            self.progress.bar("train", settings.max_steps, "step", done=self.step) as bar,
        ):
            while self.step < settings.max_steps and not self.is_over:
                if max_seconds is not None and time.perf_counter() - self.began >= max_seconds and not stop:
                    stop.signal_name = "the time limit"
                self._stop_if_asked(stop, interrupt)
                self._take_step(loader)
                self._look_back(bar)
            is_early = self.step < settings.max_steps
            if is_early:
                self._end_early()
        return TrainingResult(self.step, self.seconds, self.evaluation, self._weights(), is_early)

    def _parts(self) -> Iterator[tuple[int, range]]:
        """This worker's parts of all the batches to come: (step, rows)."""
        for step in range(self.step + 1, self.settings.max_steps + 1):
            for part in range(self.settings.gradient_accumulation_steps):
                start = (part * self.workers.size + self.workers.rank) * self.part_size
                yield step, range(start, start + self.part_size)

    def _take_step(self, loader: BatchLoader) -> None:
        settings, step = self.settings, self.step + 1
        torch.manual_seed(step_seed(settings.seed, step))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(2 + len(self.task.metric_names), dtype=torch.float64, device=self.workers.device)
        for _ in range(settings.gradient_accumulation_steps):
            batch, waited = loader.next()
            self.clock.waiting += waited
            with torch.autocast(
                self.workers.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16"
            ):
                result = self.loss(self.model, batch)
            if result.loss is None:
                assert not self.is_sharded, "sharded workers compute every part together"
                continue
            # Parts are summed by weight and divided below, so the gradient is that of the mean over the whole batch.
            (result.loss * result.weight if self.is_joint else result.loss).backward()  # type: ignore[no-untyped-call]
            values = [result.loss.detach(), *(result.metrics[name].detach() for name in self.task.metric_names)]
            totals += torch.stack([torch.ones_like(values[0]), *values]).double() * result.weight
        norm = self._join_parts(totals)
        self.step = step
        self.clock.steps += 1
        if norm is None:
            return  # nothing in the batch to learn from
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        self.optimizer.step()
        self._move_average()
        self.pending.append((step, torch.cat([totals[1:] / totals[0], norm])))
        if self.workers.device.type == "cpu":
            self._collect()

    def _join_parts(self, totals: Tensor) -> Tensor | None:
        """Make the gradient that of the whole batch; returns its norm (no number without clipping), None if empty."""
        if self.workers.size > 1:
            self.workers.sum_(totals)
            if not self.is_sharded:  # then the backward pass has done it
                self._sum_gradients()
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        if not gradients or (self.workers.size > 1 and totals[0].item() == 0):
            return None
        if self.is_joint:
            for gradient in gradients:
                local_part(gradient).div_(totals[0])
        if self.settings.grad_clip is None:
            return totals.new_zeros(0)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip)
        return whole_tensor(norm).double().reshape(1)

    def _sum_gradients(self) -> None:
        """Add up the gradients of workers that hold all weights, in one message."""
        for value in self.parameters:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.workers.sum_(flat)
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

    def _collect(self) -> None:
        """Bring the numbers of the last steps from the device, and stop if one is not finite.

        On a GPU this happens only where a line is written or a step saved: asking after every step would make the
        device wait.
        """
        for step, values in self.pending:
            numbers = dict(zip(self.names, values.tolist(), strict=True))
            bad = next((name for name, number in numbers.items() if not math.isfinite(number)), None)
            if bad is not None:
                self._fail(f"{bad} is {numbers[bad]} at step {step}", step)
            wrong = self.watch.add(numbers["loss"])
            if wrong:
                self._fail(f"{wrong} at step {step}", step)
            self.window.add(numbers)
        self.pending = []

    def _fail(self, what: str, step: int) -> None:
        clips = self.task.batch_clips(step)
        named = ", ".join(clips[:NAMED_CLIPS]) + (
            f" and {len(clips) - NAMED_CLIPS} more" if clips[NAMED_CLIPS:] else ""
        )
        kept = f"step {self.saved_step} is saved in {self.run.path}" if self.saved_step > 0 else "no step was saved yet"
        self.run.set_status("failed", max(self.saved_step, 0), self.settings.max_steps)
        facts = {"what": what, "step": step, "weights_after_step": self.step, "clips": clips}
        looked_at = ""
        weights = self._weights()
        if self.run.is_writer:
            batch = self.task.batch(step, range(self.settings.batch_size))
            path = keep_breakdown(self.run.path, facts, weights, batch)
            looked_at = f" Its batch and the weights after step {self.step} are in {path} to look at."
        raise TrainingError(
            f"training broke down: {what}. Its batch holds {named}.{looked_at} {kept[0].upper()}{kept[1:]}; "
            "lower training.learning_rate or set training.grad_clip, and train with --overwrite"
        )

    def _look_back(self, bar: Bar) -> None:
        """Write, evaluate, draw and save, whichever is due after this step."""
        settings, step = self.settings, self.step
        is_last = step == settings.max_steps
        if step % settings.log_every == 0 or is_last:
            self._collect()
            self._log(is_scheduled=step % settings.log_every == 0)
        elif self.workers.device.type == "cpu" and self.window.steps:
            self.shown |= {"loss": self.window.means()["loss"]}
        bar.advance(1, **self.shown)
        with self.clock.paused():
            is_best = False
            if step % settings.eval_every == 0 or is_last:
                is_best = self._evaluate(is_scheduled=step % settings.eval_every == 0)
            if step % settings.picture_every == 0 or is_last:
                self._draw()
            if step % settings.checkpoint_every == 0 or is_best or is_last:
                self._save("running")

    def _log(self, is_scheduled: bool) -> None:
        if not self.window.steps:
            return
        means = self.window.means()
        line: dict[str, Any] = {"step": self.step, "split": "train", **means}
        line |= {"learning_rate": learning_rate_at(self.step, self.settings), "seconds": round(self.seconds, 3)}
        rows, device = self.task.row_unit, self.workers.device
        speed = self.clock.facts({self.task.unit: self.task.units_per_step, rows: self.settings.batch_size})
        line |= {**speed, "memory_bytes": memory_bytes(device)}
        self._tell(line, is_scheduled)
        self.shown = {
            **{name: means[name] for name in ("loss", "bits_per_dim") if name in means},
            f"{rows}/s": speed[f"{rows}_per_second"],
            "data wait": f"{speed['data_wait_share']:.1%}",
            "memory": f"{line['memory_bytes'] / 2**20:,.0f} MiB",
        }
        if is_scheduled:
            self.window = Averages()
        self.clock.restart()

    def _tell(self, line: dict[str, Any], is_scheduled: bool) -> None:
        """Write a line of metrics."""
        # A line that only the end of the run caused is marked: it goes, and its window stays open, if the run grows.
        self.run.log(line if is_scheduled else {**line, "final": True})
        for tracker in self.trackers:
            tracker.log(line)

    @contextmanager
    def _shown(self) -> Iterator[nn.Module | None]:
        """The model to look at, whole and in eval mode, in worker 0; None in the others."""
        model = self.model if self.average is None else self.average
        if self.is_sharded:
            weights = whole_weights(model, is_kept=self.workers.rank == 0)
            if self.whole is None:
                yield None
                return
            self.whole.load_state_dict(weights)
            del weights
            model = self.whole.to(self.workers.device)
        model.eval()
        try:
            with torch.no_grad():
                yield model if self.workers.rank == 0 else None
        finally:
            if self.whole is not None:
                self.whole.cpu()  # the device has no room for it while it trains

    def _evaluate(self, is_scheduled: bool) -> bool:
        """Measure the model; whether its score is the best so far."""
        is_best = False
        with self._shown() as model:
            if model is not None:
                self.evaluation = self.task.evaluate(model)
        if self.workers.rank == 0:
            if self.evaluation:
                line = {"step": self.step, "split": "val", **self.evaluation, "seconds": round(self.seconds, 3)}
                self._tell(line, is_scheduled)
            self.evaluated_step = self.step
            score = self.evaluation.get(self.task.score)
            is_best = score is not None and (self.best is None or score < self.best["value"])
            if is_scheduled and score is not None:
                is_better = self.lowest_score is None or score < self.lowest_score
                self.lowest_score = score if is_better else self.lowest_score
                self.num_worse = 0 if is_better else self.num_worse + 1
        # Worker 0 knows; the others wait for it here.
        self.is_over, is_best = self.workers.agree([self._is_patience_over(), is_best])
        return is_best

    def _is_patience_over(self) -> bool:
        return self.settings.patience is not None and self.num_worse >= self.settings.patience

    def _end_early(self) -> None:
        """Leave a run that patience has ended as one that has come to its last step."""
        self.progress.say(
            f"{self.task.score} has not become better in {self.settings.patience} evaluations: "
            f"the training ends at step {self.step} of {self.settings.max_steps}"
        )
        self._collect()
        self._log(is_scheduled=False)
        self._draw()
        self._save("running")

    def _draw(self) -> None:
        with self._shown() as model:
            picture = self.task.picture(model) if model is not None else None
        if picture is not None:
            self.run.write_picture(self.step, png_bytes(picture))

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights to save, by file; of sharded ones, worker 0 gets them and the others have no tensors."""
        models = {MODEL_NAME: self.model, **({} if self.average is None else {EMA_NAME: self.average})}
        return {name: whole_weights(model, is_kept=self._keeps_whole) for name, model in models.items()}

    @property
    def _keeps_whole(self) -> bool:
        return self.workers.rank == 0 or not self.is_sharded

    def _save(self, status: str) -> None:
        self._collect()
        if self.saved_step != self.step:
            names, values = zip(*self.model.named_parameters(), strict=True)
            are_broken = self.workers.agree([not bool(local_part(value).isfinite().all()) for value in values])
            if any(are_broken):
                broken = names[are_broken.index(True)]
                self._fail(f"the weights of {broken} are not finite after step {self.step}", self.step)
            score = self.evaluation.get(self.task.score)
            is_scored = self.evaluated_step == self.step and score is not None
            if is_scored and (self.best is None or score < self.best["value"]):  # as `_evaluate` has found
                self.best = {"step": self.step, "score": self.task.score, "value": score}
            state = {
                "step": self.step,
                "optimizer": whole_optimizer_state(self.optimizer, self._keeps_whole),
                "window": {"sums": self.window.sums, "steps": self.window.steps},
                "seconds": self.seconds,
                "evaluation": self.evaluation,
                "best": self.best,
                "watch": self.watch.state(),
                "lowest_score": self.lowest_score,
                "num_worse": self.num_worse,
            }
            self.run.save(self.step, self._weights(), state, keep=self.settings.keep_checkpoints, best=self.best)
            self.saved_step = self.step
        self.run.set_status(status, self.step, self.settings.max_steps)
        self.workers.wait()

    def _stop_if_asked(self, stop: StopRequest, interrupt: StopRequest) -> None:
        is_stopped, is_interrupted = self.workers.agree([bool(stop), bool(interrupt)])
        if not is_stopped and not is_interrupted:
            return
        self._save("stopped")
        if is_interrupted:
            raise KeyboardInterrupt
        if not stop:
            stop.signal_name = "a signal to another worker"
        stop.raise_if_set(f"step {self.step} is saved in {self.run.path}")
