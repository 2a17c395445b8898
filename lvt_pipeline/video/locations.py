"""Where files are: a path on this machine, or a URL that fsspec opens (s3://, gs://, https://, ...).

A location is a text: an absolute path, or a URL. Decoders read local files only, so a video behind a URL is copied to a
scratch folder first, decoded there and deleted; each worker keeps the one copy it used last, for the other clips of the
same video.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from lvt_pipeline.errors import DecodeError, LVTError
from lvt_pipeline.provenance import DigestMemo
from lvt_pipeline.storage import Place, StoreURL, open_regular

if TYPE_CHECKING:
    from upath import UPath

MAX_DOWNLOAD_BYTES = 8 * 2**30  # a larger video is a failure, not a full disk
_CHUNK_BYTES = 2**20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_POINTER_BYTES = 1024  # a pointer is smaller
_LOCAL = "file://"
_NOT_PLAIN = re.compile(r"/[./\n]")  # a part of a path that is empty, hidden or a step up
_LOST_SLASH = re.compile(r"([a-z][a-z0-9+.-]+):/([^/].*)", re.DOTALL)
# Names of the time or the checksum of an object in different stores.
_MARKS = (
    "ETag",
    "etag",
    "Content-MD5",
    "md5Hash",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "updated",
    "created",
)

Translation = Callable[[str], str]  # of one location to another


def is_url(location: str) -> bool:
    """Whether a location is a URL and not a path."""
    return "://" in location


def absolute(folder: str | Path, location: str) -> str:
    """The location that a text means when relative ones count from `folder`; `file://` URLs become paths."""
    if location.startswith(_LOCAL):
        return os.path.normpath(unquote(location.removeprefix(_LOCAL)))
    if is_url(location):
        return location
    if is_url(str(folder)) and not os.path.isabs(location):
        scheme, _, rest = str(folder).partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, location))}"
    return os.path.normpath(os.path.join(os.path.abspath(folder), location))


def as_written(location: str | os.PathLike[str]) -> str:
    """A location as its user wrote it: `Path("s3://bucket/a")` loses a slash, which is put back."""
    text = os.fspath(location)
    lost = _LOST_SLASH.match(text)
    return f"{lost[1]}://{lost[2]}" if lost and not os.path.lexists(text) else text


def parent_of(location: str) -> str:
    """The folder of a location."""
    if not is_url(location):
        return os.path.dirname(location)
    scheme, _, rest = location.partition("://")
    return f"{scheme}://{posixpath.dirname(rest)}"


def relative_to(location: str, folder: Path) -> str:
    """The location as it is written into a file in `folder`: paths relative to it, URLs as they are."""
    return location if is_url(location) or not location else Path(os.path.relpath(location, folder)).as_posix()


# Artefacts keep locations relative to their own folder, so that both can move together. A dataset has a million clips
# in a few folders, so the results are remembered by folder.


def kept_sources(artefact: Place) -> Translation:
    """What turns the path of a video into the one that the artefact at `artefact` keeps. Empty stays empty.

    An artefact in a bucket keeps it as it is: nothing on this machine has a place relative to it.
    """
    if isinstance(artefact, StoreURL):
        return str
    base = Path(os.path.abspath(artefact))
    return _by_folder(lambda source: relative_to(source, base))


def opened_sources(artefact: Place) -> Translation:
    """The way back: what turns a kept path into one that can be opened. Empty stays empty."""
    base = str(artefact) if isinstance(artefact, StoreURL) else os.path.abspath(artefact)
    return _by_folder(lambda source: absolute(base, source))


def opened_together(sources: Sequence[str], opened: Translation) -> list[str]:
    """Many kept paths as `opened` gives them; quickly where all are below one folder."""
    ends = [min(sources, default=""), max(sources, default="")]
    folder = os.path.commonprefix(ends).rpartition("/")[0]  # noqa: RUF071 - only whole parts are taken
    rests = [source[len(folder) :] for source in sources]
    if not folder or is_url(folder) or _NOT_PLAIN.search("\n".join([*rests, ""])):
        return [*map(opened, sources)]
    start = opened(f"{folder}/_").removesuffix("/_")
    return [start + rest for rest in rests]


def _by_folder(translate: Translation) -> Translation:
    known: dict[str, str] = {}  # what comes before the name, by folder

    def translated(source: str) -> str:
        folder, _, name = source.rpartition("/")
        start = known.get(folder)
        if start is None or name in ("", ".", ".."):
            if not folder or name in ("", ".", "..") or is_url(source):
                return translate(source) if source else ""
            start = translate(folder)
            start = known[folder] = "" if start == "." else f"{start}/"
        return start + name

    return translated


def as_path(location: str) -> PurePosixPath:
    """A location as an absolute path, for comparing places: `s3://bucket/a` is `/s3/bucket/a`."""
    return PurePosixPath("/" + location.replace("://", "/", 1) if is_url(location) else location)


def exists(location: str) -> bool:
    """Whether there is a file or folder at a location."""
    if not is_url(location):
        return os.path.exists(location)
    with _remote(location) as path:
        return bool(path.exists())


def is_folder(location: str) -> bool:
    """Whether a location is a folder; on an object store, whether anything is below it."""
    if not is_url(location):
        return os.path.isdir(location)
    with _remote(location) as path:
        return bool(path.is_dir())


def read_bytes(location: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: there is none.
        LVTError: it is behind a URL that cannot be read.
    """
    if not is_url(location):
        with open_regular(location) as stream:
            return stream.read()
    with _remote(location) as path:
        return path.read_bytes()


def is_lfs_pointer(path: str) -> bool:
    """Whether a file is the text that Git keeps in place of a large file that was not fetched."""
    try:
        if os.stat(path).st_size > _LFS_POINTER_BYTES:
            return False
        with open_regular(path) as stream:
            return stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False


def files_below(url: str) -> list[PurePosixPath]:
    """Every file below the folder at a URL, relative to it, sorted; hidden ones too."""
    with _remote(url) as path:
        return sorted(PurePosixPath(name).relative_to(path.path) for name in path.fs.find(path.path))


def files_matching(pattern: str, root: str) -> list[PurePosixPath]:
    """Every file that a URL with wildcards matches, relative to `root`, sorted."""
    with _remote(root) as path:
        found = path.fs.glob(pattern, detail=True)
        names = [PurePosixPath(name) for name, about in found.items() if about["type"] == "file"]
        return sorted(name.relative_to(path.path) for name in names)


def digest_of_url(url: str, memo: DigestMemo | None = None) -> str:
    """SHA-256 of the bytes behind a URL, from memory while the store reports the same object.

    Raises:
        FileNotFoundError: there is nothing.
        LVTError: it cannot be read.
    """
    with _remote(url) as path:
        about = path.fs.info(path.path)
        marks = {name: str(about[name]) for name in _MARKS if about.get(name)}
        if memo is None or not marks:
            return _digest_stream(path)
        # A hint, like a file's time; as one number, because the memory compares numbers.
        mark = int.from_bytes(hashlib.sha256(repr(marks).encode()).digest()[:7])
        return memo.recall(url, (int(about.get("size") or 0), mark, 0), lambda: _digest_stream(path))


def _digest_stream(path: UPath) -> str:
    with path.fs.open(path.path, "rb", cache_type="none", block_size=_CHUNK_BYTES) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def local_copy(location: str, downloads: Path) -> Iterator[str]:
    """A path that decoders can open, for as long as the block lasts: the location itself unless it is a URL.

    Args:
        downloads: scratch folder for copies; this process owns a subfolder of it.

    Raises:
        DecodeError: "missing", or "unreadable" when the store refuses or the file exceeds `MAX_DOWNLOAD_BYTES`.
    """
    if not is_url(location):
        yield location
        return
    folder = downloads / str(os.getpid())
    copy = folder / (hashlib.sha256(location.encode()).hexdigest()[:16] + PurePosixPath(location).suffix)
    if not copy.exists():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _download(location, copy)
        except FileNotFoundError:
            raise DecodeError("missing", f"{location} does not exist") from None
        except LVTError as error:
            raise DecodeError("unreadable", str(error)) from error
    yield str(copy)


def _download(url: str, copy: Path) -> None:
    with _remote(url) as path:
        size = int(path.fs.size(path.path) or 0)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if size > min(MAX_DOWNLOAD_BYTES, shutil.disk_usage(copy.parent).free):
            raise LVTError(
                f"{url} has {size:,} bytes, more than fits: at most {MAX_DOWNLOAD_BYTES:,} bytes are copied, "
                f"if {copy.parent} has the room; cut it or copy it yourself"
            )
        unfinished = copy.with_suffix(f"{copy.suffix}.unfinished")
        with suppress(FileNotFoundError):
            unfinished.unlink()
        path.fs.get_file(path.path, str(unfinished))
        os.replace(unfinished, copy)


@contextmanager
def _remote(url: str) -> Iterator[UPath]:
    """A URL as a path of its file system; whatever its backend raises becomes one line."""
    from upath import UPath  # takes as long to load as everything else that `lvt --help` needs

    scheme = url.partition("://")[0]
    try:
        yield UPath(url)
    except (FileNotFoundError, LVTError):
        raise
    except ImportError as error:
        raise LVTError(f"{url} cannot be read: {error}") from error
    except Exception as error:  # every backend has errors of its own: no credentials, no route, no such bucket
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LVTError(f"{url} cannot be read through {scheme}://: {problem}") from error
