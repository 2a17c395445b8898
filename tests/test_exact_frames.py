"""The frames that are ingested are, one for one, those that the ffmpeg program decodes in order."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.video.container.facts import VideoFacts, inspect_video
from lvt_pipeline.video.readers import UnexpectedFrameError, checked_frames, pictures_of, readers_for
from lvt_pipeline.video.settings import GeometrySettings

CLIPS = Path(__file__).parents[2] / "shared" / "videos"
pytestmark = [
    pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is not here"),
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed"),
]

# Mean difference of a frame, in grey levels of 0 to 255. The decoded planes are equal; turning YUV into RGB is rounded
# differently by different versions of FFmpeg when rows are odd or have 10 bits. All other clips differ by 0.
TOLERANCE = 2.0
ROUNDED = {"animals/bear-vp9-odd-dimensions.webm", "phone/sample_with_color_info.mp4"}
UNREADABLE = {"broken/corrupted.mp4"}  # damaged after 27 frames; the other files in its folder are whole

# Odd sides, rotation, variable rate, an over-counted header, AV1 (PyAV), full range, AVI without time stamps, FLV.
QUICK = {
    "animals/bear-vp9-odd-dimensions.webm",
    "phone/video_90.mov",
    "phone/video_desks.3gp",
    "tabletop/teddy.mp4",
    "broken/sample_av1.mp4",
    "signing/eat.mkv",
    "apply_eye_makeup/v_ApplyEyeMakeup_g01_c01.avi",
}


def readable_clips() -> list[Any]:
    names = [path.relative_to(CLIPS).as_posix() for path in sorted(CLIPS.rglob("*")) if path.suffix != ".md"]
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in names
        if (CLIPS / name).is_file() and name not in UNREADABLE
    ]


def by_ffmpeg(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Every frame that the ffmpeg program decodes, turned as a player shows it, none dropped or doubled."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-an", "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    size = int(np.prod(shape))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while data := process.stdout.read(size):
            assert len(data) == size, "ffmpeg's frames have another size"
            yield np.frombuffer(data, np.uint8).reshape(shape)
    assert process.returncode == 0


def facts_of(path: str) -> VideoFacts:
    facts = inspect_video(path)
    try:
        for _ in checked_frames(path, facts):
            pass
    except UnexpectedFrameError:
        return inspect_video(path, thorough=True)
    return facts


def assert_equal_frames(pictures: Iterator[np.ndarray], path: Path, tolerance: float) -> None:
    first = next(pictures)
    expected = by_ffmpeg(path, first.shape)
    assert np.abs(first.astype(np.int16) - next(expected)).mean() <= tolerance
    for index, (one, other) in enumerate(zip_longest(pictures, expected), start=1):
        assert one is not None, f"ffmpeg decodes a frame {index} that is not ours"
        assert other is not None, f"frame {index} is ours alone"
        assert np.abs(one.astype(np.int16) - other).mean() <= tolerance, f"frame {index} differs"


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
@pytest.mark.parametrize("name", readable_clips() if CLIPS.is_dir() else [])
def test_every_frame_is_the_one_that_ffmpeg_decodes(name: str, decoder: Any) -> None:
    path, geometry = CLIPS / name, GeometrySettings(decoder=decoder)
    facts = facts_of(str(path))
    reader = readers_for(str(path), facts, geometry, facts.num_frames - 1, keep=False)[0]
    pictures = pictures_of(reader, str(path), facts, geometry)
    assert_equal_frames(pictures, path, TOLERANCE if name in ROUNDED else 0.0)
