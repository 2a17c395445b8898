"""What planning and committing very many clips costs: time, memory, bytes of the clip table, and one clip more."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lvt_pipeline.codes.layout import table_name
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.provenance import Provenance

SIZES = (400_000, 4_000_000)
MEASURED = """
import json, sys
from pathlib import Path
from benchmarks.scale import fill
facts = fill(Path(sys.argv[1]), int(sys.argv[2]))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({**facts, "peak": int(peak.split()[1]) * 1024}))
"""


def run() -> str:
    """Whole processes. A clip has one frame of one code, so that what is not writing shards shows."""
    lines = ["### Very many clips", "", "Processor seconds; the shards of codes are as small as they can be.", ""]
    lines += [
        "| clips | first: plan, commit | per shard | one clip more: plan, commit | clip table | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", MEASURED, str(Path(folder) / "s"), str(size)]
            facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        lines.append(
            f"| {size:,} | {facts['first plan']:.1f} s, {facts['first commit']:.1f} s | "
            f"{1000 * facts['shard']:.2f} ms | "
            f"{facts['more plan']:.1f} s, {facts['more commit']:.1f} s | "
            f"{facts['table'] / 2**20:.0f} MiB | {facts['peak'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines) + "\n"


def fill(path: Path, size: int) -> dict[str, float]:
    """Publish a store of clips, then one clip more: seconds to plan and commit each, of a shard, bytes of the table."""
    schema = CodeSchema(codebook_size=16, num_codebooks=1, grid=(1, 1), tokenizer="t")
    clips = [_clip(number, path) for number in range(size)]
    plan, shard, commit = _publish(path, schema, clips)
    plan_more, _, commit_more = _publish(path, schema, [*clips, _clip(size, path)])
    return {
        "first plan": plan,
        "first commit": commit,
        "shard": shard,
        "more plan": plan_more,
        "more commit": commit_more,
        "table": (path / table_name(2)).stat().st_size,
    }


def _publish(path: Path, schema: CodeSchema, clips: list[PlannedClip]) -> tuple[float, float, float]:
    """Seconds to read, compare and begin; of a shard; and to write the clip table and the root."""
    began = time.process_time()
    with CodeStoreWriter.open(path, schema, clips) as writer:
        planned, shards = time.process_time(), writer.pending_shards()
        for shard in shards:
            writer.write_shard(shard.index, np.zeros((shard.num_frames, *schema.frame_shape), np.uint8))
        written = time.process_time()
        writer.publish(Provenance(kind="codes", stage="benchmark", version=1, settings={}, inputs={}, fingerprint=""))
    return planned - began, (written - planned) / max(1, len(shards)), time.process_time() - written


def _clip(number: int, store: Path) -> PlannedClip:
    name = f"class_{number % 600}/clip-{number:07d}"
    facts = {"split": "train", "label": f"class_{number % 600}", "length": 1, "fps": 10.0}
    return PlannedClip(id=name, fingerprint=f"{7 * number:064x}", source=f"{store.parent}/videos/{name}.mp4", **facts)  # type: ignore[arg-type]
