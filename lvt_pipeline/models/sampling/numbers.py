"""The random numbers of samples: every sample of every clip has its own, whatever else is sampled with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.arguments import seed_number, whole_number
from lvt_pipeline.provenance import fingerprint


@dataclass(frozen=True, kw_only=True)
class RandomNumbers:
    """Where the random numbers of a call come from.

    Attributes:
        seed, clip_ids, sample_ids: a clip's numbers come from (seed, clip id, sample id) and from nothing else. Unset:
            the clip's number in the call, and 0. Seeds are in [0, 2^63).
        uniforms: float (open pixels in generation order, n_c, B) in [0, 1), in place of random ones: those of the first
            window, then those of the next. Pixels of priming frames have none.
    """

    seed: int = 0
    clip_ids: Sequence[str] | None = None
    sample_ids: Sequence[int] | None = None
    uniforms: Tensor | np.ndarray[Any, Any] | None = None

    def of_shape(self, shape: tuple[int, int, int]) -> Tensor:
        """The numbers, float64 (pixels, n_c, B).

        Raises:
            ShapeError: `uniforms` or the ids do not fit the shape.
            ConfigError: a seed or a sample number is not a whole number or out of range.
        """
        if self.uniforms is not None:
            return _checked_uniforms(self.uniforms, shape)
        seed = seed_number("seed", self.seed)
        numbers = torch.empty(shape, dtype=torch.float64)
        for index, name in enumerate(self.names(shape[2])):
            numbers[..., index] = torch.rand(shape[:2], generator=clip_generator(seed, *name), dtype=torch.float64)
        return numbers

    def names(self, clips: int) -> list[tuple[str, int]]:
        """(clip id, sample id) of each clip of a call.

        Raises:
            ShapeError: there are more or fewer ids than clips.
            ConfigError: a sample id is not a whole number.
        """
        clip_ids = [str(index) for index in range(clips)] if self.clip_ids is None else self.clip_ids
        sample_ids = [0] * clips if self.sample_ids is None else self.sample_ids
        for name, ids in (("clip_ids", clip_ids), ("sample_ids", sample_ids)):
            if len(ids) != clips:
                raise ShapeError(f"{name} has {len(ids)} entries for {clips} clips")
        return [
            (str(clip), whole_number("sample_ids", number)) for clip, number in zip(clip_ids, sample_ids, strict=True)
        ]


def clip_generator(seed: int, clip_id: str, sample_id: int) -> torch.Generator:
    """The random numbers of one sample of one clip."""
    digest = fingerprint({"seed": seed, "clip": clip_id, "sample": sample_id})
    return torch.Generator().manual_seed(int(digest[:15], 16))


def _checked_uniforms(uniforms: Tensor | np.ndarray[Any, Any], shape: tuple[int, int, int]) -> Tensor:
    needed = f"uniforms are float (pixels, n_c, B) = {shape}"
    if not isinstance(uniforms, (Tensor, np.ndarray)) or "float" not in str(uniforms.dtype):
        raise ShapeError(f"{needed}, found {getattr(uniforms, 'dtype', type(uniforms).__name__)}")
    if tuple(uniforms.shape) != shape:
        raise ShapeError(f"{needed}, found {uniforms.dtype} {tuple(uniforms.shape)}")
    numbers = torch.as_tensor(uniforms).double()
    if numbers.numel() and not (float(numbers.min()) >= 0 and float(numbers.max()) < 1):
        raise ShapeError(f"uniforms are in [0, 1), found values from {float(numbers.min())} to {float(numbers.max())}")
    return numbers
