"""Subscaling: a video of codes as interleaved slices, their order, and what each may see (paper, section 3.2).

Slice (a, b, c) holds the positions Z[a::s_t, b::s_h, c::s_w]. Slices are generated in lexicographic order of (a, b, c),
c fastest; within a slice pixels go in raster order (time, row, column); within a pixel codebooks go from 0 to n_c - 1.
The context of a slice is read by a strided convolution whose j-th output is centred on slice element o + j*s and which
sees earlier slices only.

Everything here is index arithmetic on flat positions (t*h + y)*w + x: no video is copied or padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import product

import torch
from torch import Tensor

from lvt_pipeline.models.prior.config import Reach, Triple, require_slices

PAD = -1  # marks a context position outside the video or not generated yet


class Subscale:
    """Index tables of one video shape, subscale factor and context kernel. Tables live on the CPU.

    Args:
        shape: (T, h, w) of the code video.
        factor: subscale factor (s_t, s_h, s_w).
        kernel: context kernel (k_t, k_h, k_w), odd.
        reach: position of the kernel in time. "centred" on the frame, so that with one frame per slice the taps on the
            present and the future only meet padding; "past" puts all k_t taps (odd or even) on the frames before, for
            which every frame must be a slice of its own.

    Raises:
        ConfigError: the factor does not divide the shape, or a kernel size is even.
    """

    def __init__(self, shape: Triple, factor: Triple, kernel: Triple, reach: Reach = "centred") -> None:
        require_slices(shape, factor, kernel, reach)
        self.shape = shape
        self.factor = factor
        self.kernel = kernel
        self.reach = reach

    @property
    def slice_shape(self) -> Triple:
        """(t, h', w') of every slice."""
        (frames, h, w), (s_t, s_h, s_w) = self.shape, self.factor
        return frames // s_t, h // s_h, w // s_w

    @property
    def num_pixels(self) -> int:
        """Pixels of one slice."""
        t, h, w = self.slice_shape
        return t * h * w

    @property
    def num_slices(self) -> int:
        """s_t * s_h * s_w."""
        s_t, s_h, s_w = self.factor
        return s_t * s_h * s_w

    @cached_property
    def offsets(self) -> list[Triple]:
        """Offset (a, b, c) of every slice, in generation order."""
        s_t, s_h, s_w = self.factor
        return list(product(range(s_t), range(s_h), range(s_w)))

    @cached_property
    def positions(self) -> Tensor:
        """int64 (slices, pixels): flat video position of every pixel of every slice, in generation order."""
        frames, h, w = self.shape
        s_t, s_h, s_w = self.factor
        with ordinary_tensors():
            video = torch.arange(frames * h * w).reshape(self.shape)
            return torch.stack([video[a::s_t, b::s_h, c::s_w].reshape(-1) for a, b, c in self.offsets])

    @cached_property
    def guesses(self) -> Tensor:
        """int64 (slices, pixels): flat video position whose code is a good guess for each pixel of each slice.

        It is in an earlier slice: the frame before, else the column or the row before. The first slice has none and
        points at itself.
        """
        _, h, w = self.shape
        back = [h * w if a else 1 if c else w if b else 0 for a, b, c in self.offsets]
        with ordinary_tensors():
            return self.positions - torch.tensor(back)[:, None]

    @cached_property
    def taps(self) -> Tensor:
        """int64 (used,): flat indices of the kernel entries that meet a visible position for some slice.

        The others only ever see padding: with one frame per slice, for example, those on the present and the future.
        """
        with ordinary_tensors():
            return self._all_context.ne(PAD).any(0).any(0).nonzero().squeeze(1)

    @cached_property
    def context(self) -> Tensor:
        """int64 (slices, pixels, used): flat video position under each used kernel entry, `PAD` where there is none."""
        with ordinary_tensors():
            return self._all_context[:, :, self.taps].contiguous()

    @cached_property
    def _all_context(self) -> Tensor:
        """int64 (slices, pixels, k_t*k_h*k_w): as `context`, for every kernel entry."""
        with ordinary_tensors():
            before = [size // 2 for size in self.kernel]  # taps before the centre, along each axis
            if self.reach == "past":
                before[0] = self.kernel[0]
            coordinates = [
                _window_coordinates(length, stride, size, first)
                for length, stride, size, first in zip(self.shape, self.factor, self.kernel, before, strict=True)
            ]
            tables = []
            for index, offset in enumerate(self.offsets):
                t, y, x = (axis[o] for axis, o in zip(coordinates, offset, strict=True))  # (elements, taps) per axis
                t, y, x = (
                    t[:, None, None, :, None, None],
                    y[None, :, None, None, :, None],
                    x[None, None, :, None, None, :],
                )
                inside = (t != PAD) & (y != PAD) & (x != PAD)
                s_t, s_h, s_w = self.factor
                owner = (t % s_t * s_h + y % s_h) * s_w + x % s_w  # slice that each position belongs to
                flat = (t * self.shape[1] + y) * self.shape[2] + x
                table = torch.where(inside & (owner < index), flat, PAD)
                tables.append(table.reshape(self.num_pixels, -1))
            return torch.stack(tables)

    def num_primed(self, priming_frames: int) -> Tensor:
        """int64 (slices,): how many pixels of each slice are in the first frames; they are its first pixels."""
        _, h, w = self.shape
        return (self.positions < priming_frames * h * w).sum(1)


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Tensors made inside are ordinary ones on the CPU, so that a table made while sampling can serve training."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@lru_cache(maxsize=16)
def subscale(shape: Triple, factor: Triple, kernel: Triple, reach: Reach = "centred") -> Subscale:
    """The index tables, made once per geometry."""
    return Subscale(shape, factor, kernel, reach)


def _window_coordinates(length: int, stride: int, size: int, before: int) -> Tensor:
    """int64 (offsets, elements, taps) along one axis: o + j*stride + tap - before, or `PAD` outside the video."""
    offset = torch.arange(stride)[:, None, None]
    element = torch.arange(length // stride)[None, :, None]
    tap = torch.arange(size)[None, None, :]
    coordinate = offset + element * stride + tap - before
    return torch.where((coordinate >= 0) & (coordinate < length), coordinate, PAD)
