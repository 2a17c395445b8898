"""The embedded dataset: same seed, same pixels; the background is still, the arm moves, objects are pushed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.demo.painting import Painter
from lvt_pipeline.demo.scene import BASE, FENCE, FOREARM, GRIPPER_RADIUS, REACH, UPPER_ARM, Scene
from lvt_pipeline.demo.videos import DemoSettings, demo_clip, demo_recording, write_demo_videos
from lvt_pipeline.errors import ArtefactError, ConfigError
from lvt_pipeline.video.decode import decode_clip
from lvt_pipeline.video.settings import GeometrySettings

SMALL = DemoSettings(num_clips=3, num_frames=6)


def test_same_seed_same_pixels_and_another_seed_others() -> None:
    first = demo_clip(SMALL, 1)
    assert np.array_equal(first, demo_clip(SMALL, 1))
    assert not np.array_equal(first, demo_clip(SMALL, 2))
    assert not np.array_equal(first, demo_clip(DemoSettings(seed=1, num_clips=3, num_frames=6), 1))


def test_a_longer_clip_begins_like_a_shorter_one() -> None:
    assert np.array_equal(demo_clip(DemoSettings(num_frames=9), 4)[:6], demo_clip(DemoSettings(num_frames=6), 4))


def test_the_action_of_a_frame_turns_the_arm_to_where_the_next_frame_shows_it() -> None:
    settings = DemoSettings(num_frames=30)
    _, velocities = demo_recording(settings, 2)
    assert (velocities.dtype, velocities.shape) == (np.float32, (30, 2))
    rng = np.random.default_rng([0, 2, 1])
    scene = Scene(rng, settings.fps)
    painter = Painter(scene, rng)
    angles = scene.angles()
    for velocity in velocities:
        painter.picture()  # which takes its noise from the same numbers
        scene.advance()
        angles = angles + velocity / settings.fps
        upper, lower = angles[0], angles.sum()
        wrist = BASE + UPPER_ARM * np.array([np.cos(upper), np.sin(upper)])
        wrist = wrist + FOREARM * np.array([np.cos(lower), np.sin(lower)])
        assert np.allclose(wrist, scene.gripper, atol=1e-3)
    assert np.abs(velocities).max() > 0.5  # it moves


def test_videos_are_real_files_that_decord_reads(tmp_path: Path) -> None:
    paths = write_demo_videos(tmp_path, SMALL)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "train/clip-000.mp4",
        "val/clip-001.mp4",
        "test/clip-002.mp4",
    ]
    clip = decode_clip(str(paths[0]), None, None, GeometrySettings(size=96, decoder="decord"))
    assert (clip.decoder, clip.fps, clip.frames.shape) == ("decord", 10.0, (6, 96, 96, 3))
    drawn = demo_clip(SMALL, 0)[:, :, 16:112]
    assert np.abs(clip.frames.astype(int) - drawn).mean() < 8  # half the colour, and what H.264 loses


def test_writing_again_keeps_what_is_there_and_makes_what_is_missing(tmp_path: Path) -> None:
    paths = write_demo_videos(tmp_path, SMALL)
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    actions = [path.with_suffix(".action.npy") for path in paths]
    rows = [action.read_bytes() for action in actions]
    assert np.array_equal(np.load(actions[2]), demo_recording(SMALL, 2)[1])
    paths[1].unlink()
    actions[2].unlink()
    write_demo_videos(tmp_path, SMALL)
    assert [action.read_bytes() for action in actions] == rows
    assert [path.read_bytes() for path in paths] == [data for data, _ in before]
    assert paths[0].stat().st_mtime_ns == before[0][1]


def test_a_demo_of_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    write_demo_videos(tmp_path, SMALL)
    with pytest.raises(ArtefactError, match="demo videos of other settings"):
        write_demo_videos(tmp_path, DemoSettings(seed=1, num_clips=3, num_frames=6))
    with pytest.raises(ConfigError, match="num_clips=2 must be at least 3"):
        DemoSettings(num_clips=2)


def test_default_splits_are_250_25_and_25() -> None:
    from lvt_pipeline.demo.videos import _splits

    splits = _splits(DemoSettings().num_clips)
    assert [splits.count(name) for name in ("train", "val", "test")] == [250, 25, 25]


def test_most_of_the_picture_stands_still_and_some_moves() -> None:
    frames = demo_clip(DemoSettings(num_frames=20), 0)[:, :, 16:112].astype(int)
    changed = (np.abs(np.diff(frames, axis=0)).max(axis=-1) > 12).mean(axis=(1, 2))
    assert changed.mean() < 0.2
    assert changed.max() > 0.01


@pytest.mark.parametrize("index", range(8))
def test_objects_stay_on_the_table_and_outside_each_other_and_the_gripper(index: int) -> None:
    scene = Scene(np.random.default_rng(index), fps=10)
    for _ in range(60):
        scene.advance()
        discs = [(thing.position, thing.radius) for thing in scene.things]
        for position, radius in discs:
            assert FENCE[0] + radius <= position[0] + 1e-9
            assert position[0] <= FENCE[2] - radius + 1e-9
            assert FENCE[1] + radius <= position[1] + 1e-9
            assert position[1] <= FENCE[3] - radius + 1e-9
        discs.append((scene.gripper, GRIPPER_RADIUS))
        for number, (a, a_radius) in enumerate(discs):
            for b, b_radius in discs[:number]:
                assert np.hypot(*(a - b)) > a_radius + b_radius - 1.0
        assert REACH[0] <= scene.gripper[0] <= REACH[2]


def test_objects_move_only_when_pushed_and_most_scenes_push_some() -> None:
    num_pushed = 0
    for seed in range(12):
        scene = Scene(np.random.default_rng(seed), fps=10)
        start = [thing.position for thing in scene.things]
        for _ in range(40):
            scene.advance()
        travelled = [float(np.hypot(*(thing.position - at))) for thing, at in zip(scene.things, start, strict=True)]
        num_pushed += max(travelled) > 4
    assert num_pushed >= 9
