"""One video, several clips: cut where scenes change, and into clips of a fixed length.

Windows are taken from one clip, so a window never crosses a cut. Everything is decided on the frames as they will be
stored: no second decoding, and the same frames give the same cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lvt_pipeline.video.decode import DecodedClip
from lvt_pipeline.video.geometry import Frames
from lvt_pipeline.video.settings import GeometrySettings

DEFAULT_SCENE_THRESHOLD = 20.0  # grey levels
_CHANGE_RATIO = 4.0  # a cut changes the picture this many times as much as the steps around it
_NEIGHBOURS = 2  # steps on either side that it is compared with
_TIME_TOLERANCE = 1e-6  # seconds


@dataclass(frozen=True)
class Piece:
    """Consecutive frames of a decoded video that become a clip.

    Attributes:
        begins: seconds from the first frame of the source; the clip's id ends in it.
        first, stop: its frames, like a slice.
    """

    begins: float
    first: int
    stop: int


def piece_id(clip_id: str, begins: float) -> str:
    """Id of the clip that begins at this moment: `folder/name@00010.000`. Sorted as text they are in order."""
    return f"{clip_id}@{begins:09.3f}"


def cut(decoded: DecodedClip, geometry: GeometrySettings, min_frames: int = 1) -> list[Piece]:
    """The clips that a decoded video gives, in order.

    Scenes come first; each is then cut into pieces of `clip_seconds` from its own beginning, so the last piece of a
    scene may be shorter. Of every piece the first `max_frames` frames are kept. Pieces with fewer than `min_frames` are
    left out.
    """
    changes = scene_changes(decoded.frames, geometry.split_scenes) if geometry.split_scenes is not None else []
    pieces = []
    for first, stop in zip([0, *changes], [*changes, len(decoded.frames)], strict=True):
        begins = float(decoded.times[first]) if first else decoded.begins
        pieces += _of_length(decoded, begins, first, stop, geometry.clip_seconds)
    limit = geometry.max_frames or len(decoded.frames)
    pieces = [Piece(piece.begins, piece.first, min(piece.stop, piece.first + limit)) for piece in pieces]
    return [piece for piece in pieces if piece.stop - piece.first >= max(1, min_frames)]


def _of_length(decoded: DecodedClip, begins: float, first: int, stop: int, seconds: float | None) -> list[Piece]:
    if seconds is None:
        return [Piece(begins, first, stop)]
    place = np.floor((decoded.times[first:stop] - begins + _TIME_TOLERANCE) / seconds).astype(np.int64)
    starts = [first, *(first + 1 + np.flatnonzero(np.diff(place))).tolist()]
    return [
        Piece(begins + float(place[one - first]) * seconds, one, next_one)
        for one, next_one in zip(starts, [*starts[1:], stop], strict=True)
    ]


def scene_changes(frames: Frames, threshold: float = DEFAULT_SCENE_THRESHOLD) -> list[int]:
    """Which frames are the first of a new scene.

    A frame is, when it differs from the one before by more than `threshold` grey levels on average, and by more than
    four times what the two steps before and the two after change. The second rule keeps fast motion and shaking
    cameras in one scene. Fades and dissolves are not found.

    Args:
        frames: uint8 (T, H, W, 3).
    """
    if len(frames) < 2:
        return []
    steps = np.array([np.abs(one.astype(np.int16) - other).mean() for one, other in pairwise(frames)])
    padded = np.pad(steps, _NEIGHBOURS, mode="constant")
    around = np.stack([padded[_NEIGHBOURS + by : _NEIGHBOURS + by + len(steps)] for by in (-2, -1, 1, 2)])
    is_cut = (steps > threshold) & (steps > _CHANGE_RATIO * around.max(axis=0))
    return [int(index) + 1 for index in np.flatnonzero(is_cut)]
