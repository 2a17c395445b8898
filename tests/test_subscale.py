"""Slices, their order and the context each of them may see."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.prior.config import Triple
from lvt_pipeline.models.prior.subscale import PAD, Subscale

GEOMETRIES = [
    ((16, 1, 1), (7, 1, 1), (16, 4, 4)),
    ((4, 2, 2), (5, 3, 3), (8, 6, 4)),
    ((1, 2, 2), (1, 3, 3), (3, 4, 6)),
    ((2, 1, 3), (3, 5, 1), (4, 3, 9)),
    ((3, 3, 1), (7, 7, 3), (6, 6, 2)),
]


@pytest.mark.parametrize(("factor", "kernel", "shape"), GEOMETRIES)
def test_slices_are_strided_parts_in_lexicographic_order(factor: Triple, kernel: Triple, shape: Triple) -> None:
    geometry = Subscale(shape, factor, kernel)
    video = torch.arange(shape[0] * shape[1] * shape[2]).reshape(shape)
    expected = [
        video[a :: factor[0], b :: factor[1], c :: factor[2]].reshape(-1)
        for a in range(factor[0])
        for b in range(factor[1])
        for c in range(factor[2])
    ]
    assert torch.equal(geometry.positions, torch.stack(expected))
    assert geometry.positions.flatten().sort().values.tolist() == video.flatten().tolist()
    for index, (a, b, c) in enumerate(geometry.offsets):
        assert index == (a * factor[1] + b) * factor[2] + c


@pytest.mark.parametrize(("factor", "kernel", "shape"), GEOMETRIES)
def test_context_windows_are_centred_and_show_earlier_slices_only(
    factor: Triple, kernel: Triple, shape: Triple
) -> None:
    geometry = Subscale(shape, factor, kernel)
    slice_of = {
        int(position): index for index, positions in enumerate(geometry.positions) for position in positions.tolist()
    }
    taps = list(product(*(range(size) for size in kernel)))
    used = [taps[tap] for tap in geometry.taps.tolist()]
    for index, offset in enumerate(geometry.offsets):
        elements = product(*(range(size) for size in geometry.slice_shape))
        for pixel, element in enumerate(elements):
            seen = {}
            for tap in taps:
                place = [
                    o + j * s + u - k // 2 for o, j, s, u, k in zip(offset, element, factor, tap, kernel, strict=True)
                ]
                inside = all(0 <= p < n for p, n in zip(place, shape, strict=True))
                flat = (place[0] * shape[1] + place[1]) * shape[2] + place[2]
                seen[tap] = flat if inside and slice_of[flat] < index else PAD
            row = geometry.context[index, pixel].tolist()
            assert row == [seen[tap] for tap in used]
            assert all(seen[tap] == PAD for tap in taps if tap not in used)


def test_single_frame_context_is_the_three_frames_before() -> None:
    geometry = Subscale((16, 4, 4), (16, 1, 1), (7, 1, 1))
    assert geometry.taps.tolist() == [0, 1, 2]
    for frame in range(16):
        frames = {int(p) // 16 for p in geometry.context[frame].flatten() if p != PAD}
        assert frames == set(range(max(0, frame - 3), frame))


def test_spatiotemporal_context_reaches_later_frames_of_earlier_slices() -> None:
    geometry = Subscale((16, 4, 4), (4, 2, 2), (5, 3, 3))
    index = geometry.offsets.index((0, 0, 1))
    frames = {int(p) // 16 for p in geometry.context[index].flatten() if p != PAD}
    assert frames == {0, 4, 8, 12}
    pixel_of_frame_4 = 4
    assert {int(p) // 16 for p in geometry.context[index, pixel_of_frame_4] if p != PAD} == {4}
    index = geometry.offsets.index((1, 0, 0))
    frames = {int(p) // 16 for p in geometry.context[index, pixel_of_frame_4] if p != PAD}
    assert frames == {4}  # frame 5 sees frames 3 to 7, of which only 4 is in earlier slices
    index = geometry.offsets.index((2, 0, 0))
    assert {int(p) // 16 for p in geometry.context[index, pixel_of_frame_4] if p != PAD} == {4, 5, 8}


def test_primed_pixels_are_the_first_of_each_slice() -> None:
    geometry = Subscale((16, 4, 4), (4, 2, 2), (5, 3, 3))
    for priming_frames in (0, 1, 5, 16):
        primed = geometry.positions < priming_frames * 16
        counts = geometry.num_primed(priming_frames)
        assert torch.equal(primed, torch.arange(geometry.num_pixels) < counts[:, None])


def test_impossible_geometries_are_refused() -> None:
    with pytest.raises(ConfigError, match="subscale factor 3 does not divide 4 rows"):
        Subscale((4, 4, 4), (2, 3, 1), (3, 3, 3))
    with pytest.raises(ConfigError, match="must have odd sizes"):
        Subscale((4, 4, 4), (2, 2, 2), (3, 4, 3))
