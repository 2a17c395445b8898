"""One episode of an RLDS dataset (Ramos et al. 2021) from its record, without TensorFlow.

A dataset is a folder of tfrecord files with a `features.json`, which gives every feature its shape and type. A record
is one episode as a `tf.train.Example`: the values of all steps of a feature are joined under its path, such as
`steps/observation/image_0` (one encoded image a step) or `steps/action` (shape (T, 7), flattened).
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvt_pipeline.errors import DecodeError, ManifestError
from lvt_pipeline.storage import read_json
from lvt_pipeline.video.episodes.tfrecords import Feature, parse_example
from lvt_pipeline.video.episodes.trajectory import Trajectory, as_rows, by_short_name, require_rows
from lvt_pipeline.video.geometry import Frames

FEATURES_NAME = "features.json"
_STEPS = "steps"
# Features of a step whose numbers become arrays of the clip.
_ARRAYS = ("action", "observation", "reward")
_TEXTS = ("string", "object")
_NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")


@dataclass(frozen=True)
class FeatureSpec:
    """What `features.json` states about one feature of a step.

    Attributes:
        kind: "image", "tensor" or "text".
        shape: of one step; -1 for a dimension that varies.
        dtype: NumPy's name.
        encoding: of a tensor: "none" (numbers), "bytes" or "zlib".
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    encoding: str = "none"

    @property
    def is_camera(self) -> bool:
        """Whether it is an RGB image."""
        return self.kind == "image" and self.dtype == "uint8" and len(self.shape) == 3 and self.shape[-1] == 3

    @property
    def is_array(self) -> bool:
        """Whether it is the same number of numbers in every step."""
        return self.kind == "tensor" and self.dtype in _NUMBERS and all(size > 0 for size in self.shape)


@dataclass(frozen=True)
class EpisodeFeatures:
    """The features of a step that lvt uses.

    Attributes:
        specs: by path.
        cameras, arrays: paths by short name.
        instruction: path of the text that describes the task, if there is one.
    """

    specs: Mapping[str, FeatureSpec]
    cameras: Mapping[str, str]
    arrays: Mapping[str, str]
    instruction: str | None


def read_features(folder: Path) -> EpisodeFeatures:
    """Read the `features.json` of a dataset.

    Raises:
        ManifestError: it does not describe features, or none is an image.
    """
    path = folder / FEATURES_NAME
    try:
        specs = dict(_walk(read_json(path, error=ManifestError), ""))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ManifestError(f"{path} does not describe the features of an RLDS dataset") from error
    cameras = [name for name, spec in specs.items() if spec.is_camera]
    if not cameras:
        raise ManifestError(f"{path} names no camera: no feature of {_STEPS} is an RGB image")
    arrays = [name for name, spec in specs.items() if spec.is_array and name.split("/")[1] in _ARRAYS]
    texts = [name for name, spec in specs.items() if spec.kind == "text"]
    instruction = next((name for name in sorted(texts) if "instruction" in name or "language" in name), None)
    return EpisodeFeatures(specs, by_short_name(cameras, "/"), by_short_name(arrays, "/"), instruction)


def parse_episode(features: EpisodeFeatures, payload: bytes, camera: str, where: str) -> Trajectory:
    """The frames of one camera and the arrays of one episode.

    Args:
        where: file and record, named in errors.

    Raises:
        DecodeError: "unreadable": the record is not an episode or lacks the camera; "damaged": an image cannot be
            decoded; "row-count": an array does not have one row per frame.
    """
    found = _example(payload, where)
    path = features.cameras.get(camera, camera)
    images = found.get(path)
    if not isinstance(images, list) or not images:
        raise DecodeError("unreadable", f"{where} has no images of camera {camera!r}")
    pictures = [_picture(data, f"{where}: step {step} of {path}") for step, data in enumerate(images)]
    if len({picture.shape for picture in pictures}) != 1:
        raise DecodeError("damaged", f"{where}: the images under {path} have different sizes")
    arrays = {
        name: _rows(found.get(path), features.specs[path], len(pictures), name, where)
        for name, path in features.arrays.items()
    }
    return Trajectory(np.stack(pictures), arrays)


def episode_label(features: EpisodeFeatures, payload: bytes, where: str) -> str:
    """The language instruction of the first step of an episode; "" when there is none.

    Raises:
        DecodeError: "unreadable": the record is not an episode.
    """
    texts = _example(payload, where).get(features.instruction or "")
    return " ".join(texts[0].decode(errors="replace").split()) if isinstance(texts, list) and texts else ""


def _walk(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, FeatureSpec]]:
    """Every leaf of the steps; sequences within a step have no fixed number of values and are left out."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            if path or name == _STEPS:
                yield from _walk(child, f"{path}/{name}" if path else name)
    elif "sequence" in node and path == _STEPS:
        yield from _walk(node["sequence"]["feature"], path)
    elif "image" in node:
        yield path, FeatureSpec("image", _shape(node["image"]), node["image"].get("dtype", "uint8"))
    elif "text" in node:
        yield path, FeatureSpec("text")
    elif "tensor" in node:
        tensor = node["tensor"]
        kind = "text" if tensor["dtype"] in _TEXTS else "tensor"
        yield path, FeatureSpec(kind, _shape(tensor), tensor["dtype"], tensor.get("encoding", "none"))


def _shape(node: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in node.get("shape", {}).get("dimensions", ()))


def _example(payload: bytes, where: str) -> dict[str, Feature]:
    try:
        return parse_example(payload)
    except ValueError as error:  # includes names that are not UTF-8
        raise DecodeError("unreadable", f"{where} is not a tf.train.Example") from error


def _picture(data: bytes, where: str) -> Frames:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DecodeError("damaged", f"{where} is not a JPEG or PNG image that can be decoded") from error


def _rows(found: Feature | None, spec: FeatureSpec, num_steps: int, name: str, where: str) -> NDArray[Any]:
    """The values of a feature, (T, d); those that are stored as bytes are one string a step."""
    width, dtype = math.prod(spec.shape), np.dtype(spec.dtype)
    try:
        if isinstance(found, list):
            parts = [zlib.decompress(value) if spec.encoding == "zlib" else value for value in found]
            found = np.frombuffer(b"".join(parts), dtype.newbyteorder("<"))
    except (ValueError, zlib.error) as error:
        raise DecodeError("damaged", f"{where}: {name} holds bytes that are not {spec.dtype} numbers") from error
    require_rows(name, 0 if found is None else found.size / width, num_steps, where)
    assert found is not None, "there are frames, so there are rows"
    return as_rows(found.astype(dtype), num_steps)
