"""The decoder's causal convolution at a few pixels, from the codes that it reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvt_pipeline.models.cpu import RowProduct, Weights
from lvt_pipeline.models.prior.config import Triple
from lvt_pipeline.models.prior.decoder import CausalConvolution, embed

LARGEST_TABLE = 2**28  # bytes


class PixelConvolution:
    """The output at single pixels, without the bias.

    A code adds the product of its embedding and the weight at its place. All these products are computed once, so an
    output is a sum of rows, which takes less than reading the weights. Only where the rows would need more memory than
    `LARGEST_TABLE`, the embeddings are multiplied in every pass.

    Args:
        tables: the codes' embeddings (K, d_e) of each codebook.
        slice_shape: P = t * h * w pixels.
        extra: further pixels, which read nothing; the first of them, number P, stands for everything outside.
        rows, weights: see `RowProduct`.
    """

    def __init__(
        self,
        convolution: CausalConvolution,
        tables: Sequence[Tensor],
        slice_shape: Triple,
        extra: int,
        rows: int,
        weights: Weights,
    ) -> None:
        self.outside = len(tables[0])  # the code of what is outside
        weight = convolution.masked_weight()
        offsets = _offsets(slice_shape)
        taps = torch.stack([weight[:, :, t + 2, y + 2, x + 1] for t, y, x in offsets])  # (taps, d, d_e)
        neighbours = _neighbours(slice_shape, offsets).to(weight.device)
        self._neighbours = F.pad(neighbours, (0, 0, 0, extra), value=len(neighbours))
        self._embeddings = [F.pad(table, (0, 0, 0, 1)) for table in tables]
        count = len(taps) * len(tables) * (self.outside + 1)
        self._rows = self._product = None
        if count * taps.shape[1] * 4 <= LARGEST_TABLE:
            self._rows = torch.cat([table @ tap.T for tap in taps for table in self._embeddings])
            first = torch.arange(0, count, self.outside + 1, device=weight.device)
            self._first_rows = first.view(len(taps), len(tables))
        else:
            self._product = RowProduct(torch.cat(list(taps), dim=1), None, rows, weights)

    def __call__(self, codes: Tensor, clips: Tensor, place: Tensor) -> Tensor:
        """(B * W, d) at pixels `place` (B, W) of `clips` (B, 1), from all their codes int64 (B, P + extra, n_c)."""
        seen = codes[clips[..., None], self._neighbours[place]].flatten(0, 1)  # (B * W, taps, n_c)
        if self._product is not None:
            return self._product(embed(seen, self._embeddings).flatten(1))
        assert self._rows is not None
        return F.embedding_bag((seen + self._first_rows).flatten(1), self._rows, mode="sum")


def _offsets(shape: Triple) -> list[Triple]:
    """Where the convolution reads, (t, y, x) relative to its pixel, without what is outside of every pixel's slice."""
    times = range(-min(2, shape[0] - 1), 1)
    return [(t, y, x) for t in times for y in (-2, -1, 0) for x in (-1, 0, 1) if (t, y, x) < (0, 0, 0)]


def _neighbours(shape: Triple, offsets: list[Triple]) -> Tensor:
    """int64 (P, offsets): pixel number at each offset from each pixel, P when it is outside the slice."""
    t, h, w = shape
    grid = np.stack(np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    place = torch.from_numpy(grid + np.array(offsets).reshape(1, -1, 3))
    inside = ((place >= 0) & (place < torch.tensor(shape))).all(-1)
    flat = (place[..., 0] * h + place[..., 1]) * w + place[..., 2]
    return torch.where(inside, flat, t * h * w)
