"""k-means in plain torch: where the codebooks of a VQ-VAE start when they start from the data.

k-means++ chooses the first centres far apart, Lloyd's iterations then move each to the mean of the vectors nearest to
it. It runs on the device the vectors are on and draws from a generator of the caller, so that the same vectors and
seed give the same centres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ITERATIONS = 10  # Lloyd's
CHUNK_ROWS = 8192  # vectors compared with all centres at once, to bound memory


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        centres: float32 (K, d).
        sizes: int64 (K,), how many vectors are nearest to each; 0 for centres that lost them all.
    """

    centres: Tensor
    sizes: Tensor


def kmeans(
    vectors: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    iterations: int = ITERATIONS,
    advance: Callable[[], object] = lambda: None,
) -> Clusters:
    """Centres of `count` clusters of `vectors`.

    With fewer distinct vectors than centres, the centres left over repeat others.

    Args:
        vectors: float32 (N, d), N at least 1.
        count: K.
        generator: on the CPU, whatever the device of the vectors; only the choice of the first centres draws from it.
        iterations: Lloyd's iterations; fewer are taken when nothing moves any more.
        advance: called after each of the `count` choices of a centre and after each iteration, to report progress.
    """
    centres = _far_apart(vectors, count, generator, advance)
    nearest = _nearest(vectors, centres)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        sizes = _sizes(nearest, count)
        # A centre that lost all its vectors stays where it is.
        centres = torch.where((sizes > 0)[:, None], sums / sizes.clamp(min=1)[:, None], centres)
        before, nearest = nearest, _nearest(vectors, centres)
        advance()
        if torch.equal(nearest, before):
            break
    return Clusters(centres, _sizes(nearest, count))


def _far_apart(vectors: Tensor, count: int, generator: torch.Generator, advance: Callable[[], object]) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each next centre is a vector drawn by its squared distance to the
    centres before it."""
    draws = torch.rand(count, generator=generator, dtype=torch.float64).to(vectors.device)
    norms = vectors.square().sum(1)
    last = len(vectors) - 1

    def distances_to(index: Tensor) -> Tensor:
        # The product first: doubling it gives the same bits as doubling all vectors, which would copy them each time.
        return (norms - 2 * (vectors @ vectors[index]) + norms[index]).clamp(min=0).double()

    chosen = [(draws[0] * len(vectors)).long().clamp(max=last)]
    distances = distances_to(chosen[0])
    advance()
    for draw in draws[1:]:
        reached = distances.cumsum(0)
        # Where every vector is a centre already, the distances are all zero and any vector will do.
        chosen.append(torch.searchsorted(reached, draw * reached[-1], right=True).clamp(max=last))
        distances = torch.minimum(distances, distances_to(chosen[-1]))
        advance()
    return vectors[torch.stack(chosen)]


def _nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    norms = centres.square().sum(1)
    starts = range(0, len(vectors), CHUNK_ROWS)
    return torch.cat([(norms - 2 * vectors[i : i + CHUNK_ROWS] @ centres.T).argmin(1) for i in starts])


def _sizes(nearest: Tensor, count: int) -> Tensor:
    return torch.bincount(nearest, minlength=count)
