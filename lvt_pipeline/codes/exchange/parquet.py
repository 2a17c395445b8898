"""Parquet files named as Hugging Face `datasets` expects them: `data/train-00000-of-00002.parquet`, a row per clip.

Columns: id, split, label, fps, frames, height, width, codebooks, and `codes`, all codes of the clip in one list, which
`numpy.array(row["codes"]).reshape(frames, height, width, codebooks)` puts back in shape. Each side array
has a column too: `numpy.array(row["action"]).reshape(frames, -1)` are its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lvt_pipeline.codes.exchange.units import Unit, by_split, described, unit_fingerprint
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import LVTError
from lvt_pipeline.storage import atomic_writer
from lvt_pipeline.video.episodes.parquet import import_pyarrow

VERSION = 1
ROWS_TOGETHER = 64  # clips in memory at a time


def parquet_units(store: CodeStore, clips: Sequence[CodeClip], clips_per_file: int) -> Iterator[Unit]:
    """One file for every `clips_per_file` clips of a split.

    Raises:
        LVTError: pyarrow is not installed, or a side array has the name of another column.
    """
    import_pyarrow()
    taken = {"id", "split", "label", "fps", "frames", "height", "width", "codebooks"} & {*store.arrays}
    if taken:
        raise LVTError(f"the array {min(taken)} has the name of a column; export another format")
    for split, number, count, members in by_split(clips, clips_per_file):
        yield Unit(
            f"data/{split}-{number:05d}-of-{count:05d}.parquet",
            unit_fingerprint("parquet", VERSION, store, members),
            sum(clip.length for clip in members),
            partial(_write, store, members),
        )


def _write(store: CodeStore, clips: Sequence[CodeClip], path: Path) -> None:
    arrow, parquet = import_pyarrow()
    code = arrow.uint8() if store.dtype.itemsize == 1 else arrow.uint16()
    texts, numbers = arrow.string(), arrow.int64()
    columns = {"id": texts, "split": texts, "label": texts, "fps": arrow.float64(), "frames": numbers}
    columns |= {"height": numbers, "width": numbers, "codebooks": numbers, "codes": arrow.large_list(code)}
    for name in store.arrays:
        columns[name] = arrow.large_list(arrow.from_numpy_dtype(store.arrays[name].dtype))
    metadata = {"codebook_size": str(store.codebook_size), "tokenizer": store.tokenizer}
    schema = arrow.schema(list(columns.items()), metadata=metadata)
    height, width, codebooks = store.schema.frame_shape
    shape = {"height": height, "width": width, "codebooks": codebooks}
    with atomic_writer(path) as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for first in range(0, len(clips), ROWS_TOGETHER):
            rows = [
                {
                    **described(clip),
                    **shape,
                    "codes": store.read(clip).ravel(),
                    **{name: store.array(name).read(clip).ravel() for name in store.arrays},
                }
                for clip in clips[first : first + ROWS_TOGETHER]
            ]
            table = [_column(arrow, field.type, [row[field.name] for row in rows]) for field in schema]
            writer.write_table(arrow.Table.from_arrays(table, schema=schema))


def _column(arrow: Any, kind: Any, values: Sequence[Any]) -> Any:
    """A column of plain values, or of lists that are given as arrays."""
    if not isinstance(values[0], np.ndarray):
        return arrow.array(values, kind)
    offsets = np.cumsum([0, *map(len, values)])
    return arrow.LargeListArray.from_arrays(offsets, arrow.array(np.concatenate(values), kind.value_type))
