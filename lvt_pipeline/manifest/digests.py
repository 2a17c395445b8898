"""The digest of what each clip is cut from: a video, a record in a file, a folder of pictures, an object at a URL."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import DecodeError, ManifestError
from lvt_pipeline.progress import Progress
from lvt_pipeline.provenance import DigestMemo, digest_file, status_of
from lvt_pipeline.storage import open_regular
from lvt_pipeline.video.clips import Clip, ClipKind
from lvt_pipeline.video.episodes import lerobot
from lvt_pipeline.video.episodes.array_files import digest_of_files
from lvt_pipeline.video.episodes.rlds import episode_label, read_features
from lvt_pipeline.video.episodes.tfrecords import index_records, read_record
from lvt_pipeline.video.locations import digest_of_url, is_lfs_pointer, is_url
from lvt_pipeline.video.picture_folders import folder_digest, pictures_in

_LFS = "is a Git LFS pointer; fetch the file with `git lfs pull`"
URLS_AT_ONCE = 16  # reading one object after another would mean waiting for the network most of the time


Digests = tuple[str, str | None]  # `digest` and `more_digest` of a clip
NO_DIGESTS: Digests = ("", None)


class ContentDigests:
    """Digests of contents, each worked out once.

    Attributes:
        problems: why a clip has no digest, by its source or its id.
    """

    def __init__(self, memo: DigestMemo | None) -> None:
        self._memo = memo
        self._files: dict[str, str] = {}  # by source
        self._inside: dict[tuple[str, str], Any] = {}  # what files hold, by path and kind
        self._datasets: dict[Path, lerobot.LeRobotDataset] = {}
        self._shared: dict[str, lerobot.Held] = {}  # by path of a file that holds several episodes
        self.problems: dict[str, str] = {}

    def of_all(self, drafts: Sequence[Clip], progress: Progress) -> list[Digests]:
        """The digests of all drafts, in order."""
        found: list[Digests] = []
        with progress.bar("hashing videos", len(drafts), "clips") as bar, ThreadPoolExecutor(URLS_AT_ONCE) as pool:
            waits_for_network = any(is_url(draft.source) for draft in drafts)
            for digests in pool.map(self.of, drafts) if waits_for_network else map(self.of, drafts):
                found.append(digests)
                bar.advance()
        return found

    def of(self, draft: Clip) -> Digests:
        """Digests of what a clip is cut from; empty, with the cause in `problems`, when it cannot be read.

        One source that cannot be read does not stop the listing: decoding records the clip as a failure.

        Raises:
            LVTError: a store behind a URL refuses.
        """
        source = draft.source
        if source in self.problems:
            return NO_DIGESTS
        try:
            if draft.kind in ("bair", "rlds"):
                records = self._held(Path(source), "records", _digests_in)
                return records[draft.record] if draft.record is not None and draft.record < len(records) else "", None
            if draft.kind == "lerobot":
                return self._of_episode(draft)
            digest = self._digest_of(source, draft.kind)
        except DecodeError as error:
            self.problems[source] = str(error).removeprefix(f"{source} ")
            return NO_DIGESTS
        except OSError as error:
            self.problems[source] = _problem_of(source, error)
            return NO_DIGESTS
        except ValueError:  # a null character in the path
            self.problems[source] = "does not exist"
            return NO_DIGESTS
        if not digest:
            remedy = "name a video, or a folder with a picture per frame"
            self.problems.setdefault(source, f"is a folder without pictures; {remedy}")
        return self._with_arrays(draft, digest)

    def _with_arrays(self, draft: Clip, digest: str) -> Digests:
        if not draft.arrays:
            return digest, None
        try:
            digests = {name: self._digest_of(place) for name, place in draft.arrays.items()}
        except OSError as error:
            place = str(error.filename or "a file of rows")
            self.problems[draft.id] = f"lacks rows: {place} {_problem_of(place, error)}"
            return NO_DIGESTS
        return digest, digest_of_files(digests)

    def _of_episode(self, draft: Clip) -> Digests:
        """Digests of the rows of an episode in a LeRobot folder and of its packets."""
        root = lerobot.root_of(draft.source)
        if root not in self._datasets:
            self._datasets[root] = lerobot.read_dataset(root)
        dataset = self._datasets[root]
        episode = dataset.episodes.get(-1 if draft.record is None else draft.record)
        if episode is None or draft.camera not in episode.videos:
            raise DecodeError("missing", f"{root} has no episode {draft.record} of {draft.camera}")
        if is_lfs_pointer(draft.source):
            raise DecodeError("unreadable", f"{draft.source} {_LFS}")
        for place, find in ((episode.table, lerobot.rows_in), (draft.source, lerobot.packets_in)):
            if place not in self._shared:  # once for all episodes in the file
                self._shared[place] = find(dataset, place)
        rows = self._held(Path(episode.table), *self._shared[episode.table])
        packets = self._held(Path(draft.source), *self._shared[draft.source])
        number = str(episode.number)
        return rows.get(number, ""), packets.get(number)

    def instruction(self, draft: Clip) -> str | None:
        """The instruction in the record of an RLDS dataset; None when it has none or cannot be read."""
        try:
            found = self._held(Path(draft.source), "instructions", _instructions_in)
        except (OSError, ManifestError):  # reading the records reports it
            return None
        return found[draft.record] or None if draft.record is not None and draft.record < len(found) else None

    def _digest_of(self, source: str, kind: ClipKind = "video") -> str:
        if source not in self._files:
            self._files[source] = self._compute(source, kind)
        return self._files[source]

    def _compute(self, source: str, kind: ClipKind) -> str:
        of_file: Callable[[Path], str] = self._memo.digest if self._memo else digest_file
        if kind == "frames":
            return folder_digest(pictures_in(source), of_file)
        if is_url(source):
            return digest_of_url(source, self._memo)
        if is_lfs_pointer(source):
            self.problems[source] = _LFS
            return ""
        return of_file(Path(source))

    def _held(self, path: Path, what: str, compute: Callable[[Path], Any]) -> Any:
        """What a file holds, plain data, from memory while the file is the same."""
        key = str(path), what
        if key not in self._inside:
            if self._memo is None:
                self._inside[key] = compute(path)
            else:
                name = f"{path.resolve()}#{what}"
                text = self._memo.recall(name, status_of(path), lambda: json.dumps(compute(path)))
                self._inside[key] = json.loads(text or "{}")
        return self._inside[key]


def _instructions_in(path: Path) -> list[str]:
    """The instruction of every record."""
    index, features = index_records(str(path)), read_features(path.parent)
    found = []
    for record in range(len(index.places)):
        try:
            found.append(episode_label(features, read_record(str(path), record, index), str(path)))
        except DecodeError:
            found.append("")
    return found


def _problem_of(source: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        inside = str(error.filename or "")
        if inside.startswith(f"{source}/"):
            return f"holds a broken link: {os.path.basename(inside)}"
        return "is a broken link" if os.path.islink(source) else "does not exist"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a video"
    cause = error.strerror or "input or output error"
    return f"cannot be read: {cause[:1].lower()}{cause[1:]}"


def _digests_in(path: Path) -> list[str]:
    """SHA-256 of each record's payload, and of whatever follows the last one that can be found."""
    index = index_records(str(path))
    digests = []
    with open_regular(path) as stream:
        for place in index.places:
            stream.seek(place.offset)
            digests.append(hashlib.sha256(stream.read(place.length)).hexdigest())
        if index.problem is not None:
            stream.seek(index.end)
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests
