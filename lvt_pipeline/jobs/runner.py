"""Where the shards of a stage are made: plans in, receipts out.

A stage cuts its work into plans, one per shard, hands them to a runner, and publishes once it has all receipts. The
runner never sees pixels or codes: a worker reads its input from disk and writes its shard itself, created if absent,
so an attempt may be repeated anywhere. The local runner works in this process; `ray_runner` has workers on many
machines. `ArrayStep` divides the same plans among independent processes, which need no runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from lvt_pipeline.errors import LVTError
from lvt_pipeline.progress import Bar
from lvt_pipeline.storage import Place

P = TypeVar("P", bound="Plan")
R = TypeVar("R")

# Makes shards one after another and yields a receipt for each. It advances the bar, and ends early, after a whole
# shard, once the last argument answers true.
Worker = Callable[[Sequence[P], Bar, Callable[[], object]], Iterator[R]]


class Plan(Protocol):
    """One shard to make."""

    @property
    def name(self) -> str:
        """The shard, for messages."""

    @property
    def max_seconds(self) -> float:
        """How long making it may take before the attempt counts as hung."""


class Elsewhere(Protocol):
    """Plain data that starts a stage's worker in another process, on this or another machine."""

    @property
    def paths(self) -> Sequence[Path]:
        """Files and folders that every machine must see under the same names."""

    @property
    def device(self) -> str | None:
        """Device of the worker as in `--device`; None when it needs none but the processor."""

    def start(self) -> Worker[Any, Any]:
        """The worker."""


class Runner(Protocol):
    """Has shards made.

    Attributes:
        is_local: whether the worker of this process does all of the work.
    """

    is_local: bool

    def run(
        self, here: Worker[P, R], elsewhere: Elsewhere, plans: Sequence[P], bar: Bar, should_stop: Callable[[], object]
    ) -> Iterator[R]:
        """Receipts of the plans, in any order; fewer when `should_stop` answered true."""


class LocalRunner:
    """One worker: this process."""

    is_local = True

    def run(
        self, here: Worker[P, R], elsewhere: Elsewhere, plans: Sequence[P], bar: Bar, should_stop: Callable[[], object]
    ) -> Iterator[R]:
        """Receipts of the plans, in their order; fewer when `should_stop` answered true."""
        return here(plans, bar, should_stop) if plans else iter(())


LOCAL: Runner = LocalRunner()


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
    """Refuse to publish while shards are missing.

    Raises:
        LVTError: some are; they are named.
    """
    if missing:
        named = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise LVTError(
            f"{out} cannot be published: {len(missing)} of {num_shards} shards are missing ({named}); run their "
            "--shards again, or the command without --publish, which makes them here"
        )
