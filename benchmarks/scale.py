"""What very many clips and shards cost: planning and committing, one clip more, and a runner's part of each shard."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from lvt_pipeline.codes.plan import ShardPart, ShardPlan
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import LVTError
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.jobs.runner import LOCAL, Elsewhere, Plan, Runner
from lvt_pipeline.progress import SILENT, Bar
from lvt_pipeline.provenance import Provenance

SIZES = (400_000, 4_000_000)
SHARDS, CLIPS_PER_SHARD, ROUNDS = 1000, 14, 5
MEASURED = """
import json, sys
from pathlib import Path
from benchmarks.scale import fill
facts = fill(Path(sys.argv[1]), int(sys.argv[2]))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({**facts, "peak": int(peak.split()[1]) * 1024}))
"""


def run(sizes: Sequence[int] = SIZES) -> str:
    """Whole processes. A clip has one frame of one code, so that what is not writing shards shows."""
    lines = ["### Very many clips", "", "Processor seconds; the shards of codes are as small as they can be.", ""]
    lines += [
        "| clips | first: plan, commit | one clip more at the end: plan, commit, bytes | in the middle | peak memory |",
        "|---|---|---|---|---|",
    ]
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", MEASURED, str(Path(folder) / "s"), str(size)]
            facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        cells = [f"{facts['first plan']:.1f} s, {facts['first commit']:.1f} s"]
        for place in ("end", "middle"):
            seconds = f"{facts[f'{place} plan']:.1f} s, {facts[f'{place} commit']:.1f} s"
            cells.append(f"{seconds}, {facts[f'{place} bytes'] / 2**10:,.0f} KiB")
        lines.append(f"| {size:,} | {' | '.join(cells)} | {facts['peak'] / 2**30:.2f} GiB |")
    return "\n".join([*lines, "", *runners()]) + "\n"


def fill(path: Path, size: int) -> dict[str, float]:
    """Publish a store of clips, then one clip more at its end and one in its middle.

    Returns:
        Seconds to plan and to commit each, and the bytes of all files that appear or change, shards included.
    """
    schema = CodeSchema(codebook_size=16, num_codebooks=1, grid=(1, 1), tokenizer="t")
    clips = [_clip(number, path) for number in range(size)]
    facts: dict[str, float] = {}
    for name, place in (("first", None), ("end", size), ("middle", size // 2)):
        before = _files(path)
        if place is not None:
            clips.insert(place, _clip(len(clips), path))
        facts[f"{name} plan"], facts[f"{name} commit"] = _publish(path, schema, clips)
        changed = _files(path).items() - before.items()
        facts[f"{name} bytes"] = sum(bytes_in_file for _, (bytes_in_file, *_) in changed)
    return facts


def _files(path: Path) -> dict[Path, tuple[int, int, int]]:
    """Bytes, inode and time of every file."""
    found = [(file, file.stat()) for file in path.rglob("*") if file.is_file()]
    return {file: (status.st_size, status.st_ino, status.st_mtime_ns) for file, status in found}


def _publish(path: Path, schema: CodeSchema, clips: list[PlannedClip]) -> tuple[float, float]:
    """Seconds to read, compare and begin; and to write the clip table and the root."""
    began = time.process_time()
    with CodeStoreWriter.open(path, schema, clips) as writer:
        planned = time.process_time()
        for shard in writer.pending_shards():
            writer.write_shard(shard.index, np.zeros((shard.num_frames, *schema.frame_shape), np.uint8))
        written = time.process_time()
        writer.publish(Provenance(kind="codes", stage="benchmark", version=1, settings={}, inputs={}, fingerprint=""))
    return planned - began, time.process_time() - written


def _clip(number: int, store: Path) -> PlannedClip:
    name = f"class_{number % 600}/clip-{number:07d}"
    facts = {"split": "train", "label": f"class_{number % 600}", "length": 1, "fps": 10.0}
    origin = {"source": f"{store.parent}/videos/{name}.mp4", "source_digest": f"{11 * number:064x}"}
    return PlannedClip(id=name, fingerprint=f"{7 * number:064x}", decoder="decord 0.6.0", **origin, **facts)  # type: ignore[arg-type]


# What a runner costs -------------------------------------------------------------------------------------------------


class NothingToEncode:
    """A worker that costs nothing: it writes no shard, and its receipt is the name of the shard."""

    def __call__(self, plans: Sequence[ShardPlan], bar: Bar, should_stop: Callable[[], object]) -> Iterator[str]:
        for plan in plans:
            bar.advance(plan.num_frames)
            yield str(plan.index)


def start(device: str) -> NothingToEncode:
    """The worker in another process."""
    return NothingToEncode()


def runners() -> list[str]:
    """What a runner with one worker adds to each shard of 14 clips, from the first receipt to the last."""
    candidates: dict[str, Callable[[], float]] = {"local": partial(_seconds_per_shard, LOCAL)}
    try:
        from lvt_pipeline.jobs.ray_runner import RayRunner

        candidates["Ray"] = partial(_seconds_per_shard, RayRunner(num_workers=1))
    except LVTError:
        pass  # Ray is not installed
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, measure in candidates.items():
            seconds[name].append(measure())
    lines = [f"A worker that costs nothing, {SHARDS} shards, the median of {ROUNDS} rounds in turn:", ""]
    lines += ["| runner | milliseconds a shard |", "|---|---|"]
    return [*lines, *(f"| {name} | {1000 * median(found):.3f} |" for name, found in seconds.items())]


def _seconds_per_shard(runner: Runner) -> float:
    parts = [tuple(ShardPart(f"clip {n}-{m}", 0, 290) for m in range(CLIPS_PER_SHARD)) for n in range(SHARDS)]
    plans = [Plan(f"shard {index}", ShardPlan(index=index, parts=some)) for index, some in enumerate(parts)]
    with (
        tempfile.TemporaryDirectory() as folder,
        stop_requested() as stop,
        SILENT.bar("encode", None, "frames") as bar,
    ):
        workers = (NothingToEncode(), Elsewhere(start, [Path(folder)], "cpu"))
        times = [time.perf_counter() for _ in runner.make(workers, plans, bar, stop, str)]
    return (times[-1] - times[0]) / (SHARDS - 1)
