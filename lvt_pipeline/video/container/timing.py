"""When each frame of a video is shown: from the container's time stamps, repaired where they cannot be true.

A container stores stamps in whole units of its clock: Matroska, WebM and FLV in milliseconds, so that 30 frames per
second are shown at 0, 33, 67 and 100. A moment is therefore known only up to one unit, and every comparison of times
allows for that.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.settings import MAX_FPS

UNKNOWN_FPS = 25.0  # for a single frame without a rate

_EXACT = 1e-6  # seconds; the tolerance of a clock whose ticks are the frames
_REORDERED = 16  # frames; no codec shows a picture later than this after it was stored
_AROUND = 4  # stamps on both sides that come at even steps where a step back is a restart
_SUSTAINED = 8  # stamps on both sides that make a step back a restart of the clock, not one bad stamp
_FAR_SECONDS, _FAR_RATIO = (
    60.0,
    10.0,
)  # a step this long, and this many times all others together, is a clock that was reset
_BROADCAST_SECONDS = 10.0
_COARSE_SECONDS = 0.002  # no clock is coarser, except those whose ticks are the frames
_REGULAR_SHARE = 0.8  # of the steps that must be alike for a long one to count as a gap
_MOMENT = 0.25  # of the usual step; frames of a regular video are shown at least that long
GAP_STEPS, GAP_SECONDS = 5.0, 0.25  # a gap in a regular video is longer than both

Stamp = int | None
Times = NDArray[np.float64]


@dataclass(frozen=True)
class Timing:
    """When the frames of a source are shown.

    Attributes:
        times: seconds from the first frame, strictly ascending, float64 (frames,).
        fps: native frame rate.
        last_seconds: how long the last frame is shown.
        unit: resolution of the time stamps in seconds; 0 where times are exact.
    """

    times: Times
    fps: float
    last_seconds: float
    unit: float = 0.0

    @classmethod
    def even(cls, num_frames: int, fps: float) -> Timing:
        """Frames at a constant rate, as in a folder of pictures."""
        return cls(np.arange(num_frames) / fps, fps, 1 / fps)

    @property
    def seconds(self) -> float:
        """Duration, the last frame included."""
        return float(self.times[-1]) + self.last_seconds

    @property
    def tolerance(self) -> float:
        """How far in seconds a stamp may be from the moment it stands for: one unit of the clock.

        Where the frames are exact multiples of the frame interval nothing was rounded. A frame never moves by a
        quarter of the interval or more.
        """
        places = self.times * self.fps
        if np.abs(places - np.round(places)).max() < 1e-4:
            return _EXACT
        return max(_EXACT, min(self.unit, 0.25 / self.fps))

    def is_constant(self, fps: float) -> bool:
        """Whether this is the video's own rate and its frames keep it, each within one unit of the clock."""
        if len(self.times) < 2 or abs(fps / self.fps - 1) > 1e-3:
            return False
        drift = self.times - np.arange(len(self.times)) / fps
        return bool(drift.max() - drift.min() <= 2 * self.unit + _EXACT)


def timing_of(
    stamps: Sequence[Stamp], unit: Fraction, last_duration: int, header: Fraction | None, *, is_broadcast: bool = False
) -> tuple[Timing, tuple[Note, ...]]:
    """The times of frames from their stamps in the order in which a decoder gives them.

    Stamps that are missing, repeat or cannot be true are repaired from their neighbours, with a note.

    Args:
        stamps: one per frame, in units of the clock.
        unit: seconds per unit.
        last_duration: how many units the last frame is shown; 0 when the container does not state it.
        header: the container's frame rate, if it has one.
        is_broadcast: MPEG-TS and MPEG-PS, in which the clock may be set to another time. As in ffmpeg, a step of more
            than 10 seconds means that.
    """
    seconds = float(unit)
    stated = float(header) if header and 0 < header <= MAX_FPS else None
    step = 1 / (seconds * (stated or UNKNOWN_FPS))
    far, ratio = (_BROADCAST_SECONDS, 0.0) if is_broadcast else (_FAR_SECONDS, _FAR_RATIO)
    ticks, repaired = _ascending(stamps, step, far / seconds, ratio)
    times: Times = (ticks - ticks[0]) * seconds
    fps, notes = _frame_rate(times, stated, header)
    if repaired:
        notes += (Note("repaired-times", f"{repaired} of {len(stamps)} time stamps were missing or wrong"),)
    last = last_duration * seconds
    if not 0.5 / fps <= last <= max(_FAR_SECONDS, _FAR_RATIO * float(times[-1])):
        last = 1 / fps
    return Timing(times, fps, last, _resolution(stamps, seconds)), notes


def _resolution(stamps: Sequence[Stamp], seconds: float) -> float:
    """To how many seconds stamps are rounded: an MP4 copied from Matroska counts 16,000 a second, in steps of 16."""
    known = [stamp for stamp in stamps if stamp is not None]
    common = seconds * math.gcd(*(stamp - known[0] for stamp in known)) if known else 0.0
    return common if seconds < common <= _COARSE_SECONDS else seconds


def is_plausible(stamps: Sequence[Stamp], seconds: float) -> bool:
    """Whether sorted stamps can be taken as they are: all known, none twice, no step that would be repaired."""
    if None in stamps:
        return False
    steps = np.diff(np.array(stamps, np.float64))
    return bool((steps > 0).all()) and not len(_far_steps(steps, _FAR_SECONDS / seconds, _FAR_RATIO))


def gaps_of(times: Times, min_steps: float = GAP_STEPS, min_seconds: float = GAP_SECONDS) -> list[tuple[float, float]]:
    """Moments (begin, end) between which a video that is otherwise regular shows no new frame."""
    steps = np.diff(times)
    if not _is_regular(steps):
        return []
    return [
        (float(times[index]), float(times[index + 1]))
        for index in np.flatnonzero(_is_gap(steps, min_steps, min_seconds))
    ]


def _is_regular(steps: Times) -> bool:
    step = float(np.median(steps)) if len(steps) >= 3 else 0.0
    return step > 0 and bool((np.abs(steps - step) <= 0.25 * step).mean() >= _REGULAR_SHARE)


def _is_gap(steps: Times, min_steps: float, min_seconds: float) -> NDArray[np.bool_]:
    return (steps > min_steps * np.median(steps)) & (steps > min_seconds)


def _ascending(stamps: Sequence[Stamp], step: float, far: float, ratio: float) -> tuple[Times, int]:
    """Strictly ascending ticks for stamps in the order of display, and how many stamps were not taken as they are."""
    values = np.array([np.nan if stamp is None else stamp for stamp in stamps], np.float64)
    known = values[~np.isnan(values)]
    if len(known) < 2:
        even: Times = np.arange(len(values), dtype=np.float64) * step
        return even, int(np.isnan(values).sum()) if len(values) > 1 else 0
    rising = np.diff(known)
    step = float(np.median(rising[rising > 0])) if (rising > 0).any() else step
    if len(known) == len(values) and _is_shuffled(values, step):
        values = np.sort(values)  # AVI: the stamps are right, but given in the order of storage
    kept = np.full(len(values), np.nan)
    offset, restarts = 0.0, _restarts(values, step)
    for first, stop in zip([0, *restarts], [*restarts, len(values)], strict=True):
        piece = _without_outliers(values[first:stop])
        begin = _filled(piece, step)[0]
        if first:
            offset = float(np.nanmax(kept)) + step * (first - int(np.nanargmax(kept))) - begin
        kept[first:stop] = piece + offset
    repaired = int(np.isnan(kept).sum()) + len(restarts)
    ticks = _filled(kept, step)
    for index in _far_steps(np.diff(ticks), far, ratio):
        ticks[index + 1 :] -= ticks[index + 1] - ticks[index] - step
        repaired += 1
    return ticks, repaired


def _is_shuffled(values: Times, step: float) -> bool:
    """Whether the stamps only stand in another order, each near its place."""
    ordered = np.sort(values)
    return bool((np.diff(ordered) > 0).all() and np.abs(ordered - values).max() <= _REORDERED * step)


def _restarts(values: Times, step: float) -> list[int]:
    """Where the clock steps back and stays there, as where two recordings were put one behind the other."""
    found = []
    for index in np.flatnonzero(np.diff(values) <= 0) + 1:
        before, after = values[max(0, index - _SUSTAINED) : index], values[index : index + _SUSTAINED]
        if min(len(before), len(after)) < 2:
            continue
        around = np.diff(np.concatenate([before[-_AROUND:], after[:_AROUND]]))
        is_even = (np.abs(around - step) <= 0.5 * step).sum() == len(around) - 1  # all but the step back itself
        stays = np.nanmax(after) < values[index - 1] and np.nanmin(before) > values[index]
        if is_even or stays:
            found.append(int(index))
    return found


def _without_outliers(values: Times) -> Times:
    """NaN for repeats and for all outside the longest ascending selection."""
    repeats = np.flatnonzero(np.diff(values) == 0) + 1
    values = values.copy()
    values[repeats] = np.nan
    tails: list[float] = []  # the lowest end of an ascending selection, by its length
    ends: list[int] = []
    before = np.full(len(values), -1)
    for index, value in enumerate(values):
        if np.isnan(value):
            continue
        place = bisect_left(tails, value)
        before[index] = ends[place - 1] if place else -1
        tails[place : place + 1] = [value]
        ends[place : place + 1] = [index]
    kept = np.full(len(values), np.nan)
    index = ends[-1] if ends else -1
    while index >= 0:
        kept[index] = values[index]
        index = int(before[index])
    return kept


def _filled(values: Times, step: float) -> Times:
    """Missing ticks between their neighbours, and before the first and after the last at even steps."""
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        even: Times = np.arange(len(values), dtype=np.float64) * step
        return even
    places = np.arange(len(values))
    filled: Times = np.interp(places, known, values[known])
    filled[: known[0]] -= (known[0] - places[: known[0]]) * step
    filled[known[-1] + 1 :] += (places[known[-1] + 1 :] - known[-1]) * step
    return filled


def _far_steps(steps: Times, far: float, ratio: float) -> NDArray[np.int64]:
    """Steps so long against all others together that the clock must have been set to another time."""
    if len(steps) < _SUSTAINED:
        return np.empty(0, np.int64)
    return np.flatnonzero((steps > far) & (steps > ratio * (steps.sum() - steps)))


def _frame_rate(times: Times, stated: float | None, header: Fraction | None) -> tuple[float, tuple[Note, ...]]:
    """Frames per second: the header's when the frames keep it, else that of the frames; and a note if they differ.

    In a regular video neither gaps count nor frames that are shown for a moment only, so a hole or a wrong stamp does
    not change its rate.
    """
    steps = np.diff(times)
    if gaps_of(times):
        steps = steps[~_is_gap(steps, GAP_STEPS, GAP_SECONDS)]
    if _is_regular(steps):
        steps = steps[steps >= _MOMENT * np.median(steps)]
    span = float(steps.sum())
    if span <= 0:
        return round(stated or UNKNOWN_FPS, 6), ()
    if stated and abs(len(steps) / stated - span) <= 1 / stated + 0.01 * span:
        return round(stated, 6), ()
    fps = round(min(len(steps) / span, MAX_FPS), 6)
    if not header or (stated and 0.8 < stated / fps < 1.25):
        return fps, ()
    text = f"the header states {float(header):g} frames per second, the frames have {fps:g}"
    return fps, (Note("rate", text),)
