"""Ray workers that fail on purpose: around a stage's own worker, so that the stage does not know."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lvt_pipeline.jobs.ray_runner import RayRunner
from lvt_pipeline.progress import Bar


@dataclass(frozen=True)
class Sabotage:
    """What happens to an attempt.

    Attributes:
        folder: every attempt leaves a file here: PLAN-N for the Nth attempt of a plan.
        action: "die" in the middle of the shard, "hang", "wait" until the file `go` is there, "meet" a second plan.
        attempts: how many attempts of a plan it happens to; the others do their work.
        plans: how many plans it happens to, in the order in which they begin.
    """

    folder: str
    action: str
    attempts: int = 1
    plans: int = 1


def start_sabotaged(start: Callable[[str], Any], sabotage: Sabotage, device: str) -> SabotagedWorker:
    return SabotagedWorker(start(device), sabotage, device)


class SabotagedWorker:
    def __init__(self, work: Any, sabotage: Sabotage, device: str) -> None:
        self._work, self._sabotage, self._device = work, sabotage, device

    def __call__(self, plans: Sequence[Any], bar: Bar, should_stop: Callable[[], object]) -> Iterator[Any]:
        import ray

        ((name, work),) = plans
        folder, name = Path(self._sabotage.folder), name.replace("/", "_")
        number = len(list(folder.glob(f"{name}-*"))) + 1
        where = ray.get_runtime_context()
        facts = {"pid": os.getpid(), "node": where.get_node_id(), "device": self._device, "gpus": ray.get_gpu_ids()}
        (folder / f"{name}-{number}").write_text(json.dumps(facts))
        begun = sorted(folder.glob("*-1"), key=lambda path: path.stat().st_mtime_ns)
        if number <= self._sabotage.attempts and folder / f"{name}-1" in begun[: self._sabotage.plans]:
            match self._sabotage.action:
                case "die":
                    bar = Dying()
                case "hang":
                    time.sleep(1000)
                case "meet":
                    while len(list(folder.glob("*-1"))) < 2:
                        time.sleep(0.01)
                case "wait":
                    while not (folder / "go").exists():
                        time.sleep(0.01)
        yield from self._work([work], bar, should_stop)


class Dying:
    """A bar that ends the process when a part of the shard is done."""

    def advance(self, amount: int = 1, **facts: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class SabotagedRunner(RayRunner):
    """A runner with such workers.

    Args:
        max_seconds: after which an attempt is overdue, in place of the plan's own.
    """

    def __init__(self, sabotage: Sabotage, num_workers: int = 2, max_seconds: float | None = None) -> None:
        super().__init__(num_workers=num_workers)
        self._sabotage, self._max_seconds = sabotage, max_seconds

    def _receipts(self, workers: Any, plans: Any, bar: Any, should_stop: Any) -> Iterator[Any]:
        plans = [replace(plan, work=(plan.name, plan.work)) for plan in plans]
        if self._max_seconds is not None:
            plans = [replace(plan, max_seconds=self._max_seconds) for plan in plans]
        here, elsewhere = workers
        elsewhere = replace(elsewhere, start=partial(start_sabotaged, elsewhere.start, self._sabotage))
        return super()._receipts((here, elsewhere), plans, bar, should_stop)
