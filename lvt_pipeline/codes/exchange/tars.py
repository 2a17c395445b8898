"""Tars that `webdataset` reads: `train-000000.tar` with `KEY.json` and `KEY.npy` for each clip.

The array is (T, h, w, n_c) in the stored type; `KEY.NAME.npy` has the rows (T, d) of a side array. The JSON holds id,
split, label, fps, frames and codebook_size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lvt_pipeline.codes.exchange.units import Unit, by_split, described, unit_fingerprint
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.frames.records import shard_name
from lvt_pipeline.frames.tar import TarWriter, tar_key
from lvt_pipeline.storage import atomic_writer

VERSION = 1


def tar_units(store: CodeStore, clips: Sequence[CodeClip], clips_per_file: int) -> Iterator[Unit]:
    """One tar for every `clips_per_file` clips of a split."""
    for split, number, _, members in by_split(clips, clips_per_file):
        yield Unit(
            shard_name(split, number),
            unit_fingerprint("webdataset", VERSION, store, members),
            sum(clip.length for clip in members),
            partial(_write, store, members),
        )


def _write(store: CodeStore, clips: Sequence[CodeClip], path: Path) -> None:
    with atomic_writer(path) as stream:
        tar = TarWriter(stream)
        for clip in clips:
            about = {**described(clip), "codebook_size": store.codebook_size, "tokenizer": store.tokenizer}
            tar.add(f"{tar_key(clip.id)}.json", json.dumps(about, ensure_ascii=False).encode())
            rows = {f"{name}.npy": store.array(name).read(clip) for name in store.arrays}
            for ending, values in {"npy": store.read(clip), **rows}.items():
                array = io.BytesIO()
                np.lib.format.write_array(array, values, version=(1, 0), allow_pickle=False)
                tar.add(f"{tar_key(clip.id)}.{ending}", array.getvalue())
        tar.close()
