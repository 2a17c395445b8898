"""Code stores of made-up codes, for tests that need a store and no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lvt_pipeline.codes.schema import CodeSchema, PlannedClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.provenance import Provenance

LENGTHS = {"train/a": 11, "train/b": 30, "val/c.d": 5, "test/ü e": 19}
TOKENIZER = "0123456789abcdef" * 4


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
    height, width, num_codebooks = frame_shape
    schema = CodeSchema(
        codebook_size=codebook_size,
        num_codebooks=num_codebooks,
        grid=(height, width),
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
    with CodeStoreWriter.open(path, schema, clips) as writer:
        for shard in writer.pending_shards():
            parts = [
                made_up_codes(names[part.clip_id], lengths[part.clip_id], codebook_size, frame_shape)[
                    part.start : part.stop
                ]
                for part in shard.parts
            ]
            writer.write_shard(shard.index, np.concatenate(parts))
        record = Provenance(kind="codes", stage="test", version=1, settings={}, inputs={}, fingerprint="")
        writer.publish(record)
    return open_codes(path)
