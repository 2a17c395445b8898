"""Finite scalar quantisation: codes without learned tables (Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE
Made Simple", arXiv 2309.15505).

Each of the n_c groups of D / n_c latent channels is projected to a few numbers, one per level count; every number is
bounded and rounded to one of its levels. A code is the index of the combination, so K is the product of the levels.
Nothing is looked up, so there is no table to keep alive; the projections learn by gradient, with the rounding passed
straight through. What can still happen is that a number drives into the flat end of its tanh and stays at few levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.vqvae.config import require_levels
from lvt_pipeline.models.vqvae.quantize import Quantized

MARGIN = 1e-3  # the paper's listing bounds numbers to this share less than the range of the levels
SETTLED_STEPS = 500  # until then the projections may still be looking for the latents


class FSQCodebook(nn.Module):
    """The implicit codebook of one group of channels.

    Args:
        levels: how many values each number may take; at least 3 each, and the paper advises 5 or more.
        width: channels of the group.

    Raises:
        ConfigError: no levels, or fewer than 3 somewhere.
    """

    counts: Tensor
    half_range: Tensor
    offset: Tensor
    shift: Tensor
    half_width: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int], width: int) -> None:
        super().__init__()
        require_levels(levels)
        self.levels = tuple(levels)
        self.project_in = nn.Linear(width, len(levels))
        self.project_out = nn.Linear(len(levels), width)
        for projection in (self.project_in, self.project_out):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        counts = torch.tensor(self.levels)
        half_range = (counts - 1) * (1 - MARGIN) / 2
        # An even number of levels has no middle one: the range moves down by half a step, so that zero is a level.
        offset = 0.5 * (counts % 2 == 0)
        derived = {
            "counts": counts,
            "half_range": half_range,
            "offset": offset,
            # Brings zero back to about zero; atanh would be exact, but tan is what the paper's listing has.
            "shift": torch.tan(offset / half_range),
            "half_width": counts // 2,
            "basis": torch.tensor([math.prod(self.levels[:i]) for i in range(len(levels))]),
        }
        for name, value in derived.items():  # not saved: they follow from the levels
            self.register_buffer(name, value, persistent=False)

    @property
    def codebook_size(self) -> int:
        """K, the product of the levels."""
        return math.prod(self.levels)

    def bound(self, latents: Tensor) -> Tensor:
        """Latents (B, width, h, w) as numbers (B, h, w, levels), in steps between levels, that differ from the nearest
        level by at most about half a step."""
        flat = rearrange(latents, "b c h w -> b h w c")
        # The projection is computed in float32 also where the weights are stored in fewer bits.
        numbers = F.linear(flat.float(), self.project_in.weight.float(), self.project_in.bias.float())
        return torch.tanh(numbers + self.shift) * self.half_range - self.offset

    def index(self, bounded: Tensor) -> Tensor:
        """Codes int64 (B, h, w) of numbers (B, h, w, levels), each at its nearest level; the first is the fastest
        digit."""
        # Without the limits, latents that are not numbers would make codes outside [0, K).
        digits = (bounded.round().long() + self.half_width).clamp(min=0).minimum(self.counts - 1)
        return (digits * self.basis).sum(-1)

    def codes(self, latents: Tensor) -> Tensor:
        """Codes int64 (B, h, w) of latents float32 (B, width, h, w)."""
        return self.index(self.bound(latents))

    def steps(self, codes: Tensor) -> Tensor:
        """The rounded numbers float32 (B, h, w, levels) of codes int64 (B, h, w)."""
        digits = codes[..., None] // self.basis % self.counts
        return (digits - self.half_width).float()

    def vectors(self, steps: Tensor) -> Tensor:
        """Code vectors float32 (B, width, h, w) of rounded numbers (B, h, w, levels)."""
        scaled = steps / self.half_width  # about [-1, 1], whatever the levels
        flat = F.linear(scaled, self.project_out.weight.float(), self.project_out.bias.float())
        return rearrange(flat, "b h w c -> b c h w")

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors float32 (B, width, h, w) of codes int64 (B, h, w)."""
        return self.vectors(self.steps(codes))


class FSQuantizer(nn.Module):
    """n_c implicit codebooks, each for its own group of D / n_c latent channels; the interface of `SlicedQuantizer`.

    Raises:
        ConfigError: the width does not divide into that many codebooks.
    """

    updates: Tensor

    def __init__(self, num_codebooks: int, levels: Sequence[int], code_width: int) -> None:
        super().__init__()
        if code_width % num_codebooks:
            raise ConfigError(f"code_width={code_width} does not divide into {num_codebooks} codebooks")
        self.books = nn.ModuleList(FSQCodebook(levels, code_width // num_codebooks) for _ in range(num_codebooks))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # training forwards, for `is_settled`

    @property
    def codebooks(self) -> list[FSQCodebook]:
        """The codebooks in channel order."""
        return [book for book in self.books if isinstance(book, FSQCodebook)]

    @property
    def is_settled(self) -> bool:
        """Whether the codebooks have trained for long enough to be judged."""
        return int(self.updates) >= SETTLED_STEPS

    def deciding_weights(self) -> dict[str, Tensor]:
        """What decides the codes of latents: the projections in. Those out only decide what the decoder sees."""
        return {
            f"project_in.{j}.{kind}": value
            for j, book in enumerate(self.codebooks)
            for kind, value in book.project_in.state_dict().items()
        }

    def codes(self, latents: Tensor) -> Tensor:
        """Codes int64 (B, h, w, n_c) of latents float32 (B, D, h, w)."""
        return torch.stack([book.codes(group) for book, group in self._groups(latents)], dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors float32 (B, D, h, w) of codes int64 (B, h, w, n_c)."""
        return torch.cat([book.lookup(codes[..., j]) for j, book in enumerate(self.codebooks)], dim=1)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents float (B, D, h, w). There is nothing to commit to: that loss is 0."""
        vectors, codes = [], []
        # As with tables, codes are decided in full precision, whatever the caller's autocast.
        with torch.autocast(latents.device.type, enabled=False):
            for book, group in self._groups(latents.float()):
                bounded = book.bound(group)
                steps = bounded.detach().round()
                codes.append(book.index(bounded.detach()))
                # The difference is exactly zero: the values are the rounded ones, the gradient that of the bounded.
                vectors.append(book.vectors(steps + (bounded - bounded.detach())))
            if self.training:
                self.updates += 1
            no_loss = torch.zeros((), device=latents.device)
        return Quantized(torch.cat(vectors, dim=1), torch.stack(codes, dim=-1), no_loss)

    def _groups(self, latents: Tensor) -> list[tuple[FSQCodebook, Tensor]]:
        width = sum(book.project_in.in_features for book in self.codebooks)
        if latents.shape[1] != width:
            raise ShapeError(f"latents have D={latents.shape[1]} but the codebooks were made for D={width}")
        return list(zip(self.codebooks, latents.chunk(len(self.books), dim=1), strict=True))
