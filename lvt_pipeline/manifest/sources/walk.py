"""Every file below a folder, and an account of everything that a listing passes over.

A folder is read entry by entry, so one odd entry (a pipe, a broken link, a folder that cannot be read, a path too long
for the system) costs itself and nothing else. Nothing is passed over without being counted.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

MAX_PATH_BYTES = 4095  # of a path that Linux opens
EXAMPLES = 3  # named of each reason
SHOWN_CHARACTERS = 60  # of the end of a long path
# One entry, several entries, what to do.
REASONS: dict[str, tuple[str, str, str]] = {
    "pictures": ("folder of pictures", "folders of pictures", "list them with --kind frames"),
    "videos": ("video", "videos", "list them with --kind folder"),
    "records": ("record file", "record files", "list them with --kind bair or rlds"),
    "animated": (
        "animated picture",
        "animated pictures",
        "convert them to videos with ffmpeg, or save each frame as a picture",
    ),
    "incomplete": (
        "folder of pictures with a broken link",
        "folders of pictures with broken links",
        "restore the missing pictures",
    ),
    "git-lfs": ("Git LFS pointer", "Git LFS pointers", "fetch the files with `git lfs pull`"),
    "empty-records": ("empty record file", "empty record files", "download them again"),
    "compressed-records": ("compressed record file", "compressed record files", "decompress them with `gzip -d`"),
    "playlists": ("playlist or script", "playlists and scripts", "list the videos themselves"),
    "unnamed": ("video that the list does not name", "videos that the list does not name", ""),
    "broken-link": ("broken link", "broken links", ""),
    "unreadable": ("entry that cannot be read", "entries that cannot be read", "check owner and mode"),
    "too-long": ("path over 4,095 bytes", "paths over 4,095 bytes", "move the videos to a shorter path"),
    "special": ("pipe, socket or device", "pipes, sockets and devices", ""),
    "not-utf-8": ("name that is not UTF-8", "names that are not UTF-8", "rename them"),
    "linked-again": ("link to a folder that is listed already", "links to folders that are listed already", ""),
    "other": ("file of another kind", "files of other kinds", ""),
    "hidden": ("hidden file or folder", "hidden files and folders", ""),
}
# They name other files, so a digest of their own bytes would not depend on the frames.
PLAYLIST_EXTENSIONS = frozenset(
    {".asx", ".avs", ".concat", ".ffconcat", ".m3u", ".m3u8", ".mpd", ".pls", ".sdp", ".smil", ".vpy", ".xspf"}
)


@dataclass
class LeftOut:
    """Files that a listing leaves out: for each reason a count and the first examples.

    Attributes:
        ignored: absolute paths that are not counted: lists that were read, and the manifest that is being written.
    """

    ignored: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, name: str) -> None:
        """Count an entry under one of `REASONS`; `name` is its path relative to the source."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            text = name.encode(errors="backslashreplace").decode()
            examples.append(text if len(text) <= 2 * SHOWN_CHARACTERS else f"{text[:20]}...{text[-SHOWN_CHARACTERS:]}")

    def add_other(self, name: str) -> None:
        """Count a file of another kind than those listed, by its ending."""
        ending = os.path.splitext(name)[1].lower()
        self.endings[ending if ending.isascii() and ending else "no ending"] += 1
        self.add("other", name)

    def to_json(self) -> dict[str, Any]:
        """Reasons with `count` and `examples`; other files also have `endings`."""
        found: dict[str, Any] = {
            reason: {"count": self.counts[reason], "examples": self.examples[reason]}
            for reason in REASONS
            if self.counts[reason]
        }
        if "other" in found:
            found["other"]["endings"] = dict(self.endings.most_common())
        return found


def describe_left_out(found: dict[str, Any]) -> str:
    """The result of `LeftOut.to_json` as one line, "" when nothing was left out."""
    parts = []
    for reason, entry in found.items():
        one, several, remedy = REASONS[reason]
        count = entry["count"]
        if "endings" in entry:
            shown = [f"{ending} {number:,}" for ending, number in entry["endings"].items()]
        else:
            shown = entry["examples"]
        names = ", ".join(shown[:EXAMPLES]) + (", ..." if len(shown) > EXAMPLES or count > len(shown) > 1 else "")
        names = names if "endings" not in entry else ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
        parts.append(f"{count:,} {one if count == 1 else several} ({names}{f'; {remedy}' if remedy else ''})")
    return f"left out: {', '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class Folder:
    """A folder with the names of the regular files in it, sorted.

    Attributes:
        name: path relative to the folder where the walk began, "" for that one.
        odd: other entries, with the reason why each is left out.
    """

    path: str
    name: str
    files: list[str]
    odd: dict[str, str]

    def inside(self, file: str) -> str:
        """The path of a file in this folder, relative to the folder where the walk began."""
        return f"{self.name}/{file}" if self.name else file


def walk(root: str, left_out: LeftOut, max_depth: int | None = None) -> Iterator[Folder]:
    """Every folder below `root`, and `root`, in order. Links are followed; no folder is entered twice.

    Hidden entries, and all that cannot be read, are counted in `left_out`.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [(root, "", 0)]
    while waiting:
        path, name, depth = waiting.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                left_out.add("linked-again", name)
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            left_out.add(_reason_of(error), name or ".")
            continue
        folder = Folder(path, name, [], {})
        below = []
        for entry in found:
            kind = _kind_of(entry)
            if kind == "file":
                if entry.path not in left_out.ignored:
                    folder.files.append(entry.name)
            elif kind == "folder":
                below.append((entry.path, folder.inside(entry.name), depth + 1))
            else:
                folder.odd[entry.name] = kind
                left_out.add(kind, folder.inside(entry.name))
        yield folder
        if max_depth is None or depth < max_depth:
            waiting += reversed(below)


def _kind_of(entry: os.DirEntry[str]) -> str:
    """ "file", "folder", or the reason why an entry is left out."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "not-utf-8"
    if len(os.fsencode(entry.path)) > MAX_PATH_BYTES:
        return "too-long"
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        entry.stat()  # a link that leads nowhere
        return "special"
    except OSError as error:
        return _reason_of(error)


def _reason_of(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ELOOP):
        return "broken-link"
    return "too-long" if error.errno == errno.ENAMETOOLONG else "unreadable"


def is_playlist(name: str) -> bool:
    """Whether a file is a playlist or a script by its ending: a text that names other files."""
    return PurePosixPath(name).suffix.lower() in PLAYLIST_EXTENSIONS
