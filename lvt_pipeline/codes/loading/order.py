"""Which items make up the batch of a step: a function of (seed, step) and nothing else.

Items pass in epochs, each a new permutation that holds every item exactly once; epochs follow one another without a
gap, so no item is left out of an epoch whatever the batch size. Because nothing is remembered from earlier steps,
resuming at step n gives the batches that never stopping gives. A batch is that of all ranks together; each takes its
part of it, so the order does not depend on how many there are.

The paper trains on one randomly placed window of every clip an epoch: `clip_batch`. `clip_sequence` is the same by
position instead of step, for several stores at once: `mixture` assigns the positions to the stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# What a generator is for, so that two uses of one seed never share numbers.
# `codes.loading.shard_order` has 2 and 3.
_PERMUTATION, _STARTS, _PLACES, _MIXTURE = 0, 1, 4, 5

MIXTURE_BLOCK = 1000  # windows after which every store has had its share exactly


def batch_indices(num_items: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Items of the batch of one step.

    Args:
        num_items: items there are, at least 1.
        batch_size: items in the batch over all ranks; it may exceed `num_items`.
        step: counted from 0.

    Returns:
        int64 (batch_size,) in [0, num_items). A batch that ends one epoch and begins the next may hold an item twice.

    Raises:
        ValueError: a number is out of range.
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


def clip_sequence(
    num_starts: NDArray[np.int64], seed: int, first: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clips and starts at positions [first, stop) of an endless sequence, every clip once an epoch.

    Args:
        num_starts: int64 (clips,), in how many places a window fits in each clip, at least 1.
    """
    num_items = len(num_starts)
    clips, places = [np.zeros(0, np.int64)], [np.zeros(0)]
    while first < stop:
        epoch, begin = divmod(first, num_items)
        end = min(begin + stop - first, num_items)
        clips.append(_permutation(num_items, seed, epoch)[begin:end])
        places.append(_places(num_items, seed, epoch)[begin:end])
        first += end - begin
    chosen = np.concatenate(clips)
    return chosen, (np.concatenate(places) * num_starts[chosen]).astype(np.int64)


def mixture(weights: Sequence[float], seed: int, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which store each position of a mixture belongs to.

    Positions come in blocks of `MIXTURE_BLOCK`, of which every store has its share, at least one, in random places; so
    how many windows a store has given so far is known without going through the steps before.

    Args:
        weights: above 0, one per store; only their ratios count.

    Returns:
        stores int64 (stop - first,), and int64 (stores,): how many positions before `first` each store has.
    """
    if len(weights) == 1:
        return np.zeros(stop - first, np.int64), np.array([first])
    counts = _counts_of_block(weights)
    block, begin = divmod(first, MIXTURE_BLOCK)
    parts = [np.zeros(0, np.int64)]
    before = np.array(counts) * block
    if begin:
        before = before + np.bincount(_assignment(counts, seed, block)[:begin], minlength=len(counts))
    while first < stop:
        block, begin = divmod(first, MIXTURE_BLOCK)
        end = min(begin + stop - first, MIXTURE_BLOCK)
        parts.append(_assignment(counts, seed, block)[begin:end])
        first += end - begin
    return np.concatenate(parts), before


def mixture_positions(weights: Sequence[float], seed: int, store: int, first: int, stop: int) -> NDArray[np.int64]:
    """Where in a mixture windows [first, stop) of one of its stores are: the inverse of `mixture`.

    Args:
        store: which one, counted from 0.

    Returns:
        int64 (stop - first,), ascending.
    """
    counts = _counts_of_block(weights)
    parts = [np.zeros(0, np.int64)]
    while first < stop:
        block, begin = divmod(first, counts[store])
        end = min(begin + stop - first, counts[store])
        places = np.flatnonzero(_assignment(counts, seed, block) == store)
        parts.append(block * MIXTURE_BLOCK + places[begin:end])
        first += end - begin
    return np.concatenate(parts)


def _counts_of_block(weights: Sequence[float]) -> tuple[int, ...]:
    """How many positions of a block each store has."""
    shares = np.asarray(weights, float) * (MIXTURE_BLOCK / float(np.sum(weights)))
    counts = np.maximum(np.floor(shares), 1).astype(np.int64)
    for _ in range(MIXTURE_BLOCK - int(counts.sum())):
        counts[np.argmax(shares - counts)] += 1
    while counts.sum() > MIXTURE_BLOCK:  # very small weights were raised to one
        counts[np.argmax(counts)] -= 1
    return tuple(counts.tolist())


@lru_cache(maxsize=4)
def _assignment(counts: tuple[int, ...], seed: int, block: int) -> NDArray[np.int64]:
    stores = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng([_MIXTURE, seed, block]).permutation(stores)


@lru_cache(maxsize=4)
def _places(num_items: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """Where in its clip each window of an epoch begins, as shares in [0, 1)."""
    return np.random.default_rng([_PLACES, seed, epoch]).random(num_items)


@lru_cache(maxsize=8)  # a batch touches two epochs of each store, unless there are fewer items
def _permutation(num_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng([_PERMUTATION, seed, epoch]).permutation(num_items)
    order.flags.writeable = False
    return order
