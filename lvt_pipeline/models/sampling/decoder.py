"""Sampling the pixels of a slice without recomputing known values, several of them per pass.

Keys and values of every layer are kept: a new pixel costs one output of the causal convolution, one query per layer and
the channel predictor.

Given its random number, a code is a function of the codes before it. So the next W pixels are guessed, pushed through
the decoder together, and sampled with their own numbers: the first of them is right, and each further one is right as
long as every guess before it was. A code sampled after a wrong guess is the next guess there. The first guess of a
pixel is the same place in the frame before, which most codes repeat (paper, sections 4.6 and 4.7).

This is speculative decoding (Leviathan et al. 2023) with samples as the next guesses (Teng et al. 2024). Because the
random numbers are fixed, nothing has to be rejected by chance: the samples are the same, not only their distribution.
Every clip goes at its own pace.

All that a pass reads or writes stays in place, positions and random numbers included, and a pass waits for nothing: so
it can be captured as a CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lvt_pipeline.models.prior.attention import sinusoidal_positions, split_blocks
from lvt_pipeline.models.sampling.pace import Pace
from lvt_pipeline.models.sampling.pixel_weights import EXTRA_ROWS, PixelWeights
from lvt_pipeline.models.sampling.replay import run_and_capture
from lvt_pipeline.models.sampling.rule import SamplingRule

Capture = Callable[[Callable[[], None]], Callable[[], None]]

# The keys that a pass looks at are counted in these steps: on a GPU, each count has a graph of its own.
KEYS_PER_STEP = {"cpu": 16, "cuda": 64}


class SampledSlice(NamedTuple):
    """One slice of a group of clips.

    Attributes:
        codes: int64 (B, P, n_c).
        is_finite: bool (B, P), whether the logits of a pixel's codes were finite; True where nothing was sampled.
    """

    codes: Tensor
    is_finite: Tensor


class SliceDecoder:
    """Samples the pixels of a slice, up to `window` of them per pass and clip, for a group of clips.

    Args:
        clips: B. With guidance every clip passes twice, so encoder outputs have 2B rows.
        capture: runs a pass and returns its replay; unset: CUDA graphs on a GPU, on a CPU nothing.
        adapts: where nothing is captured, `window` is only the furthest that a pass may look ahead; see `pace.py`.
    """

    def __init__(
        self,
        pixels: PixelWeights,
        clips: int,
        rule: SamplingRule,
        window: int,
        capture: Capture | None = None,
        adapts: bool = False,
    ) -> None:
        self.pixels, self.rule, self.longest = pixels, rule, window
        self.num_pixels = pixels.geometry.num_pixels
        config, device = pixels.model.config, pixels.model.device
        self._capture = run_and_capture if capture is None and device.type == "cuda" else capture
        self._replays: dict[tuple[int, int], Callable[[], None]] = {}
        self._is_captured = self._capture is not None
        self._pace = Pace(window) if adapts and not self._is_captured else None
        self._keys_per_step = KEYS_PER_STEP["cuda" if self._is_captured else "cpu"]
        size, streams = self.num_pixels + EXTRA_ROWS, clips * rule.streams
        self._streams = torch.arange(streams, device=device)[:, None]
        self._clips = self._streams[:clips]
        self._look_ahead(window)
        # The state: first what a slice begins with, then what the passes change.
        self._begin = torch.zeros(streams, size, config.width, device=device)
        self._numbers = torch.zeros(clips, size, config.num_codebooks, dtype=torch.float64, device=device)
        self._codes = torch.full((clips, size, config.num_codebooks), pixels.convolve.outside, device=device)
        self._is_finite = torch.ones(clips, size, dtype=torch.bool, device=device)
        self._done = torch.zeros(clips, 1, dtype=torch.int64, device=device)  # pixels of each clip that are right
        self._caches = [layer.new_cache(streams) for layer in pixels.layers]
        # Row of (kind, clip, head, pixel 0) in a cache, for every clip, kind and head.
        first = pixels.layers[0] if pixels.layers else None
        kinds, heads = (first.num_cached, first.heads) if first else (1, 1)
        rows = torch.arange(kinds * streams * heads, device=device).view(kinds, streams, heads) * size
        self._cache_rows = rows.transpose(0, 1).reshape(streams, 1, kinds * heads)

    def sample_slice(
        self,
        codes: Tensor,
        encoded: Tensor,
        num_primed: int,
        numbers: Tensor,
        between_passes: Callable[[], None] = lambda: None,
    ) -> SampledSlice:
        """A slice with its pixels after the first `num_primed` sampled.

        Args:
            codes: int64 (B, P, n_c): the first `num_primed` pixels as given, guesses of the others.
            encoded: encoder output (streams * B, P, d).
            numbers: float64 (P - num_primed, n_c, B) in [0, 1).
            between_passes: called before each pass, or before some of them.
        """
        pixels = slice(self.num_pixels)
        self._begin[:, pixels] = self.pixels.begin(encoded)
        self._numbers[:, num_primed : self.num_pixels] = numbers.permute(2, 0, 1)
        self._codes[:, pixels] = codes
        self._is_finite.fill_(True)
        self._done.fill_(num_primed)
        if num_primed:
            self._push_primed(encoded)
        done = [num_primed] * len(codes)
        while min(done) < self.num_pixels:
            between_passes()
            done = self._some_passes(done)
        return SampledSlice(self._codes[:, pixels].clone(), self._is_finite[:, pixels].clone())

    def _some_passes(self, done: list[int]) -> list[int]:
        """One pass, or on a GPU as many as may be left; the pixels of each clip that are right, before and after."""
        if self._pace is not None:
            self._look_ahead(self._pace.window())
        low, high = min(done), max(done)
        began = time.perf_counter()
        # A GPU is asked for the positions only when it may have reached the end.
        passes = -(-(self.num_pixels - low) // self._window) if self._is_captured else 1
        for _ in range(passes):
            high = min(self.num_pixels, high + self._window)
            self._pass(0 if self._is_captured else self.pixels.block_starts[low], high)
        after: list[int] = self._done.flatten().tolist()
        if self._pace is not None:
            right = [new - old for old, new in zip(done, after, strict=True) if old < self.num_pixels]
            self._pace.note(self._window, time.perf_counter() - began, right)
        return after

    def _look_ahead(self, window: int) -> None:
        self._window, self._ahead = window, torch.arange(window, device=self.pixels.model.device)

    def _push_primed(self, encoded: Tensor) -> None:
        """Fill the caches from the first pixels, in parallel; entries of later pixels are overwritten in time."""
        model, shape = self.pixels.model, self.pixels.geometry.slice_shape
        decoder, block = model.decoder, model.config.block_shape
        order = split_blocks(
            torch.arange(self.num_pixels, device=encoded.device)[None, :, None], shape, block
        ).flatten()
        positions = sinusoidal_positions(shape, encoded.shape[-1]).to(encoded.device)
        for row in range(len(encoded)):  # clip by clip, so that a clip's numbers do not depend on the others
            codes = self._codes[row % len(self._codes), None, : self.num_pixels]
            x = decoder.causal_convolution(self.pixels.embed(codes), shape)
            x = split_blocks(x + positions + decoder.project(encoded[row]), shape, block)
            for layer, cache in zip(self.pixels.layers, self._caches, strict=True):
                x = layer.push_all(x, cache, row, order)

    def _pass(self, start: int, stop: int) -> None:
        """One pass, in which no query sees keys outside of [start, stop)."""
        stop = min(self.num_pixels, -(-stop // self._keys_per_step) * self._keys_per_step)
        if self._capture is None:
            self.step(start, stop)
        elif (start, stop) in self._replays:
            self._replays[start, stop]()
        else:
            self._replays[start, stop] = self._capture(partial(self.step, start, stop))

    def step(self, start: int, stop: int) -> None:
        """Sample the next pixels of every clip, and count those that are right. Finished clips stay as they are."""
        end = self.num_pixels
        place = self._done + self._ahead
        place = place.masked_fill(place >= end, end + 1)
        y = self._decode(place, slice(start, stop))
        numbers = self._numbers[self._clips, place].flatten(0, 1).T
        sampled, is_finite = self.pixels.sample(y, numbers, self.rule)
        sampled = sampled.view(*place.shape, -1)
        right: Tensor | int = 1
        if self._window > 1:
            is_right = (sampled == self._codes[self._clips, place]).all(-1)
            right = (is_right.long().cumprod(1).sum(1, keepdim=True) + 1).clamp(max=self._window)
        self._codes[self._clips, place] = sampled
        self._is_finite[self._clips, place] = is_finite.view(place.shape)
        self._done.copy_((self._done + right).clamp(max=end))

    def _decode(self, place: Tensor, seen: slice) -> Tensor:
        """Decoder outputs (streams * B * W, d) at pixels `place` (B, W); their keys and values enter the caches."""
        convolved = _for_streams(self.pixels.convolve(self._codes, self._clips, place), self.rule.streams)
        place = _for_streams(place, self.rule.streams)
        x = self._begin[self._streams, place].flatten(0, 1) + convolved
        cached = (place[..., None] + self._cache_rows).flatten()
        biases = self.pixels.biases(place, seen)
        for layer, cache, bias in zip(self.pixels.layers, self._caches, biases, strict=True):
            x = layer.step(x, cache, cached, seen, bias)
        return x


def _for_streams(values: Tensor, streams: int) -> Tensor:
    """The clips' values once for each stream."""
    return values if streams == 1 else torch.cat([values] * streams)
