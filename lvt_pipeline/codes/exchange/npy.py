"""NumPy files: one array per clip, or one per frame as the paper's released code stores its codes.

ID.npy      format npy: the stored type, (T, h, w, n_c)
ID.NAME.npy the rows of a side array, (T, d)
ID/0.npy    format npy-frames: int64, (n_c, h, w), or (h, w) with one codebook; the frame number is the name
clips.jsonl id, split, label, frame rate and length of each clip, a line each
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from lvt_pipeline.codes.exchange.units import Unit, clip_path, described, unit_fingerprint
from lvt_pipeline.codes.layout import as_one_line
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.storage import atomic_directory, describe_os_error, open_regular, write_bytes
from lvt_pipeline.video.write import npy_bytes

CLIPS_NAME = "clips.jsonl"
VERSION = 1


def clip_units(store: CodeStore, clips: Sequence[CodeClip]) -> Iterator[Unit]:
    """One file per clip and one for each of its side arrays, and the list of clips.

    Raises:
        LVTError: a clip has the name of another's array.
    """
    names = {clip.id for clip in clips}
    for clip, name in product(clips, store.arrays):
        if f"{clip.id}.{name}" in names:
            raise LVTError(f"array {name} of clip {clip.id} and clip {clip.id}.{name} would be one file; rename a clip")
        yield Unit(
            f"{clip_path(clip.id)}.{name}.npy",
            unit_fingerprint("npy", VERSION, store, [clip], array=name),
            0,
            partial(_write_rows, store, clip, name),
        )
    for clip in clips:
        yield Unit(
            f"{clip_path(clip.id)}.npy",
            unit_fingerprint("npy", VERSION, store, [clip]),
            clip.length,
            partial(_write_clip, store, clip),
        )
    yield _clip_list(store, clips)


def frame_units(store: CodeStore, clips: Sequence[CodeClip]) -> Iterator[Unit]:
    """One folder per clip with one file per frame, and the list of clips.

    Raises:
        LVTError: a clip's folder would be inside another's.
    """
    names = {clip_path(clip.id) for clip in clips}
    for clip in clips:
        inside = next((str(parent) for parent in Path(clip_path(clip.id)).parents if str(parent) in names), None)
        if inside is not None:
            raise LVTError(f"the folder of clip {clip.id} would be inside that of clip {inside}; use --format npy")
        yield Unit(
            clip_path(clip.id),
            unit_fingerprint("npy-frames", VERSION, store, [clip]),
            clip.length,
            partial(_write_frames, store, clip),
        )
    yield _clip_list(store, clips)


def read_npy(file: Path) -> NDArray[Any]:
    """One array of plain numbers from a `.npy` file. Sizes are checked before anything is allocated.

    Raises:
        ArtefactError: the file is something else, in one line that names it.
        LVTError: the operating system refused to read it.
    """
    try:
        with open_regular(file) as stream:
            shape, is_fortran, dtype = _npy_header(stream)
            num_bytes = math.prod(shape) * dtype.itemsize
            found = os.fstat(stream.fileno()).st_size - stream.tell()
            if dtype.hasobject or found != num_bytes or min(shape, default=0) < 0:
                raise ValueError(f"its header announces {num_bytes:,} bytes of {dtype}, {found:,} follow")
            data = np.frombuffer(stream.read(num_bytes), dtype)
    except FileNotFoundError:
        raise ArtefactError(f"{file} does not exist") from None
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EISDIR):  # not a regular file
            raise ArtefactError(f"{file} cannot be read as an array: {error.strerror}") from None
        raise describe_os_error(error, f"reading {file}") from error
    except ValueError as error:
        raise ArtefactError(f"{file} cannot be read as an array ({as_one_line(error)}); extract it again") from error
    return data.reshape(shape, order="F" if is_fortran else "C")


def _npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        return read(stream)
    except Exception as error:  # the header is Python text, whose parser has many ways to fail
        raise ValueError("it does not begin as a .npy file does") from error


def as_released(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Codes (T, h, w, n_c) as the released code stores them: int64 (T, n_c, h, w), or (T, h, w) with one codebook."""
    frames = rearrange(codes.astype(np.int64), "t h w n -> t n h w")
    return frames[:, 0] if frames.shape[1] == 1 else frames


def from_released(frame: NDArray[Any]) -> NDArray[Any]:
    """One frame as the released code stores it, (n_c, h, w) or (h, w), as (h, w, n_c)."""
    return frame[..., None] if frame.ndim == 2 else rearrange(frame, "n h w -> h w n")


def _write_clip(store: CodeStore, clip: CodeClip, path: Path) -> None:
    write_bytes(path, npy_bytes(store.read(clip)))


def _write_rows(store: CodeStore, clip: CodeClip, name: str, path: Path) -> None:
    write_bytes(path, npy_bytes(store.array(name).read(clip)))


def _write_frames(store: CodeStore, clip: CodeClip, path: Path) -> None:
    frames = as_released(store.read(clip))
    with atomic_directory(path) as folder:
        for number, frame in enumerate(frames):
            np.save(folder / f"{number}.npy", frame, allow_pickle=False)


def _clip_list(store: CodeStore, clips: Sequence[CodeClip]) -> Unit:
    lines = "".join(json.dumps(described(clip), ensure_ascii=False) + "\n" for clip in clips)
    return Unit(
        CLIPS_NAME, unit_fingerprint("clips", VERSION, store, clips), 0, lambda path: write_bytes(path, lines.encode())
    )
