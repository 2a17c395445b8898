"""The prior's decoder and channel predictor, one pixel at a time, without recomputing known values.

Keys and values of every layer are kept: a new pixel costs one output of the causal convolution, one query per layer and
the channel predictor. Weights are arranged once for single pixels, and all buffers are allocated once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.models.cpu import RowProduct, filled_up
from lvt_pipeline.models.prior.adaptive import code_table
from lvt_pipeline.models.prior.attention import Attention, Block, sinusoidal_positions, split_blocks
from lvt_pipeline.models.prior.config import Triple
from lvt_pipeline.models.prior.decoder import embed
from lvt_pipeline.models.prior.network import PriorNetwork
from lvt_pipeline.models.prior.subscale import Subscale
from lvt_pipeline.models.sampling.rule import SamplingRule, first_above


class SampledSlice(NamedTuple):
    """One slice of a group of clips.

    Attributes:
        codes: int64 (B, P, n_c).
        is_finite: bool (B, P), whether the logits of a pixel's codes were finite; True where nothing was sampled.
    """

    codes: Tensor
    is_finite: Tensor


class PixelWeights:
    """What every pixel of a slice needs around the attention layers, arranged for pixels one by one.

    Args:
        rows: pixels that go through a matrix product together; see `RowProduct`.
    """

    def __init__(self, model: PriorNetwork, geometry: Subscale, rows: int) -> None:
        self._rows = rows
        decoder, predictor = model.decoder, model.predictor
        shape = geometry.slice_shape
        self.num_codebooks = model.config.num_codebooks
        self._predictor = predictor
        self._embeddings = decoder.embeddings
        self._project = decoder.project
        # The causal convolution at one pixel: neighbours that exist in some slice pixel, and their weights.
        offsets = [
            (t, y, x)
            for t in range(-min(2, shape[0] - 1), 1)
            for y in (-2, -1, 0)
            for x in (-1, 0, 1)
            if (t, y, x) < (0, 0, 0)
        ]
        self.neighbours = _neighbours(shape, offsets).to(model.device)
        weight = decoder.causal_convolution.masked_weight()
        taps = torch.cat([weight[:, :, t + 2, y + 2, x + 1] for t, y, x in offsets], dim=1)
        self.convolve = RowProduct(taps, None, rows)
        start = sinusoidal_positions(shape, model.config.width).to(model.device)
        self._start = start + decoder.causal_convolution.bias
        self._tables = [code_table(embedding) for embedding in decoder.embeddings]
        # All codebooks share the decoder output: one product for it, and one gather per code for all later codebooks.
        mixers = [mixer for mixer in predictor.mixers if isinstance(mixer, nn.Linear)]
        width, size = model.config.width, model.config.codebook_size
        own = torch.cat([mixer.weight[:, :width] for mixer in mixers])
        self._mix = RowProduct(own, torch.cat([mixer.bias for mixer in mixers]), rows)
        columns = [
            torch.cat([mixer.weight[:, width + k * size : width + (k + 1) * size] for mixer in mixers[k + 1 :]]).T
            for k in range(len(mixers) - 1)
        ]
        self._columns = [table.contiguous() for table in columns]

    def begin(self, encoded: Tensor) -> Tensor:
        """What enters the first layer apart from the causal convolution, (B, P, d), of encoder output (B, P, d)."""
        # Clip by clip, so that a clip's numbers do not depend on the others.
        return torch.stack([self._start + self._project(clip) for clip in encoded])

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the codebooks' embeddings: (..., n_c) -> (..., d_e)."""
        return embed(codes, self._tables)

    def sample(self, y: Tensor, numbers: Tensor, rule: SamplingRule) -> tuple[Tensor, Tensor]:
        """Codes int64 (N, n_c) of pixels, and whether their logits are finite, bool (N,).

        Args:
            y: decoder outputs (streams * N or more, d).
            numbers: float64 (n_c, N) in [0, 1).
        """
        width = y.shape[1]
        used = rule.streams * numbers.shape[1]
        mixed = self._mix(self._predictor.norm(filled_up(y, self._rows)))
        seen = torch.zeros(len(mixed), dtype=torch.int64, device=y.device)  # the code of each row, any for fillers
        sampled, totals = [], []
        for j in range(self.num_codebooks):
            logits = self._predictor.outputs_of(F.relu(mixed[:, :width]), j, self._embeddings)[:used]
            cumulative = rule.cumulative(logits, j)
            code = first_above(cumulative, numbers[j])
            sampled.append(code)
            totals.append(cumulative[:, -1])
            if j + 1 < self.num_codebooks:
                seen[:used] = code.repeat(rule.streams)
                mixed = mixed[:, width:] + self._columns[j].index_select(0, seen)
        return torch.stack(sampled, dim=1), torch.stack(totals).isfinite().all(0)


class CachedDecoder:
    """Samples the pixels of a slice one after another, for a group of clips.

    Args:
        clips: B. With guidance every clip passes twice, so encoder outputs have 2B rows.
        rows: rows of every matrix product, at least those of the clips; with the same number, the codes of a clip do
            not depend on the others.
    """

    def __init__(self, model: PriorNetwork, geometry: Subscale, clips: int, rule: SamplingRule, rows: int) -> None:
        self.model = model
        self.geometry = geometry
        self.rule = rule
        self.block = model.config.block_shape
        self.pixels = PixelWeights(model, geometry, rows)
        self.places = block_places(geometry.slice_shape, self.block)
        self.used = clips * rule.streams  # rows of the products that are not fillers
        self.rows = max(rows, self.used)
        # One row more than pixels: the last one stays 0 and stands for everything outside the slice.
        size = (self.rows, geometry.num_pixels + 1, model.config.embedding_width)
        self.embedded = torch.zeros(size, device=model.device)
        block_pixels = math.prod(self.block)
        blocks = geometry.num_pixels // block_pixels
        layers = [layer for layer in model.decoder.blocks.layers if isinstance(layer, Block)]
        self.layers = [_CachedLayer(layer, self.used, blocks, block_pixels, self.rows) for layer in layers]

    def sample_slice(self, codes: Tensor, encoded: Tensor, num_primed: int, numbers: Tensor) -> SampledSlice:
        """A slice with its pixels after the first `num_primed` sampled.

        Args:
            codes: int64 (B, P, n_c), of which the first `num_primed` pixels are read.
            encoded: encoder output (streams * B, P, d).
            numbers: float64 (P - num_primed, n_c, B) in [0, 1).
        """
        codes = codes.clone()
        is_finite = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
        begin = F.pad(self.pixels.begin(encoded), (0, 0, 0, 0, 0, self.rows - self.used))
        self.embedded.zero_()
        if num_primed:
            self._push_primed(codes, encoded, num_primed)
        for pixel in range(num_primed, codes.shape[1]):
            y = self._decode_pixel(begin[:, pixel], pixel)
            codes[:, pixel], is_finite[:, pixel] = self.pixels.sample(y, numbers[pixel - num_primed], self.rule)
            self.embedded[: self.used, pixel] = self.pixels.embed(codes[:, pixel]).repeat(self.rule.streams, 1)
        return SampledSlice(codes, is_finite)

    def _push_primed(self, codes: Tensor, encoded: Tensor, num_primed: int) -> None:
        """Fill the caches from the first pixels, in parallel; entries of later pixels are overwritten in time."""
        decoder, shape = self.model.decoder, self.geometry.slice_shape
        given = self.pixels.embed(codes[:, :num_primed])
        self.embedded[: self.used, :num_primed] = given.repeat(self.rule.streams, 1, 1)
        positions = sinusoidal_positions(shape, encoded.shape[-1]).to(encoded.device)
        for row in range(len(encoded)):  # clip by clip, so that a clip's numbers do not depend on the others
            x = decoder.causal_convolution(self.embedded[row, None, :-1], shape)
            x = split_blocks(x + positions + decoder.project(encoded[row]), shape, self.block)
            for layer in self.layers:
                x = layer.push_all(x, row)

    def _decode_pixel(self, begin: Tensor, pixel: int) -> Tensor:
        """Decoder output (rows, d) at one pixel."""
        window = self.embedded.index_select(1, self.pixels.neighbours[pixel]).flatten(1)
        x = begin + self.pixels.convolve(window)
        block, place = self.places[pixel]
        for layer in self.layers:
            x = layer.step(x, block, place)
        return x


class PackedLayer:
    """A decoder block with its weights arranged for few rows; what the ways of caching have in common."""

    def __init__(self, layer: Block, rows: int) -> None:
        attention: Attention = layer.attention
        self.layer = layer
        self.attention = attention
        self.kind = attention.kind
        self.heads, self.head_width = attention.num_heads, attention.head_width
        self.scale = 1 / math.sqrt(self.head_width)
        parameters = [attention.get_parameter(name) for name in attention.projections]
        joined = torch.cat([rearrange(weight, "m d a -> (m a) d") for weight in parameters])
        self.project = RowProduct(joined, None, rows)
        self.out = RowProduct(attention.out.weight, None, rows)
        self._first = RowProduct(layer.linear1.weight, layer.linear1.bias, rows)
        self._second = RowProduct(layer.linear2.weight, layer.linear2.bias, rows)

    def feed_forward(self, x: Tensor) -> Tensor:
        """`Block.feed_forward` of (..., d)."""
        return x + self._second(F.relu(self._first(self.layer.norm2(x))))


class _CachedLayer(PackedLayer):
    """One decoder block with the keys and values of the pixels so far."""

    def __init__(self, layer: Block, batch: int, num_blocks: int, block_pixels: int, rows: int) -> None:
        super().__init__(layer, rows)
        self.bias = self.attention.scores_bias()  # (n_a, N, N)
        if self.kind == "distance-only":
            self.bias = self.bias.softmax(-1)  # the weights themselves
        shape = (num_blocks, batch * self.heads, block_pixels, self.head_width)
        self.values = torch.zeros(shape, device=self.bias.device)
        self.keys = torch.zeros_like(self.values) if self.kind != "distance-only" else None
        self._batch = batch
        self._mixed = torch.zeros(rows, self.heads * self.head_width, device=self.bias.device)

    def push_all(self, x: Tensor, row: int) -> Tensor:
        """Run all blocks (blocks, N, d) of one clip through the layer and cache their keys and values."""
        projected = self.attention.split(self.attention.project(self.layer.norm1(x)))
        own = slice(row * self.heads, (row + 1) * self.heads)
        self.values[:, own] = projected[-1]
        if self.keys is not None:
            self.keys[:, own] = projected[-2]
        return self.layer(x)  # type: ignore[no-any-return]

    def step(self, x: Tensor, block: int, place: int) -> Tensor:
        """The layer at one pixel, (rows, d) -> (rows, d); `place` is its number inside its attention block.

        Rows after the first `batch` are fillers: they take part in the products and attend to nothing.
        """
        batch, heads, width = self._batch, self.heads, self.head_width
        joined = self.project(self.layer.norm1(x))[:batch]
        parts = joined.view(batch, -1, heads, width)  # (B, queries-keys-values, n_a, d_a)
        values = self.values[block]
        values[:, place] = parts[:, -1].reshape(batch * heads, width)
        seen = values[:, : place + 1]
        bias = self.bias[:, place, : place + 1]
        if self.keys is None:
            weights = bias.expand(batch, heads, place + 1)
        else:
            keys = self.keys[block]
            keys[:, place] = parts[:, -2].reshape(batch * heads, width)
            query = self.attention.u.expand(batch, heads, width) if self.kind == "key-only" else parts[:, 0]
            query = (query * self.scale).reshape(batch * heads, 1, width)
            scores = torch.bmm(query, keys[:, : place + 1].transpose(1, 2))
            weights = (scores.view(batch, heads, place + 1) + bias).softmax(-1)
        mixed = torch.bmm(weights.reshape(batch * heads, 1, place + 1), seen)
        self._mixed[:batch] = mixed.view(batch, heads * width)
        return self.feed_forward(x + self.out(self._mixed))


def block_places(shape: Triple, block: Triple) -> list[tuple[int, int]]:
    """(attention block, place inside it) of every pixel of a slice, in raster order."""
    pixels = torch.arange(math.prod(shape))[None, :, None]
    by_block = split_blocks(pixels, shape, block).squeeze(-1)  # (blocks, N)
    places: list[Any] = [None] * math.prod(shape)
    for number, members in enumerate(by_block.tolist()):
        for place, pixel in enumerate(members):
            places[pixel] = (number, place)
    return places


def _neighbours(shape: Triple, offsets: list[Triple]) -> Tensor:
    """int64 (P, offsets): pixel number at each offset from each pixel, P when it is outside the slice."""
    t, h, w = shape
    grid = np.stack(np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    place = torch.from_numpy(grid + np.array(offsets).reshape(1, -1, 3))
    inside = ((place >= 0) & (place < torch.tensor(shape))).all(-1)
    flat = (place[..., 0] * h + place[..., 1]) * w + place[..., 2]
    return torch.where(inside, flat, t * h * w)
