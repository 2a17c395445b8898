"""Code stores with made-up codes, written in milliseconds, for tests that need no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lvt_pipeline.codes.plan import CodePlan
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, codes_fingerprint
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.provenance import Provenance

LENGTHS = {"train/a": 11, "train/b": 30, "val/c.d": 5, "test/ü e": 19}
TOKENIZER = "0123456789abcdef" * 4
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
    made_of: Callable[[PlannedClip], np.ndarray] | None = None,
    **options: Any,
) -> CodePlan:
    """A whole encode with made-up codes; `stop_after` shards it ends without publishing."""
    by_id = {clip.id: clip for clip in clips}
    codes = made_of or partial(codes_of, schema=schema)
    with CodeStoreWriter.open(path, schema, clips, settings=settings, **options) as writer:
        for number, shard in enumerate(writer.pending_shards()):
            if number == stop_after:
                return writer.plan
            parts = [codes(by_id[part.clip_id])[part.start : part.stop] for part in shard.parts]
            writer.write_shard(shard.index, np.concatenate(parts))
        writer.publish(record())
    return writer.plan


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def shards_of(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(path).items() if name.startswith("codes/c/")}


FIVE = [planned("a", 20), planned("b/c", 70, "val"), planned("d", 1), planned("e#1.5", 33, label="push"), planned("f")]


def made_up_codes(clip_id: str, length: int, codebook_size: int, frame_shape: tuple[int, int, int]) -> np.ndarray:
    """Codes that depend on the id alone, many of which stay from frame to frame."""
    generator = np.random.default_rng(list(clip_id.encode()))
    codes = generator.integers(0, codebook_size, (length, *frame_shape))
    for frame in range(1, length):
        stays = generator.random(frame_shape) < 0.7
        codes[frame][stays] = codes[frame - 1][stays]
    return codes


def make_store(
    path: Path,
    lengths: Mapping[str, int] = LENGTHS,
    *,
    codebook_size: int = 512,
    frame_shape: tuple[int, int, int] = (4, 3, 2),
    shard_frames: int = 16,
    content: Mapping[str, str] | None = None,
    tokenizer: str = TOKENIZER,
) -> CodeStore:
    """A store of these clips, or the next generation of the one that is there.

    Args:
        lengths: frames by clip id; the first part of an id is the split.
        content: ids whose codes a clip has instead of those of its own.
    """
    schema = CodeSchema(
        codebook_size=codebook_size,
        num_codebooks=frame_shape[2],
        grid=frame_shape[:2],
        tokenizer=tokenizer,
        shard_frames=shard_frames,
    )
    names = {clip_id: (content or {}).get(clip_id, clip_id) for clip_id in lengths}
    clips = [
        PlannedClip(
            id=clip_id,
            split=clip_id.partition("/")[0],
            label=f"label of {clip_id}" if "b" in clip_id else None,
            length=length,
            fingerprint=f"{names[clip_id]} {length}",
            fps=12.5,
            source="",
        )
        for clip_id, length in lengths.items()
    ]
    made_of = {clip.id: made_up_codes(names[clip.id], clip.length, codebook_size, frame_shape) for clip in clips}
    write(path, clips, schema, made_of=lambda clip: made_of[clip.id])
    return open_codes(path)
