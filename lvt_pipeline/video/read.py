"""A clip to frames, whatever holds it: a video, an episode, a folder of pictures, here or at a URL.

It runs inside a worker process. Every kind gives the same thing, with the same settings: frames chosen by presentation
time, cropped and resized as for videos, and arrays with one row per frame where the source has some.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.provenance import digest_file, status_of
from lvt_pipeline.video import decode as videos
from lvt_pipeline.video import picture_folders
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.container.timing import Timing
from lvt_pipeline.video.decode import DecodedClip, choose_frames, clip_fps, decode_clip, shown_times, take_frames
from lvt_pipeline.video.episodes import lerobot
from lvt_pipeline.video.episodes.array_files import read_array_files
from lvt_pipeline.video.episodes.bair import parse_trajectory
from lvt_pipeline.video.episodes.rlds import FEATURES_NAME, EpisodeFeatures, parse_episode, read_features
from lvt_pipeline.video.episodes.shared_video import open_shared
from lvt_pipeline.video.episodes.tfrecords import RecordIndex, index_records, read_record
from lvt_pipeline.video.episodes.trajectory import NO_ARRAYS, Arrays, require_rows
from lvt_pipeline.video.geometry import Frames
from lvt_pipeline.video.locations import is_lfs_pointer, local_copy
from lvt_pipeline.video.readers import rgb_pictures
from lvt_pipeline.video.settings import GeometrySettings


def readers_of(clip: Clip, geometry: GeometrySettings) -> tuple[str, ...]:
    """What may read a clip, in the order it is tried."""
    if clip.kind == "bair":
        return ("records",)
    if clip.kind in ("rlds", "frames"):
        return ("pillow",)
    if clip.kind == "lerobot":
        return ("pyav",)
    return videos.DECODERS if geometry.decoder == "decord" else ("pyav",)


def reader_version(reader: str) -> str:
    """Family and version of what reads a clip: where versions differ in pixels, this enters fingerprints."""
    if reader == "records":
        return "records"  # pixels are stored uncompressed
    return picture_folders.pillow_version() if reader == "pillow" else videos.decoder_version(reader)


def read_clip(clip: Clip, geometry: GeometrySettings, downloads: Path) -> DecodedClip:
    """The frames of one clip.

    Args:
        downloads: scratch folder for copies of files at a URL.

    Raises:
        DecodeError: with one of `FAILURE_REASONS`; "changed" when the content differs from the manifest.
    """
    if clip.kind in ("bair", "rlds"):
        return _read_trajectory(clip, geometry)
    if clip.kind == "lerobot":
        return _read_episode(clip, geometry)
    arrays, digest = read_array_files(clip.arrays) if clip.arrays else (NO_ARRAYS, None)
    if clip.digest and digest != clip.more_digest:
        raise _changed(clip)
    if clip.kind == "frames":
        return _read_folder(clip, geometry, arrays)
    with local_copy(clip.source, downloads) as path:
        _require_file(clip, path)
        try:
            return decode_clip(path, clip.start, clip.end, geometry, arrays)
        except DecodeError as error:  # a copy's name means nothing to people, and differs from run to run
            raise DecodeError(error.reason, str(error).replace(path, clip.source)) from error


def _require_file(clip: Clip, path: str) -> None:
    """Refuse what cannot be read, is not a regular file, or has another content than the manifest recorded."""
    try:
        digest = _digest(path, status_of(Path(path)))
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError("missing", f"{clip.source} does not exist") from None
    except OSError as error:
        raise DecodeError("unreadable", f"{clip.source} cannot be read: {error.strerror}") from error
    if not clip.digest and is_lfs_pointer(path):
        raise DecodeError("unreadable", f"{clip.source} is a Git LFS pointer; fetch the file with `git lfs pull`")
    _refuse_change(clip, digest)


def _read_trajectory(clip: Clip, geometry: GeometrySettings) -> DecodedClip:
    assert clip.record is not None, "checked with the manifest"
    assert clip.camera is not None, "checked with the manifest"
    try:
        index = _index(clip.source, status_of(Path(clip.source)))
        payload = read_record(clip.source, clip.record, index)
    except FileNotFoundError:
        raise DecodeError("missing", f"{clip.source} does not exist") from None
    except OSError as error:
        raise DecodeError("unreadable", f"{clip.source} cannot be read: {error.strerror}") from error
    _refuse_change(clip, hashlib.sha256(payload).hexdigest())
    where = f"{clip.source}: record {clip.record}"
    if clip.kind == "bair":
        trajectory = parse_trajectory(payload, clip.camera, where)
    else:
        trajectory = parse_episode(_features(clip.source), payload, clip.camera, where)
    reader = readers_of(clip, geometry)[0]
    return _chosen(clip, geometry, reader, len(trajectory.frames), iter(trajectory.frames), trajectory.arrays)


def _read_folder(clip: Clip, geometry: GeometrySettings, arrays: Arrays) -> DecodedClip:
    try:
        pictures = picture_folders.pictures_in(clip.source)
        digest = picture_folders.folder_digest(pictures, digest_file)
    except FileNotFoundError as error:
        raise DecodeError("missing", f"{error.filename or clip.source} does not exist") from None
    except OSError as error:
        raise DecodeError("unreadable", f"{error.filename or clip.source} cannot be read: {error.strerror}") from error
    if not pictures:
        raise DecodeError("no-video", f"{clip.source} holds no picture")
    _refuse_change(clip, digest)
    for name, rows in arrays.items():
        require_rows(name, len(rows), len(pictures), clip.source)
    return _chosen(clip, geometry, "pillow", len(pictures), picture_folders.read_pictures(pictures), arrays)


def _chosen(
    clip: Clip, geometry: GeometrySettings, reader: str, num_frames: int, pictures: Iterator[Frames], arrays: Arrays
) -> DecodedClip:
    """The frames that the clip's range and the geometry ask for, and the same rows of the arrays."""
    assert clip.fps is not None, "checked with the manifest"
    timing = Timing.even(num_frames, clip.fps)
    wanted = choose_frames(timing, clip.start, clip.end, geometry)
    # No decoder is there that could scale, so `resize="decoder"` is Pillow's Lanczos too.
    frames = take_frames(pictures, wanted, replace(geometry, resize="lanczos"))
    return DecodedClip(
        frames,
        clip_fps(timing, geometry),
        reader,
        arrays={name: rows[wanted] for name, rows in arrays.items()},
        times=shown_times(timing, clip.start, wanted, geometry),
        begins=clip.start or 0.0,
    )


def _refuse_change(clip: Clip, digest: str) -> None:
    if digest != clip.digest:
        raise _changed(clip)


def _changed(clip: Clip) -> DecodeError:
    return DecodeError(
        "changed", f"{clip.source} has changed since the manifest was made; run `lvt manifest build` again"
    )


@lru_cache(maxsize=8)
def _digest(path: str, status: tuple[int, int, int]) -> str:
    """Digest of a file's bytes; many clips of one video hash it once."""
    return digest_file(Path(path))


def _read_episode(clip: Clip, geometry: GeometrySettings) -> DecodedClip:
    assert clip.record is not None, "checked with the manifest"
    assert clip.camera is not None, "checked with the manifest"
    root = lerobot.root_of(clip.source)
    try:
        dataset = _dataset(root, status_of(root / lerobot.INFO))
        episode = dataset.episodes[clip.record]
        part = episode.videos[clip.camera]
        video = open_shared(part.path, status_of(Path(part.path)))
    except FileNotFoundError:
        raise DecodeError("missing", f"{clip.source} does not exist") from None
    except KeyError:
        raise DecodeError("changed", f"{root} no longer has episode {clip.record} of {clip.camera}") from None
    arrays = lerobot.episode_arrays(dataset, episode)
    lerobot.require_whole(episode, clip.camera, arrays)
    pictures = video.frames(part.first, part.stop)
    if (lerobot.arrays_digest(arrays), video.digest(part.first, part.stop)) != (clip.digest, clip.more_digest):
        raise _changed(clip)
    remarks = list(video.facts.notes)
    frames = rgb_pictures(pictures, video.facts, part.path, remarks)
    decoded = _chosen(clip, geometry, "pyav", episode.length, frames, arrays)
    return replace(decoded, notes=tuple(remarks))


@lru_cache(maxsize=4)
def _dataset(root: Path, status: tuple[int, int, int]) -> lerobot.LeRobotDataset:
    """The metadata of a LeRobot folder; its many episodes read them once."""
    return lerobot.read_dataset(root)


def _features(source: str) -> EpisodeFeatures:
    path = Path(source).with_name(FEATURES_NAME)
    try:
        return _read_features(path.parent, status_of(path))
    except OSError:
        raise DecodeError("missing", f"{path} does not exist") from None


@lru_cache(maxsize=8)
def _read_features(folder: Path, status: tuple[int, int, int]) -> EpisodeFeatures:
    """What a dataset says about its records; its many clips look once."""
    return read_features(folder)


@lru_cache(maxsize=8)
def _index(path: str, status: tuple[int, int, int]) -> RecordIndex:
    """Where the records of a file are; its many clips look once."""
    return index_records(path)
