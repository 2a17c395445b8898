"""Names of files, and texts from elsewhere that are printed."""

from __future__ import annotations

import hashlib
import re

MAX_NAME_BYTES = 255  # of a file or folder name, on every file system in use

_LINE_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shortened_name(name: str, suffix: str = "", max_bytes: int = MAX_NAME_BYTES) -> str:
    """`name` + `suffix` as a file name of at most `max_bytes` bytes.

    A name that is too long keeps its beginning and gets a hash of all of it, so different names stay different.
    """
    if len((name + suffix).encode(errors="surrogateescape")) <= max_bytes:
        return name + suffix
    mark = "~" + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
    room = max_bytes - len((mark + suffix).encode())
    return name.encode(errors="surrogateescape")[:room].decode(errors="ignore") + mark + suffix


def clip_file(clip_id: str, suffix: str) -> str:
    """The relative path of the file of a clip: its id and an ending, every part short enough for any file system.

    The single rule for outputs with one file per clip; record the id in the output's list of files.
    """
    *folders, name = clip_id.split("/")
    return "/".join([*map(shortened_name, folders), shortened_name(name, suffix)])


def has_line_break(text: str) -> bool:
    """Whether a text holds a line break, another control character, or a character that UTF-8 cannot encode."""
    return not text.isprintable() and _LINE_BREAKS.search(text) is not None  # the first is quick with long texts


def printable(text: str) -> str:
    """A text from elsewhere, ready to print: characters that would break or disguise its line are escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
