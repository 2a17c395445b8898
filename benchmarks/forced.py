"""What the sampler's own decoder predicts where the codes are given: bits and codes of each kind of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvt_pipeline.models.cpu import Weights, encoder_precision
from lvt_pipeline.models.prior.conditions import Conditions
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.sampling.decoder import SliceDecoder
from lvt_pipeline.models.sampling.pixel_weights import PixelWeights
from lvt_pipeline.models.sampling.rule import SamplingRule, first_above


@dataclass(frozen=True, kw_only=True)
class GivenCodes(SamplingRule):
    """Takes the given codes, and notes their probabilities and what would have been sampled.

    Attributes:
        codes: int64 (N, n_c).
        numbers: float64 (N, n_c) in [0, 1).
    """

    codes: Tensor
    numbers: Tensor
    nats: list[Tensor] = field(default_factory=list)
    sampled: list[Tensor] = field(default_factory=list)

    def cumulative(self, logits: Tensor, codebook: int = 0) -> Tensor:
        """A step at the given code."""
        own = self.codes[:, codebook, None]
        self.nats.append(-logits.double().log_softmax(-1).gather(-1, own)[:, 0])
        self.sampled.append(first_above(super().cumulative(logits, codebook), self.numbers[:, codebook]))
        return (torch.arange(logits.shape[-1], device=logits.device) >= own).double()


@torch.inference_mode()
def predicted(model: Prior, codes: Tensor, weights: Weights, first_slice: int) -> tuple[float, Tensor]:
    """Bits per code of the slices from `first_slice` on, and the codes sampled there with fixed random numbers.

    Args:
        codes: int64 (B, T, h, w, n_c).
    """
    geometry = model.geometry(codes.shape[1])
    flat = codes.flatten(1, 3).to(model.device)
    table = model.context_table(geometry)
    positions, _, _ = model.device_tables(geometry)
    pixels = PixelWeights(model, geometry, len(codes) * geometry.num_pixels, weights)
    generator = torch.Generator().manual_seed(0)
    nats, sampled = [], []
    for index in range(first_slice, geometry.num_slices):
        own = flat[:, positions[index]]
        slices = torch.full((len(codes),), index, device=model.device)
        with encoder_precision(weights, model.device):
            encoded = model.encode_context(flat, slices, Conditions(), geometry, table).float()
        numbers = torch.rand(own.flatten(0, 1).shape, generator=generator, dtype=torch.float64).to(model.device)
        rule = GivenCodes(codes=own.flatten(0, 1), numbers=numbers)
        decoder = SliceDecoder(pixels, len(codes), rule, geometry.num_pixels, capture=_once)
        decoder.sample_slice(own, encoded, 0, torch.full((geometry.num_pixels, own.shape[-1], len(codes)), 0.5))
        nats += rule.nats
        sampled += rule.sampled
    return float(torch.stack(nats).mean()) / math.log(2), torch.stack(sampled).cpu()


def _once(run):  # type: ignore[no-untyped-def]
    run()
    return run
