"""Videos to measure with: those of a folder that you name, else the demo's, enlarged."""

from __future__ import annotations

import os
from pathlib import Path

from lvt_pipeline.demo.videos import DemoSettings, demo_clip
from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.decode import DecodedClip, decode_clip
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_mp4

VIDEOS = "LVT_VIDEOS"  # environment variable: a folder of videos
_DEMO_CLIPS, _DEMO_SCALE = 16, 8


def videos_to_measure(scratch: Path) -> tuple[str, list[Path]]:
    """What they are, for the table, and their paths; only those that decord reads, as a bare loop has no fallback."""
    if VIDEOS in os.environ:
        paths = [path for path in sorted(Path(os.environ[VIDEOS]).rglob("*")) if path.is_file()]
        readable = [path for path in paths if _is_readable(path)]
        return f"{len(readable)} videos of {VIDEOS}", readable
    paths = [scratch / f"{index:03d}.mp4" for index in range(_DEMO_CLIPS)]
    for index, path in enumerate(paths):
        write_mp4(path, demo_clip(DemoSettings(), index), fps=10, scale=_DEMO_SCALE)
    return f"{len(paths)} videos of the demo, enlarged (set {VIDEOS} for your own)", paths


def decoded_videos(scratch: Path) -> tuple[str, list[DecodedClip]]:
    """The frames of these videos as they are ingested by default."""
    name, paths = videos_to_measure(scratch)
    return name, [decode_clip(str(path), None, None, GeometrySettings(decoder="decord")) for path in paths]


def _is_readable(path: Path) -> bool:
    try:
        clip = decode_clip(str(path), None, None, GeometrySettings(decoder="decord", resize="decoder"))
    except DecodeError:
        return False
    return clip.decoder == "decord"
