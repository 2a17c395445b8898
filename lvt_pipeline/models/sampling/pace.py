"""How far a pass looks ahead: as far as it finds the most right pixels a second.

Which window that is depends on the processor, the weights, the number of clips and how well the prior guesses, so it is
measured while sampling. The codes do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

NEW_SHARE = 0.1  # of a new measurement in an average, once there are ten
PASSES_PER_TRIAL = 32  # from one measurement of another window than the fastest to the next


class Pace:
    """Chooses the window of each pass.

    Args:
        longest: pixels of a clip that a pass may look at.
    """

    def __init__(self, longest: int) -> None:
        self._windows: list[int] = [1 << n for n in range((longest - 1).bit_length())] + [longest]
        self._seconds = {window: _Average() for window in self._windows}
        self._right = {window: _Average() for window in self._windows}
        self._passes = 0

    def window(self) -> int:
        """The window of the next pass: all are tried once, the longest first, then the fastest or one next to it."""
        for window in reversed(self._windows):
            if not self._seconds[window].count:
                return window
        self._passes += 1
        trial, is_trial = divmod(self._passes, PASSES_PER_TRIAL)
        place = self._windows.index(self.fastest)
        if not is_trial:
            place += 1 if trial % 2 else -1
        return self._windows[min(max(0, place), len(self._windows) - 1)]

    @property
    def fastest(self) -> int:
        """The window with the most right pixels a second so far."""
        tried = [window for window in self._windows if self._seconds[window].count]
        return max(tried, key=lambda window: self._right[window].value / self._seconds[window].value)

    def note(self, window: int, seconds: float, right: Sequence[int]) -> None:
        """Learn from a pass.

        Args:
            right: how many pixels it found right, for each clip that was not finished, 1 to `window`.
        """
        self._seconds[window].add(seconds)
        for other in self._windows:
            if other <= window:  # it would have found the same pixels, up to its end
                self._right[other].add(sum(min(count, other) for count in right) / len(right))


class _Average:
    """The mean of the first measurements, then one that forgets them."""

    def __init__(self) -> None:
        self.value, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += max(NEW_SHARE, 1 / self.count) * (value - self.value)
