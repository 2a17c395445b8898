"""How a codebook is used, from how often each of its codes occurs (paper section 3.1, figure 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lvt_pipeline.codes.store import CodeStore

USUAL_SHARE = 0.8  # figure 5 marks how many codes hold this share of all positions


def count_codes(store: CodeStore, split: str) -> NDArray[np.int64]:
    """How often each code of each codebook occurs in the clips of a split, int64 (n_c, K)."""
    counts = np.zeros((store.num_codebooks, store.codebook_size), np.int64)
    for clip in store.split(split):
        codes = store.read(clip)
        for j, row in enumerate(counts):
            row += np.bincount(codes[..., j].ravel(), minlength=len(row))
    return counts


def entropy_bits(occurrences: NDArray[np.int64]) -> list[float]:
    """Entropy in bits of each row's empirical distribution; nan for a row that counted nothing.

    Args:
        occurrences: int64 (n_c, K).
    """
    result = []
    for row in occurrences:
        total = row.sum()
        share = row[row > 0] / total if total else np.array([math.nan])
        result.append(float(-(share * np.log2(share)).sum()) + 0.0)  # + 0.0: never -0.0
    return result


def perplexity(occurrences: NDArray[np.int64]) -> list[float]:
    """Per codebook, the number of equally likely codes with the same entropy: between 1 and K."""
    return [2.0**bits for bits in entropy_bits(occurrences)]


def usage(occurrences: NDArray[np.int64]) -> list[float]:
    """Per codebook, the share of its K codes that occur at all."""
    return [float((row > 0).mean()) for row in occurrences]


def codes_holding(occurrences: NDArray[np.int64], share: float = USUAL_SHARE) -> list[int]:
    """Per codebook, how many of its most frequent codes together hold `share` of all positions (figure 5)."""
    result = []
    for row in occurrences:
        running = np.cumsum(np.sort(row)[::-1])
        needed = share * running[-1]
        result.append(int(np.searchsorted(running, needed - 1e-9 * needed) + 1) if running[-1] else 0)
    return result
