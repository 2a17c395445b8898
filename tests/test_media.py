"""Files people open: they play, they look like the frames, and equal frames give equal bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.video.pictures import png_bytes
from lvt_pipeline.video.write import enlarge, mp4_bytes, write_mp4, write_video


def moving_square(num_frames: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), 60, np.uint8)
    for index, frame in enumerate(frames):
        frame[8:20, 4 + 3 * index : 16 + 3 * index] = (200, 120, 40)
    return frames


@dataclass(frozen=True)
class Film:
    """Everything a test looks at, copied while the container is open: a stream of a closed one is freed memory."""

    frames: np.ndarray
    average_rate: Fraction | None
    codec: str
    pixel_format: str | None


def decoded(data: bytes) -> Film:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        context = stream.codec_context
        return Film(frames, stream.average_rate, context.name, context.pix_fmt)


def test_mp4_plays_back_as_what_was_written() -> None:
    frames = moving_square()
    film = decoded(mp4_bytes(frames, fps=10, scale=4))
    assert film.frames.shape == (6, 128, 192, 3)
    assert np.abs(film.frames.astype(int) - enlarge(frames, 4)).mean() < 3
    assert film.average_rate == 10


def test_mp4_is_what_browsers_play() -> None:
    data = mp4_bytes(moving_square(), fps=29.97)
    film = decoded(data)
    assert (film.codec, film.pixel_format) == ("h264", "yuv420p")
    assert film.average_rate == Fraction(30000, 1001)
    assert data.index(b"moov") < data.index(b"mdat")  # playing starts before the file is there


def test_mp4_pads_odd_sizes() -> None:
    film = decoded(mp4_bytes(moving_square(height=31, width=47), fps=5))
    assert film.frames.shape == (6, 32, 48, 3)


@pytest.mark.parametrize("size", [(64, 64), (126, 130), (31, 47)])
def test_equal_frames_give_equal_mp4_bytes(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, *size, 3), np.uint8)
    assert len({mp4_bytes(frames, fps=10, scale=2) for _ in range(4)}) == 1


def test_crf_trades_size_for_quality(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    write_mp4(tmp_path / "good.mp4", frames, fps=10, crf=10)
    write_mp4(tmp_path / "bad.mp4", frames, fps=10, crf=40)
    assert (tmp_path / "bad.mp4").stat().st_size < (tmp_path / "good.mp4").stat().st_size


def test_gif_shows_every_frame_at_its_time(tmp_path: Path) -> None:
    frames = moving_square()
    write_video(tmp_path / "clip.gif", frames, fps=10, scale=2)
    with Image.open(tmp_path / "clip.gif") as picture:
        assert (picture.n_frames, picture.size, picture.info["duration"]) == (6, (96, 64), 100)
        picture.seek(5)
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - enlarge(frames, 2)[5]).mean() < 3


def test_png_strip_lays_frames_side_by_side(tmp_path: Path) -> None:
    frames = moving_square()
    write_video(tmp_path / "clip.png", frames, fps=10, scale=2)
    with Image.open(tmp_path / "clip.png") as picture:
        assert np.array_equal(np.asarray(picture), np.concatenate(list(enlarge(frames, 2)), axis=1))


def test_png_bytes_and_npy_are_lossless(tmp_path: Path) -> None:
    frames = moving_square()
    with Image.open(io.BytesIO(png_bytes(frames[0]))) as picture:
        assert np.array_equal(np.asarray(picture), frames[0])
    write_video(tmp_path / "clip.npy", frames, fps=10)
    assert np.array_equal(np.load(tmp_path / "clip.npy"), frames)


def test_unusable_frames_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="frames are uint8"):
        write_mp4(tmp_path / "clip.mp4", moving_square()[..., 0], fps=10)
    with pytest.raises(ShapeError, match="frames per second"):
        write_mp4(tmp_path / "clip.mp4", moving_square(), fps=0)
    with pytest.raises(ShapeError, match="scale"):
        write_video(tmp_path / "clip.gif", moving_square(), fps=10, scale=0)
    assert list(tmp_path.iterdir()) == []
