"""Files of numbers with a row per frame of a clip: `.npy`, `.csv` or `.parquet`, at a path or a URL."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.episodes.parquet import column_rows, read_table
from lvt_pipeline.video.episodes.trajectory import Arrays, as_rows
from lvt_pipeline.video.locations import read_bytes

ARRAY_NAME = re.compile(r"[A-Za-z0-9_-]+")


def is_array_file(name: str) -> bool:
    """Whether a file may hold rows, by its ending."""
    return PurePosixPath(name).suffix.lower() in _READERS


def read_array_files(files: Mapping[str, str]) -> tuple[Arrays, str]:
    """Arrays (T, d) of every file, by name, and the digest of the files.

    Raises:
        DecodeError: "missing" or "unreadable".
    """
    arrays: dict[str, NDArray[Any]] = {}
    digests = {}
    for name, place in files.items():
        try:
            data = read_bytes(place)
            rows = rows_in(data, place)
            if not rows.ndim or rows.dtype.kind not in "biuf":
                raise ValueError
            arrays[name] = as_rows(rows, len(rows))
        except FileNotFoundError:
            raise DecodeError("missing", f"{place} does not exist") from None
        except OSError as error:
            raise DecodeError("unreadable", f"{place} cannot be read: {error.strerror}") from error
        except (ValueError, EOFError, csv.Error) as error:
            raise DecodeError("unreadable", f"{place} does not hold rows of numbers") from error
        digests[name] = hashlib.sha256(data).hexdigest()
    return arrays, digest_of_files(digests)


def digest_of_files(digests: Mapping[str, str]) -> str:
    """SHA-256 of names and digests of files."""
    return hashlib.sha256(
        "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items())).encode()
    ).hexdigest()


def rows_in(data: bytes, place: str) -> NDArray[Any]:
    """The array in the bytes of a file, whose ending decides how they are read.

    Raises:
        KeyError, ValueError, EOFError, csv.Error: it is something else.
        DecodeError: "unreadable" for a Parquet file.
    """
    return _READERS[PurePosixPath(place).suffix.lower()](data, place)


def _read_npy(data: bytes, place: str) -> NDArray[Any]:
    rows: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return rows


def _read_csv(data: bytes, place: str) -> NDArray[Any]:
    """The numbers of a CSV; a first line that is not numbers names the columns."""
    rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    try:
        return np.array(rows, np.float32)
    except ValueError:
        return np.array(rows[1:], np.float32)


def _read_parquet(data: bytes, place: str) -> NDArray[Any]:
    table = read_table(io.BytesIO(data), name=place)
    return np.concatenate([column_rows(table, column, place) for column in table.column_names], axis=1)


_READERS: dict[str, Callable[[bytes, str], NDArray[Any]]] = {
    ".npy": _read_npy,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
