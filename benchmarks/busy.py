"""Training next to a busy program: the share of its speed that a training keeps, by how torch's threads wait.

Each form is a process of its own, since how OpenMP waits is decided when torch loads. They take turns, one second at a
time without and with a load of one process that never rests.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from benchmarks.training_steps import Network, Size, lvt_step
from lvt_pipeline.models.threads import waits_that_leave_room

ROUNDS = int(os.environ.get("LVT_REPETITIONS", "7"))
TURN_SECONDS = 1.0
SPINS = "GOMP_SPINCOUNT"
# Name -> environment, whether lvt watches the waits, whether one thread computes.
FORMS: dict[str, tuple[dict[str, str], bool, bool]] = {
    "torch's waits": ({}, False, False),
    f"{SPINS}=5000": ({SPINS: "5000"}, False, False),
    f"{SPINS}=0": ({SPINS: "0"}, False, False),
    "one thread": ({}, False, True),
    "lvt, from Python": ({}, True, False),
    "lvt, the command": ({SPINS: "5000"}, True, False),
}
SUBJECTS: tuple[tuple[Network, Size, int], ...] = (("tokenizer", "tiny", 8), ("prior", "tiny", 8))


def run() -> str:
    """Steps per second of each form, alone and next to the load."""
    lines = []
    for network, size, batch in SUBJECTS:
        alone, loaded = _measure(network, size, batch)
        first = next(iter(FORMS))
        for name in FORMS:
            share = statistics.median(b / a for a, b in zip(alone[name], loaded[name], strict=True))
            times = statistics.median(b / a for a, b in zip(alone[first], alone[name], strict=True))
            ours = statistics.median(b / a for a, b in zip(loaded[first], loaded[name], strict=True))
            speeds = f"{statistics.median(alone[name]):.2f} | {statistics.median(loaded[name]):.2f}"
            lines.append(f"| {network}, {size} | {name} | {speeds} | {share:.2f} | {times:.2f} | {ours:.2f} |")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return "\n".join(
        [
            "### Training next to a busy program",
            "",
            f"Steps/s of the presets, {ROUNDS} turns of {TURN_SECONDS:g} s, medians; shares and ratios are medians of "
            f"those of each round. The load averages of the machine at the end were {load}: what other programs take "
            "is in both columns.",
            "",
            "| training | waits | alone | with the load | share kept | alone, of torch's | with the load, of torch's |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def _measure(network: Network, size: Size, batch: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Steps/s of each form in each round, alone and next to the load."""
    workers, found = {}, ({name: [] for name in FORMS}, {name: [] for name in FORMS})  # type: ignore[var-annotated]
    free = {name: value for name, value in os.environ.items() if name not in (SPINS, "OMP_NUM_THREADS")}
    with _load() as load:
        for name, (environment, is_watched, is_single) in FORMS.items():
            command = [sys.executable, "-m", "benchmarks.busy", network, size, str(batch)]
            command += [str(int(is_watched)), str(int(is_single))]
            workers[name] = subprocess.Popen(
                command, env={**free, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        try:
            for number in range(ROUNDS + 1):
                for is_loaded, speeds in enumerate(found):
                    load.send_signal(signal.SIGCONT if is_loaded else signal.SIGSTOP)
                    for name, worker in workers.items():
                        speed = _turn(worker)
                        if number:
                            speeds[name].append(speed)
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()
    return found


@contextmanager
def _load() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _turn(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(network: Network, size: Size, batch: int, is_watched: bool, is_single: bool) -> None:
    """Take steps for a turn whenever a line comes in, and print their number per second."""
    if is_single:
        torch.set_num_threads(1)
    step = lvt_step(network, size, batch)
    for _ in sys.stdin:
        with waits_that_leave_room() if is_watched else nullcontext():
            step()
            count, began = 0, time.perf_counter()
            while (seconds := time.perf_counter() - began) < TURN_SECONDS:
                step()
                count += 1
        print(count / seconds, flush=True)


if __name__ == "__main__":
    _, network, size, batch, is_watched, is_single = sys.argv
    work(network, size, int(batch), is_watched == "1", is_single == "1")  # type: ignore[arg-type]
