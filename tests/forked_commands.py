"""`lvt` commands as real processes that start at once: forked from a process that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

SHARD_FRAMES = 16
SECONDS = 120


def fork_server() -> ForkServerContext:
    """What such processes are started with. Python has one such server, so its first user decides what it imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *(__name__, "torch", "stages.encode_dataset", "stages.ingest", "stages.sample", "stages.decode"),
            *("lvt_pipeline.training.prior", "lvt_pipeline.training.vqvae"),
        ]
    )
    return context


PAUSED_AFTER = 3 * SHARD_FRAMES


class Log:
    """In place of the console: adds a byte to a file for every frame or clip that is done.

    While a file of its name and `.pause` is there, the process waits once it has done a few shards. It dies of kill -9
    when the file has `killed_at` bytes.
    """

    path: str
    killed_at: int | None = None
    done: int
    unit: str = ""

    @contextmanager
    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Log]:
        log = Log()
        log.done, log.unit = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), unit
        yield log

    def advance(self, amount: int = 1, **facts: Any) -> None:
        if self.unit != "pixels":  # a bar of the sampler within that of the samples
            os.write(self.done, b"." * amount)
            if self.killed_at is not None and os.fstat(self.done).st_size >= self.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
        while os.path.exists(f"{self.path}.pause") and os.path.getsize(self.path) >= PAUSED_AFTER:
            time.sleep(0.001)

    def say(self, line: str) -> None:
        pass


@dataclass(frozen=True)
class Limits:
    """What a process may not do: write larger files than `file_bytes`, act as anyone but `user`."""

    file_bytes: int | None = None
    user: int | None = None

    def apply(self) -> None:
        if self.file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))
        if self.user is not None:
            os.setgid(self.user)
            os.setuid(self.user)


def run_command(
    arguments: list[str],
    log: str,
    errors: str | None = None,
    limits: Limits = Limits(),
    killed_at: int | None = None,
) -> None:
    """`lvt` with shards so small that there are many, and a log for a console. Ends the process.

    Args:
        errors: file for what it says on stderr.
        killed_at: kill -9 it when the log has so many bytes.
    """
    from lvt_pipeline.cli import run
    from lvt_pipeline.jobs import encode as encoding
    from lvt_pipeline.jobs import import_codes as importing
    from stages import decode, encode_dataset, import_codes, ingest, sample

    encoding.SHARD_FRAMES = importing.SHARD_FRAMES = SHARD_FRAMES
    Log.path, Log.killed_at = log, killed_at
    for stage in (encode_dataset, import_codes, ingest, sample, decode):
        stage.Console = Log  # type: ignore[attr-defined]
    if errors is not None:
        sys.stderr = open(errors, "w", buffering=1)  # noqa: SIM115 - it ends with the process
    limits.apply()
    code = run(arguments)
    sys.stderr.flush()
    os._exit(code)


def outcome_of(
    context: ForkServerContext, arguments: list[Any], folder: Path, limits: Limits = Limits()
) -> tuple[int, str]:
    """Exit code and stderr of a command that nobody interrupts."""
    errors = folder / "stderr"
    process = context.Process(
        target=run_command, args=([str(part) for part in arguments], str(folder / "log"), str(errors), limits)
    )
    process.start()
    process.join(SECONDS)
    assert process.exitcode is not None, "the command does not end"
    return process.exitcode, errors.read_text()
