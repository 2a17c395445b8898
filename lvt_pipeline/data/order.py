"""Which items make up the batch of a step: a function of (seed, step) and nothing else.

Items pass in epochs, each a new permutation that holds every item exactly once; epochs follow one another without a
gap, so no item is left out of an epoch whatever the batch size. Because nothing is remembered from earlier steps,
resuming at step n gives the batches that never stopping gives. A batch is that of all ranks together; each takes its
part of it, so the order does not depend on how many there are.

The paper trains on one randomly placed window of every clip an epoch: `clip_batch`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# What a generator is for, so that two uses of one seed never share numbers.
_PERMUTATION, _STARTS = 0, 1


def batch_indices(num_items: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Items of the batch of one step.

    Args:
        num_items: items there are, at least 1.
        batch_size: items in the batch over all ranks; it may exceed `num_items`.
        step: counted from 0.

    Returns:
        int64 (batch_size,) in [0, num_items). A batch that ends one epoch and begins the next may hold an item twice.
    """
    if num_items < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"cannot draw batch {step} of {batch_size} from {num_items} items")
    position, end = step * batch_size, (step + 1) * batch_size
    parts = []
    while position < end:
        epoch, first = divmod(position, num_items)
        count = min(end - position, num_items - first)
        parts.append(_permutation(num_items, seed, epoch)[first : first + count])
        position += count
    return np.concatenate(parts)


def clip_batch(
    num_starts: NDArray[np.int64], batch_size: int, seed: int, step: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clips of the batch of one step, each with the first frame of a window in it, all places equally likely.

    Args:
        num_starts: int64 (clips,), in how many places a window fits in each clip, at least 1.

    Returns:
        clips int64 (batch_size,) and starts int64 (batch_size,), in [0, num_starts) of their clip.
    """
    clips = batch_indices(len(num_starts), batch_size, seed, step)
    return clips, np.random.default_rng([_STARTS, seed, step]).integers(0, num_starts[clips])


@lru_cache(maxsize=4)  # a batch touches two epochs at most, unless there are fewer items than it holds
def _permutation(num_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng([_PERMUTATION, seed, epoch]).permutation(num_items)
    order.flags.writeable = False
    return order
