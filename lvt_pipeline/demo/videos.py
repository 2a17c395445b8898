"""The embedded dataset: a two-link arm pushes objects over a table, drawn and simulated here, written as real mp4.

It stands in for the robot-pushing videos of the paper where nothing can be downloaded: a fixed camera, a still
background, one arm that moves at random, and objects whose motion follows from contact. Distances are pixels of the
128 x 96 picture, y points down, and everything that matters is in the middle 96 x 96, which is what a centre crop
keeps. A clip is a function of (seed, its number).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.config import to_plain
from lvt_pipeline.demo.painting import Painter
from lvt_pipeline.demo.scene import HEIGHT, WIDTH, Scene
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.settings import Settings, setting
from lvt_pipeline.storage import exclusive_lock, read_json, write_bytes, write_json
from lvt_pipeline.video.geometry import Frames
from lvt_pipeline.video.write import npy_bytes, write_mp4

VERSION = 1  # raised when the same seed gives other pixels

SETTINGS_NAME = "demo.json"


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """How much is made."""

    seed: int = setting(0, "Random seed.", at_least=0)
    num_clips: int = setting(
        300, "Number of videos, at least one for each split; one in twelve is in val, as many in test.", at_least=3
    )
    num_frames: int = setting(40, "Number of frames per video.", at_least=1)
    fps: int = setting(10, "Frame rate.", at_least=1)


def write_demo_videos(out: Path, settings: DemoSettings = DemoSettings(), *, progress: Progress = SILENT) -> list[Path]:
    """Write the videos as `out/train/clip-000.mp4`, `out/val/...`, `out/test/...`, and next to each its actions as
    `clip-000.action.npy`; finished ones are kept.

    Returns:
        The files, in order.

    Raises:
        ArtefactError: the folder holds a demo of other settings.
    """
    with exclusive_lock(out):
        _claim(out, settings)
        paths = [out / split / f"clip-{index:03d}.mp4" for index, split in enumerate(_splits(settings.num_clips))]
        actions = [path.with_suffix(".action.npy") for path in paths]
        missing = [index for index, path in enumerate(paths) if not (path.exists() and actions[index].exists())]
        with progress.bar("painting videos", len(paths), "clips", done=len(paths) - len(missing)) as bar:
            for index in missing:
                frames, velocities = demo_recording(settings, index)
                write_bytes(actions[index], npy_bytes(velocities))
                if not paths[index].exists():
                    write_mp4(paths[index], frames, settings.fps)
                bar.advance()
    return paths


def _claim(out: Path, settings: DemoSettings) -> None:
    path = out / SETTINGS_NAME
    wanted = {"version": VERSION, **to_plain(settings)}
    if not path.exists():
        write_json(path, wanted)
    elif read_json(path) != wanted:
        raise ArtefactError(f"{out} holds demo videos of other settings ({path}); choose another folder or delete it")


def _splits(num_clips: int) -> list[str]:
    held_out = max(1, round(num_clips / 12))
    return ["train"] * (num_clips - 2 * held_out) + ["val"] * held_out + ["test"] * held_out


def demo_clip(settings: DemoSettings, index: int) -> Frames:
    """The frames of clip `index`, uint8 (T, 96, 128, 3)."""
    return demo_recording(settings, index)[0]


def demo_recording(settings: DemoSettings, index: int) -> tuple[Frames, NDArray[np.float32]]:
    """A clip and what drives the arm in it.

    Returns:
        frames, uint8 (T, 96, 128, 3); velocities of shoulder and elbow in radians per second, float32 (T, 2). Those of
        frame t act on the step from frame t to t + 1.
    """
    rng = np.random.default_rng([settings.seed, index, VERSION])
    scene = Scene(rng, settings.fps)
    painter = Painter(scene, rng)
    frames = np.empty((settings.num_frames, HEIGHT, WIDTH, 3), np.uint8)
    velocities = np.empty((settings.num_frames, 2), np.float32)
    for number in range(settings.num_frames):
        frames[number] = painter.picture()
        before = scene.angles()
        scene.advance()
        turned = (scene.angles() - before + np.pi) % (2 * np.pi) - np.pi
        velocities[number] = turned * settings.fps
    return frames, velocities
