"""The root of a code store: which generations there are, and the digest of every file that belongs to them.

The `zarr.json` of the root group is the commit point of a store: replacing it is the one step that changes what readers
see. It names every other file with its SHA-256. It and every group of the store carry a digest of their own bytes (a
seal), so that a single changed byte anywhere is found by `code_verify`.

Format 1 had neither digests nor a list of generations. It is read, and becomes format 2 when it is next written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from lvt_pipeline.errors import ArtefactError, StoreError
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import read_json

SCHEMA_VERSION = 2
READABLE_SCHEMAS = (1, 2)
ARRAY, GENERATIONS, PENDING = "codes", "generations", "pending"
CARD = f"{ARRAY}/README.md"  # not in the root: zarr warns about a file there whenever the group's members are listed
ARRAY_METADATA = f"{ARRAY}/{ZARR_METADATA}"
SHARDS = f"{ARRAY}/c"

MEND_ROOT = "lvt encode-dataset --repair rebuilds it from the clip tables"

_MARKS = (b'"digest": "', b'"short_shards": ')  # of a root of format 2; one changed byte leaves one of them
_SEAL = b'"digest": "'
_BLANK = b"0" * 64


class DamagedRootError(StoreError):
    """The root of a code store is not what was written."""


@dataclass(frozen=True, kw_only=True)
class GenerationInfo:
    """One line of a store's history. In a store of format 1, all but the number may be unknown (empty).

    Attributes:
        fingerprint: what is in it.
        clips, frames: how much.
        finished: when it was published, ISO-8601 in UTC.
        stage: the command that published it, such as "encode-dataset" or "compact".
    """

    generation: int
    fingerprint: str = ""
    clips: int = 0
    frames: int = 0
    finished: str = ""
    stage: str = ""


@dataclass(frozen=True, kw_only=True)
class StoreRoot:
    """What the root group says.

    Attributes:
        about: the attribute `lvt`: schema version, K, n_c, grid, tokenizer, ..., and the current generation.
        generations: those that can be read, oldest first.
        files: SHA-256 of every file that they need, by path relative to the store; empty in format 1.
        short_shards: frames in the shards that are not full, by index.
        provenance: the record of what made the current generation, as plain data.
    """

    about: Mapping[str, Any]
    generations: tuple[GenerationInfo, ...]
    provenance: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    short_shards: Mapping[int, int] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """The current one."""
        return int(self.about["generation"])

    @property
    def numbers(self) -> list[int]:
        """The generations that can be read, ascending."""
        return [info.generation for info in self.generations]

    @property
    def has_digests(self) -> bool:
        """Whether the files of the store can be checked byte for byte."""
        return bool(self.files)

    def to_bytes(self) -> bytes:
        """The `zarr.json` of the root group."""
        return group_metadata(
            {
                "lvt": self.about,
                "generations": [asdict(info) for info in self.generations],
                "provenance": self.provenance,
                "short_shards": {str(index): frames for index, frames in sorted(self.short_shards.items())},
                "files": dict(sorted(self.files.items())),
            }
        )

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> StoreRoot:
        """The root of a store of any format that this version reads.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        about, provenance = attributes["lvt"], attributes["provenance"]
        current = int(about["generation"])
        if about["schema"] == 1:
            infos = [GenerationInfo(generation=number) for number in range(1, current)]
            now = GenerationInfo(generation=current, finished=provenance["finished"], stage=provenance["stage"])
            return cls(about=about, generations=(*infos, now), provenance=provenance)
        return cls(
            about=about,
            generations=tuple(GenerationInfo(**info) for info in attributes["generations"]),
            provenance=provenance,
            files=attributes["files"],
            short_shards={int(index): int(frames) for index, frames in attributes["short_shards"].items()},
        )


def read_root(path: Path) -> StoreRoot | None:
    """The root of the code store at `path`, None when nothing is published there.

    Raises:
        DamagedRootError: it is damaged.
        StoreError: `path` holds something else, or a format of another version.
    """
    file = path / ZARR_METADATA
    if not file.is_file():
        return None
    data = file.read_bytes()
    if any(mark in data for mark in _MARKS) and not is_sealed(data):
        raise DamagedRootError(f"{file} is damaged: its bytes do not match its digest; {MEND_ROOT}")
    try:
        attributes = read_attributes(path)
    except ArtefactError as error:
        raise DamagedRootError(f"{error}; {MEND_ROOT}") from error
    about = attributes.get("lvt")
    if not isinstance(about, Mapping) or not isinstance(about.get("generation"), int):
        raise StoreError(
            f"{path} is a zarr group but not a code store; give the output of lvt encode-dataset or sample"
        )
    if about.get("schema") not in READABLE_SCHEMAS:
        known = " and ".join(map(str, READABLE_SCHEMAS))
        raise StoreError(f"{path} has code store format {about.get('schema')}, this version reads {known}; upgrade lvt")
    try:
        return StoreRoot.from_attributes(attributes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRootError(f"{file} is damaged or not ours ({error!r}); {MEND_ROOT}") from error


def with_history(path: Path, root: StoreRoot) -> StoreRoot:
    """The root with what format 1 left out, read from the clip tables.

    Raises:
        ArtefactError: a table is missing or damaged.
    """
    if root.has_digests:
        return root
    infos: list[GenerationInfo] = []
    short: dict[int, int] = {}
    size = 0
    for info in root.generations:
        table = read_attributes(path / generation_name(info.generation))
        clips = table["clips"]
        infos.append(
            replace(
                info,
                fingerprint=table["fingerprint"],
                clips=len(clips["id"]),
                frames=sum(clips["length"]),
                stage=info.stage or table["provenance"]["stage"],
            )
        )
        size = size or _shard_frames(path)
        short |= short_shards(table["first_frame"], table["array_frames"], size)
    return replace(root, generations=tuple(infos), short_shards=short)


def short_shards(first_frame: int, array_frames: int, shard_frames: int) -> dict[int, int]:
    """The shard that a plan of frames [first_frame, array_frames) does not fill, if there is one."""
    rest = (array_frames - first_frame) % shard_frames
    return {array_frames // shard_frames: rest} if rest else {}


def _shard_frames(path: Path) -> int:
    grid = read_json(path / ARRAY_METADATA)["chunk_grid"]
    return int(grid["configuration"]["chunk_shape"][0])


# Groups -------------------------------------------------------------------------------------------------------------


def generation_name(generation: int) -> str:
    """Where a clip table lies, relative to the store."""
    return f"{GENERATIONS}/{generation:06d}"


def table_name(generation: int) -> str:
    """The file of a clip table, relative to the store."""
    return f"{generation_name(generation)}/{ZARR_METADATA}"


def read_attributes(group: Path) -> dict[str, Any]:
    """Attributes of a zarr group on disk.

    Raises:
        ArtefactError: missing, or not a zarr group.
    """
    data = read_json(group / ZARR_METADATA)
    if not isinstance(data, dict) or not isinstance(data.get("attributes"), dict):
        raise ArtefactError(f"{group / ZARR_METADATA} is not the metadata of a zarr group")
    return cast("dict[str, Any]", data["attributes"])


def group_metadata(attributes: Mapping[str, Any], indent: int | None = 2) -> bytes:
    """The `zarr.json` of a group, sealed. Large tables go without `indent`."""
    marked = {"digest": _BLANK.decode(), **attributes}
    value = {"zarr_format": 3, "node_type": "group", "attributes": marked}
    data = (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()
    start = data.index(_SEAL) + len(_SEAL)
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + len(_BLANK) :]


def is_sealed(data: bytes) -> bool:
    """Whether a group's `zarr.json` is, byte for byte, what `group_metadata` made."""
    start = data.find(_SEAL) + len(_SEAL)
    seal = data[start : start + len(_BLANK)]
    blank = data[:start] + _BLANK + data[start + len(_BLANK) :]
    return start >= len(_SEAL) and hashlib.sha256(blank).hexdigest().encode() == seal


def digest_bytes(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def numbers_as_text(numbers: Sequence[int]) -> str:
    """Generations for a message: "1 to 4", or "2, 5 and 6"."""
    if not numbers:
        return "none"
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
