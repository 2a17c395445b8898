"""Sampling codes from the prior without recomputing known values (paper, section 3.2).

A clip longer than the prior's own is sampled in windows (`windows.py`). The encoder runs once per slice; the decoder
keeps keys and values of every layer and may sample several pixels per pass (`decoder.py`). Priming frames are pushed
through in one parallel pass, and slices that are wholly primed are skipped.

A code is the first one whose cumulative probability exceeds its random number; numbers are used up per pixel in
generation order, codebook and clip. Every clip has its own random numbers, and the rows of a matrix product have the
same bits whatever their number (`models/cpu.py`), so the codes of a clip depend neither on the others nor on how many
pixels go through a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lvt_pipeline.errors import NotFiniteError, ShapeError
from lvt_pipeline.models.arguments import whole_number
from lvt_pipeline.models.cpu import Weights, encoder_precision, require_weights
from lvt_pipeline.models.prior.conditions import Actions, Conditions, Labels
from lvt_pipeline.models.prior.config import Triple
from lvt_pipeline.models.prior.network import Codes, PriorNetwork
from lvt_pipeline.models.prior.subscale import Subscale
from lvt_pipeline.models.sampling.decoder import SampledSlice, SliceDecoder
from lvt_pipeline.models.sampling.numbers import RandomNumbers
from lvt_pipeline.models.sampling.pixel_weights import PixelWeights, pixel_seconds
from lvt_pipeline.models.sampling.rule import SamplingRule
from lvt_pipeline.models.sampling.windows import Window, plan_rollout
from lvt_pipeline.models.threads import Threads
from lvt_pipeline.models.vqvae.quantize import integer_codes
from lvt_pipeline.progress import SILENT, Progress

# Pixels of all clips of a group together that go through the decoder at once, and those of one clip.
ROWS_PER_PASS = {"cpu": 16, "cuda": 256}
LOOKAHEADS = (4, 16)  # the least that pays, and the most
MAX_CLIPS_PER_PASS = 4096
PAPERS_RULE = SamplingRule()  # the model's own distribution
FIRST_SEED = RandomNumbers()
Decoders = dict[tuple[int, Triple], SliceDecoder]  # by number of clips and shape of the window


def sample(
    model: PriorNetwork,
    priming: Codes,
    rule: SamplingRule = PAPERS_RULE,
    numbers: RandomNumbers = FIRST_SEED,
    *,
    frames: int | None = None,
    labels: Labels = None,
    actions: Actions = None,
    clips_per_pass: int | None = None,
    lookahead: int | None = None,
    weights: Weights = "float32",
    decoders: Decoders | None = None,
    progress: Progress = SILENT,
) -> Tensor:
    """Continue clips: sample the codes of the frames after the priming ones.

    Args:
        priming: integers (B, T0, h, w, n_c), the first frames of every clip.
        frames: length T of the result, any; unset: what the model was made for.
        labels: int (B,) for a class-conditional prior.
        actions: numbers (B, T, d) for a prior that takes them, NaN where unknown; unset: all unknown. Row t acts on the
            step from frame t to t + 1, so those of the priming frames belong to them, and the last may be left out.
        clips_per_pass, lookahead: group size, and pixels of a clip per pass, which is speculative decoding (see
            `decoder.py`). Unset: fewer clips may look further ahead, as far as is quickest (see `pace.py`). The codes
            are the same, on GPUs up to rounding.
        weights: what the decoder's products are computed with. With "bfloat16" and "int8" (CPUs only), the encoder,
            keys and values are bfloat16 where that is faster; both change some codes.
        decoders: kept from call to call, at first empty; all must have the same model, rule, weights and lookahead.

    Returns:
        int64 (B, T, h, w, n_c) on the CPU, the first T0 frames as given.

    Raises:
        ShapeError: an array does not fit the model, or there are too few priming frames for its training.
        ConfigError: a number is out of range.
        NotFiniteError: the model's logits are not finite; clip and pixel are named.
    """
    require_weights(weights, model.device)
    request = _Request(model, priming, rule, numbers, frames=frames, labels=labels, actions=actions)
    count = len(request.codes)
    adapts = lookahead is None
    clips_per_pass, lookahead = _sizes_of_passes(request, clips_per_pass, lookahead)
    total = request.rollout.num_open_pixels * math.ceil(count / clips_per_pass)
    results = []
    with (
        progress.bar("sampling", total, "pixels") as bar,
        Threads(pixel_seconds(model, weights), leaves_room=True) as threads,
        torch.inference_mode(),
    ):
        decoders, pixels = {} if decoders is None else decoders, None
        most_rows = clips_per_pass * rule.streams * lookahead
        for members in _groups(count, clips_per_pass):
            key = (len(members), request.geometry.shape)
            if key not in decoders:
                pixels = pixels or PixelWeights(model, request.geometry, most_rows, weights)
                decoders[key] = SliceDecoder(pixels, len(members), rule, lookahead, adapts=adapts)
            results.append(request.sample_group(members, decoders[key], threads, bar).cpu())
    return request.finish(results)


def _sizes_of_passes(request: _Request, clips_per_pass: int | None, lookahead: int | None) -> tuple[int, int]:
    """Clips that are sampled together, and pixels of each of them per pass."""
    rows = ROWS_PER_PASS[request.model.device.type]
    if lookahead is None:
        lookahead = min(rows // max(1, len(request.codes)), LOOKAHEADS[1])
        lookahead = lookahead if lookahead >= LOOKAHEADS[0] else 1  # many clips fill a pass with pixels that are right
    lookahead = whole_number("lookahead", lookahead, minimum=1)
    lookahead = max(1, min(lookahead, request.geometry.num_pixels))
    if clips_per_pass is None:
        clips_per_pass = max(1, rows // lookahead)
    return whole_number("clips_per_pass", clips_per_pass, minimum=1, maximum=MAX_CLIPS_PER_PASS), lookahead


class _Request:
    """Checked arguments of one call, and the whole videos being filled in."""

    def __init__(
        self,
        model: PriorNetwork,
        priming: Codes,
        rule: SamplingRule,
        numbers: RandomNumbers,
        *,
        frames: int | None,
        labels: Labels,
        actions: Actions,
    ) -> None:
        config = model.config
        require_rule(model, rule)
        self.rule = rule
        priming = integer_codes(priming, "(B, T0, h, w, n_c)", 5, config.num_codebooks, config.codebook_size).cpu()
        batch, num_given = priming.shape[:2]
        if tuple(priming.shape[2:4]) != tuple(config.grid):
            raise ShapeError(f"this prior has a {config.grid} grid, found priming codes {tuple(priming.shape)}")
        frames = config.frames if frames is None else whole_number("frames", frames, minimum=1)
        self.model = model
        self.frames = frames
        self.rollout = plan_rollout(model, num_given, frames)
        self.geometry = model.geometry(self.rollout.window_frames)  # of every window
        self.uniforms = numbers.of_shape((self.rollout.num_open_pixels, config.num_codebooks, batch))
        self.names = numbers.names(batch)
        self.conditions = model.checked_conditions(labels, actions, batch, frames)
        length = max(frames, self.rollout.num_frames)
        self.codes = torch.zeros(batch, length, *config.grid, config.num_codebooks, dtype=torch.int64)
        self.codes[:, :num_given] = priming

    def shown(self, codes: Tensor, window: Window) -> Tensor:
        """The part of codes (B, T*h*w, n_c) that a window shows; writing to it writes to the codes."""
        frame_pixels = math.prod(self.geometry.shape[1:])
        return codes.narrow(1, window.start * frame_pixels, math.prod(self.geometry.shape))

    def group(self, members: list[int]) -> tuple[Tensor, Tensor, Conditions]:
        """(codes (B, T*h*w, n_c), numbers (pixels, n_c, B), conditions) of some clips, on the model's device."""
        device, conditions = self.model.device, self.conditions.of(members)
        if conditions.actions is not None:  # the last window may reach beyond the clip
            unknown = (0, 0, 0, self.codes.shape[1] - conditions.actions.shape[1])
            conditions = conditions._replace(actions=F.pad(conditions.actions, unknown, value=math.nan))
        return self.codes[members].flatten(1, 3).to(device), self.uniforms[..., members].to(device), conditions

    def sample_group(self, members: list[int], decoder: SliceDecoder, threads: Threads, bar: Any) -> Tensor:
        """Codes (B, T*h*w, n_c) of some clips with everything sampled."""
        model, geometry = self.model, self.geometry
        codes, uniforms, conditions = self.group(members)
        table = model.context_table(geometry)
        used = 0
        for window in self.rollout.windows:
            shown = self.shown(codes, window)
            for index, num_primed in window.open_slices:
                known = conditions.window(window.start, geometry.shape[0])
                with encoder_precision(decoder.pixels.weights, model.device):
                    encoded = self.encode(shown, index, known, table).float()
                positions = geometry.positions[index].to(model.device)
                num_open = geometry.num_pixels - num_primed
                own = shown[:, positions]
                own[:, num_primed:] = shown[:, geometry.guesses[index].to(model.device)[num_primed:]]
                given = (own, encoded, num_primed, uniforms[used : used + num_open])
                sampled = decoder.sample_slice(*given, threads.leave_room)
                if decoder.longest > 1 and not bool(sampled.is_finite.all()):  # it may have been a wrong guess
                    sampled = SliceDecoder(decoder.pixels, len(members), self.rule, 1).sample_slice(*given)
                self._require_finite(sampled, members, window, index)
                shown[:, positions] = sampled.codes
                used += num_open
                bar.advance(num_open)
        return codes

    def encode(self, codes: Tensor, index: int, conditions: Conditions, table: Tensor) -> Tensor:
        """Encoder output (streams * B, P, d) for one slice of clips (B, T*h*w, n_c), those for guidance last."""
        streams = self.rule.streams
        if streams > 1:
            conditions = conditions.with_dropped(self.model.config)
        codes = codes.repeat(streams, 1, 1)
        slices = torch.full((len(codes),), index, device=self.model.device)
        if codes.is_cuda:
            return self.model.encode_context(codes, slices, conditions, self.geometry, table)
        # One by one, because a clip's numbers must not depend on the others; samples of one clip begin alike.
        made: dict[tuple[bytes | None, ...], Tensor] = {}
        parts = []
        for row, clip in enumerate(codes):
            own = conditions.of([row])
            seen = tuple(None if values is None else values.numpy().tobytes() for values in (clip, *own))
            if seen not in made:
                made[seen] = self.model.encode_context(clip[None], slices[:1], own, self.geometry, table)
            parts.append(made[seen])
        return torch.cat(parts)

    def finish(self, results: list[Tensor]) -> Tensor:
        """The groups' codes (b, T*h*w, n_c) as (B, T, h, w, n_c), without frames that were not asked for."""
        codes = torch.cat(results).reshape(self.codes.shape) if results else self.codes
        return codes[:, : self.frames].clone()  # outside inference mode: an ordinary tensor

    def _require_finite(self, sampled: SampledSlice, members: list[int], window: Window, index: int) -> None:
        broken = (~sampled.is_finite).nonzero()
        if not len(broken):
            return
        clip, pixel = broken[0].tolist()
        frame, row, column = _coordinates(self.geometry, index, pixel)
        frame += window.start
        raise NotFiniteError(
            f"the prior's logits of clip {self.names[members[clip]][0]} are not finite at frame {frame}, row {row}, "
            f"column {column} (counted from 0); its weights are damaged or its training diverged: sample from another "
            "checkpoint or train again"
        )


def require_rule(model: PriorNetwork, rule: SamplingRule) -> None:
    """Refuse a sampling rule that this prior cannot follow.

    Raises:
        ConfigError: the rule has another number of temperatures than the prior has codebooks.
        ShapeError: guidance, from a prior that was not trained without classes or actions.
    """
    rule.require_codebooks(model.config.num_codebooks)
    if rule.guidance is not None and not (model.config.class_dropout or model.config.drops_actions):
        raise ShapeError(
            "guidance needs a prior that was also trained without classes, or without actions; train one with "
            "model.num_classes and model.class_dropout=0.1, or with model.actions"
        )


def _coordinates(geometry: Subscale, index: int, pixel: int) -> tuple[int, int, int]:
    """(frame, row, column) of a pixel of a slice."""
    _, h, w = geometry.shape
    place = int(geometry.positions[index, pixel])
    return place // (h * w), place // w % h, place % w


def _groups(count: int, size: int) -> Iterator[list[int]]:
    """Clip numbers in groups of at most `size`."""
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))
