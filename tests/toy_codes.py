"""Code stores with made-up codes, written in milliseconds: clips, and a whole encode of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvt_pipeline.codes.plan import CodePlan
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, codes_fingerprint
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.provenance import Provenance

SCHEMA = CodeSchema(codebook_size=512, num_codebooks=2, grid=(3, 4), tokenizer="a" * 64, shard_frames=64)


def planned(name: str, length: int = 20, split: str = "train", content: str = "", **other: Any) -> PlannedClip:
    fields = {"label": None, "fps": 10.0, "source": f"videos/{name}.mp4", **other}
    fingerprint = fields.pop("fingerprint_of", codes_fingerprint(content or name, SCHEMA.tokenizer))
    return PlannedClip(id=name, split=split, length=length, fingerprint=fingerprint, **fields)


def codes_of(clip: PlannedClip, schema: CodeSchema = SCHEMA) -> np.ndarray:
    """Codes that depend on the clip's fingerprint only, as those of a tokenizer do."""
    rng = np.random.default_rng(int(clip.fingerprint[:8], 16))
    return rng.integers(0, schema.codebook_size, (clip.length, *schema.frame_shape))


def record(**counts: Any) -> Provenance:
    return Provenance(kind="codes", stage="test", version=1, settings={}, inputs={}, fingerprint="", counts=counts)


def write(
    path: Path,
    clips: Sequence[PlannedClip],
    schema: CodeSchema = SCHEMA,
    settings: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    **options: Any,
) -> CodePlan:
    """A whole encode with made-up codes; `stop_after` shards it ends without publishing."""
    by_id = {clip.id: clip for clip in clips}
    with CodeStoreWriter.open(path, schema, clips, settings=settings, **options) as writer:
        for number, shard in enumerate(writer.pending_shards()):
            if number == stop_after:
                return writer.plan
            parts = [codes_of(by_id[part.clip_id], schema)[part.start : part.stop] for part in shard.parts]
            writer.write_shard(shard.index, np.concatenate(parts))
        writer.publish(record())
    return writer.plan


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def shards_of(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(path).items() if name.startswith("codes/c/")}


FIVE = [planned("a", 20), planned("b/c", 70, "val"), planned("d", 1), planned("e#1.5", 33, label="push"), planned("f")]
