"""k-means: what its centres are."""

from __future__ import annotations

import pytest
import torch

from lvt_pipeline.models.vqvae import kmeans as module
from lvt_pipeline.models.vqvae.kmeans import kmeans


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_centres_are_the_means_of_the_vectors_nearest_to_them() -> None:
    vectors = torch.randn(300, 3, generator=seeded())
    centres, sizes = kmeans(vectors, 7, seeded(), iterations=200)
    nearest = torch.cdist(vectors, centres).argmin(1)
    assert torch.equal(sizes, torch.bincount(nearest, minlength=7))
    for code in range(7):
        torch.testing.assert_close(centres[code], vectors[nearest == code].mean(0))


def test_first_centres_are_far_apart() -> None:
    # One blob holds nearly all vectors: drawing them uniformly would miss the other nineteen.
    places = torch.arange(20.0)[:, None] * 100
    vectors = torch.cat([torch.zeros(5000, 1), places]) + 0.01 * torch.randn(5020, 1, generator=seeded())
    for seed in range(5):
        centres, _ = kmeans(vectors, 20, seeded(seed), iterations=0)
        assert float((centres - places.T).abs().amin(0).max()) < 1


def test_iterations_bring_centres_closer() -> None:
    vectors = torch.randn(2000, 4, generator=seeded())

    def error(iterations: int) -> float:
        return float(torch.cdist(vectors, kmeans(vectors, 16, seeded(), iterations=iterations).centres).amin(1).mean())

    assert error(10) < error(1) < error(0)


def test_fewer_distinct_vectors_than_centres_give_each_of_them() -> None:
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(10, 1)
    centres, sizes = kmeans(vectors, 5, seeded())
    assert centres.unique(dim=0).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert sorted(sizes.tolist()) == [0, 0, 0, 10, 10]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.randn(1000, 3, generator=seeded())
    whole = kmeans(vectors, 9, seeded())
    monkeypatch.setattr(module, "CHUNK_ROWS", 64)
    parts = kmeans(vectors, 9, seeded())
    torch.testing.assert_close(whole.centres, parts.centres)
    assert torch.equal(whole.sizes, parts.sizes)
