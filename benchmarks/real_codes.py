"""Codes to measure on: those of the stores that `LVT_STORES` names (paths with colons between), else made-up ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.store import open_codes

STORES = "LVT_STORES"


def codes_to_measure() -> dict[str, tuple[list[NDArray[Any]], int]]:
    """By name: the codes of every clip, (T, h, w, n_c) each, and K."""
    paths = [Path(path) for path in os.environ.get(STORES, "").split(":") if path]
    if not paths:
        return {"made-up codes, 85 % stay": ([_made_up(2000)], 512)}
    stores = {str(path): open_codes(path) for path in paths}
    return {name: ([store[clip_id] for clip_id in store], store.codebook_size) for name, store in stores.items()}


def _made_up(frames: int) -> NDArray[Any]:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 512, (frames, 16, 16, 4), dtype=np.uint16)
    for frame in range(1, frames):
        stays = generator.random((16, 16, 4)) < 0.85
        codes[frame][stays] = codes[frame - 1][stays]
    return codes


def conditional_entropy(clips: list[NDArray[Any]], codebook_size: int) -> float:
    """Bits per code when the code at the same position of the previous frame is known, from counts of pairs.

    The mean over codebooks; pairs do not cross clips.
    """
    bits = []
    for codebook in range(clips[0].shape[-1]):
        pairs = np.zeros(codebook_size**2, np.int64)
        for clip in clips:
            codes = clip[..., codebook].astype(np.int64)
            pairs += np.bincount((codes[:-1] * codebook_size + codes[1:]).ravel(), minlength=len(pairs))
        joint = pairs.reshape(codebook_size, codebook_size) / pairs.sum()
        given = joint.sum(1, keepdims=True)
        seen = joint > 0
        bits.append(float(-(joint[seen] * np.log2((joint / np.where(given, given, 1))[seen])).sum()))
    return float(np.mean(bits))
