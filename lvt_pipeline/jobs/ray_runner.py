"""Shards made by workers on many machines, with Ray.

Nothing that matters is in Ray: a worker is an actor that gets a plan, writes the shard itself and returns its receipt.
A worker that dies or is overdue is replaced, and its plan is given to another one; a plan that fails `ATTEMPTS` times
ends the run. Workers are actors because a function of Ray that has a GPU gets a new process, and model, for every call.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import LVTError
from lvt_pipeline.interrupts import STOP_SIGNALS
from lvt_pipeline.jobs.runner import Plan, R, Runner, T, Worker, Workers
from lvt_pipeline.machine import num_cores
from lvt_pipeline.progress import Bar
from lvt_pipeline.storage import TEMPORARY_SUFFIX, Place

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise LVTError("--runner ray needs Ray; install it with: pip install 'lvt-pipeline[ray]'") from None

ATTEMPTS = 3  # of one shard
START_SECONDS = 600.0  # for the first worker; a cluster may have to start machines
POLL_SECONDS = 0.2
OBJECT_STORE_BYTES = 100 * 2**20  # of a cluster that is started here; plans and receipts are small
DISTRIBUTIONS = ("lvt-pipeline", "decord", "av", "torch", "zarr")  # whose versions may change pixels, codes or files


class RayRunner(Runner):
    """Workers of a Ray cluster.

    Args:
        address: of the cluster; None: that of the variable RAY_ADDRESS, or else a new cluster on this machine.
        num_workers: None: one per GPU for a stage that uses them where there are some, or else one per processor core.
    """

    is_local = False

    def __init__(self, address: str | None = None, num_workers: int | None = None) -> None:
        self._address, self._num_workers = address, num_workers

    def _receipts(
        self, workers: Workers[T, R], plans: Sequence[Plan[T]], bar: Bar, should_stop: Callable[[], object]
    ) -> Iterator[R]:
        yield from super()._receipts(workers, [plan for plan in plans if plan.stays_here], bar, should_stop)
        elsewhere, plans = workers[1], [plan for plan in plans if not plan.stays_here]
        if not plans or should_stop():
            return
        _connect(self._address)
        _require_equal_machines(elsewhere.paths)
        gpus, cores = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        device = _device_of_workers(elsewhere.device, gpus)
        size = self._num_workers or (cores if device == "cpu" else gpus)
        crew = _Crew(partial(elsewhere.start, device), device != "cpu", min(max(1, size), len(plans)))
        try:
            yield from crew.make(plans, bar, should_stop)
        finally:
            crew.end()


def _device_of_workers(wanted: str | None, gpus: int) -> str:
    if wanted is not None and wanted.startswith("cuda:"):
        raise LVTError(f"Ray assigns GPUs to workers; use --device cuda instead of {wanted}")
    if wanted == "cuda" and not gpus:
        raise LVTError("the Ray cluster has no GPU; use --device cpu, or start its nodes with --num-gpus")
    return wanted if wanted in ("auto", "cuda") and gpus else "cpu"


def _connect(address: str | None) -> None:
    """Connect this process to a cluster, unless it is connected."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {"num_cpus": num_cores(), "object_store_memory": OBJECT_STORE_BYTES}
    options = {**local, "include_dashboard": False} if address == "local" else {}
    try:
        host, _, port = address.rpartition(":")
        if host:  # Ray itself would try for many minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGINT)}
        ray._private.worker._worker_logs_enabled = False  # else a line for each dead worker is printed on stdout
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        if threading.current_thread() is threading.main_thread():  # Ray replaces the handler that asks for a stop
            for number, handler in before.items():
                signal.signal(number, handler)
    except (OSError, RuntimeError, ValueError):
        raise LVTError(
            f"no Ray cluster answers at {address}; start one with `ray start --head`, give its address with "
            "--ray-address, or leave that out to use this machine alone"
        ) from None


def _require_equal_machines(paths: Sequence[Place]) -> None:
    """Refuse machines that do not see a path, or a file that is made in the output now, or that have other versions."""
    local, out = [path for path in paths if isinstance(path, Path)], paths[-1]
    mark = out / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}" if isinstance(out, Path) else None
    if mark is not None:
        mark.touch()
        local.append(mark)
    try:
        inspect = ray.remote(num_cpus=0, max_retries=0)(_inspect)
        answers = {}
        for node in ray.nodes():
            if node["Alive"]:
                where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                answers[node["NodeID"]] = name, inspect.options(scheduling_strategy=where).remote(local)
        for name, answer in answers.values():
            try:
                missing, versions = ray.get(answer, timeout=START_SECONDS)
            except ray.exceptions.RayTaskError as error:
                raise LVTError(f"lvt does not run on node {name}: {_one_line(error.cause)}; install it there") from None
            except (ray.exceptions.RayError, TimeoutError):
                continue  # the node has gone; nothing will run there
            if missing:
                path = out if missing == [str(mark)] else missing[0]
                raise LVTError(f"node {name} does not see {path}; use a file system that all nodes share")
            if versions != _versions():
                raise LVTError(f"node {name} has {versions}, this machine {_versions()}; install equal versions there")
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)


def _inspect(paths: Sequence[Path]) -> tuple[list[str], str]:
    """Runs on a machine of the cluster: which paths are missing there, and its versions."""
    return [str(path) for path in paths if not path.exists()], _versions()


def _versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in DISTRIBUTIONS)


@dataclass
class _Count:
    """The progress of one shard, to be reported with its receipt."""

    amount: int = 0
    facts: dict[str, int] = field(default_factory=dict)

    def advance(self, amount: int = 1, **facts: Any) -> None:
        self.amount += amount
        self.facts |= facts


class _RemoteWorker:
    """The actor: a stage's worker in another process. An error for the user is an answer, not a failure."""

    def start(self, start: Callable[[], Worker[Any, Any]]) -> LVTError | None:
        try:
            self._work = start()
        except LVTError as error:
            return error
        return None

    def make(self, work: Any) -> LVTError | tuple[Any, _Count]:
        count = _Count()
        try:
            return next(self._work([work], count, lambda: False)), count
        except LVTError as error:
            return error


class _Member:
    """One worker: its actor, the plan that it has, and the answer that is awaited."""

    def __init__(self, actor: Any, start: Callable[[], Worker[Any, Any]]) -> None:
        self.actor = actor
        self.plan: int | None = None
        self.answer = actor.start.remote(start)
        self.deadline = float("inf")  # starting may wait for machines

    def give(self, index: int, plan: Plan[Any]) -> None:
        self.plan, self.answer = index, self.actor.make.remote(plan.work)
        self.deadline = time.monotonic() + plan.max_seconds

    def kill(self) -> None:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self.actor, no_restart=True)


class _Crew:
    """The workers of one run."""

    def __init__(self, start: Callable[[], Worker[Any, Any]], has_gpu: bool, size: int) -> None:
        self._start, self._size = start, size
        self._actor = ray.remote(num_cpus=1, num_gpus=int(has_gpu), scheduling_strategy="SPREAD")(_RemoteWorker)
        self._members: list[_Member] = []
        self._attempts: Counter[int] = Counter()
        self._facts: Counter[str] = Counter()
        self._failed_starts = 0

    def make(self, plans: Sequence[Plan[Any]], bar: Bar, should_stop: Callable[[], object]) -> Iterator[Any]:
        """Receipts of the plans as they come."""
        waiting, left, began = deque(range(len(plans))), len(plans), time.monotonic()
        has_answered = False
        while left and not should_stop():
            while len(self._members) < min(self._size, left):
                self._members.append(_Member(self._actor.remote(), self._start))
            for member in self._members:
                if member.answer is None and waiting:
                    index = waiting.popleft()
                    member.give(index, plans[index])
            for member in self._answered():
                given, outcome = member.plan, self._outcome(member)
                has_answered = True
                if isinstance(outcome, LVTError):
                    raise outcome
                if isinstance(outcome, str):
                    waiting.extendleft(self._lose(member, plans, outcome))
                    bar.advance(0, **self._facts)
                elif given is not None:
                    left -= 1
                    self._facts.update(outcome[1].facts)
                    bar.advance(outcome[1].amount, **self._facts)
                    yield outcome[0]
            if not has_answered and time.monotonic() - began > START_SECONDS:
                raise LVTError(f"Ray started no worker within {START_SECONDS:.0f} s: the cluster is full or too small")

    def end(self) -> None:
        """Stop all workers at once; a shard that is half written is nothing."""
        for member in self._members:
            member.kill()

    def _answered(self) -> list[_Member]:
        """Workers that have answered or are overdue, after a moment."""
        answers = [member.answer for member in self._members if member.answer is not None]
        if answers:
            ray.wait(answers, num_returns=1, timeout=POLL_SECONDS)
            answers = ray.wait(answers, num_returns=len(answers), timeout=0)[0]
        ready, now = set(answers), time.monotonic()
        return [member for member in self._members if member.answer in ready or now > member.deadline]

    def _outcome(self, member: _Member) -> Any:
        """The answer of a worker; a text where it has died or is overdue, which is the reason."""
        if time.monotonic() > member.deadline and not ray.wait([member.answer], timeout=0)[0]:
            return "it took longer than it may"
        try:
            outcome = ray.get(member.answer)
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
        except ray.exceptions.RayError as error:
            return f"its worker ended ({_one_line(error)})"
        member.plan = member.answer = None
        member.deadline = float("inf")
        return outcome

    def _lose(self, member: _Member, plans: Sequence[Plan[Any]], reason: str) -> list[int]:
        """Dismiss a worker; its plan, if it had one, is to be tried again, unless that happened too often."""
        member.kill()
        self._members.remove(member)
        self._facts["retried"] += 1
        if member.plan is None:
            self._failed_starts += 1
            if self._failed_starts > ATTEMPTS + self._size:
                raise LVTError(f"workers of Ray do not start: {reason}")
            return []
        self._attempts[member.plan] += 1
        if self._attempts[member.plan] >= ATTEMPTS:
            raise LVTError(
                f"{plans[member.plan].name} was tried {ATTEMPTS} times and failed: {reason}. Finished work is kept; "
                "run the same command again"
            )
        return [member.plan]


def _one_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
