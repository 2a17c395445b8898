"""A clip kept as a folder of pictures, one per frame: their order, their content, their pixels."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.storage import open_regular
from lvt_pipeline.video.geometry import Frames

PICTURE_EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# 8 bits per channel; Pillow would clip deeper ones to white.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


def is_picture(name: str) -> bool:
    """Whether a file is a frame, by its name; hidden files are none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_EXTENSIONS


def pictures_in(folder: str) -> list[Path]:
    """The frames of a folder in the order a person reads their names: frame2 before frame10.

    Files only, and links that lead nowhere: reading one of those fails, so no frame is skipped without notice.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_picture(entry.name) and _is_file_or_broken_link(entry)]
    return [Path(folder, name) for name in sorted(names, key=_reading_order)]


def _is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def is_animated(path: Path) -> bool:
    """Whether a picture file holds several pictures: animated WebP, APNG, multi-page TIFF."""
    try:
        with open_regular(path) as stream, Image.open(stream) as picture:
            return getattr(picture, "n_frames", 1) > 1
    except _PILLOW_ERRORS:
        return False  # decoding names the problem


def _reading_order(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", os.path.splitext(name)[0])
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def folder_digest(pictures: Sequence[Path], digest: Callable[[Path], str]) -> str:
    """SHA-256 of the pictures' own digests, in order; empty when there are none."""
    joined = "\n".join(digest(path) for path in pictures)
    return hashlib.sha256(joined.encode()).hexdigest() if pictures else ""


def pillow_version() -> str:
    """What decides the pixels of a picture: lossless formats have one meaning, JPEG depends on the library."""
    return f"pillow libjpeg {features.version_codec('jpg')}"


def read_pictures(pictures: Sequence[Path]) -> Iterator[Frames]:
    """The pictures as uint8 (H, W, 3), RGB; transparency is dropped, a camera's orientation applied.

    Raises:
        DecodeError: "damaged" for a picture that cannot be decoded or has another size than the first.
    """
    shape: tuple[int, ...] | None = None
    for path in pictures:
        frame = _read(path)
        if shape not in (None, frame.shape):
            raise DecodeError("damaged", f"{path} is {_size(frame.shape)}, the pictures before it {_size(shape)}")
        shape = frame.shape
        yield frame


def _read(path: Path) -> Frames:
    try:
        with open_regular(path) as stream, Image.open(stream) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise DecodeError("unreadable", f"{path} is an animated picture; a frame is a file with one picture")
            if picture.mode not in _MODES:
                raise DecodeError(
                    "unreadable", f"{path} has pixels of type {picture.mode}, frames have 8 bits per channel"
                )
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except _PILLOW_ERRORS as error:
        raise DecodeError("damaged", f"{path} is not a picture, or is damaged") from error


def _size(shape: tuple[int, ...] | None) -> str:
    assert shape is not None
    return f"{shape[1]}x{shape[0]}"
