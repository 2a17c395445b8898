"""The actions that a prior is conditioned on, in code stores: the rows of its side arrays, put together in their order.

Rows are float32 (T, d), NaN where a clip has none. Row t is recorded with frame t and acts on the step to frame t + 1.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import ArtefactError, MismatchError
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.storage.texts import read_regular
from lvt_pipeline.video.episodes.array_files import rows_in

Rows = NDArray[np.float32]


def action_widths(store: CodeStore, names: Sequence[str]) -> tuple[int, ...]:
    """Numbers in a row of each of these arrays.

    Raises:
        MismatchError: the store lacks one of them.
    """
    missing = [name for name in names if name not in store.arrays]
    if missing:
        has = ", ".join(store.arrays) or "none"
        raise MismatchError(
            f"{store.path} has no array {missing[0]} for the actions of a prior, it has {has}; encode frames with such "
            "an array, or name one that the store has"
        )
    return tuple(store.arrays[name].dimension for name in names)


def read_actions(
    store: CodeStore, clip: CodeClip, names: Sequence[str], start: int = 0, stop: int | None = None
) -> Rows:
    """The actions of frames [start, stop) of a clip. Errors as in `action_widths` and `CodeStore.read`."""
    action_widths(store, names)
    return join_arrays({name: store.array(name).read(clip, start, stop) for name in names}, store, names)


def join_arrays(rows: Mapping[str, NDArray[Any]], store: CodeStore, names: Sequence[str]) -> Rows:
    """Actions (..., d) from the rows (..., d_i) of each array of a store; what stands for "none" becomes NaN."""
    parts = []
    for name in names:
        values, layout = rows[name], store.arrays[name]
        nothing = np.asarray(layout.fill_value, layout.dtype).astype(values.dtype)  # also of rows with another type
        parts.append(np.where(values == nothing, np.nan, values).astype(np.float32))
    return np.concatenate(parts, axis=-1)


def split_actions(actions: Rows | None, config: PriorConfig) -> dict[str, Rows]:
    """The rows (T, d_i) of each array that make up actions (T, d); nothing where there are none."""
    if actions is None:
        return {}
    ends = np.cumsum(config.action_widths or (), dtype=np.int64)[:-1]
    return dict(zip(config.actions or (), np.split(actions, ends, axis=1), strict=True))


def action_statistics(stores: Sequence[CodeStore], names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation, float64 (d,), of the known actions of the training clips; 0 and 1 without any."""
    width = sum(action_widths(stores[0], names))
    count, total, squares = 0, np.zeros(width), np.zeros(width)
    for store in stores:
        for clip in store.split("train"):
            rows = read_actions(store, clip, names).astype(np.float64)
            known = rows[np.isfinite(rows).all(-1)]
            count, total, squares = count + len(known), total + known.sum(0), squares + (known**2).sum(0)
    if not count:
        return total, np.ones(width)
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


# Actions of samples ------------------------------------------------------------------------------------------------


def own_actions(store: CodeStore, clip: CodeClip, prior: Path, config: PriorConfig, start: int, frames: int) -> Rows:
    """The actions recorded with a clip, (frames, d), from its frame `start` on; its last row is repeated after its end.

    Raises:
        MismatchError: the store has other arrays than the prior was trained with.
    """
    names = config.actions or ()
    found = action_widths(store, names)
    if found != config.action_widths:
        raise MismatchError(
            f"rows of {', '.join(names)} have {_as_text(found)} numbers in {store.path}, but the prior {prior} was "
            f"trained on {_as_text(config.action_widths or ())}"
        )
    rows = read_actions(store, clip, names, start, min(clip.length, start + frames))
    return np.concatenate([rows, np.repeat(rows[-1:], frames - len(rows), axis=0)])


def given_actions(choice: str | None, prior: Path, config: PriorConfig, frames: int) -> Rows | None:
    """Actions that were chosen for every sample, (frames, d): zeros, or the rows of a file. None: those of each clip.

    Args:
        choice: "zero", or a `.npy`, `.csv` or `.parquet` with a row for each frame. The row of the last frame acts on
            nothing and may be left out. In a `.csv`, a first line of names is skipped. None and "own": nothing is
            chosen.

    Raises:
        MismatchError: the prior is not conditioned on actions, or the rows have another width, or are too few.
        ArtefactError: the file cannot be read as rows of numbers.
    """
    if choice is not None and not config.actions:
        raise MismatchError(f"the prior {prior} was trained without actions; leave out --actions {choice}")
    if choice in (None, "own"):
        return None
    width = config.action_width
    if choice == "zero":
        return np.zeros((frames, width), np.float32)
    rows = read_rows(Path(str(choice)))
    if rows.shape[1] != width:
        raise MismatchError(
            f"{choice} has rows of {rows.shape[1]} numbers; those of the prior {prior} have {width} "
            f"({', '.join(config.actions or ())})"
        )
    if len(rows) < frames - 1:
        raise MismatchError(
            f"{choice} has {len(rows)} rows; samples of {frames} frames, priming frames included, need {frames - 1}"
        )
    return np.concatenate([rows, np.full((1, width), np.nan, np.float32)])[:frames]


def digest_of(actions: Rows | None) -> dict[str, str]:
    """The actions of a sample as an input of its fingerprint: "actions" and the SHA-256 of the rows; {} without any."""
    return {} if actions is None else {"actions": hashlib.sha256(actions.tobytes()).hexdigest()}


def _as_text(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))


def read_rows(path: Path) -> Rows:
    """The rows of a `.npy`, `.csv` or `.parquet`, float32 (T, d), NaN where a number is missing.

    Raises:
        ArtefactError: it is something else.
    """
    data = read_regular(path, kind="rows of numbers")
    try:
        rows: Rows = rows_in(data, str(path)).astype(np.float32)
    except (KeyError, ValueError, TypeError, OSError, EOFError, csv.Error):
        raise ArtefactError(f"{path} does not hold rows of numbers; give a .npy (T, d), a .csv or a .parquet") from None
    if rows.ndim != 2:
        raise ArtefactError(f"{path} has the shape {rows.shape}; actions are rows of numbers, (T, d)")
    return rows
