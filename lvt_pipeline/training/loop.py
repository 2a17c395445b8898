"""The training loop that both stages share: a run that stops, resumes, and gives the result of never stopping.

A `Task` knows its model, its batches and its loss; a `Stepper` takes the steps; `train` adds the rest: the log,
evaluations, pictures, checkpoints, signals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import CheckpointError, NotFiniteError, TrainingError
from lvt_pipeline.interrupts import StopRequest, interrupt_requested, stop_requested
from lvt_pipeline.progress import SILENT, Bar, Progress
from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME, STATE_NAME, load_state, load_weights, verify_checkpoint
from lvt_pipeline.runs.directory import RunDirectory
from lvt_pipeline.training.distributed import Ranks
from lvt_pipeline.training.monitors import Averages, Clock, LossWatch, first_not_finite, keep_breakdown, memory_bytes
from lvt_pipeline.training.settings import TrainingSettings
from lvt_pipeline.training.sharding import (
    load_whole_optimizer_state,
    load_whole_weights,
    whole_optimizer_state,
    whole_weights,
)
from lvt_pipeline.training.stepping import BatchLoader, Stepper, learning_rate_at
from lvt_pipeline.training.task import Task, TrainingResult, determinism, seeded
from lvt_pipeline.training.trackers import Tracker, open_trackers
from lvt_pipeline.video.pictures import png_bytes

SHOWN_STEPS = 10  # since the last line of the log, from which live numbers are worth showing
NAMED_CLIPS = 8  # clips of a bad batch that an error names


def train(
    task: Task,
    settings: TrainingSettings,
    run: RunDirectory,
    ranks: Ranks,
    *,
    max_seconds: float | None = None,
    track: Sequence[str] = (),
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train until `max_steps`, or until there were `patience` evaluations without a better score.

    It resumes from the latest checkpoint of the run if there is one.

    Args:
        run: an open run directory. Rank 0 writes to it, the others read their checkpoint from it.
        max_seconds: save and stop after this time, as if a signal had asked.
        track: further places for the lines of the log, see `trackers.open_trackers`.

    Raises:
        ConfigError: something of `track` is not installed.
        Stopped: a signal or the time limit asked; the step is saved.
        KeyboardInterrupt: Ctrl-C; the step is saved.
        TrainingError: loss, weights or predictions are not finite any more, or the loss has exploded.
        CheckpointError: the checkpoint to resume from is damaged.
    """
    with (
        seeded(settings.seed, ranks.device),
        determinism(settings.deterministic),
        stop_requested() as stop,
        interrupt_requested() as interrupt,
    ):
        loop = _Loop(task, settings, run, ranks, progress)
        loop.restore()
        names = track if run.is_writer else ()
        identity = f"{run.path.absolute()} {run.started}"
        with open_trackers(names, run.path, loop.step, to_plain(settings), identity) as loop.trackers:
            return loop.run_steps(stop, interrupt, max_seconds)


class _Loop:
    """One training under way: what changes from step to step."""

    def __init__(
        self, task: Task, settings: TrainingSettings, run: RunDirectory, ranks: Ranks, progress: Progress
    ) -> None:
        self.task, self.settings, self.run, self.ranks, self.progress = task, settings, run, ranks, progress
        self.stepper = Stepper(task, settings, ranks)
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
        self.is_over = False  # patience has ended the training
        self.shown: dict[str, Any] = {}  # next to the bar
        self.trackers: list[Tracker] = []

    @property
    def seconds(self) -> float:
        """Wall time of this training, over all its sessions."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def restore(self) -> None:
        """Return to the latest checkpoint, if there is one."""
        checkpoint = self.run.latest_checkpoint()
        if checkpoint is None:
            return
        verify_checkpoint(checkpoint)
        device = "cpu" if self.stepper.is_sharded else str(self.ranks.device)
        state = load_state(checkpoint)
        try:
            load_whole_weights(self.stepper.model, load_weights(checkpoint, MODEL_NAME, device))
            if self.stepper.average is not None:
                load_whole_weights(self.stepper.average, load_weights(checkpoint, EMA_NAME, device))
            self._restore_state(state)
        except torch.cuda.OutOfMemoryError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoint.path / STATE_NAME} is not the state of this training; delete {checkpoint.path} to resume "
                "from an earlier checkpoint, or train again with --overwrite"
            ) from error
        if self.step < self.settings.max_steps:
            self.progress.say(f"resuming from step {self.step} of {self.settings.max_steps} in {self.run.path}")

    def _restore_state(self, state: Mapping[str, Any]) -> None:
        optimizer = self.stepper.optimizer
        fresh = [{**group} for group in optimizer.param_groups]
        load_whole_optimizer_state(optimizer, state["optimizer"])
        for group, wanted in zip(optimizer.param_groups, fresh, strict=True):
            # The settings decide, which may have been changed on purpose; the checkpoint holds those of before.
            group.update({name: value for name, value in wanted.items() if name != "params"})
        self.step = self.saved_step = state["step"]
        self.window = Averages(state["window"]["sums"], state["window"]["steps"])
        self.earlier_seconds = state["seconds"]
        self.evaluation, self.best = state["evaluation"], state["best"]
        self.task.remember(self.evaluation)
        self.watch.restore(state["watch"])
        self.lowest_score, self.num_worse = state["lowest_score"], state["num_worse"]
        self.is_over = self._is_patience_over()

    def run_steps(self, stop: StopRequest, interrupt: StopRequest, max_seconds: float | None) -> TrainingResult:
        """Take the steps that are left."""
        settings = self.settings
        with (
            BatchLoader(self.task.batch, self.stepper.parts_after(self.step), self.ranks.device) as loader,
            self.progress.bar("train", settings.max_steps, "steps", done=self.step) as bar,
        ):
            while self.step < settings.max_steps and not self.is_over:
                if max_seconds is not None and time.perf_counter() - self.began >= max_seconds and not stop:
                    stop.signal_name = "the time limit"
                self._stop_if_asked(stop, interrupt)
                numbers, waited = self.stepper.take_step(self.step + 1, loader)
                self._count_step(numbers, waited)
                self._do_what_is_due(bar)
            is_early = self.step < settings.max_steps
            if is_early:
                self._end_early()
        return TrainingResult(self.step, self.seconds, self.evaluation, self._weights(), is_early)

    def _count_step(self, numbers: Tensor | None, waited: float) -> None:
        self.step += 1
        self.clock.steps += 1
        self.clock.waiting += waited
        if numbers is not None:
            self.pending.append((self.step, numbers))
        if self.ranks.device.type == "cpu":
            self._collect()

    def _collect(self) -> None:
        """Bring the numbers of the last steps from the device, and stop if one is not finite.

        On a GPU this happens only where a line is written or a step saved: asking after every step would make the
        device wait.
        """
        for step, values in self.pending:
            numbers = dict(zip(self.stepper.names, values.tolist(), strict=True))
            bad = first_not_finite(numbers)
            if bad:
                self._fail(f"{bad} at step {step}", step)
            wrong = self.watch.add(numbers["loss"])
            if wrong:
                self._fail(f"{wrong} at step {step}", step)
            self.window.add(numbers)
        self.pending = []

    def _fail(self, what: str, step: int) -> None:
        """End the training after a breakdown. All ranks call it together."""
        clips = self.task.batch_clips(step)
        named = ", ".join(clips[:NAMED_CLIPS]) + (
            f" and {len(clips) - NAMED_CLIPS} more" if clips[NAMED_CLIPS:] else ""
        )
        kept = f"step {self.saved_step} is saved in {self.run.path}" if self.saved_step > 0 else "no step was saved yet"
        self.run.set_status("failed", max(self.saved_step, 0))
        facts = {"what": what, "step": step, "weights_after_step": self.step, "clips": clips}
        where = ""
        weights = self._weights()
        if self.run.is_writer:
            batch = self.task.batch(step, range(self.settings.batch_size))
            path = keep_breakdown(self.run.path, facts, weights, batch)
            where = f" Its batch and the weights after step {self.step} are in {path}."
        raise TrainingError(
            f"training broke down: {what}. Its batch holds {named}.{where} {kept[0].upper()}{kept[1:]}; "
            "lower training.learning_rate or set training.grad_clip, and train with --overwrite"
        )

    def _fail_if_any(self, what: str) -> None:
        """Fail in all ranks if one of them (which knows what) has found something wrong after this step."""
        if self.ranks.agree([bool(what)])[0]:
            self._fail(f"{what or 'rank 0 found numbers that are not finite'} after step {self.step}", self.step)

    def _do_what_is_due(self, bar: Bar) -> None:
        """Log, evaluate, picture and save, as scheduled for this step."""
        settings, step = self.settings, self.step
        is_last = step == settings.max_steps
        if step % settings.log_every == 0 or is_last:
            self._collect()
            self._log(is_scheduled=step % settings.log_every == 0)
        elif self.ranks.device.type == "cpu" and self.window.steps >= min(SHOWN_STEPS, settings.log_every):
            self.shown = self._live_facts()
        bar.advance(1, **self.shown)
        is_evaluated, is_pictured, is_saved = (
            step % every == 0 or is_last
            for every in (settings.eval_every, settings.picture_every, settings.checkpoint_every)
        )
        if not (is_evaluated or is_pictured or is_saved):
            return
        with self.clock.paused():
            self._collect()
            self._require_finite_weights()
            is_best = is_evaluated and self._evaluate(is_scheduled=step % settings.eval_every == 0)
            if is_pictured:
                self._make_picture()
            if is_saved or is_best:
                self._save("running")

    def _require_finite_weights(self) -> None:
        broken = self.stepper.broken_weight()
        if broken:
            self._fail(f"the weights of {broken} are not finite after step {self.step}", self.step)

    def _log(self, is_scheduled: bool) -> None:
        if not self.window.steps:
            return
        means = self.window.means()
        line: dict[str, Any] = {"step": self.step, "split": "train", **means}
        line |= {"learning_rate": learning_rate_at(self.step, self.settings), "seconds": round(self.seconds, 3)}
        line |= {**self._speed(), "memory_bytes": memory_bytes(self.ranks.device)}
        self._write_line(line, is_scheduled)
        self.shown = self._live_facts()
        if is_scheduled:
            self.window = Averages()
        self.clock.restart()

    def _speed(self) -> dict[str, float]:
        return self.clock.facts(
            {self.task.unit: self.task.units_per_step, self.task.row_unit: self.settings.batch_size}
        )

    def _live_facts(self) -> dict[str, Any]:
        """The numbers next to the progress, all of the steps since the last line of the log."""
        means, speed, rows = self.window.means(), self._speed(), self.task.row_unit
        return {
            **{name: means[name] for name in ("loss", "bits_per_dim") if name in means},
            f"{rows}/s": speed[f"{rows}_per_second"],
            "data wait": f"{speed['data_wait_share']:.1%}",
            "memory": f"{memory_bytes(self.ranks.device) / 2**20:,.0f} MiB",
        }

    def _write_line(self, line: dict[str, Any], is_scheduled: bool) -> None:
        # A line that only the end of the run caused is marked: it goes, and its window stays open, if the run grows.
        self.run.log(line if is_scheduled else {**line, "final": True})
        for tracker in self.trackers:
            tracker.log(line)

    @contextmanager
    def _eval_model(self) -> Iterator[nn.Module | None]:
        """The model to evaluate, whole and in eval mode, in rank 0; None in the others."""
        stepper = self.stepper
        model = stepper.model if stepper.average is None else stepper.average
        if stepper.is_sharded:
            weights = whole_weights(model, is_kept=self.ranks.rank == 0)
            if stepper.whole is None:
                yield None
                return
            stepper.whole.load_state_dict(weights)
            del weights
            model = stepper.whole.to(self.ranks.device)
        model.eval()
        try:
            with torch.no_grad():
                yield model if self.ranks.rank == 0 else None
        finally:
            if stepper.whole is not None:
                stepper.whole.cpu()  # the device has no room for it while it trains

    def _evaluate(self, is_scheduled: bool) -> bool:
        """Measure the model; whether its score is the best so far."""
        is_best, bad = False, ""
        with self._eval_model() as model:
            if model is not None:
                self.evaluation = self.task.evaluate(model)
                bad = first_not_finite(self.evaluation)
        self._fail_if_any(f"{bad} in the validation" if bad else "")
        if self.ranks.rank == 0:
            if self.evaluation:
                line = {"step": self.step, "split": "val", **self.evaluation, "seconds": round(self.seconds, 3)}
                self._write_line(line, is_scheduled)
            self.evaluated_step = self.step
            score = self.evaluation.get(self.task.score)
            is_best = self._is_best(score)
            if is_scheduled and score is not None:
                is_better = self.lowest_score is None or score < self.lowest_score
                self.lowest_score = score if is_better else self.lowest_score
                self.num_worse = 0 if is_better else self.num_worse + 1
        # Rank 0 knows; the others wait for it here.
        self.is_over, is_best = self.ranks.agree([self._is_patience_over(), is_best])
        return is_best

    def _is_best(self, score: float | None) -> bool:
        return score is not None and (self.best is None or score < self.best["value"])

    def _is_patience_over(self) -> bool:
        return self.settings.patience is not None and self.num_worse >= self.settings.patience

    def _end_early(self) -> None:
        """Leave a run that patience has ended like one at its last step."""
        self.progress.say(
            f"{self.task.score} has not improved in {self.settings.patience} evaluations: "
            f"the training ends at step {self.step} of {self.settings.max_steps}"
        )
        self._collect()
        self._log(is_scheduled=False)
        self._make_picture()
        self._save("running")

    def _make_picture(self) -> None:
        picture, bad = None, ""
        with self._eval_model() as model:
            if model is not None:
                try:
                    picture = self.task.picture(model)
                except NotFiniteError:
                    bad = "the predictions of the model are not finite"
        self._fail_if_any(bad)
        if picture is not None:
            self.run.write_picture(self.step, png_bytes(picture))

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights to save, by file; of sharded ones, rank 0 gets them and the others have no tensors."""
        average = self.stepper.average
        models = {MODEL_NAME: self.stepper.model, **({} if average is None else {EMA_NAME: average})}
        return {name: whole_weights(model, is_kept=self._keeps_whole) for name, model in models.items()}

    @property
    def _keeps_whole(self) -> bool:
        return self.ranks.rank == 0 or not self.stepper.is_sharded

    def _save(self, status: str) -> None:
        self._collect()
        if self.saved_step != self.step:
            self._require_finite_weights()
            score = self.evaluation.get(self.task.score)
            if self.evaluated_step == self.step and score is not None and self._is_best(score):
                self.best = {"step": self.step, "score": self.task.score, "value": score}
            state = {
                "step": self.step,
                "optimizer": whole_optimizer_state(self.stepper.optimizer, self._keeps_whole),
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
        self.run.set_status(status, self.step)
        self.ranks.wait()

    def _stop_if_asked(self, stop: StopRequest, interrupt: StopRequest) -> None:
        is_stopped, is_interrupted = self.ranks.agree([bool(stop), bool(interrupt)])
        if not is_stopped and not is_interrupted:
            return
        self._save("stopped")
        if is_interrupted:
            raise KeyboardInterrupt
        if not stop:
            stop.signal_name = "a signal to another process"
        stop.raise_if_set(f"step {self.step} is saved in {self.run.path}")
