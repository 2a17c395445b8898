"""Where the shards of a stage are made: plans in, receipts out.

A stage cuts its work into plans, one per shard, hands them to a runner, and publishes once it has all receipts. A
worker reads its input and writes its shard itself, created if absent, so an attempt may be repeated anywhere, and the
runner never sees pixels or codes. `ArrayStep` divides the plans among independent processes, which need no runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from lvt_pipeline.errors import LVTError
from lvt_pipeline.interrupts import StopRequest
from lvt_pipeline.progress import Bar
from lvt_pipeline.storage import Place

T = TypeVar("T")
R = TypeVar("R")

# Makes shards one after another and yields a receipt for each. It advances the bar, and ends early, after a whole
# shard, once the last argument answers true.
Worker = Callable[[Sequence[T], Bar, Callable[[], object]], Iterator[R]]


@dataclass(frozen=True)
class Plan(Generic[T]):
    """One shard to make.

    Attributes:
        name: of the shard, for messages.
        work: what its worker has to know, as plain data.
        max_seconds: how long making it may take before the attempt counts as hung.
        stays_here: whether only this process may make it, because it takes the place of a damaged shard.
    """

    name: str
    work: T
    max_seconds: float = 3600.0
    stays_here: bool = False


@dataclass(frozen=True)
class Elsewhere(Generic[T, R]):
    """How a stage's worker is started in another process, on this or another machine.

    Attributes:
        start: makes the worker for a device; it can be pickled.
        paths: files and folders that every machine must see under the same names; the last one is the output.
        device: the device that was asked for, as in `--device`; None when the processor is all that is needed.
    """

    start: Callable[[str], Worker[T, R]]
    paths: Sequence[Place]
    device: str | None = None


Workers = tuple[Worker[T, R], Elsewhere[T, R]]  # of this process, and of others


class Runner:
    """Has shards made: this one by the worker of this process, others elsewhere.

    Attributes:
        is_local: whether the worker of this process does all of the work.
    """

    is_local = True

    def make(
        self, workers: Workers[T, R], plans: Sequence[Plan[T]], bar: Bar, stop: StopRequest, saved: Callable[[int], str]
    ) -> Iterator[R]:
        """Receipts of all plans, in any order; `saved` describes the finished work, of which it gets the number."""
        done = 0
        for receipt in self._receipts(workers, plans, bar, lambda: stop):
            done += 1
            yield receipt
        if done < len(plans):
            stop.raise_if_set(saved(done))

    def _receipts(
        self, workers: Workers[T, R], plans: Sequence[Plan[T]], bar: Bar, should_stop: Callable[[], object]
    ) -> Iterator[R]:
        """Receipts of the plans; fewer when `should_stop` answered true."""
        return workers[0]([plan.work for plan in plans], bar, should_stop) if plans else iter(())


LOCAL = Runner()


@dataclass(frozen=True)
class ArrayStep:
    """The part of a stage that one process of a job array does.

    Attributes:
        kind: "all" without an array; "plan": decide which shard holds what; "shards": make some of them; "publish":
            finish the output once all shards are there.
        number, count: of "shards": of `count` processes this is the `number`th, from 1.
    """

    kind: Literal["all", "plan", "shards", "publish"] = "all"
    number: int = 1
    count: int = 1

    def share(self, shards: Sequence[R]) -> Sequence[R]:
        """The shards of this process: every `count`th."""
        return shards[self.number - 1 :: self.count]


ALL = ArrayStep()


def require_none_missing(out: Place, missing: Sequence[str], num_shards: int) -> None:
    """Refuse to publish while shards are missing, and name them.

    Raises:
        LVTError: some are missing.
    """
    if missing:
        named = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise LVTError(
            f"{out} cannot be published: {len(missing)} of {num_shards} shards are missing ({named}); run their "
            "--shards again, or the command without --publish, which makes them here"
        )
