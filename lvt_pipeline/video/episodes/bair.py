"""One BAIR robot pushing trajectory (Ebert et al. 2017) from its record: frames of a camera, actions, positions.

A record holds, for every step i: `{i}/image_main/encoded` and `{i}/image_aux1/encoded`, raw RGB of 64 x 64 pixels in
spite of the name; `{i}/action`, 4 numbers; `{i}/endeffector_pos`, 3 numbers. The action of step i leads to step i + 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.episodes.tfrecords import Feature, parse_example
from lvt_pipeline.video.episodes.trajectory import Trajectory
from lvt_pipeline.video.geometry import Frames

CAMERAS = ("image_aux1", "image_main")  # video prediction uses the first
ARRAYS = ("action", "endeffector_pos")
SIDE = 64


def parse_trajectory(payload: bytes, camera: str, where: str) -> Trajectory:
    """Read one record: frames (T, 64, 64, 3), "action" (T, 4) and "endeffector_pos" (T, 3) as far as it has them.

    Args:
        where: file and record, named in errors.

    Raises:
        DecodeError: "unreadable": the record is not a trajectory or lacks the camera; "damaged": a step is incomplete.
    """
    try:
        features = parse_example(payload)
    except ValueError as error:  # includes names that are not UTF-8
        raise DecodeError("unreadable", f"{where} is not a tf.train.Example: {error}") from error
    num_steps = _count_steps(features)
    if f"0/{camera}/encoded" not in features:
        known = sorted({name.split("/")[1] for name in features if name.endswith("/encoded") and name.count("/") == 2})
        raise DecodeError("unreadable", f"{where} holds no camera {camera!r}, only {', '.join(known) or 'other data'}")
    frames = np.stack([_picture(features, f"{step}/{camera}/encoded", where) for step in range(num_steps)])
    arrays = {name: _series(features, name, num_steps, where) for name in ARRAYS if f"0/{name}" in features}
    return Trajectory(frames, arrays)


def _count_steps(features: Mapping[str, Feature]) -> int:
    numbers = [int(name.partition("/")[0]) for name in features if name.partition("/")[0].isdecimal()]
    return max(numbers, default=-1) + 1


def _picture(features: Mapping[str, Feature], name: str, where: str) -> Frames:
    values = features.get(name)
    found = values[0] if isinstance(values, list) and len(values) == 1 else b""
    if len(found) != SIDE * SIDE * 3:
        raise DecodeError("damaged", f"{where}: {name} has {len(found):,} bytes, raw {SIDE}x{SIDE} RGB has 12,288")
    return np.frombuffer(found, np.uint8).reshape(SIDE, SIDE, 3)


def _series(features: Mapping[str, Feature], name: str, num_steps: int, where: str) -> NDArray[np.float32]:
    rows = [features.get(f"{step}/{name}") for step in range(num_steps)]
    arrays = [row for row in rows if isinstance(row, np.ndarray) and row.dtype == np.float32]
    if len({len(row) for row in arrays}) != 1 or len(arrays) != num_steps:
        raise DecodeError("damaged", f"{where}: {name} has not the same number of values in all {num_steps} steps")
    return np.stack(arrays).astype(np.float32)
