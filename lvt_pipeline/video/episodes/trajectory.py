"""One recording: the frames of a camera and the numbers recorded with each.

Row t of an action is the action that was taken after frame t was seen: it acts on the step from frame t to t + 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.geometry import Frames

Arrays = Mapping[str, NDArray[Any]]
NO_ARRAYS: Arrays = {}


@dataclass(frozen=True)
class Trajectory:
    """The content of a recording.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB, of one camera.
        arrays: (T, d) by name, float32 or integers; row t belongs to frame t.
    """

    frames: Frames
    arrays: Arrays


def by_short_name(names: Iterable[str], separator: str) -> dict[str, str]:
    """Names by their last part, or with all their parts joined by "_" where two end alike; sorted."""
    whole = sorted(names)
    last = [name.rpartition(separator)[2] for name in whole]
    uses = Counter(last)
    return {
        short if uses[short] == 1 else name.replace(separator, "_"): name
        for name, short in zip(whole, last, strict=True)
    }


def as_rows(values: NDArray[Any], num_rows: int) -> NDArray[Any]:
    """Numbers of which each row has equally many, as (T, d): floating point numbers as float32, others unchanged."""
    rows = values.reshape(num_rows, -1)
    return rows.astype(np.float32) if rows.dtype.kind == "f" else rows


def require_rows(name: str, num_rows: float, num_frames: int, where: str) -> None:
    """Refuse an array that does not have a row per frame.

    Raises:
        DecodeError: "row-count".
    """
    if num_rows != num_frames:
        raise DecodeError("row-count", f"{where} has {num_frames:,} frames and {num_rows:,.10g} rows of {name}")
