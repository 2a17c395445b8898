"""One video, several clips: cuts where they belong, ids that stay, and frames of the video in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.video.decode import DecodedClip, decode_clip
from lvt_pipeline.video.scenes import Piece, cut, piece_id, scene_changes
from lvt_pipeline.video.settings import GeometrySettings

CLIPS = Path(__file__).parents[2] / "shared" / "videos"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is not here")


def decoded(
    num_frames: int = 25, fps: float = 10.0, begins: float = 0.0, frames: np.ndarray | None = None
) -> DecodedClip:
    if frames is None:
        frames = np.zeros((num_frames, 4, 4, 3), np.uint8)
    return DecodedClip(frames, fps, "decord", times=begins + np.arange(len(frames)) / fps, begins=begins)


def scenes(*lengths: int) -> np.ndarray:
    """Flat frames; each scene has another grey, with a little motion inside."""
    levels = np.concatenate([np.full(length, 60 * number) for number, length in enumerate(lengths)])
    wiggle = np.arange(len(levels)) % 3
    return np.broadcast_to((levels + wiggle).astype(np.uint8)[:, None, None, None], (len(levels), 4, 4, 3))


def test_a_video_is_cut_into_pieces_of_equal_time_and_a_rest() -> None:
    pieces = cut(decoded(25), GeometrySettings(clip_seconds=1.0))
    assert pieces == [Piece(0.0, 0, 10), Piece(1.0, 10, 20), Piece(2.0, 20, 25)]
    assert [piece_id("a/b", piece.begins) for piece in pieces] == ["a/b@00000.000", "a/b@00001.000", "a/b@00002.000"]


def test_pieces_count_from_the_beginning_of_the_range() -> None:
    pieces = cut(decoded(25, begins=3.5), GeometrySettings(clip_seconds=2.0))
    assert [(piece.begins, piece.first, piece.stop) for piece in pieces] == [(3.5, 0, 20), (5.5, 20, 25)]


def test_a_rest_that_is_too_short_is_left_out() -> None:
    assert len(cut(decoded(25), GeometrySettings(clip_seconds=1.0), min_frames=6)) == 2
    assert cut(decoded(5), GeometrySettings(clip_seconds=1.0), min_frames=6) == []


def test_a_gap_in_time_gives_no_empty_piece() -> None:
    video = decoded(4)
    video.times[2:] += 5.0
    pieces = cut(video, GeometrySettings(clip_seconds=1.0))
    assert pieces == [Piece(0.0, 0, 2), Piece(5.0, 2, 4)]


def test_pieces_of_a_rate_that_does_not_divide_miss_and_repeat_no_frame() -> None:
    pieces = cut(decoded(300, fps=9.5), GeometrySettings(clip_seconds=1.0))
    assert [piece.first for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].first, pieces[-1].stop) == (0, 300)
    assert {piece.stop - piece.first for piece in pieces[:-1]} == {9, 10}


def test_max_frames_is_a_limit_for_every_piece() -> None:
    geometry = GeometrySettings(clip_seconds=1.0, max_frames=4)
    assert cut(decoded(25), geometry) == [Piece(0.0, 0, 4), Piece(1.0, 10, 14), Piece(2.0, 20, 24)]


def test_scenes_are_cut_at_their_first_frame_and_then_by_time() -> None:
    video = decoded(frames=scenes(12, 8, 10))
    assert scene_changes(video.frames) == [12, 20]
    assert [piece.first for piece in cut(video, GeometrySettings(split_scenes=20.0))] == [0, 12, 20]
    both = cut(video, GeometrySettings(split_scenes=20.0, clip_seconds=0.5))
    assert [piece.first for piece in both] == [0, 5, 10, 12, 17, 20, 25]
    assert both[3].begins == pytest.approx(1.2)


def test_fast_motion_is_no_cut() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    assert scene_changes(noise) == []
    assert scene_changes(noise[:1]) == []


def test_a_larger_threshold_finds_less() -> None:
    assert scene_changes(scenes(12, 8), threshold=70.0) == []


@needs_clips
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("space/nasa_13013.mp4", [240]),
        ("arm_wrestling/demo.mp4", [268]),
        ("animals/cockatoo.mp4", []),  # a head jerks close to the camera
        ("cooking/making_cake.mp4", []),  # a shaking camera
        ("phone/fire2.mp4", []),
    ],
)
def test_cuts_of_real_clips_are_those_that_a_person_sees(name: str, expected: list[int]) -> None:
    frames = decode_clip(str(CLIPS / name), None, None, GeometrySettings(resize="decoder")).frames
    assert scene_changes(frames) == expected
