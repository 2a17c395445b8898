"""How frames are stored: size and speed of every frame codec."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.real_videos import decoded_videos
from lvt_pipeline.frames.codecs import CODECS, Codec, decode_frames, encode_frames
from lvt_pipeline.video.geometry import Frames

Result = TypeVar("Result")


def run() -> str:
    """Each clip written and read whole, in memory, by one thread; of three rounds the fastest counts."""
    with tempfile.TemporaryDirectory() as name:
        what, decoded = decoded_videos(Path(name))
    clips = [clip.frames for clip in decoded]
    raw = sum(frames.nbytes for frames in clips)
    lines = [
        "### Frame codecs",
        "",
        f"{what}, {sum(map(len, clips))} frames of 64x64, {raw / 1e6:.0f} MB raw, one thread. The error is a mean, in "
        "grey levels.",
        "",
        "| codec | size | largest clip | write, MB/s | read, MB/s | error |",
        "|---|---|---|---|---|---|",
    ]
    for codec in CODECS:
        lines.append(_row(codec, clips, raw))
    return "\n".join(lines) + "\n"


def _row(codec: Codec, clips: list[Frames], raw: int) -> str:
    encode_seconds, files = _fastest(lambda: [encode_frames(frames, codec) for frames in clips])
    decode_seconds, back = _fastest(
        lambda: [
            # A copy, as a reader that fills an array makes one of raw pixels too.
            decode_frames(data[-frames.nbytes :] if codec == "raw" else data, codec, *frames.shape[:3]).copy()
            for data, frames in zip(files, clips, strict=True)
        ]
    )
    shares = [len(data) / frames.nbytes for data, frames in zip(files, clips, strict=True)]
    pairs = zip(clips, back, strict=True)
    error = np.mean([np.abs(one.astype(np.int16) - other).mean() for one, other in pairs])
    return (
        f"| {codec} | {sum(map(len, files)) / raw:.2f} | {max(shares):.2f} | {raw / 1e6 / encode_seconds:,.0f} "
        f"| {raw / 1e6 / decode_seconds:,.0f} | {error:.2f} |"
    )


def _fastest(function: Callable[[], list[Result]]) -> tuple[float, list[Result]]:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result
