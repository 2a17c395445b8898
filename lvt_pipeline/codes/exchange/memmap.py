"""One file of plain codes for `numpy.memmap`, and a JSON file with the position of each clip.

codes.bin   all clips one after another, (frames, h, w, n_c), C order, uint8 or little-endian uint16
meta.json   dtype, shape, codebook_size, tokenizer, clips
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.exchange.units import Unit, described, unit_fingerprint
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.storage import atomic_writer, write_json

CODES_NAME, META_NAME = "codes.bin", "meta.json"
VERSION = 1


def memmap_units(store: CodeStore, clips: Sequence[CodeClip]) -> Iterator[Unit]:
    """The two files."""
    made_of = unit_fingerprint("memmap", VERSION, store, clips)
    num_frames = sum(clip.length for clip in clips)

    def write_codes(path: Path) -> None:
        with atomic_writer(path) as stream:
            for clip in clips:
                stream.write(store.read(clip).astype(store.dtype.newbyteorder("<"), copy=False).tobytes())

    yield Unit(CODES_NAME, made_of, num_frames, write_codes)
    yield Unit(META_NAME, made_of, 0, lambda path: write_json(path, _meta(store, clips)))


def _meta(store: CodeStore, clips: Sequence[CodeClip]) -> dict[str, Any]:
    rows = []
    offset = 0
    for clip in clips:
        rows.append({**described(clip), "offset": offset})
        offset += clip.length
    return {
        "file": CODES_NAME,
        "dtype": store.dtype.newbyteorder("<").str,
        "shape": [offset, *store.schema.frame_shape],
        "codebook_size": store.codebook_size,
        "tokenizer": store.tokenizer,
        "clips": rows,
    }
