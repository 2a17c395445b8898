"""A LeRobot v3 folder without lerobot: episodes one after another in Parquet tables and in a video file per camera.

`meta/info.json` names the features and where their files are, `meta/episodes` says which rows and which part of which
video are an episode. Row i of an episode holds the observation of frame i and the action taken after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lvt_pipeline.errors import DecodeError, ManifestError
from lvt_pipeline.provenance import canonical_json, status_of
from lvt_pipeline.storage import read_json
from lvt_pipeline.video.episodes.parquet import column_rows, read_table
from lvt_pipeline.video.episodes.shared_video import open_shared
from lvt_pipeline.video.episodes.trajectory import Arrays, by_short_name, require_rows

INFO = "meta/info.json"
_CONVERTER = "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME"
# Columns that count rows, and are no recording.
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_NOT_NUMBERS = ("video", "image", "string")


Held = tuple[str, Callable[[Path], dict[str, str]]]  # name of what a file holds, and a function that reads it


@dataclass(frozen=True)
class VideoPart:
    """The frames [first, stop) of a video file."""

    path: str
    first: int
    stop: int


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        number: LeRobot's `episode_index`.
        tasks: what was asked of the robot, joined by "; "; None when nothing is stated.
        table: path of the Parquet file with its rows.
        videos: where its frames are, by camera.
    """

    number: int
    length: int
    tasks: str | None
    table: str
    videos: Mapping[str, VideoPart]


@dataclass(frozen=True)
class LeRobotDataset:
    """A dataset.

    Attributes:
        cameras, arrays: names of features by short name.
        episodes: by number.
        splits: name of a split and the numbers of its episodes.
    """

    root: Path
    fps: float
    cameras: Mapping[str, str]
    arrays: Mapping[str, str]
    episodes: Mapping[int, Episode]
    splits: Mapping[str, range]


def is_dataset(folder: str | Path) -> bool:
    """Whether a folder is a LeRobot dataset, of whatever version."""
    try:
        return "codebase_version" in read_json(Path(folder) / INFO, error=ManifestError)
    except (ManifestError, TypeError):
        return False


def root_of(video: str) -> Path:
    """The dataset that a video file belongs to.

    Raises:
        DecodeError: "missing": there is none.
    """
    for folder in Path(video).parents:
        if (folder / INFO).exists():
            return folder
    raise DecodeError("missing", f"{video} is not in a LeRobot folder: none above it has {INFO}")


def read_dataset(root: Path) -> LeRobotDataset:
    """Read the metadata of a dataset.

    Raises:
        ManifestError: it has another version, no camera or no episode, or its metadata are damaged.
        LVTError: pyarrow is not installed.
    """
    path = root / INFO
    info = read_json(path, error=ManifestError)
    version = info.get("codebase_version")
    if not str(version).startswith("v3."):
        raise ManifestError(
            f"{path} has codebase_version {version}, lvt reads v3; LeRobot converts v2.1 with: {_CONVERTER}"
        )
    try:
        features: Mapping[str, Mapping[str, Any]] = info["features"]
        cameras = [name for name, about in features.items() if about["dtype"] == "video" and not _is_depth(about)]
        arrays = [
            name
            for name, about in features.items()
            if name not in _BOOKKEEPING and about["dtype"] not in _NOT_NUMBERS and all(about["shape"])
        ]
        splits = {name: range(*map(int, span.split(":"))) for name, span in info.get("splits", {}).items()}
        fps = float(info["fps"])
        episodes = {episode.number: episode for episode in _episodes(root, info, cameras)}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ManifestError(f"{path} or the tables in {root / 'meta/episodes'} are not as in LeRobot v3") from error
    except DecodeError as error:
        raise ManifestError(str(error)) from error
    if not cameras:
        raise ManifestError(f"{path} names no camera that is stored as video; lvt does not read pictures in tables")
    if not episodes:
        raise ManifestError(f"{root} has no episode: {root / 'meta/episodes'} holds no rows")
    return LeRobotDataset(root, fps, by_short_name(cameras, "."), by_short_name(arrays, "."), episodes, splits)


def _is_depth(feature: Mapping[str, Any]) -> bool:
    return bool((feature.get("info") or {}).get("video.is_depth_map"))


def _episodes(root: Path, info: Mapping[str, Any], cameras: list[str]) -> Iterator[Episode]:
    for path in sorted((root / "meta/episodes").rglob("*.parquet")):
        for row in read_table(str(path)).to_pylist():
            numbers = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            yield Episode(
                row["episode_index"],
                row["length"],
                "; ".join(row.get("tasks") or ()) or None,
                str(root / info["data_path"].format(**numbers)),
                {camera: _part(root, info, row, camera) for camera in cameras},
            )


def _part(root: Path, info: Mapping[str, Any], row: Mapping[str, Any], camera: str) -> VideoPart:
    about = {name: row[f"videos/{camera}/{name}"] for name in ("chunk_index", "file_index")}
    # The times are those of whole frames, so they are numbers of frames.
    first, stop = (round(row[f"videos/{camera}/{name}_timestamp"] * info["fps"]) for name in ("from", "to"))
    return VideoPart(str(root / info["video_path"].format(video_key=camera, **about)), first, stop)


def episode_arrays(dataset: LeRobotDataset, episode: Episode) -> Arrays:
    """The arrays of an episode, (T, d) in the order of its frames, as many rows as the table has.

    Raises:
        DecodeError: "missing" or "unreadable": the table; "damaged": the rows are not those of frames 0, 1, ...
    """
    columns = tuple(dataset.arrays.values())
    try:
        table = _columns(episode.table, columns, status_of(Path(episode.table)))
    except FileNotFoundError:
        raise DecodeError("missing", f"{episode.table} does not exist") from None
    rows = np.flatnonzero(table["episode_index"][:, 0] == episode.number)
    rows = rows[np.argsort(table["frame_index"][rows, 0], kind="stable")]
    if table["frame_index"][rows, 0].tolist() != list(range(len(rows))):
        raise DecodeError("damaged", f"{episode.table}: the frame_index of episode {episode.number} has gaps")
    return {name: table[column][rows] for name, column in dataset.arrays.items()}


@lru_cache(maxsize=2)
def _columns(path: str, columns: tuple[str, ...], status: tuple[int, int, int]) -> Arrays:
    """All rows of a table; its many episodes read it once."""
    wanted = ("episode_index", "frame_index", *columns)
    table = read_table(path, wanted)
    return {column: column_rows(table, column, path) for column in wanted}


def arrays_digest(arrays: Arrays) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, rows in sorted(arrays.items()):
        digest.update(f"{name} {rows.dtype} {rows.shape}\n".encode() + np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()


def rows_in(dataset: LeRobotDataset, table: str) -> Held:
    """What the table of some episodes is made of, and how to find it: the digest of each one's rows by number."""
    numbers = [episode.number for episode in dataset.episodes.values() if episode.table == table]

    def compute(path: Path) -> dict[str, str]:
        return {str(number): arrays_digest(episode_arrays(dataset, dataset.episodes[number])) for number in numbers}

    return f"rows {_digest([numbers, sorted(dataset.arrays.items())])}", compute


def packets_in(dataset: LeRobotDataset, video: str) -> Held:
    """As `rows_in`: the digest of each one's packets in a video file."""
    parts = {
        str(episode.number): part
        for episode in dataset.episodes.values()
        for part in episode.videos.values()
        if part.path == video
    }

    def compute(path: Path) -> dict[str, str]:
        shared = open_shared(video, status_of(path))
        return {number: shared.digest(part.first, part.stop) for number, part in parts.items()}

    return f"packets {_digest([[number, part.first, part.stop] for number, part in parts.items()])}", compute


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def require_whole(episode: Episode, camera: str, arrays: Arrays) -> None:
    """Refuse an episode whose rows, frames and length disagree.

    Raises:
        DecodeError: "row-count".
    """
    part = episode.videos[camera]
    where = f"episode {episode.number} of {part.path}"
    require_rows("its table", episode.length, part.stop - part.first, where)
    for name, rows in arrays.items():
        require_rows(name, len(rows), episode.length, where)
