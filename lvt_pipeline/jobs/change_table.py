"""What an encode is going to do, to look at first: clips and frames by kind, and about how long and how large.

Time and bytes are those of a few of the frames to come, encoded and compressed on the spot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.plan import CodePlan
from lvt_pipeline.codes.schema import CHUNK_FRAMES
from lvt_pipeline.codes.shard_file import shard_bytes
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.progress import count_of, format_seconds

WARM_SECONDS = 1.0  # a first pass that took longer was not slow because it was the first


@dataclass(frozen=True, kw_only=True)
class ChangeRow:
    """Clips of one kind, and their frames."""

    kind: str
    clips: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class ChangeTable:
    """The change that an encode makes.

    Attributes:
        rows: kept, added, changed and removed.
        copied: those of them whose arrays change and whose codes do not: their codes are copied.
        frames: to encode, those of shards to repair included.
        seconds, bytes: about what that takes; None when there is nothing to encode.
    """

    rows: tuple[ChangeRow, ...]
    copied: ChangeRow
    frames: int
    seconds: float | None = None
    bytes: int | None = None

    def lines(self) -> list[str]:
        """The table as text."""
        lines = [f"{'':8} {'clips':>10} {'frames':>12}"]
        lines += [f"{row.kind:8} {row.clips:10,} {row.frames:12,}" for row in self.rows]
        if self.copied.clips:
            lines.append(
                f"new arrays of {count_of(self.copied.clips, 'clip')}: their rows are written and their codes copied, "
                "no frame is encoded"
            )
        if self.seconds is None or self.bytes is None:
            return [*lines, "nothing to encode"]
        return [
            *lines,
            f"to encode: {count_of(self.frames, 'frame')}, about {format_seconds(self.seconds)} and "
            f"{_sized(self.bytes)}",
        ]


def change_table(
    plan: CodePlan, frames: FrameShards, encode: Callable[[NDArray[np.uint8]], NDArray[Any]], batch_size: int
) -> ChangeTable:
    """The table of a plan.

    Args:
        encode: uint8 (N, H, W, 3) -> codes (N, h, w, n_c), for at most `batch_size` frames.
    """
    change = plan.change
    rows = tuple(
        ChangeRow(kind=kind, clips=len(getattr(change, kind)), frames=change.num_frames.get(kind, 0))
        for kind in ("kept", "added", "changed", "removed")
    )
    copied = ChangeRow(kind="copied", clips=len(change.copied), frames=change.num_frames.get("copied", 0))
    parts = [part for shard in (*plan.repairs, *plan.shards) for part in shard.parts if part.clip_id not in plan.copies]
    if not parts:
        return ChangeTable(rows=rows, copied=copied, frames=change.frames)
    part = parts[0]
    pixels = frames.read(frames[part.clip_id], part.start, min(part.stop, part.start + batch_size))
    began = time.monotonic()
    codes = encode(pixels)
    seconds = time.monotonic() - began
    if seconds < WARM_SECONDS:
        began = time.monotonic()
        encode(pixels)
        seconds = time.monotonic() - began
    # One chunk as it will be stored; its frames may be few, which makes the estimate a little high.
    length = min(len(codes), CHUNK_FRAMES)
    schema = replace(plan.schema, shard_frames=length, chunk_frames=length)
    size = len(shard_bytes(codes[:length].astype(schema.dtype), schema)) / length
    return ChangeTable(
        rows=rows,
        copied=copied,
        frames=change.frames,
        seconds=round(seconds / batch_size * change.frames, 1),
        bytes=round(size * change.frames),
    )


def _sized(num_bytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 2**10:.0f} KiB"
