"""The kernel distance against a slow obvious computation, and its expectation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.evaluation.distances import kvd
from lvt_pipeline.evaluation.distances.kvd import kernel_distance


def slow_distance(real: np.ndarray, other: list[np.ndarray]) -> float:
    """The definition, one pair after another in Python's own numbers."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    count = len(real)
    terms = []
    for i in range(count):
        for j in range(count):
            if i != j:
                terms.append(kernel(real[i], real[j]))
                terms += [kernel(x, y) / (len(other[i]) * len(other[j])) for x in other[i] for y in other[j]]
                terms += [-kernel(real[i], y) / len(other[j]) for y in other[j]]
                terms += [-kernel(real[j], y) / len(other[i]) for y in other[i]]
    return math.fsum(terms) / (count * (count - 1))


@pytest.mark.parametrize("at_once", [3, 1024], ids=["several blocks", "one block"])
@pytest.mark.parametrize("counts", [[1] * 8, [2, 1, 3, 1, 1, 4, 1, 2]], ids=["one each", "several"])
def test_the_distance_is_its_definition(monkeypatch: pytest.MonkeyPatch, at_once: int, counts: list[int]) -> None:
    monkeypatch.setattr(kvd, "_AT_ONCE", at_once)
    generator = np.random.default_rng(1)
    real = generator.normal(size=(8, 5))
    other = [generator.normal(0.5, 2, size=(count, 5)) for count in counts]
    owners = np.repeat(np.arange(8), counts)
    found = kernel_distance(real, np.concatenate(other), owners)
    assert found.value == pytest.approx(slow_distance(real, other), rel=1e-12)
    assert found.low < found.value < found.high


def test_the_distance_has_no_bias_for_few_clips_although_videos_depend_on_their_clips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """y = x + shift: the true distance is the mean of (k(x, x') + k(y, y') - 2 k(x, y')) over independent x, x'."""
    monkeypatch.setattr(kvd, "RESAMPLES", 2)  # the interval is not looked at
    generator = np.random.default_rng(2)
    shift = np.array([0.3, -0.2])
    one, two = generator.normal(size=(2, 400_000, 2))
    dot = lambda a, b: ((a * b).sum(1) / 2 + 1) ** 3  # noqa: E731
    terms = dot(one, two) + dot(one + shift, two + shift) - dot(one, two + shift) - dot(two, one + shift)
    true, error = terms.mean(), terms.std() / math.sqrt(len(terms))
    found = []
    for _ in range(1500):
        real = generator.normal(size=(6, 2))
        found.append(kernel_distance(real, real + shift).value)
    spread = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - true) < 4 * math.hypot(error, spread)
    same = [kernel_distance(*generator.normal(size=(2, 6, 2))).value for _ in range(1500)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(len(same))  # FVD of so few would be far above 0


def test_the_interval_contains_the_true_distance_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    big = generator.normal(size=(2000, 3))
    true = kernel_distance(big, generator.normal(0.8, 1.3, size=(2000, 3))).value
    intervals = [
        kernel_distance(generator.normal(size=(60, 3)), generator.normal(0.8, 1.3, size=(60, 3)), seed=run)
        for run in range(60)
    ]
    assert sum(each.low <= true <= each.high for each in intervals) >= 50


def test_the_same_seed_gives_the_same_interval() -> None:
    real, other = np.random.default_rng(4).normal(size=(2, 10, 3))
    assert kernel_distance(real, other) == kernel_distance(real, other)
    assert kernel_distance(real, real).value == pytest.approx(0, abs=1e-12)
    two = kernel_distance(real[:2], other[:2])
    assert two.low == two.value == two.high  # a single pair of clips


def test_sets_that_do_not_belong_together_are_refused() -> None:
    real = np.ones((4, 3))
    for other, owners in ((real[:3], None), (real[:, :2], None), (real, np.array([0, 1, 1, 3]))):
        with pytest.raises(ShapeError, match="are not of two clips or more and videos of each"):
            kernel_distance(real, other, owners)
