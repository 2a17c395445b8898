"""Running a function on many tasks in worker processes that may hang, crash or be killed, without losing the run.

Video decoders written in C spin for ever, ignoring signals, or take their process with them. So every worker is a
fresh interpreter (never a fork of this one: decoders hang after a fork), it is killed with SIGKILL when a task takes
too long, and a worker that dies costs the task in hand and nothing else. Workers live for many tasks, so start-up is
paid once. A worker never outlives its parent.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, TypeVar

from lvt_pipeline.errors import LVTError
from lvt_pipeline.machine import address_space, limit_address_space

Task = TypeVar("Task")
Result = TypeVar("Result")

START_SECONDS = 120.0  # for the imports of a worker; a slow network disk must not end the run
_POLL_SECONDS = 0.2  # how often the parent looks at the clock and at `should_stop`
_NO_MEMORY = "bad_alloc"  # in the last line that a decoder written in C++ prints before it aborts
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl
_BOOTSTRAP = "from lvt_pipeline.jobs.ingest.workers import serve; serve()"


@dataclass(frozen=True)
class Failure:
    """A task that gave no result.

    Attributes:
        reason: "timeout", "crashed", "out-of-memory", the `reason` of the exception of the function, or "unknown".
        message: one line for the user.
    """

    reason: str
    message: str


def run_isolated(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    num_workers: int,
    deadline_seconds: Callable[[Task], float],
    memory_bytes: int | None = None,
    window: int | None = None,
    should_stop: Callable[[], object] = lambda: False,
) -> Generator[tuple[int, Result | Failure]]:
    """Apply a function to every task, each in some worker process; results come as they are ready.

    Args:
        function: importable by name (not a lambda), as are tasks and results by pickle.
        num_workers: 0 runs everything in this process, without protection, for tests and notebooks.
        deadline_seconds: how long a task may take before its worker is killed.
        memory_bytes: how much a task may take; more ends the task, not the machine. The address space that a worker
            reserves after its start counts, used or not.
        window: a task is not started before all but this many of its predecessors have finished, so results that
            must wait for an earlier one stay few.
        should_stop: asked all the time; once true, tasks in hand are dropped and the iteration ends.

    Yields:
        (index of the task, result or Failure), every index once, in order of completion.

    Raises:
        LVTError: workers do not even start.
    """
    if num_workers == 0:
        yield from _run_here(function, tasks, should_stop)
        return
    pool = _Pool(function, min(num_workers, len(tasks)), memory_bytes)
    try:
        yield from pool.run(tasks, deadline_seconds, window or len(tasks), should_stop)
    finally:
        pool.kill()


def _run_here(
    function: Callable[[Task], Result], tasks: Sequence[Task], should_stop: Callable[[], object]
) -> Generator[tuple[int, Result | Failure]]:
    for index, task in enumerate(tasks):
        if should_stop():
            return
        try:
            outcome: Result | Failure = function(task)
        except Exception as error:
            outcome = _failure_of(error)
        yield index, outcome


def _failure_of(error: BaseException) -> Failure:
    if isinstance(error, LVTError):
        return Failure(getattr(error, "reason", "unreadable"), str(error))
    if isinstance(error, MemoryError):
        return Failure("out-of-memory", "the clip needs more memory than a worker may take (--worker-memory)")
    if isinstance(error, OSError):
        place = f"{error.filename} " if error.filename else ""
        return Failure("unreadable", f"{place}cannot be read: {error.strerror or 'input or output error'}")
    return Failure(
        "unknown", f"reading the clip ended in an unexpected error ({type(error).__name__}); please report it"
    )


# The parent's side -------------------------------------------------------------------------------------------------


class _Worker:
    """One process with a pipe to it and the task it has in hand."""

    def __init__(self, function: Callable[[Any], Any], memory_bytes: int | None) -> None:
        self.connection, theirs = Pipe()
        self._remarks = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the worker
        self.task: int | None = None
        self.is_ready = False
        self.deadline = time.monotonic() + START_SECONDS
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._remarks,  # FFmpeg's remarks stay off the terminal; the last one explains a crash
                start_new_session=True,  # Ctrl-C reaches the parent alone
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
            )
        self.connection.send((os.getpid(), function.__module__, function.__qualname__, memory_bytes))

    def give(self, index: int, task: object, seconds: float) -> None:
        """Hand over a task."""
        self.task = index
        self.deadline = time.monotonic() + seconds
        os.ftruncate(self._remarks.fileno(), 0)
        os.lseek(self._remarks.fileno(), 0, os.SEEK_SET)
        self.connection.send(task)

    def kill(self) -> None:
        """End the process, whatever it is doing, and forget it."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._remarks.close()

    def last_words(self) -> str:
        """How the process ended and the last line it wrote."""
        self._process.kill()  # it closed its pipe, so it is as good as dead
        code = self._process.wait()
        self._remarks.seek(0)
        lines = self._remarks.read().decode(errors="replace").split("\n")
        line = next((line.strip() for line in reversed(lines) if line.strip()), "")
        ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"the worker process {ending}{hint}{f': {line[:200]}' if line else ''}"


class _Pool:
    """Workers and who does what."""

    def __init__(self, function: Callable[[Any], Any], size: int, memory_bytes: int | None) -> None:
        self._function = function
        self._memory_bytes = memory_bytes
        self._workers = [_Worker(function, memory_bytes) for _ in range(size)]

    def kill(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def run(
        self,
        tasks: Sequence[Any],
        deadline_seconds: Callable[[Any], float],
        window: int,
        should_stop: Callable[[], object],
    ) -> Generator[tuple[int, Any]]:
        waiting = deque(range(len(tasks)))
        finished: set[int] = set()
        oldest = 0  # the first task that is not finished
        while oldest < len(tasks) and not should_stop():
            for worker in self._workers:
                if worker.is_ready and worker.task is None and waiting and waiting[0] < oldest + window:
                    index = waiting.popleft()
                    try:
                        worker.give(index, tasks[index], deadline_seconds(tasks[index]))
                    except OSError:  # it died while idle; another one shall have the task
                        worker.task = None
                        waiting.appendleft(index)
            messages = wait([worker.connection for worker in self._workers], _POLL_SECONDS)
            if should_stop():  # a signal to the whole group kills workers too: that is not a crash
                return
            for worker in list(self._workers):
                task = worker.task
                outcome = self._outcome(worker, worker.connection in messages)
                if outcome is not None and task is not None:
                    finished.add(task)
                    yield task, outcome[0]
            while oldest in finished:
                finished.remove(oldest)
                oldest += 1

    def _outcome(self, worker: _Worker, has_message: bool) -> tuple[Any] | None:
        """The outcome of the worker's task, in a tuple; None as long as there is none."""
        if has_message:
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                words = worker.last_words()
                reason = "out-of-memory" if _NO_MEMORY in words else "crashed"
                return self._replace(worker, Failure(reason, words))
            if not worker.is_ready:
                worker.is_ready = True
                return None
            if isinstance(message, Failure) and message.reason == "out-of-memory":
                return self._replace(worker, message)  # memory that the task left behind must not burden the next one
            worker.task = None
            return (message,)
        if (worker.task is not None or not worker.is_ready) and time.monotonic() > worker.deadline:
            return self._replace(worker, Failure("timeout", "timed out; its worker was killed"))
        return None

    def _replace(self, worker: _Worker, failure: Failure) -> tuple[Failure] | None:
        if not worker.is_ready:
            raise LVTError(f"worker processes do not start: {failure.message}")
        worker.kill()
        self._workers[self._workers.index(worker)] = _Worker(self._function, self._memory_bytes)
        return (failure,)


def _import_path() -> list[str]:
    """Where a worker finds the modules that the parent can import; "" would mean another folder there."""
    return [os.path.abspath(entry) if entry else os.getcwd() for entry in sys.path]


# The worker's side -------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer tasks from the pipe whose descriptor is the first argument, until the parent closes it."""
    connection = Connection(int(sys.argv[1]))
    parent, module, name, memory_bytes = connection.recv()
    _die_with(parent)
    # Only the parent decides when a worker ends; a terminal or a scheduler signals every process of a job.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is recorded, not dumped
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if memory_bytes is not None:
        limit_address_space(address_space() + memory_bytes)
    connection.send("ready")
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = function(task)
        except Exception as error:
            outcome = _failure_of(error)
        connection.send(outcome)


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
