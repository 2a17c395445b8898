"""How far the sampler looks ahead, from what passes cost and find."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lvt_pipeline.models.sampling.pace import Pace


def pace_after(cost: Callable[[int], float], found: Callable[[int], int], passes: int = 200) -> tuple[Pace, list[int]]:
    """A pace of up to 16 pixels after passes of these seconds and right pixels, and the windows of those passes."""
    pace, windows = Pace(16), []
    for _ in range(passes):
        windows.append(pace.window())
        pace.note(windows[-1], cost(windows[-1]), [found(windows[-1])])
    return pace, windows


@pytest.mark.parametrize(
    ("seconds_per_pixel", "most_right", "fastest"),
    [(0.0, 16, 16), (0.05, 16, 16), (0.05, 1, 1), (1.0, 2, 2), (0.2, 4, 4)],
)
def test_the_pace_is_the_window_with_the_most_right_pixels_a_second(
    seconds_per_pixel: float, most_right: int, fastest: int
) -> None:
    pace, windows = pace_after(lambda window: 1 + seconds_per_pixel * window, lambda window: min(window, most_right))
    assert windows[:5] == [16, 8, 4, 2, 1]
    assert pace.fastest == fastest
    assert windows[5:].count(fastest) >= 180


def test_the_pace_follows_a_change() -> None:
    pace, _ = pace_after(lambda window: 1 + 0.1 * window, lambda window: window)
    assert pace.fastest == 16
    for _ in range(300):
        window = pace.window()
        pace.note(window, 1 + 0.1 * window, [1])
    assert pace.fastest == 1
    for _ in range(2000):
        window = pace.window()
        pace.note(window, 1 + 0.1 * window, [window])
    assert pace.fastest == 16


def test_a_pace_counts_what_each_window_would_have_found() -> None:
    pace = Pace(5)
    pace.note(5, 1.0, [5, 1])
    for window, seconds in ((4, 1.0), (2, 1.0), (1, 0.1)):
        assert pace.window() == window
        pace.note(window, seconds, [1])
    assert pace.fastest == 1
