"""The weights of the prior's decoder and channel predictor, arranged once for pixels that come a few at a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.models.cpu import (
    RowProduct,
    Weights,
    few_row_attention,
    few_row_bmm,
    has_bfloat16_products,
    has_few_row_attention,
)
from lvt_pipeline.models.prior.adaptive import AdaptiveSoftmax, code_table
from lvt_pipeline.models.prior.attention import MASKED_SCORE, Attention, Block, sinusoidal_positions, split_blocks
from lvt_pipeline.models.prior.config import Triple
from lvt_pipeline.models.prior.decoder import embed
from lvt_pipeline.models.prior.network import PriorNetwork
from lvt_pipeline.models.prior.subscale import Subscale
from lvt_pipeline.models.sampling.convolution import PixelConvolution
from lvt_pipeline.models.sampling.rule import SamplingRule, first_above
from lvt_pipeline.models.threads import BYTES_PER_SECOND

# Next to the P pixels of a slice, tables have row P, which stays 0 (outside the slice), and P + 1, of finished clips.
EXTRA_ROWS = 2


def pixel_seconds(model: PriorNetwork, weights: Weights) -> float:
    """Seconds that one thread needs to read the largest weight, which bounds a product for a few pixels."""
    config = model.config
    size = 3 * config.num_heads * config.head_width * config.width
    return size * {"float32": 4, "bfloat16": 2, "int8": 1}[weights] / BYTES_PER_SECOND


class PixelWeights:
    """What every pixel of a slice needs.

    Args:
        rows: pixels that go through a matrix product together; see `RowProduct`.
        weights: of the products; the last ones, which give the logits, are always float32.

    Attributes:
        convolve: the causal convolution at some pixels.
        layers: the decoder's blocks.
        block_starts: for each pixel, the first pixel of the attention blocks of it and all later ones.
    """

    def __init__(self, model: PriorNetwork, geometry: Subscale, rows: int, weights: Weights = "float32") -> None:
        self.model, self.geometry, self.weights = model, geometry, weights
        decoder, predictor = model.decoder, model.predictor
        shape = geometry.slice_shape
        self.num_codebooks = model.config.num_codebooks
        self._predictor = predictor
        start = sinusoidal_positions(shape, model.config.width).to(model.device)
        self._start = start + decoder.causal_convolution.bias
        self._tables = [code_table(embedding) for embedding in decoder.embeddings]
        convolution = decoder.causal_convolution
        self.convolve = PixelConvolution(convolution, self._tables, shape, EXTRA_ROWS, rows, weights)
        # All codebooks share the decoder output: one product for it, and one gather per code for all later codebooks.
        mixers = [mixer for mixer in predictor.mixers if isinstance(mixer, nn.Linear)]
        width, size = model.config.width, model.config.codebook_size
        own = torch.cat([mixer.weight[:, :width] for mixer in mixers])
        self._mix = RowProduct(own, torch.cat([mixer.bias for mixer in mixers]), rows, weights)
        columns = [
            torch.cat([mixer.weight[:, width + k * size : width + (k + 1) * size] for mixer in mixers[k + 1 :]]).T
            for k in range(len(mixers) - 1)
        ]
        self._columns = [table.contiguous() for table in columns]
        self._outputs = [
            RowProduct(one.weight, one.bias, rows) if isinstance(one, nn.Linear) else one for one in predictor.outputs
        ]
        self._tied = [RowProduct(table, None, rows) for table in self._tables] if predictor.head == "tied" else []
        blocks = _blocks_of_pixels(shape, model.config.block_shape)
        block = blocks[:, 0]
        first = torch.full((int(block.max()) + 1,), geometry.num_pixels)
        first.scatter_reduce_(0, block, torch.arange(geometry.num_pixels), "amin")
        starts = first[block].flip(0).cummin(0).values.flip(0)
        self.block_starts: list[int] = starts.tolist()
        blocks_here = blocks.to(model.device)
        self.layers = [
            PackedLayer(layer, blocks_here, rows, weights)
            for layer in decoder.blocks.layers
            if isinstance(layer, Block)
        ]
        biases = [layer.bias() for layer in self.layers]
        nothing = torch.zeros(len(blocks) + EXTRA_ROWS, 0, 1, len(blocks), device=model.device)
        self._biases = torch.stack(biases, dim=1) if biases else nothing  # (P + 2, layers, n_a, P)

    def biases(self, place: Tensor, seen: slice) -> tuple[Tensor, ...]:
        """For each layer, what attention adds to the scores of some pixels, float32 (S, n_a, W, keys).

        Args:
            place: int64 (S, W), the pixels.
            seen: the keys that some query may see.
        """
        chosen = self._biases[:, :, :, seen].index_select(0, place.flatten())
        return chosen.view(*place.shape, *chosen.shape[1:]).permute(2, 0, 3, 1, 4).unbind(0)

    def begin(self, encoded: Tensor) -> Tensor:
        """What enters the first layer apart from the causal convolution, (B, P, d), of encoder output (B, P, d)."""
        # Clip by clip, so that a clip's numbers do not depend on the others.
        return torch.stack([self._start + self.model.decoder.project(clip) for clip in encoded])

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the codebooks' embeddings: (..., n_c) -> (..., d_e)."""
        return embed(codes, self._tables)

    def sample(self, y: Tensor, numbers: Tensor, rule: SamplingRule) -> tuple[Tensor, Tensor]:
        """Codes int64 (N, n_c) of pixels, and whether their logits are finite, bool (N,).

        Args:
            y: decoder outputs (streams * N, d).
            numbers: float64 (n_c, N) in [0, 1).
        """
        width = y.shape[1]
        mixed = self._mix(self._predictor.norm(y)).float()
        sampled, totals = [], []
        for j in range(self.num_codebooks):
            cumulative = rule.cumulative(self._logits(F.relu(mixed[:, :width]), j), j)
            code = first_above(cumulative, numbers[j])
            sampled.append(code)
            totals.append(cumulative[:, -1])
            if j + 1 < self.num_codebooks:
                code = code if rule.streams == 1 else code.repeat(rule.streams)
                mixed = mixed[:, width:] + self._columns[j].index_select(0, code)
        return torch.stack(sampled, dim=1), torch.stack(totals).isfinite().all(0)

    def _logits(self, u: Tensor, j: int) -> Tensor:
        output = self._outputs[j if len(self._outputs) > 1 else 0]
        if isinstance(output, AdaptiveSoftmax):
            return self._predictor.outputs_of(u, j, self.model.decoder.embeddings)
        assert isinstance(output, RowProduct)
        return self._tied[j](output(u)) if self._tied else output(u)


class PackedLayer:
    """A decoder block with its weights arranged for few rows.

    Args:
        blocks: int64 (P, 2), attention block of each pixel and its place there.
    """

    def __init__(self, layer: Block, blocks: Tensor, rows: int, weights: Weights) -> None:
        attention: Attention = layer.attention
        self._layer, self._attention, self._blocks = layer, attention, blocks
        self.heads, self.head_width = attention.num_heads, attention.head_width
        self.num_cached = min(2, len(attention.projections))  # keys and values, or values only
        is_small = weights != "float32"
        is_half = is_small and has_bfloat16_products(blocks.device)
        is_half &= blocks.is_cuda or self._has_few_row_attention(torch.bfloat16)
        self.cache_dtype = torch.bfloat16 if is_half else torch.float32
        self._one_by_one = is_small and self._has_few_row_attention(self.cache_dtype)
        scale = 1 / math.sqrt(self.head_width)
        parameters: list[Tensor] = [attention.get_parameter(name) for name in attention.projections]
        if attention.kind == "query-key":
            parameters[0] = parameters[0] * scale
        self._query = (attention.u * scale)[:, None].to(self.cache_dtype) if attention.kind == "key-only" else None
        joined = torch.cat([rearrange(weight, "m d a -> (m a) d") for weight in parameters])
        self._project = RowProduct(joined, None, rows, weights)
        self._out = RowProduct(attention.out.weight, None, rows, weights)
        self._first = RowProduct(layer.linear1.weight, layer.linear1.bias, rows, weights, relu=True)
        self._second = RowProduct(layer.linear2.weight, layer.linear2.bias, rows, weights)

    def _has_few_row_attention(self, dtype: torch.dtype) -> bool:
        width, blocks = self.heads * self.head_width, self._blocks
        return self._attention.kind == "query-key" and has_few_row_attention(len(blocks), width, dtype, blocks.device)

    def bias(self) -> Tensor:
        """What attention adds to the scores of queries at each pixel, float32 (P + 2, n_a, P)."""
        bias = _bias_of_slice(self._attention.scores_bias(), self._blocks)
        # Of values only, the weights themselves.
        return (bias.softmax(-1) if self.num_cached == 1 else bias).transpose(0, 1)

    def new_cache(self, streams: int) -> Tensor:
        """Zeros (keys and values, streams * n_a, P + 2, d_a)."""
        size = (self.num_cached, streams * self.heads, len(self._blocks) + EXTRA_ROWS, self.head_width)
        return torch.zeros(size, dtype=self.cache_dtype, device=self._blocks.device)

    def push_all(self, x: Tensor, cache: Tensor, row: int, order: Tensor) -> Tensor:
        """Run the whole blocks (blocks, N, d) of one clip through the layer and note their keys and values.

        Args:
            order: int64 (P,), the pixel that each row of the blocks is.
        """
        parts = self._attention.split(self._attention.project(self._layer.norm1(x)))[-self.num_cached :]
        own = slice(row * self.heads, (row + 1) * self.heads)
        for kept, part in zip(cache, parts, strict=True):
            kept[own, order] = rearrange(part, "b m n a -> m (b n) a").to(self.cache_dtype)
        return self._layer(x)  # type: ignore[no-any-return]

    def step(self, x: Tensor, cache: Tensor, cached: Tensor, seen: slice, bias: Tensor) -> Tensor:
        """The layer at some pixels, (S * W, d) -> (S * W, d).

        Args:
            cached: int64 (S * W * parts * n_a,), rows of the cache that their keys and values go to.
            seen: the keys that some query may see.
            bias: see `PixelWeights.biases`.
        """
        heads, width = self.heads, self.head_width
        joined = self._project(self._layer.norm1(x)).to(self.cache_dtype)
        kept = joined[:, joined.shape[1] - self.num_cached * heads * width :]
        cache.view(-1, width).index_copy_(0, cached, kept.reshape(-1, width))
        x = x + self._out(self._attend(joined[:, : heads * width], cache[:, :, seen], bias))
        return x + self._second(self._first(self._layer.norm2(x)))

    def _attend(self, queries: Tensor, cache: Tensor, bias: Tensor) -> Tensor:
        """Weighted values of all heads (S * W, n_a * d_a).

        Args:
            queries: (S * W, n_a * d_a), without meaning for kinds of attention that have none.
            cache: (keys and values, S * n_a, keys, d_a).
            bias: (S, n_a, W, keys).
        """
        streams, heads, window, _ = bias.shape
        if self._one_by_one:
            return few_row_attention(queries, cache, bias)
        weights = bias.flatten(0, 1)
        if self.num_cached == 2:
            if self._query is not None:
                query = self._query.repeat(streams, window, 1)
            else:
                query = rearrange(queries, "(s w) (m a) -> (s m) w a", s=streams, m=heads)
            scores = few_row_bmm(query, cache[0].transpose(1, 2)).float()
            scores.view(bias.shape).add_(bias)
            weights = scores.softmax(-1)
        mixed = few_row_bmm(weights.to(self.cache_dtype), cache[-1])
        return rearrange(mixed, "(s m) w a -> (s w) (m a)", s=streams)


def _bias_of_slice(bias: Tensor, blocks: Tensor) -> Tensor:
    """Scores' bias of queries at all pixels of a slice and the extra rows, (n_a, P + 2, P).

    Args:
        bias: (n_a, N, N) of one attention block, causal.
        blocks: int64 (P, 2), block of each pixel and its place there.
    """
    block, place = blocks.unbind(1)
    whole = bias[:, place[:, None], place[None, :]]
    whole = whole.masked_fill(block[:, None] != block[None, :], MASKED_SCORE)
    # Queries of finished clips look at everything: their outputs are thrown away, and must only be finite.
    return F.pad(whole, (0, 0, 0, EXTRA_ROWS))


def _blocks_of_pixels(shape: Triple, block: Triple) -> Tensor:
    """int64 (P, 2): attention block of every pixel of a slice in raster order, and its place there."""
    pixels = torch.arange(math.prod(shape))
    members = split_blocks(pixels[None, :, None], shape, block).squeeze(-1)  # (blocks, N)
    where = torch.stack(torch.meshgrid(*map(torch.arange, members.shape), indexing="ij"), -1).flatten(0, 1)
    return where[members.flatten().argsort()]
