"""The order of batches: epochs without repetition, and nothing remembered from one step to the next."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from lvt_pipeline.codes.loading.order import batch_indices, clip_batch


def stream(num_items: int, batch_size: int, seed: int, steps: int) -> np.ndarray:
    return np.concatenate([batch_indices(num_items, batch_size, seed, step) for step in range(steps)])


@pytest.mark.parametrize(("num_items", "batch_size"), [(12, 4), (13, 4), (5, 8), (3, 20), (1, 3), (7, 7)])
def test_every_epoch_holds_every_item_exactly_once(num_items: int, batch_size: int) -> None:
    order = stream(num_items, batch_size, seed=3, steps=40)
    for epoch in range(len(order) // num_items):
        assert sorted(order[epoch * num_items : (epoch + 1) * num_items]) == list(range(num_items))


def test_the_batch_of_a_step_does_not_depend_on_the_steps_before_it() -> None:
    forward = [batch_indices(101, 16, 5, step) for step in range(50)]
    backward = [batch_indices(101, 16, 5, step) for step in reversed(range(50))]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    epochs = stream(1000, 1000, seed=0, steps=3).reshape(3, 1000)
    assert all((a == b).mean() < 0.05 for a, b in pairwise(epochs))
    assert (batch_indices(1000, 1000, 0, 0) == batch_indices(1000, 1000, 1, 0)).mean() < 0.05


def test_the_order_does_not_depend_on_how_items_are_batched() -> None:
    assert np.array_equal(stream(37, 6, 9, 20), stream(37, 12, 9, 10))


def test_the_order_of_a_seed_never_changes() -> None:
    # Runs that are resumed with a later version must see the order they began with.
    assert batch_indices(10, 10, 0, 0).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]


def test_clips_come_once_an_epoch_with_starts_spread_over_all_places() -> None:
    num_starts = np.array([1, 2, 30, 5])
    seen: list[set[int]] = [set() for _ in num_starts]
    for step in range(600):
        clips, starts = clip_batch(num_starts, 4, 1, step)
        assert sorted(clips) == [0, 1, 2, 3]
        assert np.all((starts >= 0) & (starts < num_starts[clips]))
        for clip, start in zip(clips, starts, strict=True):
            seen[clip].add(int(start))
    assert [len(places) for places in seen] == num_starts.tolist()


def test_starts_are_a_function_of_seed_and_step() -> None:
    num_starts = np.full(50, 1000)
    first, again = clip_batch(num_starts, 8, 2, 11), clip_batch(num_starts, 8, 2, 11)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[1], clip_batch(num_starts, 8, 2, 12)[1])
    assert not np.array_equal(first[1], clip_batch(num_starts, 8, 3, 11)[1])


def test_a_step_far_into_training_costs_no_more_than_one_epoch_of_memory_and_time() -> None:
    batch_indices(650_000, 32, 0, 10**9)  # one permutation
    started = time.monotonic()
    for step in range(1000):
        batch_indices(650_000, 32, 0, 10**9 + step)
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("wrong", [(0, 4, 0, 0), (4, 0, 0, 0), (4, 4, 0, -1)])
def test_a_batch_of_nothing_is_refused(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot draw"):
        batch_indices(*wrong)
