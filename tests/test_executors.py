"""Workers that hang, crash or are killed cost one task each, and the run goes on."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lvt_pipeline.errors import DecodeError, LVTError
from lvt_pipeline.jobs.ingest.workers import Failure, run_isolated


def work(task: str) -> str:
    """What a worker does; runs in another process, except for the harmless tasks."""
    kind, _, rest = task.partition(" ")
    if kind == "spin":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass
    if kind == "abort":
        faulthandler.disable()
        sys.stderr.write("malloc(): corrupted top size\n")
        sys.stderr.flush()
        os.abort()
    if kind == "bad_alloc":
        faulthandler.disable()
        sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n")
        sys.stderr.flush()
        os.abort()
    if kind == "segfault":
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "leave":
        os._exit(3)
    if kind == "refuse":
        raise DecodeError("damaged", "the file is damaged")
    if kind == "bug":
        raise KeyError("oops")
    if kind == "sleep":
        time.sleep(float(rest))
    if kind == "pid":
        return str(os.getpid())
    if kind == "noise":
        os.write(1, b"on stdout\n")
        os.write(2, b"on stderr\n")
    if kind == "large":
        return "x" * 5_000_000
    if kind == "megabytes":
        return str(len(bytearray(int(rest) << 20)))
    if kind == "memory":
        return str(len(bytearray(4 << 30)))
    return task.upper()


def results(tasks: list[str], num_workers: int = 2, seconds: float = 60.0, **options: object) -> list[str | Failure]:
    found = dict(
        run_isolated(work, tasks, num_workers=num_workers, deadline_seconds=lambda task: seconds, **options)  # type: ignore[arg-type]
    )
    assert sorted(found) == list(range(len(tasks)))
    return [found[index] for index in range(len(tasks))]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_task_gives_one_result(num_workers: int) -> None:
    tasks = [f"task {index}" for index in range(7)]
    assert results(tasks, num_workers) == [task.upper() for task in tasks]


def test_a_worker_that_spins_and_ignores_sigterm_is_killed_at_its_deadline() -> None:
    def deadline(task: str) -> float:
        return 0.5 if task == "spin" else 60.0

    tasks = ["a", "spin", "b", "c"]
    began = time.monotonic()
    found = dict(run_isolated(work, tasks, num_workers=1, deadline_seconds=deadline))
    assert found[1] == Failure("timeout", "timed out; its worker was killed")
    assert [found[0], found[2], found[3]] == ["A", "B", "C"]
    assert time.monotonic() - began < 30


def test_crashes_are_recorded_with_their_signal_and_last_words() -> None:
    found = results(["a", "abort", "b", "segfault", "leave", "c"], num_workers=1)
    assert [found[0], found[2], found[5]] == ["A", "B", "C"]
    aborted, faulted, left = (item for item in found if isinstance(item, Failure))
    assert aborted == Failure("crashed", "the worker process was killed by SIGABRT: malloc(): corrupted top size")
    assert faulted.message.startswith("the worker process was killed by SIGSEGV")
    assert left.message.startswith("the worker process ended with exit code 3")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_become_failures(num_workers: int) -> None:
    assert results(["refuse", "bug", "a"], num_workers) == [
        Failure("damaged", "the file is damaged"),
        Failure("unknown", "reading the clip ended in an unexpected error (KeyError); please report it"),
        "A",
    ]


def test_a_worker_serves_many_tasks() -> None:
    assert len(set(results(["pid"] * 6, num_workers=1))) == 1
    assert str(os.getpid()) not in results(["pid"] * 2, num_workers=1)


def test_large_results_arrive_and_noise_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    large, _ = results(["large", "noise"], num_workers=1)
    assert isinstance(large, str)
    assert len(large) == 5_000_000
    assert capfd.readouterr() == ("", "")


def test_memory_is_limited() -> None:
    failed, fine = results(["memory", "a"], num_workers=1, memory_bytes=3 << 30)
    assert failed == Failure("out-of-memory", "the clip needs more memory than a worker may take (--worker-memory)")
    assert fine == "A"


def test_a_task_after_one_without_memory_has_a_fresh_worker() -> None:
    found = results(["pid", "megabytes 300", "pid", "megabytes 300", "pid", "pid"], 1, memory_bytes=200 << 20)
    assert [found[index].reason for index in (1, 3) if isinstance(found[index], Failure)] == ["out-of-memory"] * 2  # type: ignore[union-attr]
    assert len({found[0], found[2], found[4]}) == 3
    assert found[4] == found[5]


def test_the_limit_counts_what_a_task_takes_and_not_what_the_worker_is() -> None:
    assert results(["megabytes 100", "a"], num_workers=1, memory_bytes=200 << 20) == [str(100 << 20), "A"]
    failed, _ = results(["megabytes 300", "a"], num_workers=1, memory_bytes=200 << 20)
    assert isinstance(failed, Failure)


def test_a_library_that_aborts_without_memory_is_told_from_one_that_crashes() -> None:
    failed, fine = results(["bad_alloc", "a"], num_workers=1)
    assert isinstance(failed, Failure)
    assert (failed.reason, fine) == ("out-of-memory", "A")


def test_a_slow_first_task_holds_back_those_beyond_the_window() -> None:
    order = [
        index
        for index, _ in run_isolated(
            work, ["sleep 1", *"abcdefg"], num_workers=2, deadline_seconds=lambda task: 60, window=4
        )
    ]
    assert set(order[:3]) == {1, 2, 3}
    assert order[3] == 0


def test_a_request_to_stop_ends_the_iteration_and_the_workers() -> None:
    stop: list[str] = []
    found = {}
    for index, result in run_isolated(
        work, ["pid", "spin"], num_workers=1, deadline_seconds=lambda task: 60, should_stop=lambda: stop
    ):
        found[index] = result
        stop.append("now")
    assert list(found) == [0]
    assert not Path(f"/proc/{found[0]}").exists()


def test_leaving_early_kills_the_workers() -> None:
    tasks = run_isolated(work, ["pid", "spin"], num_workers=2, deadline_seconds=lambda task: 60)
    _, pid = next(tasks)
    tasks.close()
    assert not Path(f"/proc/{pid}").exists()


def test_workers_that_do_not_start_are_one_clear_error() -> None:
    def local(task: str) -> str:
        return task

    with pytest.raises(LVTError, match=r"worker processes do not start: .*AttributeError"):
        list(run_isolated(local, ["a"], num_workers=1, deadline_seconds=lambda task: 60))


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = (
        "from tests.test_executors import work\n"
        "from lvt_pipeline.jobs.ingest.workers import run_isolated\n"
        "for _, pid in run_isolated(work, ['pid', 'spin'], num_workers=1, deadline_seconds=lambda task: 60):\n"
        "    print(pid, flush=True)\n"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not _is_running(worker):
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_run_below_the_limit_of_the_shell_if_that_is_smaller() -> None:
    """`ulimit -v` below what ingest wants for a worker is kept, not an error."""
    code = (
        "from lvt_pipeline.jobs.ingest.workers import run_isolated; import math\n"
        "tasks = [9.0, 16.0]\n"
        "found = run_isolated(math.sqrt, tasks, num_workers=1, deadline_seconds=lambda task: 60, memory_bytes=2**40)\n"
        "print(sorted(found))"
    )
    command = ["sh", "-c", f"ulimit -v 4000000; exec '{sys.executable}' -c \"$0\"", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[(0, 3.0), (1, 4.0)]\n"
