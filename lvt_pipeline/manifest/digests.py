"""The digest of what each clip is cut from: a video, a record in a file, a folder of pictures, an object at a URL."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lvt_pipeline.errors import DecodeError, ManifestError
from lvt_pipeline.manifest.sources.draft import Draft
from lvt_pipeline.progress import Progress
from lvt_pipeline.provenance import DigestMemo, digest_file, status_of
from lvt_pipeline.storage import open_regular
from lvt_pipeline.video.episodes.rlds import episode_label, read_features
from lvt_pipeline.video.episodes.tfrecords import index_records, read_record
from lvt_pipeline.video.locations import digest_of_url, is_lfs_pointer, is_url
from lvt_pipeline.video.picture_folders import folder_digest, pictures_in

URLS_AT_ONCE = 16  # reading one object after another would mean waiting for the network most of the time


class ContentDigests:
    """Digests of contents, each worked out once.

    Attributes:
        problems: why a source has no digest, by source.
    """

    def __init__(self, memo: DigestMemo | None) -> None:
        self._memo = memo
        self._files: dict[str, str] = {}  # by source
        self._records: dict[str, list[str]] = {}  # by source
        self._instructions: dict[str, list[str]] = {}  # by source
        self.problems: dict[str, str] = {}

    def of_all(self, drafts: Sequence[Draft], progress: Progress) -> list[str]:
        """The digests of all drafts, in order."""
        found: list[str] = []
        with progress.bar("hashing videos", len(drafts), "clips") as bar, ThreadPoolExecutor(URLS_AT_ONCE) as pool:
            waits_for_network = any(is_url(draft.source) for draft in drafts)
            for digest in pool.map(self.of, drafts) if waits_for_network else map(self.of, drafts):
                found.append(digest)
                bar.advance()
        return found

    def of(self, draft: Draft) -> str:
        """Digest of what a clip is cut from; empty, with the cause in `problems`, when it cannot be read.

        One source that cannot be read does not stop the listing: decoding records the clip as a failure.

        Raises:
            LVTError: a store behind a URL refuses.
        """
        source = draft.source
        if source in self.problems:
            return ""
        try:
            if draft.kind in ("bair", "rlds"):
                if source not in self._records:
                    self._records[source] = self._recalled(Path(source), "records", _digests_in).split()
                records = self._records[source]
                return records[draft.record] if draft.record is not None and draft.record < len(records) else ""
            if source not in self._files:
                self._files[source] = self._digest_of(draft)
        except OSError as error:
            self.problems[source] = _problem_of(source, error)
            return ""
        except ValueError:  # a null character in the path
            self.problems[source] = "does not exist"
            return ""
        if not self._files[source]:
            remedy = "name a video, or a folder with a picture per frame"
            self.problems.setdefault(source, f"is a folder without pictures; {remedy}")
        return self._files[source]

    def instruction(self, draft: Draft) -> str | None:
        """What the record of an RLDS dataset says about its task; None when it says nothing or cannot be read."""
        source = draft.source
        if source not in self._instructions:
            path = Path(source)
            try:
                self._instructions[source] = json.loads(self._recalled(path, "instructions", _instructions_in))
            except (OSError, ManifestError):  # reading the records reports it
                self._instructions[source] = []
        found = self._instructions[source]
        return found[draft.record] or None if draft.record is not None and draft.record < len(found) else None

    def _digest_of(self, draft: Draft) -> str:
        of_file: Callable[[Path], str] = self._memo.digest if self._memo else digest_file
        if draft.kind == "frames":
            return folder_digest(pictures_in(draft.source), of_file)
        if is_url(draft.source):
            return digest_of_url(draft.source, self._memo)
        if is_lfs_pointer(draft.source):
            self.problems[draft.source] = "is a Git LFS pointer; fetch the file with `git lfs pull`"
            return ""
        return of_file(Path(draft.source))

    def _recalled(self, path: Path, what: str, compute: Callable[[Path], str]) -> str:
        """What a file holds, as text, from memory while the file is the same."""
        if self._memo is None:
            return compute(path)
        return self._memo.recall(f"{path.resolve()}#{what}", status_of(path), lambda: compute(path))


def _instructions_in(path: Path) -> str:
    """The instruction of every record, as JSON."""
    index, features = index_records(str(path)), read_features(path.parent)
    found = []
    for record in range(len(index.places)):
        try:
            found.append(episode_label(features, read_record(str(path), record, index), str(path)))
        except DecodeError:
            found.append("")
    return json.dumps(found)


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


def _digests_in(path: Path) -> str:
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
    return " ".join(digests)
