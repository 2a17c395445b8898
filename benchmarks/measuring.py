"""Interleaved timing: the candidates run in turn, so a machine whose speed drifts does not favour one of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def time_in_turn(
    candidates: Mapping[str, Callable[[], object]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each candidate over `repetitions` rounds, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(repetitions + 1):
        for name, run in candidates.items():
            started = clock()
            run()
            if round_number:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, seconds: Mapping[str, float], reference: str, note: str = "") -> str:
    """Markdown: each candidate's median and its speed relative to the reference."""
    lines = [f"### {title}", ""] + ([note, ""] if note else [])
    lines += ["| what | median | times as fast as the reference |", "|---|---|---|"]
    for name, value in seconds.items():
        lines.append(f"| {name} | {value:.4g} s | {seconds[reference] / value:.2f} |")
    return "\n".join(lines) + "\n"
