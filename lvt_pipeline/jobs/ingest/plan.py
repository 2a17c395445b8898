"""Which lines of a manifest are in which shard: by count, or by how many bytes their frames take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lvt_pipeline.frames.records import shard_name
from lvt_pipeline.video.clips import SPLITS, Clip


@dataclass(frozen=True)
class PlannedShard:
    """A shard that the manifest asks for: its file name and its lines, in manifest order."""

    name: str
    lines: list[Clip]


def plan_shards(
    lines: Sequence[Clip], weigh: Callable[[Clip], float | None], capacity: float
) -> Iterator[PlannedShard]:
    """Cut each split into shards: one is full as soon as its lines weigh `capacity` or more.

    Equal weights give equal plans, so a plan by bytes is the same whether a line was decoded just now or by an earlier
    run. The lines of a shard are weighed, in order, before it comes out.

    Args:
        weigh: weight of a line; None when it is not known yet, which ends the plan of its split.
    """
    for split in SPLITS:
        index, members, weight = 0, list[Clip](), 0.0
        for line in lines:
            if line.split != split:
                continue
            added = weigh(line)
            if added is None:
                break
            members.append(line)
            weight += added
            if weight >= capacity:
                yield PlannedShard(shard_name(split, index), members)
                index, members, weight = index + 1, [], 0.0
        else:
            if members:
                yield PlannedShard(shard_name(split, index), members)
