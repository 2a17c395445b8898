"""Sampling codes from the prior, one pixel at a time without recomputing what is already known (paper, section 3.2).

The encoder runs once per slice. The decoder keeps keys and values of every layer: a new pixel costs one output of the
causal convolution, one query per layer and the channel predictor. Frames given as priming are pushed through in one
parallel pass, and slices that are wholly primed are skipped. `sample_by_recomputing` is the slow definition of the same
result.

A code is the first one whose cumulative probability exceeds its random number; numbers are used up per pixel in
generation order, codebook and clip. Every clip has its own random numbers, and clips pass in groups of one fixed size,
so that the codes of a clip do not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.attention import Attention, Block, sinusoidal_positions, split_blocks
from lvt_pipeline.models.prior import Codes, Labels, Prior
from lvt_pipeline.models.quantize import integer_codes
from lvt_pipeline.models.subscale import Subscale, Triple
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import fingerprint

CLIPS_PER_PASS = 8


def sample(
    model: Prior,
    priming: Codes,
    *,
    frames: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    labels: Labels = None,
    uniforms: Codes | None = None,
    clip_ids: Sequence[str] | None = None,
    sample_ids: Sequence[int] | None = None,
    clips_per_pass: int = CLIPS_PER_PASS,
    progress: Progress = SILENT,
) -> Tensor:
    """Continue clips: draw the codes of the frames after the priming ones.

    Args:
        priming: integers (B, T0, h, w, n_c), the first frames of every clip.
        frames: length T of the result; unset: what the model was made for.
        seed, clip_ids, sample_ids: a clip's random numbers come from (seed, clip id, sample id) and from nothing else.
            Unset: the clip's number in this call, and 0.
        temperature: divides the logits; 1 is the model's own distribution.
        labels: int (B,) for a class-conditional prior.
        uniforms: numbers in [0, 1), (pixels in generation order, n_c, B), in place of random ones. Pixels of priming
            frames have none.
        clips_per_pass: group size; the last group is filled up. Another size may change a draw by rounding.

    Returns:
        int64 (B, T, h, w, n_c) on the CPU, the first T0 frames as given.

    Raises:
        ShapeError: an argument does not fit the model, or there are too few priming frames for what it learnt.
        ConfigError: the temperature is not above 0.
    """
    request = _Request(model, priming, frames, seed, temperature, labels, uniforms, clip_ids, sample_ids)
    if clips_per_pass < 1:
        raise ShapeError(f"clips_per_pass={clips_per_pass} must be at least 1")
    results = []
    total = request.num_drawn_pixels * math.ceil(len(request.codes) / clips_per_pass)
    with progress.bar("sampling", total, "pixel") as bar:
        for members in _groups(len(request.codes), clips_per_pass):
            with torch.inference_mode():
                codes, numbers, some_labels = request.group(members)
                decoder = CachedDecoder(model, request.geometry, len(members), temperature)
                table = model.context_table(request.geometry)
                used = 0
                for index, num_primed in request.open_slices:
                    slice_indices = torch.full((len(members),), index, device=model.device)
                    encoded = model.encode_context(codes, slice_indices, some_labels, request.geometry, table)
                    positions = request.geometry.positions[index].to(model.device)
                    drawn = request.geometry.num_pixels - num_primed
                    codes[:, positions] = decoder.draw_slice(
                        codes[:, positions], encoded, num_primed, numbers[used : used + drawn]
                    )
                    used += drawn
                    bar.advance(drawn)
            results.append(codes.cpu().clone())  # outside inference mode: the result is an ordinary tensor
    return request.finish(results)


def sample_by_recomputing(
    model: Prior,
    priming: Codes,
    *,
    frames: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    labels: Labels = None,
    uniforms: Codes | None = None,
    clip_ids: Sequence[str] | None = None,
    sample_ids: Sequence[int] | None = None,
) -> Tensor:
    """As `sample`, with the whole decoder run again for every pixel: slow and plain, to check `sample` against."""
    request = _Request(model, priming, frames, seed, temperature, labels, uniforms, clip_ids, sample_ids)
    geometry = request.geometry
    with torch.no_grad():
        codes, numbers, some_labels = request.group(list(range(len(request.codes))))
        table = model.context_table(geometry)
        rows = iter(numbers)
        for index, num_primed in request.open_slices:
            slice_indices = torch.full((len(codes),), index, device=model.device)
            encoded = model.encode_context(codes, slice_indices, some_labels, geometry, table)
            positions = geometry.positions[index].to(model.device)
            for pixel in range(num_primed, geometry.num_pixels):
                own = codes[:, positions]
                y = model.predictor.norm(model.decoder(own, encoded, geometry.slice_shape))[:, pixel]
                for j, number in enumerate(next(rows)):
                    logits = model.predictor.logits(y, own[:, pixel], j, model.decoder.embeddings)
                    own[:, pixel, j] = draw(logits, number, temperature)
                codes[:, positions] = own
    return request.finish([codes.cpu()])


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
    """First code whose cumulative probability exceeds its number: int64 (B,) for logits (B, K) and numbers (B,)."""
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    return (cumulative <= uniforms[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


class CachedDecoder:
    """The prior's decoder and channel predictor, one pixel at a time, for a group of clips of fixed size.

    Weights are arranged once for single-pixel steps, and all buffers are allocated once.
    """

    def __init__(self, model: Prior, geometry: Subscale, batch: int, temperature: float) -> None:
        decoder, predictor = model.decoder, model.predictor
        self.model = model
        self.geometry = geometry
        self.temperature = temperature
        shape = geometry.slice_shape
        self.block = model.config.block_shape
        self.num_codebooks = model.config.num_codebooks
        self.places = _block_places(shape, self.block)
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
        taps = [weight[:, :, t + 2, y + 2, x + 1] for t, y, x in offsets]
        self.convolution = torch.cat(taps, dim=1)
        start = sinusoidal_positions(shape, model.config.width).to(model.device)
        self.start = start + decoder.causal_convolution.bias
        # One row more than pixels: the last one stays 0 and stands for everything outside the slice.
        self.embedded = torch.zeros(batch, geometry.num_pixels + 1, model.config.embedding_width, device=model.device)
        num_blocks = geometry.num_pixels // math.prod(self.block)
        layers = [layer for layer in decoder.blocks.layers if isinstance(layer, Block)]
        self.layers = [_CachedLayer(layer, batch, num_blocks, math.prod(self.block)) for layer in layers]
        # All codebooks share the decoder output: one product for it, and one gather per drawn code for all later ones.
        mixers = [mixer for mixer in predictor.mixers if isinstance(mixer, nn.Linear)]
        width, size = model.config.width, model.config.codebook_size
        self.mixer_weight = torch.cat([mixer.weight[:, :width] for mixer in mixers])
        self.mixer_bias = torch.cat([mixer.bias for mixer in mixers])
        self.columns = [
            torch.cat([mixer.weight[:, width + k * size : width + (k + 1) * size] for mixer in mixers[k + 1 :]]).T
            for k in range(len(mixers) - 1)
        ]
        self.columns = [table.contiguous() for table in self.columns]

    def draw_slice(self, codes: Tensor, encoded: Tensor, num_primed: int, numbers: Tensor) -> Tensor:
        """Codes of a slice with its pixels after the first `num_primed` drawn.

        Args:
            codes: int64 (B, P, n_c), of which the first `num_primed` pixels are read.
            encoded: encoder output (B, P, d).
            numbers: float64 (P - num_primed, n_c, B) in [0, 1).
        """
        codes = codes.clone()
        begin = self.start + self.model.decoder.project(encoded)
        self.embedded.zero_()
        if num_primed:
            self._push_primed(codes, encoded, num_primed)
        for pixel in range(num_primed, codes.shape[1]):
            y = self._decode_pixel(begin[:, pixel], pixel)
            drawn = self._draw_pixel(y, numbers[pixel - num_primed])
            codes[:, pixel] = drawn
            self.embedded[:, pixel] = self.model.decoder.embed(drawn)
        return codes

    def _push_primed(self, codes: Tensor, encoded: Tensor, num_primed: int) -> None:
        """Fill the caches from the first pixels, in parallel; entries of later pixels are overwritten in time."""
        decoder, shape = self.model.decoder, self.geometry.slice_shape
        self.embedded[:, :num_primed] = decoder.embed(codes[:, :num_primed])
        x = decoder.causal_convolution(self.embedded[:, :-1], shape)
        x = x + sinusoidal_positions(shape, x.shape[-1]).to(x.device) + decoder.project(encoded)
        x = split_blocks(x, shape, self.block)
        for layer in self.layers:
            x = layer.push_all(x)

    def _decode_pixel(self, begin: Tensor, pixel: int) -> Tensor:
        """Decoder output (B, d) at one pixel."""
        window = self.embedded.index_select(1, self.neighbours[pixel]).flatten(1)
        x = begin + F.linear(window, self.convolution)
        block, place = self.places[pixel]
        for layer in self.layers:
            x = layer.step(x, block, place)
        return x

    def _draw_pixel(self, y: Tensor, numbers: Tensor) -> Tensor:
        """Codes int64 (B, n_c) of one pixel, from the decoder output (B, d) and numbers (n_c, B)."""
        predictor, embeddings = self.model.predictor, self.model.decoder.embeddings
        width = y.shape[1]
        mixed = F.linear(predictor.norm(y), self.mixer_weight, self.mixer_bias)
        drawn = []
        for j in range(self.num_codebooks):
            logits = predictor.outputs_of(F.relu(mixed[:, :width]), j, embeddings)
            code = draw(logits, numbers[j], self.temperature)
            drawn.append(code)
            if j + 1 < self.num_codebooks:
                mixed = mixed[:, width:] + self.columns[j].index_select(0, code)
        return torch.stack(drawn, dim=1)


class _CachedLayer:
    """One decoder block with the keys and values of the pixels so far."""

    def __init__(self, layer: Block, batch: int, num_blocks: int, block_pixels: int) -> None:
        attention: Attention = layer.attention
        self.layer = layer
        self.kind = attention.kind
        self.heads, self.head_width = attention.num_heads, attention.head_width
        self.scale = 1 / math.sqrt(self.head_width)
        parameters = [attention.get_parameter(name) for name in attention.projections]
        self.weight = torch.cat([rearrange(weight, "m d a -> (m a) d") for weight in parameters])
        self.bias = attention.scores_bias()  # (n_a, N, N)
        if self.kind == "distance-only":
            self.bias = self.bias.softmax(-1)  # the weights themselves
        shape = (num_blocks, batch * self.heads, block_pixels, self.head_width)
        self.values = torch.zeros(shape, device=self.weight.device)
        self.keys = torch.zeros_like(self.values) if self.kind != "distance-only" else None

    def push_all(self, x: Tensor) -> Tensor:
        """Run whole blocks (B * blocks, N, d) through the layer and cache all their keys and values."""
        attention = self.layer.attention
        projected = attention.project(self.layer.norm1(x))
        num_blocks = len(self.values)
        self.values.copy_(rearrange(projected[-1], "(b k) m n a -> k (b m) n a", k=num_blocks))
        if self.keys is not None:
            self.keys.copy_(rearrange(projected[-2], "(b k) m n a -> k (b m) n a", k=num_blocks))
        return self.layer(x)  # type: ignore[no-any-return]

    def step(self, x: Tensor, block: int, place: int) -> Tensor:
        """The layer at one pixel, (B, d) -> (B, d); `place` is its number inside its attention block."""
        batch, heads, width = len(x), self.heads, self.head_width
        joined = F.linear(self.layer.norm1(x), self.weight)
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
            attention = self.layer.attention
            query = attention.u.expand(batch, heads, width) if self.kind == "key-only" else parts[:, 0]
            query = (query * self.scale).reshape(batch * heads, 1, width)
            scores = torch.bmm(query, keys[:, : place + 1].transpose(1, 2))
            weights = (scores.view(batch, heads, place + 1) + bias).softmax(-1)
        mixed = torch.bmm(weights.reshape(batch * heads, 1, place + 1), seen)
        x = x + self.layer.attention.out(mixed.view(batch, heads * width))
        return self.layer.feed_forward(x)


class _Request:
    """Checked arguments of one call, and the whole videos being filled in."""

    def __init__(
        self,
        model: Prior,
        priming: Codes,
        frames: int | None,
        seed: int,
        temperature: float,
        labels: Labels,
        uniforms: Codes | None,
        clip_ids: Sequence[str] | None,
        sample_ids: Sequence[int] | None,
    ) -> None:
        config = model.config
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature} must be above 0")
        priming = integer_codes(priming, "(B, T0, h, w, n_c)", 5, config.num_codebooks, config.codebook_size).cpu()
        batch, given = priming.shape[:2]
        if tuple(priming.shape[2:4]) != tuple(config.grid):
            raise ShapeError(f"this prior has a {config.grid} grid, found priming codes {tuple(priming.shape)}")
        frames = config.frames if frames is None else frames
        check_priming(model, given, frames)
        self.model = model
        self.geometry = model.geometry(frames)
        num_primed = self.geometry.num_primed(given).tolist()
        # (slice, primed pixels) of every slice with something to draw.
        self.open_slices = [(i, n) for i, n in enumerate(num_primed) if n < self.geometry.num_pixels]
        self.num_drawn_pixels = sum(self.geometry.num_pixels - n for _, n in self.open_slices)
        self.labels = model.checked_labels(labels, batch)
        self.uniforms = self._uniforms(uniforms, batch, seed, clip_ids, sample_ids)
        self.codes = torch.zeros(batch, frames, *config.grid, config.num_codebooks, dtype=torch.int64)
        self.codes[:, :given] = priming

    def _uniforms(
        self,
        uniforms: Codes | None,
        batch: int,
        seed: int,
        clip_ids: Sequence[str] | None,
        sample_ids: Sequence[int] | None,
    ) -> Tensor:
        """float64 (drawn pixels, n_c, B)."""
        shape = (self.num_drawn_pixels, self.model.config.num_codebooks, batch)
        if uniforms is not None:
            numbers = torch.as_tensor(uniforms)
            if tuple(numbers.shape) != shape or not numbers.is_floating_point():
                raise ShapeError(
                    f"uniforms are float (pixels, n_c, B) = {shape}, found {numbers.dtype} {tuple(numbers.shape)}"
                )
            if numbers.numel() and not (float(numbers.min()) >= 0 and float(numbers.max()) < 1):
                raise ShapeError("uniforms lie in [0, 1)")
            return numbers.double()
        clip_ids = [str(index) for index in range(batch)] if clip_ids is None else clip_ids
        sample_ids = [0] * batch if sample_ids is None else sample_ids
        for name, ids in (("clip_ids", clip_ids), ("sample_ids", sample_ids)):
            if len(ids) != batch:
                raise ShapeError(f"{name} has {len(ids)} entries for {batch} clips")
        numbers = torch.empty(shape, dtype=torch.float64)
        for index, (clip, number) in enumerate(zip(clip_ids, sample_ids, strict=True)):
            numbers[..., index] = torch.rand(
                shape[:2], generator=clip_generator(seed, clip, number), dtype=torch.float64
            )
        return numbers

    def group(self, members: list[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """(codes (B, T*h*w, n_c), numbers (pixels, n_c, B), labels) of some clips, on the model's device."""
        device = self.model.device
        labels = self.labels[members] if self.labels is not None else None
        return self.codes[members].flatten(1, 3).to(device), self.uniforms[..., members].to(device), labels

    def finish(self, results: list[Tensor]) -> Tensor:
        """The groups' codes (b, T*h*w, n_c) as (B, T, h, w, n_c), fillers dropped."""
        if not results:
            return self.codes
        return torch.cat(results)[: len(self.codes)].reshape(self.codes.shape)


def check_priming(model: Prior, given: int, frames: int) -> None:
    """Refuse to draw what a prior never learnt.

    Args:
        given: priming frames.
        frames: length of a clip with them.

    Raises:
        ShapeError: more are given than asked for, or too few for a prior whose first slices are never trained.
    """
    if given > frames:
        raise ShapeError(f"{given} priming frames are more than the {frames} frames asked for")
    geometry = model.geometry(frames)
    num_primed = geometry.num_primed(given).tolist()
    if {i for i, primed in enumerate(num_primed) if primed < geometry.num_pixels} - set(model.trainable_slices):
        raise ShapeError(
            f"this prior needs at least {model.config.priming_frames} priming frames, found {given}: with one frame "
            "per slice it never learnt to draw the first ones"
        )


def clip_generator(seed: int, clip_id: str, sample_id: int) -> torch.Generator:
    """The random numbers of one sample of one clip."""
    digest = fingerprint({"seed": seed, "clip": clip_id, "sample": sample_id})
    return torch.Generator().manual_seed(int(digest[:15], 16))


def _groups(count: int, size: int) -> Iterator[list[int]]:
    """Clip numbers in groups of exactly `size`; the last one repeats its last clip."""
    for start in range(0, count, size):
        yield [min(index, count - 1) for index in range(start, start + size)]


def _block_places(shape: Triple, block: Triple) -> list[tuple[int, int]]:
    """(attention block, place inside it) of every pixel of a slice, in raster order."""
    pixels = torch.arange(math.prod(shape))[None, :, None]
    by_block = split_blocks(pixels, shape, block).squeeze(-1)  # (blocks, N)
    places: list[Any] = [None] * math.prod(shape)
    for number, members in enumerate(by_block.tolist()):
        for place, pixel in enumerate(members):
            places[pixel] = (number, place)
    return places


def _neighbours(shape: Triple, offsets: list[Triple]) -> Tensor:
    """int64 (P, offsets): pixel number at each offset from each pixel, P when it lies outside the slice."""
    t, h, w = shape
    grid = np.stack(np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    place = torch.from_numpy(grid + np.array(offsets).reshape(1, -1, 3))
    inside = ((place >= 0) & (place < torch.tensor(shape))).all(-1)
    flat = (place[..., 0] * h + place[..., 1]) * w + place[..., 2]
    return torch.where(inside, flat, t * h * w)
