"""Bits per code and speed of the layouts that a store could have: chunk length, codec and level, order of axes."""

from __future__ import annotations

import time

import numpy as np
from numcodecs import Blosc, Zstd
from numcodecs.abc import Codec
from numpy.typing import NDArray

from benchmarks.real_codes import codes_to_measure, conditional_entropy
from lvt_pipeline.codes.schema import CHUNK_FRAMES
from lvt_pipeline.codes.shard_file import ZSTD_LEVEL

CHUNKS, LEVELS = (16, 32, 64, 128), (1, 3, 5, 9, 15)
BLOSC_LEVELS = (3, 5, 9)
ORDERS = {"t h w n": (0, 1, 2, 3), "n t h w": (3, 0, 1, 2), "h w n t": (1, 2, 3, 0)}  # transpose is a core codec too
OVERHEAD = 16 + 4  # a chunk's entry in the index, and its checksum


def run() -> str:
    """Codes compressed chunk by chunk, as they lie in a shard; one thread."""
    parts = []
    for name, (clips, codebook_size) in codes_to_measure().items():
        codes = np.concatenate(clips)
        entropy = conditional_entropy(clips, codebook_size)
        lines = [
            f"### Size of a store: {name}",
            "",
            f"{len(codes):,} frames of {codes.shape[1:]}, {codes.dtype}; a code takes {entropy:.3f} bits when the same "
            "position of the previous frame is known. MB/s are uncompressed bytes of codes, one thread.",
            "",
            "| frames in a chunk | axes | codec | bits per code | times the entropy | write MB/s | read MB/s |",
            "|---|---|---|---|---|---|---|",
        ]
        for order, axes in ORDERS.items():
            for chunk in CHUNKS if order == "t h w n" else (CHUNK_FRAMES,):
                for level in LEVELS:
                    chosen = " (chosen)" if (chunk, level, order) == (CHUNK_FRAMES, ZSTD_LEVEL, "t h w n") else ""
                    measured = _measure(codes, chunk, Zstd(level=level), axes)
                    lines.append(_row(chunk, order, f"zstd {level}{chosen}", measured, entropy))
        for level in BLOSC_LEVELS:
            for shuffle, name_of_shuffle in ((Blosc.SHUFFLE, "bytes"), (Blosc.BITSHUFFLE, "bits")):
                codec = Blosc("zstd", clevel=level, shuffle=shuffle)
                measured = _measure(codes, CHUNK_FRAMES, codec, ORDERS["t h w n"])
                what = f"Blosc zstd {level}, {name_of_shuffle} shuffled"
                lines.append(_row(CHUNK_FRAMES, "t h w n", what, measured, entropy))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(chunk: int, order: str, codec: str, measured: tuple[float, float, float], entropy: float) -> str:
    bits, write, read = measured
    return f"| {chunk} | {order} | {codec} | {bits:.3f} | {bits / entropy:.3f} | {write:.0f} | {read:.0f} |"


def _measure(
    codes: NDArray[np.unsignedinteger], chunk: int, codec: Codec, axes: tuple[int, ...]
) -> tuple[float, float, float]:
    """Bits per code, MB/s compressing, MB/s decompressing."""
    began = time.thread_time()
    packed = [
        codec.encode(np.ascontiguousarray(codes[start : start + chunk].transpose(axes)))
        for start in range(0, len(codes), chunk)
    ]
    write = time.thread_time() - began
    began = time.thread_time()
    for data in packed:
        codec.decode(data)
    read = time.thread_time() - began
    bits = 8 * sum(len(data) + OVERHEAD for data in packed) / codes.size
    return bits, codes.nbytes / 1e6 / write, codes.nbytes / 1e6 / read
