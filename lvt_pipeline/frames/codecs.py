"""How the frames of a clip become one file inside a shard, and back.

"raw" is a `.npy` file: any frame is one seek away. The others are one picture of all frames, which any program opens:
"png" and "webp" are lossless, "jpeg" is not. PNG holds the frames from top to bottom. WebP and JPEG limit a picture's
sides, so there the frames are in a grid, row by row, that is as square as possible; unused cells are black.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin, features

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.video.geometry import Frames

Codec = Literal["raw", "png", "webp", "jpeg"]
CODECS: tuple[Codec, ...] = get_args(Codec)
SUFFIXES: dict[str, str] = {"raw": "npy", "png": "png", "webp": "webp", "jpeg": "jpg"}

# Bytes of a clip relative to those of its raw pixels, for planning disk space. `python -m benchmarks codecs` measured
# them on real videos; rounded up.
SIZE_SHARES: dict[str, float] = {"raw": 1.0, "png": 0.6, "webp": 0.5, "jpeg": 0.3}

_PNG_LEVEL = 6  # of zlib; higher levels gain about 1 % on video frames and take twice as long
_WEBP_METHOD = 0  # libwebp's fastest; higher ones gain a few percent and take many times as long
_JPEG_QUALITY = 95  # with full colour resolution; a mean error of about one grey level
_LONGEST_SIDE = {"webp": 16_383, "jpeg": 65_535}  # of a picture


def encode_frames(frames: Frames, codec: Codec) -> bytes:
    """The file that holds a clip inside a shard.

    Args:
        frames: uint8 (T, H, W, 3).

    Raises:
        ShapeError: an unknown codec, or more frames than a picture of this codec can hold.
    """
    stream = io.BytesIO()
    if codec == "raw":
        write_npy(stream, frames)
    elif codec == "png":
        picture = Image.fromarray(rearrange(frames, "t h w c -> (t h) w c"))
        picture.save(stream, "PNG", compress_level=_PNG_LEVEL)
    elif codec == "webp":
        Image.fromarray(_grid(frames, codec)).save(stream, "WEBP", lossless=True, quality=0, method=_WEBP_METHOD)
    elif codec == "jpeg":
        Image.fromarray(_grid(frames, codec)).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        raise ShapeError(f"frame codec {codec!r} is not one of {', '.join(CODECS)}")
    return stream.getvalue()


def decode_frames(data: bytes | bytearray, codec: Codec, num_frames: int, height: int, width: int) -> Frames:
    """The frames, uint8 (T, height, width, 3), of a picture that `encode_frames` made; of plain pixels for "raw".

    Raises:
        ShapeError: the bytes are damaged or hold something else.
    """
    if codec == "raw":
        if len(data) != num_frames * height * width * 3:
            raise ShapeError(f"{len(data):,} bytes are not {num_frames} frames of {width}x{height}")
        return np.frombuffer(data, np.uint8).reshape(num_frames, height, width, 3)
    columns, rows = (1, num_frames) if codec == "png" else _grid_size(num_frames)
    # PIL.Image.open would refuse a long clip as a decompression bomb; the picture is our own.
    plugins: dict[str, Any] = {
        "png": PngImagePlugin.PngImageFile,
        "webp": WebPImagePlugin.WebPImageFile,
        "jpeg": JpegImagePlugin.JpegImageFile,
    }
    try:
        with plugins[codec](io.BytesIO(data)) as picture:
            if (picture.width, picture.height, picture.mode) != (columns * width, rows * height, "RGB"):
                raise ShapeError(f"the picture does not hold {num_frames} frames of {width}x{height}")
            pixels = np.array(picture)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise ShapeError(f"the {codec} picture cannot be decoded") from error
    return rearrange(pixels, "(r h) (q w) c -> (r q) h w c", h=height, w=width)[:num_frames]


def lossy_version(codec: Codec) -> str | None:
    """Quality and library of a codec that changes pixels, None for the others; it is a part of fingerprints."""
    if codec != "jpeg":
        return None
    return f"jpeg quality {_JPEG_QUALITY} libjpeg {features.version_codec('jpg')}"


def write_npy(stream: BinaryIO, array: NDArray[Any]) -> None:
    """A `.npy` file whose bytes depend on the array alone."""
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0))


def _grid_size(num_frames: int) -> tuple[int, int]:
    """Columns and rows of the grid of `num_frames` frames."""
    columns = math.ceil(math.sqrt(num_frames))
    return columns, math.ceil(num_frames / columns)


def _grid(frames: Frames, codec: str) -> Frames:
    """The frames row by row in one picture: (T, H, W, 3) -> (rows x H, columns x W, 3)."""
    num_frames, height, width, _ = frames.shape
    columns, rows = _grid_size(num_frames)
    if max(rows * height, columns * width) > _LONGEST_SIDE[codec]:
        raise ShapeError(
            f"{num_frames} frames of {width}x{height} are too many for one {codec} picture; take the codec raw or png, "
            "or cut the video into clips (lvt ingest --clip-seconds)"
        )
    filled = np.zeros((rows * columns, height, width, 3), np.uint8)
    filled[:num_frames] = frames
    return rearrange(filled, "(r q) h w c -> (r h) (q w) c", r=rows)
