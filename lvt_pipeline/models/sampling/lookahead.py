"""Sampling several pixels of a slice per pass, with exactly the codes that sampling them one by one gives.

Given its random number, a code is a function of the codes before it. So the next W pixels are guessed, pushed through
the decoder together, and sampled with their own numbers: the first of them is right, and each further one is right as
long as every guess before it was. A code sampled after a wrong guess is the next guess there. The first guess of a
pixel is the same place in the frame before, which most codes repeat (paper, sections 4.6 and 4.7).

This is speculative decoding (Leviathan et al. 2023) with samples as the next guesses (Teng et al. 2024). Because the
random numbers are fixed, nothing has to be rejected by chance: the samples are the same, not only their distribution.
Every clip goes at its own pace.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lvt_pipeline.models.prior.attention import MASKED_SCORE, Block
from lvt_pipeline.models.prior.network import PriorNetwork
from lvt_pipeline.models.prior.subscale import Subscale
from lvt_pipeline.models.sampling.cached_decoder import PackedLayer, PixelWeights, SampledSlice, block_places
from lvt_pipeline.models.sampling.rule import SamplingRule

# Next to the P pixels of a slice, buffers have a row that stays 0 (outside the slice) and one for finished clips.
_EXTRA_ROWS = 2


class LookaheadDecoder:
    """Samples the pixels of a slice, up to `window` of them per pass, for a group of clips.

    Args:
        clips: B. With guidance every clip passes twice, so encoder outputs have 2B rows.
        rows: rows of every matrix product, at least those of the clips' windows; see `CachedDecoder`.
        window: pixels per pass and clip.
    """

    def __init__(
        self, model: PriorNetwork, geometry: Subscale, clips: int, rule: SamplingRule, rows: int, window: int
    ) -> None:
        self.rule = rule
        self.window = window
        self.num_pixels = geometry.num_pixels
        self.pixels = PixelWeights(model, geometry, rows)
        device = model.device
        outside = torch.full((_EXTRA_ROWS, self.pixels.neighbours.shape[1]), self.num_pixels, device=device)
        self.neighbours = torch.cat([self.pixels.neighbours, outside])
        self.rows = torch.arange(clips * rule.streams, device=device)[:, None]
        self.clips = self.rows[:clips]
        size = self.num_pixels + _EXTRA_ROWS
        self.embedded = torch.zeros(len(self.rows), size, model.config.embedding_width, device=device)
        layers = [layer for layer in model.decoder.blocks.layers if isinstance(layer, Block)]
        places = torch.tensor(block_places(geometry.slice_shape, model.config.block_shape), device=device)
        self.layers = [_WindowLayer(layer, len(self.rows), places, rows) for layer in layers]

    def sample_slice(self, codes: Tensor, encoded: Tensor, num_primed: int, numbers: Tensor) -> SampledSlice:
        """A slice with its pixels after the first `num_primed` sampled.

        Args:
            codes: int64 (B, P, n_c): the first `num_primed` pixels as given, guesses of the others.
            encoded: encoder output (streams * B, P, d).
            numbers: float64 (P - num_primed, n_c, B) in [0, 1).
        """
        codes = F.pad(codes, (0, 0, 0, _EXTRA_ROWS))
        is_finite = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
        begin = F.pad(self.pixels.begin(encoded), (0, 0, 0, _EXTRA_ROWS))
        numbers = F.pad(numbers, (0, 0, 0, 0, num_primed, _EXTRA_ROWS))
        self.embedded.zero_()
        self._embed(codes, torch.arange(self.num_pixels, device=codes.device).expand(len(codes), -1))
        ahead = torch.arange(self.window, device=codes.device)
        for first in range(0, num_primed, self.window):  # fills the caches
            self._decode(begin, self._places(first + ahead).expand(len(codes), -1))
        done = torch.full((len(codes), 1), num_primed, device=codes.device)  # pixels of each clip that are right
        while int(done.min()) < self.num_pixels:
            place = self._places(done + ahead)
            sampled, is_finite[self.clips, place] = self._sample(begin, numbers, place)
            is_right = (sampled == codes[self.clips, place]).all(-1)
            codes[self.clips, place] = sampled
            self._embed(codes, place)
            right = is_right.long().cumprod(1).sum(1, keepdim=True)
            done = (done + (right + 1).clamp(max=self.window)).clamp(max=self.num_pixels)
        return SampledSlice(codes[:, : self.num_pixels], is_finite[:, : self.num_pixels])

    def _places(self, place: Tensor) -> Tensor:
        """Pixels, with those behind the last one moved to the row of finished clips."""
        return torch.where(place < self.num_pixels, place, self.num_pixels + 1)

    def _sample(self, begin: Tensor, numbers: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 (B, W, n_c) at pixels `place` (B, W), and whether their logits are finite, bool (B, W)."""
        y = self._decode(begin, place)
        own = numbers[place, :, self.clips]  # (B, W, n_c)
        sampled, is_finite = self.pixels.sample(y.flatten(0, 1), rearrange(own, "b w j -> j (b w)"), self.rule)
        return sampled.reshape(*place.shape, -1), is_finite.reshape(place.shape)

    def _embed(self, codes: Tensor, place: Tensor) -> None:
        """Note the embeddings of the codes at pixels `place` (B, W)."""
        values = self.pixels.embed(codes[self.clips, place])
        streams = self.rule.streams
        self.embedded[self.rows, place.repeat(streams, 1)] = values.repeat(streams, 1, 1)

    def _decode(self, begin: Tensor, place: Tensor) -> Tensor:
        """Decoder outputs (rows, W, d) at pixels `place` (B, W); their keys and values enter the caches."""
        place = place.repeat(self.rule.streams, 1)
        window = self.embedded[self.rows[..., None], self.neighbours[place]].flatten(2)
        x = begin[self.rows, place] + self.pixels.convolve(window)
        last = place.masked_fill(place >= self.num_pixels, 0)
        seen = int(last.max()) + 1  # keys that some query may see; unfinished clips exist, so at least one
        for layer in self.layers:
            x = layer.step(x, self.rows, place, seen)
        return x


class _WindowLayer(PackedLayer):
    """One decoder block with the keys and values of all pixels so far, for queries at any pixels."""

    def __init__(self, layer: Block, streams: int, places: Tensor, rows: int) -> None:
        super().__init__(layer, rows)
        self.bias = _bias_of_slice(self.attention.scores_bias(), places)
        if self.kind == "distance-only":
            self.bias = self.bias.softmax(-1)  # the weights themselves
        size = len(places) + _EXTRA_ROWS
        self.values = torch.zeros(streams, self.heads, size, self.head_width, device=self.bias.device)
        self.keys = torch.zeros_like(self.values) if self.kind != "distance-only" else None

    def step(self, x: Tensor, rows: Tensor, place: Tensor, seen: int) -> Tensor:
        """The layer at some pixels, (rows, W, d) -> (rows, W, d); keys from pixel `seen` on are not looked at."""
        joined = self.project(self.layer.norm1(x))
        parts = rearrange(joined, "b w (p m a) -> p b w m a", m=self.heads, a=self.head_width)
        self.values[rows, :, place] = parts[-1]
        bias = rearrange(self.bias[:, place, :seen], "m b w k -> b m w k")
        if self.keys is None:
            weights = bias
        else:
            self.keys[rows, :, place] = parts[-2]
            if self.kind == "key-only":
                query = self.attention.u[None, :, None]
            else:
                query = rearrange(parts[0], "b w m a -> b m w a")
            weights = ((query * self.scale) @ self.keys[:, :, :seen].transpose(2, 3) + bias).softmax(-1)
        mixed = rearrange(weights @ self.values[:, :, :seen], "b m w a -> b w (m a)")
        return self.feed_forward(x + self.out(mixed))


def _bias_of_slice(bias: Tensor, places: Tensor) -> Tensor:
    """Scores' bias over all pixels of a slice and the extra rows, (n_a, P + 2, P + 2).

    Args:
        bias: (n_a, N, N) of one attention block, causal.
        places: int64 (P, 2), block of each pixel and its place there.
    """
    block, place = places.unbind(1)
    whole = bias[:, place[:, None], place[None, :]]
    whole = whole.masked_fill(block[:, None] != block[None, :], MASKED_SCORE)
    # Queries of finished clips look at everything: their outputs are thrown away, and must only be finite.
    return F.pad(F.pad(whole, (0, _EXTRA_ROWS), value=MASKED_SCORE), (0, 0, 0, _EXTRA_ROWS))
