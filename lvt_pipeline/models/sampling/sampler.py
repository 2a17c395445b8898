"""Sampling codes from the prior without recomputing what is already known (paper, section 3.2).

The encoder runs once per slice; the decoder keeps keys and values of every layer (`cached_decoder.py`), and may draw
several pixels per pass (`lookahead.py`). Frames given as priming are pushed through in one parallel pass, and slices
that are wholly primed are skipped. `sample_by_recomputing` is the slow definition of the same result.

A code is the first one whose cumulative probability exceeds its random number; numbers are used up per pixel in
generation order, codebook and clip. Every clip has its own random numbers, and matrix products have one fixed number of
rows, so that the codes of a clip do not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.sampling.cached_decoder import CachedDecoder
from lvt_pipeline.models.sampling.lookahead import LookaheadDecoder
from lvt_pipeline.models.sampling.rule import DrawingRule, as_rule
from lvt_pipeline.models.vqvae.quantize import integer_codes
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import fingerprint

if TYPE_CHECKING:
    from lvt_pipeline.models.prior.model import Codes, Labels, Prior

ROWS_PER_PASS = 8  # pixels, of all clips of a group together, that go through the decoder at once


def sample(
    model: Prior,
    priming: Codes,
    *,
    frames: int | None = None,
    seed: int = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float | None = None,
    labels: Labels = None,
    uniforms: Codes | None = None,
    clip_ids: Sequence[str] | None = None,
    sample_ids: Sequence[int] | None = None,
    clips_per_pass: int | None = None,
    lookahead: int = 1,
    progress: Progress = SILENT,
) -> Tensor:
    """Continue clips: draw the codes of the frames after the priming ones.

    Args:
        priming: integers (B, T0, h, w, n_c), the first frames of every clip.
        frames: length T of the result; unset: what the model was made for.
        seed, clip_ids, sample_ids: a clip's random numbers come from (seed, clip id, sample id) and from nothing else.
            Unset: the clip's number in this call, and 0.
        temperature: divides the logits, one number or one per codebook; 1 is the model's own distribution.
        top_k, top_p, guidance: see `drawing.DrawingRule`; unset: off, as in the paper.
        labels: int (B,) for a class-conditional prior.
        uniforms: numbers in [0, 1), (pixels in generation order, n_c, B), in place of random ones. Pixels of priming
            frames have none.
        clips_per_pass: group size. Unset: as many as make `ROWS_PER_PASS` with the lookahead. Another size may change
            a draw by rounding.
        lookahead: pixels of a clip that are drawn per pass where guesses come true (see `lookahead.py`); 1 draws one
            by one. The codes are the same, up to rounding. More is faster for a few clips, 1 for many.

    Returns:
        int64 (B, T, h, w, n_c) on the CPU, the first T0 frames as given.

    Raises:
        ShapeError: an argument does not fit the model, or there are too few priming frames for what it learnt.
        ConfigError: a value for drawing is out of range.
    """
    rule = as_rule(temperature, top_k, top_p, guidance)
    request = _Request(model, priming, frames, seed, rule, labels, uniforms, clip_ids, sample_ids)
    for name, value in (("clips_per_pass", clips_per_pass), ("lookahead", lookahead)):
        if value is not None and value < 1:
            raise ShapeError(f"{name}={value} must be at least 1")
    if clips_per_pass is None:
        clips_per_pass = max(1, ROWS_PER_PASS // lookahead)
    geometry = request.geometry
    results = []
    total = request.num_drawn_pixels * math.ceil(len(request.codes) / clips_per_pass)
    with progress.bar("sampling", total, "pixel") as bar:
        for members in _groups(len(request.codes), clips_per_pass):
            with torch.inference_mode():
                codes, numbers, some_labels = request.group(members)
                rows = clips_per_pass * rule.streams * lookahead
                decoder = (
                    LookaheadDecoder(model, geometry, len(members), rule, rows, lookahead)
                    if lookahead > 1
                    else CachedDecoder(model, geometry, len(members), rule, rows)
                )
                table = model.context_table(geometry)
                used = 0
                for index, num_primed in request.open_slices:
                    encoded = request.encode(codes, index, some_labels, table)
                    positions = geometry.positions[index].to(model.device)
                    drawn = geometry.num_pixels - num_primed
                    own = codes[:, positions]
                    # Guesses for the lookahead; drawing one by one does not read them.
                    own[:, num_primed:] = codes[:, geometry.guesses[index].to(model.device)[num_primed:]]
                    codes[:, positions] = decoder.draw_slice(own, encoded, num_primed, numbers[used : used + drawn])
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
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float | None = None,
    labels: Labels = None,
    uniforms: Codes | None = None,
    clip_ids: Sequence[str] | None = None,
    sample_ids: Sequence[int] | None = None,
) -> Tensor:
    """As `sample`, with the whole decoder run again for every pixel: slow and plain, to check `sample` against."""
    rule = as_rule(temperature, top_k, top_p, guidance)
    request = _Request(model, priming, frames, seed, rule, labels, uniforms, clip_ids, sample_ids)
    geometry = request.geometry
    with torch.no_grad():
        codes, numbers, some_labels = request.group(list(range(len(request.codes))))
        table = model.context_table(geometry)
        rows = iter(numbers)
        for index, num_primed in request.open_slices:
            encoded = request.encode(codes, index, some_labels, table)
            positions = geometry.positions[index].to(model.device)
            for pixel in range(num_primed, geometry.num_pixels):
                own = codes[:, positions].repeat(rule.streams, 1, 1)
                y = model.predictor.norm(model.decoder(own, encoded, geometry.slice_shape))[:, pixel]
                for j, number in enumerate(next(rows)):
                    logits = model.predictor.logits(y, own[:, pixel], j, model.decoder.embeddings)
                    own[:, pixel, j] = rule.draw(logits, number, j).repeat(rule.streams)
                codes[:, positions] = own[: len(codes)]
    return request.finish([codes.cpu()])


class _Request:
    """Checked arguments of one call, and the whole videos being filled in."""

    def __init__(
        self,
        model: Prior,
        priming: Codes,
        frames: int | None,
        seed: int,
        rule: DrawingRule,
        labels: Labels,
        uniforms: Codes | None,
        clip_ids: Sequence[str] | None,
        sample_ids: Sequence[int] | None,
    ) -> None:
        config = model.config
        check_rule(model, rule)
        self.rule = rule
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

    def encode(self, codes: Tensor, index: int, labels: Tensor | None, table: Tensor) -> Tensor:
        """Encoder output (streams * B, P, d) for one slice of clips (B, T*h*w, n_c), those without class last."""
        streams = self.rule.streams
        if streams > 1:
            assert labels is not None
            labels = torch.cat([labels, torch.full_like(labels, self.model.config.num_classes)])
        slice_index = torch.full((1,), index, device=self.model.device)
        parts = []
        for row, clip in enumerate(codes.repeat(streams, 1, 1)):  # one by one: its numbers depend on no other clip
            label = labels[row, None] if labels is not None else None
            parts.append(self.model.encode_context(clip[None], slice_index, label, self.geometry, table))
        return torch.cat(parts)

    def finish(self, results: list[Tensor]) -> Tensor:
        """The groups' codes (b, T*h*w, n_c) as (B, T, h, w, n_c)."""
        return torch.cat(results).reshape(self.codes.shape) if results else self.codes


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


def check_rule(model: Prior, rule: DrawingRule) -> None:
    """Refuse a drawing rule that this prior cannot follow.

    Raises:
        ConfigError: the rule has another number of temperatures than the prior has codebooks.
        ShapeError: guidance, from a prior that never learnt clips without their class.
    """
    rule.check_codebooks(model.config.num_codebooks)
    if rule.guidance is not None and not model.config.class_dropout:
        raise ShapeError(
            "guidance needs a prior that also learnt clips without their class; train one with model.num_classes "
            "and model.class_dropout=0.1"
        )


def clip_generator(seed: int, clip_id: str, sample_id: int) -> torch.Generator:
    """The random numbers of one sample of one clip."""
    digest = fingerprint({"seed": seed, "clip": clip_id, "sample": sample_id})
    return torch.Generator().manual_seed(int(digest[:15], 16))


def _groups(count: int, size: int) -> Iterator[list[int]]:
    """Clip numbers in groups of at most `size`."""
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))
