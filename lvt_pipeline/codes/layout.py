"""Files and groups of a code store: the root that names them all, and the storage that they are in.

The `zarr.json` of the root group is the commit point of a store: replacing it is the one step that changes what readers
see. It names every other file with its SHA-256. It and every group of the store carry a digest of their own bytes (a
seal), so that a single changed byte anywhere is found by `verify`.

zarr and its users may add to the metadata: `zarr.consolidate_metadata`, attributes of their own. Such additions change
nothing of ours: the sealed bytes are rebuilt without them and compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lvt_pipeline.errors import ArtefactError, StoreError
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import Entry, Place, Storage, open_storage, parse_json

SCHEMA_VERSION = 2
PAGED_VERSION = 3  # of a store of which a generation has a clip table in pages
ARRAY, ARRAYS, GENERATIONS, PENDING = "codes", "arrays", "generations", "pending"
PAGES = f"{GENERATIONS}/page-"  # how the names of pages of clip tables begin
OUR_GROUPS = {ARRAY, ARRAYS, GENERATIONS, PENDING}
CARD = f"{ARRAY}/README.md"  # not in the root: zarr warns about a file there whenever the group's members are listed
ARRAY_METADATA = f"{ARRAY}/{ZARR_METADATA}"
SHARDS = f"{ARRAY}/c"
PENDING_FILE = f"{PENDING}/{ZARR_METADATA}"

_MARKS = (b'"digest": "', b'"short_shards": ')  # of a root; one changed byte leaves one of them
_SEAL = b'"digest": "'
_BLANK = b"0" * 64
_ROOT_NAMES = ("lvt", "generations", "provenance", "used_shards", "short_shards", "files")
_TABLE_NAMES = (
    *("lvt", "parent", "stage", "fingerprint", "first_frame", "array_frames"),
    *("pages", "clips", "made_of", "provenance"),
)


class DamagedRootError(StoreError):
    """The root of a code store has changed since it was written."""


@dataclass(frozen=True, kw_only=True)
class GenerationInfo:
    """One line of a store's history.

    Attributes:
        fingerprint: hash of its content.
        clips, frames: how many it has.
        finished: when it was published, ISO-8601 in UTC.
        stage: the command that published it, such as "encode-dataset" or "compact".
    """

    generation: int
    fingerprint: str = ""
    clips: int = 0
    frames: int = 0
    finished: str = ""
    stage: str = ""

    def __post_init__(self) -> None:
        numbers, texts = (self.generation, self.clips, self.frames), (self.fingerprint, self.finished, self.stage)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise TypeError("a number of the history is not an integer")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text of the history is not a text")


@dataclass(frozen=True, kw_only=True)
class StoreRoot:
    """The content of the root group.

    Attributes:
        about: the attribute `lvt`: schema version, K, n_c, grid, tokenizer, ..., and the current generation.
        generations: those that can be read, oldest first.
        provenance: the record of what made the current generation, as plain data.
        files: SHA-256 of every file that they need, by path relative to the store.
        short_shards: frames in the shards that are not full, by index.
        foreign: attributes that others added; they are kept and mean nothing here.
        used_shards: an abandoned plan used shards with numbers below this, so no other plan does; 0 when none did.
        read_from: SHA-256 of the bytes that this was read from, which a commit of a changed root replaces; empty: of
            none.
    """

    about: Mapping[str, Any]
    generations: tuple[GenerationInfo, ...]
    provenance: Mapping[str, Any]
    files: Mapping[str, str]
    short_shards: Mapping[int, int] = field(default_factory=dict)
    foreign: Mapping[str, Any] = field(default_factory=dict)
    used_shards: int = 0
    read_from: str = field(default="", compare=False)

    @property
    def generation(self) -> int:
        """The current one."""
        return int(self.about["generation"])

    @property
    def numbers(self) -> list[int]:
        """The generations that can be read, ascending."""
        return [info.generation for info in self.generations]

    @property
    def stage(self) -> str:
        """The command that made the store."""
        return str(self.provenance["stage"])

    def to_bytes(self) -> bytes:
        """The `zarr.json` of the root group."""
        data = group_metadata(
            {
                "lvt": self.about,
                "generations": [asdict(info) for info in self.generations],
                "provenance": self.provenance,
                **({"used_shards": self.used_shards} if self.used_shards else {}),
                "short_shards": {str(index): frames for index, frames in sorted(self.short_shards.items())},
                "files": dict(sorted(self.files.items())),
            }
        )
        if not self.foreign:
            return data
        value = json.loads(data)
        value["attributes"] |= self.foreign
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], read_from: str) -> StoreRoot:
        """The root from the attributes of its group.

        Raises:
            KeyError, TypeError, ValueError: they are something else.
        """
        about, provenance, files = attributes["lvt"], attributes["provenance"], attributes["files"]
        generations = tuple(GenerationInfo(**info) for info in attributes["generations"])
        if type(about["generation"]) is not int or about["generation"] not in [info.generation for info in generations]:
            raise ValueError("the current generation is not one of the generations")
        if not isinstance(provenance["stage"], str) or not isinstance(provenance["outputs"], dict):
            raise TypeError("the record is not complete")
        for name, digest in files.items():
            if not isinstance(digest, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name} is not the name and digest of a file of the store")
        short = {int(index): frames for index, frames in attributes["short_shards"].items()}
        if not all(type(frames) is int and frames >= 0 for frames in short.values()):
            raise TypeError("the length of a shard is not an integer")
        used = attributes.get("used_shards", 0)
        if type(used) is not int or used < 0:
            raise TypeError("the number of used shards is not an integer")
        return cls(
            about=about,
            generations=generations,
            provenance=provenance,
            files=files,
            short_shards=short,
            used_shards=used,
            read_from=read_from,
            foreign={name: value for name, value in attributes.items() if name not in (*_ROOT_NAMES, "digest")},
        )


def read_root(path: Place) -> StoreRoot | None:
    """The root of the code store at `path`, None when nothing is published there.

    Raises:
        DamagedRootError: it is damaged.
        StoreError: `path` holds something else, or a format of another version.
    """
    data = read_file(path / ZARR_METADATA)
    return None if data is None else parse_root(path, data)


def parse_root(path: Place, data: bytes) -> StoreRoot:
    """The root of the code store at `path` from the bytes of its `zarr.json`. Errors as in `read_root`."""
    file = path / ZARR_METADATA
    remedy = f"lvt verify {path} --repair rebuilds it from the clip tables"
    is_marked = any(mark in data for mark in _MARKS)
    if is_marked and without_additions(data, _ROOT_NAMES) is None:
        raise DamagedRootError(f"{file} is damaged: its bytes do not match its digest; {remedy}")
    try:
        attributes = attributes_in(data, file)
    except ArtefactError as error:
        raise DamagedRootError(f"{error}; {remedy}") from error
    about = attributes.get("lvt")
    if not isinstance(about, Mapping) or not isinstance(about.get("generation"), int):
        raise StoreError(
            f"{path} is a zarr group but not a code store; give the output of lvt encode-dataset or sample"
        )
    if about.get("schema") not in (SCHEMA_VERSION, PAGED_VERSION):
        raise StoreError(
            f"{path} has code store format {about.get('schema')!r}, this version of lvt reads formats {SCHEMA_VERSION} "
            f"and {PAGED_VERSION}; make the store again, or use the version of lvt that made it"
        )
    try:
        return StoreRoot.from_attributes(attributes, digest_bytes(data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRootError(f"{file} is damaged or not ours ({as_one_line(error)}); {remedy}") from error


def short_shards(first_frame: int, array_frames: int, shard_frames: int) -> dict[int, int]:
    """The shard that a plan of frames [first_frame, array_frames) does not fill, if there is one."""
    rest = (array_frames - first_frame) % shard_frames
    return {array_frames // shard_frames: rest} if rest else {}


# Groups -------------------------------------------------------------------------------------------------------------


def generation_name(generation: int) -> str:
    """The group of a clip table, relative to the store."""
    return f"{GENERATIONS}/{generation:06d}"


def table_name(generation: int) -> str:
    """The file of a clip table, relative to the store."""
    return f"{generation_name(generation)}/{ZARR_METADATA}"


def page_name(digest: str) -> str:
    """The file of a page of clip tables, relative to the store."""
    return f"{PAGES}{digest}/{ZARR_METADATA}"


def read_file(file: Place) -> bytes | None:
    """The bytes of a file, None when it does not exist.

    Raises:
        LVTError: the system or the server refused to read it, which does not mean that its content is damaged.
    """
    found = open_storage(file.parent).read(file.name)
    return None if found is None else found.data


def read_attributes(group: Place) -> dict[str, Any]:
    """Attributes of a zarr group on disk.

    Raises:
        ArtefactError: missing, or not a zarr group.
    """
    data = read_file(group / ZARR_METADATA)
    if data is None:
        raise ArtefactError(f"{group / ZARR_METADATA} does not exist")
    return attributes_in(data, group / ZARR_METADATA)


def attributes_in(data: bytes, file: Place) -> dict[str, Any]:
    """Attributes in the bytes of a group's `zarr.json`.

    Raises:
        ArtefactError: they are not the metadata of a zarr group.
    """
    value = parse_json(data, file)
    attributes = value.get("attributes") if isinstance(value, dict) else None
    if not isinstance(attributes, dict):
        raise ArtefactError(f"{file} is not the metadata of a zarr group")
    return attributes


def group_metadata(attributes: Mapping[str, Any], indent: int | None = 2) -> bytes:
    """The `zarr.json` of a group, sealed. Large tables go without `indent`."""
    marked = {"digest": _BLANK.decode(), **attributes}
    value = {"zarr_format": 3, "node_type": "group", "attributes": marked}
    data = (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()
    start = data.index(_SEAL) + len(_SEAL)
    return data[:start] + digest_bytes(data).encode() + data[start + len(_BLANK) :]


def is_sealed(data: bytes) -> bool:
    """Whether a group's `zarr.json` is, byte for byte, what `group_metadata` made."""
    start = data.find(_SEAL) + len(_SEAL)
    seal = data[start : start + len(_BLANK)]
    blank = data[:start] + _BLANK + data[start + len(_BLANK) :]
    return start >= len(_SEAL) and digest_bytes(blank).encode() == seal


def without_additions(data: bytes, names: Sequence[str], indent: int | None = 2) -> bytes | None:
    """The `zarr.json` of a group as `group_metadata` made it, None when something of ours was changed.

    Args:
        names: our attributes. Others were added by somebody else, as was consolidated metadata; zarr formats the file
            again when it adds something.
    """
    if is_sealed(data):
        return data
    try:
        group = parse_json(data, Path(ZARR_METADATA))
        attributes = attributes_in(data, Path(ZARR_METADATA))
        ours = group_metadata({name: value for name, value in attributes.items() if name in names}, indent)
    except (ArtefactError, UnicodeEncodeError):
        return None
    seal = ours[ours.index(_SEAL) + len(_SEAL) :][: len(_BLANK)].decode()
    is_ours = attributes.get("digest") == seal and (group.get("zarr_format"), group.get("node_type")) == (3, "group")
    others = {*group} - {"zarr_format", "node_type", "attributes"}
    has_additions = bool({*attributes} - {"digest", *names} or others)
    return ours if is_ours and has_additions and others <= {"consolidated_metadata"} else None


def table_without_additions(data: bytes) -> bytes | None:
    """The bytes of a clip table, or a page of one, as they were written, None when something of ours was changed."""
    return without_additions(data, _TABLE_NAMES, indent=None)


def digest_bytes(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


# Files ----------------------------------------------------------------------------------------------------------------


def storage_of(store: Place) -> Storage:
    """The files of a store. Those that are being written are inside `codes/`, where zarr looks for no members."""
    return open_storage(store, ARRAY)


def has_file(store: Place, name: str) -> bool:
    """Whether a store has a file of metadata."""
    return read_file(store / name) is not None


def generations_in(storage: Storage) -> list[int]:
    """Numbers of the clip tables that are in a store, whether its root names them or not."""
    numbers = [entry.name.split("/")[1] for entry in storage.list(GENERATIONS)]
    return [int(number) for number in numbers if number.isdecimal()]


def shard_files(store: Place) -> list[Entry]:
    """All files below the shards of the arrays of a store, hidden ones too."""
    storage = storage_of(store)
    return [*storage.list(SHARDS), *(entry for entry in storage.list(ARRAYS) if "/c/" in entry.name)]


def numbers_as_text(numbers: Sequence[int]) -> str:
    """Generations for a message: "1 to 4", or "2, 5 and 6"."""
    if not numbers:
        return "none"
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def as_one_line(error: BaseException) -> str:
    """An exception as part of a one-line message."""
    return " ".join(str(error).split()) or type(error).__name__
