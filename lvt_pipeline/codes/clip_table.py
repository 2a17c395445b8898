"""The clip table of a generation: which clips it has, and where their codes are.

It is kept by column in the `zarr.json` of its generation. A large one is cut into pages: files that are named after
their content and belong to every generation that has the same rows. So one clip more writes one page and the rows that
fill none, not the whole table. In memory, too, a table is columns: millions of clips are compared, hashed and written
without an object for each.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import compress, count, islice, pairwise
from math import isfinite
from operator import attrgetter, ne
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline import lineage
from lvt_pipeline.codes import layout
from lvt_pipeline.codes.layout import StoreRoot
from lvt_pipeline.codes.schema import CodeClip, CodeSchema, PlannedClip
from lvt_pipeline.errors import ArtefactError, StoreError
from lvt_pipeline.machine import paused_collection
from lvt_pipeline.storage import Place, has_line_break
from lvt_pipeline.video.locations import Translation, kept_sources, opened_sources, opened_together

PAGED_ROWS = 4096  # a table with fewer rows is in one piece
PAGE_ROWS = 1024  # the fewest rows of a page
PAGE_DIVISOR = 1021  # about one row in this number may end a page
PAGES_AT_ONCE = 64  # that wait in memory to be written

CLIP_COLUMNS = ("id", "split", "label", "offset", "length", "fingerprint", "fps", "source")
_ROW_COLUMNS = (*CLIP_COLUMNS, "codes")  # the last is kept only where the store has side arrays
_ORIGIN_COLUMNS = ("source_digest", "decoder")  # kept only where they are known
_SHARED = ("split", "label", "fps", "decoder")  # of a million clips most have the same of these
_TYPES: dict[str, set[type]] = {"label": {str, type(None)}, "offset": {int}, "length": {int}, "fps": {int, float}}
_KEPT_DIGITS = 16  # of the digest of a clip's source: enough to notice a change
_DIGEST = re.compile(r"[0-9a-f]{64}")

REMEDY = "run lvt verify {path} --repair, or restore it from a copy"
Columns = Mapping[str, list[Any]]


class DamagedTableError(StoreError):
    """A clip table, or a page of it, is missing or has changed since it was written."""


class Page(NamedTuple):
    """Rows [first, stop) of a table as a file of their own, which is named after its SHA-256, the digest."""

    digest: str
    first: int
    stop: int


class ClipTable:
    """The clips of a generation by column.

    Attributes:
        columns: those of a row, and `source_digest` and `decoder`, which describe the origin of its frames; of equal
            length. A source is a path that can be opened.
        pages: those that it was read from, in order.
    """

    def __init__(self, columns: Columns, pages: Sequence[Page] = ()) -> None:
        self.columns = columns
        self.pages = pages

    @classmethod
    def planned(cls, clips: Sequence[PlannedClip]) -> ClipTable:
        """The table of these clips, which have no place in the array yet: all offsets are 0."""
        names = {*_ROW_COLUMNS, *_ORIGIN_COLUMNS} - {"offset"}
        columns = {name: list(map(attrgetter(name), clips)) for name in names}
        digests = [digest[:_KEPT_DIGITS] for digest in columns["source_digest"]]
        return cls({**columns, "offset": [0] * len(clips), "source_digest": digests})

    @classmethod
    def read(cls, path: Place, attributes: Mapping[str, Any]) -> ClipTable:
        """The table of a generation of the store at `path`. From a bucket several pages are read at a time.

        Args:
            attributes: those of the generation (`read_generation`).

        Raises:
            DamagedTableError: a page is missing or damaged.
            KeyError, TypeError, ValueError: a column is missing, or holds something else.
        """
        columns: dict[str, list[Any]] = {name: [] for name in (*_ROW_COLUMNS, *_ORIGIN_COLUMNS)}
        pages = []
        opened = opened_sources(path)
        for digest, piece in _pieces(path, attributes):
            first = len(columns["id"])
            for name, column in _full_columns(piece, is_page=digest != "").items():
                columns[name] += opened_together(column, opened) if name == "source" else column
            pages.append(Page(digest, first, len(columns["id"])))
        if has_line_break("".join(columns["id"])) or not all(columns["id"]):
            raise ValueError("a clip id is empty or has a line break or control character in it")
        if not all(isfinite(fps) and fps > 0 for fps in {*columns["fps"]}):
            raise ValueError("a frame rate is not a number above 0")
        return cls(columns, pages[:-1])  # the last rows are in the generation itself

    def __len__(self) -> int:
        return len(self.columns["id"])

    def take(self, places: Sequence[int]) -> ClipTable:
        """The rows at these places."""
        return ClipTable({name: [column[place] for place in places] for name, column in self.columns.items()})

    def without(self, ids: Collection[str]) -> ClipTable:
        """The rows of all other clips."""
        return self.take([place for place, name in enumerate(self.columns["id"]) if name not in ids]) if ids else self

    def between(self, first: int, last: int) -> ClipTable:
        """The table without that many rows at its beginning and at its end."""
        return ClipTable({name: column[first : len(column) - last] for name, column in self.columns.items()})

    def alike_ends(self, other: ClipTable) -> tuple[int, int]:
        """How many rows two tables have in common, by id and content, at their beginning and at their end.

        Of clips with equal content none is at an end and another one between the ends: there are no ends then.
        """
        rest = min(len(self), len(other))
        ends = []
        for turned in (iter, reversed):
            pairs = [map(ne, turned(self.columns[name]), turned(other.columns[name])) for name in ("id", "fingerprint")]
            ends.append(min(rest, *(next(compress(count(), pair), rest) for pair in pairs)))
            rest -= ends[-1]
        first, last = ends
        contents = self.columns["fingerprint"]
        others = {content for table in (self, other) for content in table.between(first, last).columns["fingerprint"]}
        is_apart = others.isdisjoint(contents[:first]) and others.isdisjoint(contents[len(self) - last :])
        return (first, last) if is_apart else (0, 0)

    @cached_property
    def rows(self) -> list[CodeClip]:
        """One object for each clip."""
        # Column by column: the constructor takes four times as long, which counts for millions of clips.
        clips = [object.__new__(CodeClip) for _ in self.columns["id"]]
        for name in _ROW_COLUMNS:
            deque(map(getattr(CodeClip, name).__set__, clips, self.columns[name]), maxlen=0)
        return clips

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """First frame of every clip in the array."""
        return np.array(self.columns["offset"], np.int64)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of every clip."""
        return np.array(self.columns["length"], np.int64)

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return int(self.lengths.sum())

    def shards(self, shard_frames: int) -> list[int]:
        """Indices of the shards that hold the clips, ascending."""
        spans = np.stack([self.offsets, self.offsets + self.lengths - 1], 1) // shard_frames
        is_new = np.diff(spans, axis=0, prepend=-1).any(1)  # neighbours share shards, and sorting takes long
        spans = np.unique(spans[is_new], axis=0)
        return sorted({index for start, last in spans.tolist() for index in range(start, last + 1)})

    @paused_collection()
    def fingerprint(self, schema: CodeSchema) -> str:
        """Hash of the content of a generation; the places of its codes in the array do not enter."""
        names = ("id", "split", "label", "fingerprint", "length")
        return lineage.store_fingerprint(
            codebook_size=schema.codebook_size,
            num_codebooks=schema.num_codebooks,
            grid=schema.grid,
            tokenizer=schema.tokenizer,
            rows=zip(*(self.columns[name] for name in names), strict=True),
        )

    def require_places(self, array_frames: Any, num_shards: int, shard_frames: int) -> None:
        """Refuse clips that are not where the shards of their generation can hold them.

        Args:
            array_frames: length of the array up to the generation.
            num_shards: files that the generation consists of.

        Raises:
            ValueError, OverflowError: a clip is outside of the array, or longer than all shards together.
        """
        if type(array_frames) is not int:
            raise ValueError("the length of the array is not an integer")
        first, length = self.offsets, self.lengths
        wrong = (first < 0) | (first > array_frames) | (first + length > array_frames)
        wrong |= (length < 1) | (length > num_shards * shard_frames)
        if wrong.any():
            clip = self.take([int(wrong.argmax())]).rows[0]
            raise ValueError(
                f"clip {clip.id} has frames {clip.offset} to {clip.offset + clip.length - 1}, which are not in the "
                f"array of {array_frames} frames"
            )


# Reading ------------------------------------------------------------------------------------------------------------


def read_generation(path: Place, root: StoreRoot, generation: int) -> dict[str, Any]:
    """Attributes of a generation: the facts around its clip table, and the rows that are in no page.

    Raises:
        DamagedTableError: it is missing or damaged.
    """
    name = layout.table_name(generation)
    return _read_part(path, name, root.files.get(name, ""))


def is_as_written(path: Place, name: str, digest: str) -> bool:
    """Whether a clip table, or a page of one, is there with its digest, additions of others aside."""
    try:
        _read_part(path, name, digest)
    except DamagedTableError:
        return False
    return True


def _read_part(path: Place, name: str, digest: str) -> dict[str, Any]:
    file, remedy = path / name, REMEDY.format(path=path)
    data = layout.read_file(file)
    if data is None:
        raise DamagedTableError(f"{file} is missing; {remedy}")
    if layout.digest_bytes(data) != digest:
        data = layout.table_without_additions(data)
        if data is None or layout.digest_bytes(data) != digest:
            raise DamagedTableError(f"{file} is damaged: it does not match its digest; {remedy}")
    try:
        return layout.attributes_in(data, file)
    except ArtefactError as error:
        raise DamagedTableError(f"{error}; {remedy}") from error


def _pieces(path: Place, attributes: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The columns of each page, with its digest, then those of the rows in the generation, with "" for one."""
    digests = attributes.get("pages", [])
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests):
        raise ValueError("the name of a page is not a digest")

    def read(digest: str) -> tuple[str, Mapping[str, Any]]:
        page = _read_part(path, layout.page_name(digest), digest)
        return digest, {**page.get("made_of", {}), **page["clips"]}

    if digests:
        with ThreadPoolExecutor(layout.storage_of(path).num_readers or 1, "read-pages") as readers:
            yield from readers.map(read, digests)
    yield "", {**attributes.get("made_of", {}), **attributes["clips"]}


def _full_columns(piece: Mapping[str, Any], *, is_page: bool) -> dict[str, list[Any]]:
    """Columns of the rows of a piece, in which a column may be missing, or the one value of all rows."""
    columns, num_rows = {}, len(piece["id"])
    for name in (*_ROW_COLUMNS, *_ORIGIN_COLUMNS):
        column = piece[name] if name in CLIP_COLUMNS else piece.get(name, "")
        is_one = not isinstance(column, list) and (name not in CLIP_COLUMNS or (is_page and name in _SHARED))
        values = [column] if is_one else column
        if not isinstance(values, list) or not {*map(type, values)} <= _TYPES.get(name, {str}):
            raise TypeError(f"column {name} of the clip table has a wrong type")
        if name in _SHARED:
            values = [sys.intern(value) if isinstance(value, str) else value for value in values]
        columns[name] = values * num_rows if is_one else values
    if {*map(len, columns.values())} != {num_rows}:
        raise ValueError("the columns of the clip table have different lengths")
    return columns


# Writing ------------------------------------------------------------------------------------------------------------


def page_ends(ids: Sequence[str]) -> list[int]:
    """Where the pages of a table end; the rows after the last end are in no page.

    Ids decide, not positions: a clip that comes or goes moves the end of its own page and seldom that of the next ones.
    """
    if len(ids) < PAGED_ROWS:
        return []
    hashes = np.fromiter(map(zlib.crc32, map(str.encode, ids)), np.uint32, len(ids))
    ends = [0]
    for end in (np.flatnonzero(hashes % PAGE_DIVISOR == 0) + 1).tolist():
        if end - ends[-1] >= PAGE_ROWS:
            ends.append(end)
    return ends[1:]


def page_files(path: Place, table: ClipTable, known: ClipTable | None = None) -> Iterator[tuple[Page, bytes | None]]:
    """The pages of a table, in order, each with its bytes.

    Args:
        known: a table of the same store. Of the pages that it was read from there are no bytes.
    """
    old = {known.columns["id"][page.first]: page for page in known.pages} if known else {}
    kept = kept_sources(path)
    for first, stop in pairwise([0, *page_ends(table.columns["id"])]):
        page = old.get(table.columns["id"][first])
        if (
            page
            and known
            and all(
                column[first:stop] == known.columns[name][page.first : page.stop]
                for name, column in table.columns.items()
            )
        ):
            yield Page(page.digest, first, stop), None
            continue
        parts = _kept_columns(kept, table, first, stop)
        parts["clips"] |= {name: _short(parts["clips"][name]) for name in _SHARED if name in parts["clips"]}
        data = layout.group_metadata(parts, indent=None)
        yield Page(layout.digest_bytes(data), first, stop), data


def write_pages(path: Place, table: ClipTable, known: ClipTable | None) -> list[Page]:
    """Put the pages of a table into a store, for the generation that will name them. Arguments as in `page_files`."""
    storage = layout.storage_of(path)

    def write(file: tuple[Page, bytes | None]) -> Page:
        page, data = file
        name = layout.page_name(page.digest)
        # In a bucket also one that is there: it may be so old that lvt gc is about to remove it.
        if data is not None and (storage.local() is None or not storage.create(name, data)):
            storage.replace(name, data)
        return page

    pages: list[Page] = []
    files = page_files(path, table, known)
    with ThreadPoolExecutor(storage.num_readers or 1, "write-pages") as writers:
        while some := list(islice(files, PAGES_AT_ONCE)):
            pages += writers.map(write, some)
    return pages


def table_columns(path: Place, table: ClipTable, pages: Sequence[Page]) -> dict[str, Any]:
    """Attributes of a generation that hold its clip table, of which these pages are written."""
    rest = _kept_columns(kept_sources(path), table, pages[-1].stop if pages else 0, len(table))
    return {**({"pages": [page.digest for page in pages]} if pages else {}), **rest}


def _kept_columns(kept: Translation, table: ClipTable, first: int, stop: int) -> dict[str, dict[str, Any]]:
    """Rows [first, stop) as attributes. Sources are relative to the store, so both can move together."""
    columns = {name: column[first:stop] for name, column in table.columns.items()}
    columns["source"] = [*map(kept, columns["source"])]
    names = _ROW_COLUMNS if any(columns["codes"]) else CLIP_COLUMNS
    made_of = {"source_digest": columns["source_digest"], "decoder": _short(columns["decoder"])}
    return {
        "clips": {name: columns[name] for name in names},
        **({"made_of": made_of} if any(columns["source_digest"]) or any(columns["decoder"]) else {}),
    }


def _short(column: list[Any]) -> Any:
    """The one value of a column in which all are alike, or the column."""
    return column[0] if column and column.count(column[0]) == len(column) else column
