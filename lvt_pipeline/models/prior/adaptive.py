"""Adaptive input and adaptive softmax: rare codes get fewer numbers (paper, section 4.5 and Table 8).

Codes are ranked by how often they occur in the training clips and cut into clusters at the `cutoffs`. Cluster i is
`ratio**i` times narrower than the first (Baevski and Auli 2018 for the input, Grave et al. 2017 for the output). The
clustering stays inside this file: everything outside counts codes as the tokenizer does.

At a few hundred codes this saves few numbers and no time; the paper found no gain. It is here to repeat that finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.prior.attention import linear

# Share of all training codes that the first cluster holds, and the first two. The paper names no cut-offs, but counts
# the codes that hold 80 % (218 of 512).
CLUSTER_SHARES = (0.8, 0.95)

Tie = Literal["nothing", "embeddings", "projections"]


def frequency_ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of every code, 0 for the most frequent; equal counts keep the order of the codes.

    Args:
        counts: int64 (n_c, K), how often each code occurs.

    Returns:
        int64 (n_c, K), a permutation per codebook.
    """
    order = np.argsort(-counts, axis=1, kind="stable")
    return np.argsort(order, axis=1)


def cutoffs_by_mass(counts: NDArray[np.int64], shares: Sequence[float] = CLUSTER_SHARES) -> tuple[int, ...]:
    """Ranks at which new clusters start: the fewest codes that hold each share, averaged over the codebooks.

    Args:
        counts: int64 (n_c, K); a codebook without any count is taken as uniform.

    Returns:
        rising numbers between 1 and K - 1; fewer than shares where two would coincide.
    """
    sizes = counts.shape[1]
    totals = counts.sum(1, keepdims=True)
    probabilities = np.where(totals > 0, counts / np.maximum(totals, 1), 1 / sizes)
    held = np.sort(probabilities, axis=1)[:, ::-1].mean(0).cumsum()
    needed = np.searchsorted(held, np.asarray(shares) - 1e-12) + 1
    return tuple(sorted({int(min(rank, sizes - 1)) for rank in needed}))


class AdaptiveEmbedding(nn.Module):
    """An embedding whose rare codes are narrower and widened by a linear map per cluster.

    Args:
        codebook_size: K.
        width: d_e of the result; cluster i stores width / ratio**i numbers per code, at least 1.
        cutoffs: ranks at which new clusters start.
        ratio: how many times narrower the next cluster is.
    """

    ranks: Tensor

    def __init__(self, codebook_size: int, width: int, cutoffs: Sequence[int], ratio: int) -> None:
        super().__init__()
        sizes = _cluster_sizes(codebook_size, cutoffs)
        widths = [max(1, width // ratio**i) for i in range(len(sizes))]
        self.clusters = nn.ModuleList(nn.Embedding(size, narrow) for size, narrow in zip(sizes, widths, strict=True))
        self.maps = nn.ModuleList(linear(narrow, width, bias=False) for narrow in widths)
        self.register_buffer("ranks", torch.arange(codebook_size))

    def table(self) -> Tensor:
        """Embedding of every code, (K, d_e)."""
        by_rank = [step(_weight(cluster)) for cluster, step in zip(self.clusters, self.maps, strict=True)]
        return torch.cat(by_rank).index_select(0, self.ranks)


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities of codes: a softmax over the frequent codes and the tail clusters, then one inside each tail.

    log p(code) = log p(its cluster) + log p(code in the cluster).

    Args:
        width: d of the input; tail i narrows it to d / ratio**i, at least 1.
        codebook_size: K.
        cutoffs: ranks at which new clusters start.
        ratio: how many times narrower the next tail is.
        tie: the parts shared with an `AdaptiveEmbedding` of the same clusters: nothing, its embeddings as the matrices
            that give each cluster's scores, or also its maps, transposed.
        embedding_width: d_e of that embedding.
    """

    ranks: Tensor

    def __init__(
        self,
        width: int,
        codebook_size: int,
        cutoffs: Sequence[int],
        ratio: int,
        *,
        tie: Tie = "nothing",
        embedding_width: int = 0,
    ) -> None:
        super().__init__()
        self.tie = tie
        sizes = _cluster_sizes(codebook_size, cutoffs)
        self.sizes = sizes
        num_tails = len(sizes) - 1
        if tie == "nothing":
            self.head = linear(width, sizes[0] + num_tails, bias=False)
            narrow = [max(1, width // ratio**i) for i in range(1, len(sizes))]
            self.tails = nn.ModuleList(linear(width, one, bias=False) for one in narrow)
            self.scores = nn.ModuleList(
                linear(one, size, bias=False) for one, size in zip(narrow, sizes[1:], strict=True)
            )
        else:
            self.head = linear(width, embedding_width)
            self.gates = linear(embedding_width, num_tails, bias=False)
            narrow = [max(1, embedding_width // ratio**i) for i in range(1, len(sizes))]
            own = narrow if tie == "embeddings" else []
            self.tails = nn.ModuleList(linear(width, one, bias=False) for one in own)
        self.register_buffer("ranks", torch.arange(codebook_size))

    def forward(self, x: Tensor, embedding: nn.Module) -> Tensor:
        """Log-probabilities (N, K) of x (N, d); `embedding` is read where something is tied to it."""
        first, *tails = self._scores(x, embedding)
        within_head = first.float().log_softmax(-1)
        frequent = self.sizes[0]
        parts = [within_head[:, :frequent]]
        for number, scores in enumerate(tails):
            gate = within_head[:, frequent + number, None]
            parts.append(gate + scores.float().log_softmax(-1))
        return torch.cat(parts, dim=1).index_select(1, self.ranks)

    def _scores(self, x: Tensor, embedding: nn.Module) -> list[Tensor]:
        """Scores of the frequent codes and the tails' gates, then those inside each tail."""
        if self.tie == "nothing":
            narrowed = [narrow(x) for narrow in self.tails]
            return [self.head(x), *(score(one) for score, one in zip(self.scores, narrowed, strict=True))]
        assert isinstance(embedding, AdaptiveEmbedding)
        query = self.head(x)
        if self.tie == "projections":
            queries = [query @ _weight(step) for step in embedding.maps]  # the maps widen; transposed they narrow
        else:
            queries = [query, *(narrow(x) for narrow in self.tails)]
        scores = [F.linear(one, _weight(cluster)) for one, cluster in zip(queries, embedding.clusters, strict=True)]
        return [torch.cat([scores[0], self.gates(query)], dim=1), *scores[1:]]


def code_table(embedding: nn.Module) -> Tensor:
    """Embedding of every code, (K, d_e), of a plain or an adaptive embedding."""
    return embedding.table() if isinstance(embedding, AdaptiveEmbedding) else _weight(embedding)


def set_frequencies(model: nn.Module, counts: NDArray[np.int64]) -> None:
    """Order the clusters of every adaptive layer in a model by how often codes occur.

    Args:
        counts: int64 (n_c, K), of the training clips.

    Raises:
        ShapeError: a layer has another codebook size.
    """
    seen = {"embedding": 0, "softmax": 0}
    ranks = torch.from_numpy(frequency_ranks(counts))
    for module in model.modules():
        if not isinstance(module, (AdaptiveEmbedding, AdaptiveSoftmax)):
            continue
        kind = "embedding" if isinstance(module, AdaptiveEmbedding) else "softmax"
        own = ranks[seen[kind]]
        if own.shape != module.ranks.shape:
            raise ShapeError(f"counts of {len(own)} codes do not fit a codebook of {len(module.ranks)}")
        module.ranks.copy_(own)
        seen[kind] += 1


def _cluster_sizes(codebook_size: int, cutoffs: Sequence[int]) -> list[int]:
    edges = [0, *cutoffs, codebook_size]
    return [stop - start for start, stop in pairwise(edges)]


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight
