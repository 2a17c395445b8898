"""NumPy files: one array per clip, or one per frame as the paper's released code keeps its codes.

ID.npy      format npy: the stored type, (T, h, w, n_c)
ID/0.npy    format npy-frames: int64, (n_c, h, w), or (h, w) with one codebook; the frame number is the name
clips.jsonl what belongs to a clip beside its codes, a line each
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from lvt_pipeline.codes.exchange.units import Unit, clip_path, described, unit_fingerprint
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import LVTError
from lvt_pipeline.storage import atomic_directory, write_bytes
from lvt_pipeline.video.write import write_npy

CLIPS_NAME = "clips.jsonl"
VERSION = 1


def clip_units(store: CodeStore, clips: Sequence[CodeClip]) -> Iterator[Unit]:
    """One file per clip, and the list of clips."""
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
        LVTError: a clip's folder would lie inside another's.
    """
    names = {clip.id for clip in clips}
    for clip in clips:
        inside = next((str(parent) for parent in Path(clip_path(clip.id)).parents if str(parent) in names), None)
        if inside is not None:
            raise LVTError(f"the folder of clip {clip.id} would lie inside that of clip {inside}; use --format npy")
        yield Unit(
            clip_path(clip.id),
            unit_fingerprint("npy-frames", VERSION, store, [clip]),
            clip.length,
            partial(_write_frames, store, clip),
        )
    yield _clip_list(store, clips)


def as_released(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Codes (T, h, w, n_c) as the released code keeps them: int64 (T, n_c, h, w), or (T, h, w) with one codebook."""
    frames = rearrange(codes.astype(np.int64), "t h w n -> t n h w")
    return frames[:, 0] if frames.shape[1] == 1 else frames


def from_released(frame: NDArray[Any]) -> NDArray[Any]:
    """One frame as the released code keeps it, (n_c, h, w) or (h, w), as (h, w, n_c)."""
    return frame[..., None] if frame.ndim == 2 else rearrange(frame, "n h w -> h w n")


def _write_clip(store: CodeStore, clip: CodeClip, path: Path) -> None:
    write_npy(path, store.read(clip))


def _write_frames(store: CodeStore, clip: CodeClip, path: Path) -> None:
    frames = as_released(store.read(clip))
    with atomic_directory(path) as folder:
        for number, frame in enumerate(frames):
            np.save(folder / f"{number}.npy", frame, allow_pickle=False)


def _clip_list(store: CodeStore, clips: Sequence[CodeClip]) -> Unit:
    lines = "".join(json.dumps(described(clip), ensure_ascii=False) + "\n" for clip in clips)
    return Unit(
        CLIPS_NAME,
        unit_fingerprint("clips", VERSION, store, clips),
        0,
        lambda path: write_bytes(path, lines.encode()),
    )
