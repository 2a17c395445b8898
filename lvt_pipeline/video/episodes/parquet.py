"""Parquet tables as arrays with a row per frame. pyarrow loads only when a table is read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from numpy.typing import NDArray

from lvt_pipeline.errors import DecodeError, LVTError
from lvt_pipeline.video.episodes.trajectory import as_rows
from lvt_pipeline.video.locations import is_lfs_pointer


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet part.

    Raises:
        LVTError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise LVTError(
            f"Parquet needs pyarrow ({error}); install it with: pip install 'lvt-pipeline[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


def read_table(source: str | Any, columns: Collection[str] | None = None, name: str = "") -> Any:
    """A Parquet table, or some of its columns.

    Args:
        source: path, or a stream of bytes that errors call `name`.

    Raises:
        DecodeError: "missing", or "unreadable": it is not such a table or lacks a column.
    """
    arrow, parquet = import_pyarrow()
    name = name or str(source)
    try:
        found = parquet.ParquetFile(source).schema_arrow.names
        lacking = [column for column in columns or () if column not in found]
        if not lacking:
            return parquet.read_table(source, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise DecodeError("missing", f"{name} does not exist") from None
    except (arrow.ArrowException, OSError) as error:
        pointer = isinstance(source, str) and is_lfs_pointer(source)
        what = "is a Git LFS pointer; fetch the file with `git lfs pull`" if pointer else "is not a Parquet table"
        raise DecodeError("unreadable", f"{name} {what}") from error
    raise DecodeError("unreadable", f"{name} has no column {lacking[0]!r}")


def column_rows(table: Any, column: str, name: str) -> NDArray[Any]:
    """A column of numbers, or of lists of equally many numbers, as (T, d).

    Raises:
        DecodeError: "unreadable": it holds something else.
    """
    arrow, _ = import_pyarrow()
    from pyarrow.compute import list_value_length, unique

    values = table[column].combine_chunks()
    try:
        while arrow.types.is_nested(values.type) or hasattr(values, "storage"):
            if hasattr(values, "storage"):  # of an extension type, such as those of Hugging Face's datasets
                values = values.storage
            elif len(unique(list_value_length(values))) == 1:
                values = values.flatten()
            else:
                raise ValueError
        if arrow.types.is_primitive(values.type) and not arrow.types.is_temporal(values.type):
            return as_rows(values.to_numpy(zero_copy_only=False), len(table))
        raise ValueError
    except (ValueError, arrow.ArrowException) as error:
        raise DecodeError("unreadable", f"{name}: column {column!r} does not hold rows of numbers") from error
