"""The receipt of a frame shard is read here, and nothing in it is believed before it is checked.

A receipt may have been damaged or edited. Sizes are compared with the shard's own size before anything is allocated.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.frames.codecs import CODECS
from lvt_pipeline.frames.records import FORMAT_VERSION, ArrayFacts, ClipFailure, FrameClip, Part, Receipt
from lvt_pipeline.storage import Place, StoreURL, open_storage, parse_json, read_json
from lvt_pipeline.video.clips import SPLITS, Note
from lvt_pipeline.video.locations import Translation, opened_sources

_TEXTS = ("id", "key", "source", "digest", "fingerprint", "decoder")
_SIZES = ("num_frames", "height", "width", "nbytes")
T = TypeVar("T")


def staged_name(shard: str, digest: str) -> str:
    """The tar of a shard that waits to be published: `train-000012.0123456789abcdef.tar`."""
    return f"{shard.removesuffix('.tar')}.{digest[:16]}.tar"


def read_in_order(root: Place, read: Callable[[Place], T], places: Sequence[Place]) -> Iterator[T]:
    """Read receipts of the folder `root` in order; in a bucket several at a time."""
    readers = open_storage(root).num_readers
    if not readers:
        yield from map(read, places)
        return
    with ThreadPoolExecutor(readers, "read-receipts") as pool:
        yield from pool.map(read, places)


def read_receipt(path: Place, *, opened: Translation | None = None, is_staged: bool = False) -> Receipt:
    """Parse a receipt; sources come back as paths that can be opened.

    Args:
        opened: translation of its sources (`relative_paths`); by default they count from the receipt's folder.
        is_staged: whether the shard waits to be published (`staged_name`).

    Raises:
        ArtefactError: it is missing, damaged, or of a format this version does not know.
    """
    opened = opened or opened_sources(path.parent)
    content = read_json(path) if isinstance(path, Path) else _read_remote(path)
    try:
        if content["format"] != FORMAT_VERSION:
            raise ArtefactError(
                f"{path} has shard format {content['format']}, this version reads {FORMAT_VERSION}; ingest again"
            )
        _require(content["shard"] == f"{path.stem}.tar", "its shard has another name")
        same: dict[float, float] = {}
        clips = [_frame_clip(entry, content, opened, same) for entry in content["clips"]]
        failures = [_failure(entry, opened) for entry in content["failures"]]
        _require(not clips or isinstance(content["digest"], str), "it has no digest")
        receipt = Receipt(clips, failures, content["digest"], content["size"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        cause = str(error) if type(error) is ValueError else "a value is missing or of another type"
        raise ArtefactError(f"{path} is not a receipt of a frame shard: {cause}; ingest again") from None
    if clips and isinstance(path, Path):  # in a bucket, sizes are compared by listing the folder
        name = content["shard"]
        _check_size(path.with_name(staged_name(name, content["digest"]) if is_staged else name), content["size"])
    return receipt


def _read_remote(path: StoreURL) -> Any:
    found = open_storage(path.parent).read(path.name)
    if found is None:
        raise ArtefactError(f"{path} does not exist")
    return parse_json(found.data, path)


def _require(is_so: bool, problem: str) -> None:
    if not is_so:
        raise ValueError(problem)


def _frame_clip(
    entry: dict[str, Any], content: Mapping[str, Any], opened: Translation, same: dict[float, float]
) -> FrameClip:
    """A clip of a receipt. Most of a million clips share some values, so each of these is kept once, in `same`."""
    _check_entry(entry, content["size"])
    for name in ("split", "label", "decoder", "codec"):
        if entry[name] is not None:
            entry[name] = sys.intern(entry[name])
    if entry["key"] == entry["id"]:
        entry["key"] = entry["id"]
    for name in ("fps", "nbytes"):
        entry[name] = same.setdefault(entry[name], entry[name])
    entry["source"] = opened(entry["source"])
    if "part" in entry:
        entry["part"] = Part(**entry["part"])
        _require(0 <= entry["part"].number < entry["part"].parts, "a part has a number that is out of range")
    if "notes" in entry:
        entry["notes"] = tuple(Note(str(note["kind"]), str(note["text"])) for note in entry["notes"])
    if "array_facts" in entry:
        entry["array_facts"] = {name: _array_facts(facts) for name, facts in entry["array_facts"].items()}
        _require({*entry["array_facts"]} == {*entry["arrays"]}, "its arrays and their facts have different names")
    _require(type(entry.get("pixels")) in (str, type(None)), "pixels is not a text")
    return FrameClip(**entry, shard=content["shard"])


def _array_facts(entry: Mapping[str, Any]) -> ArrayFacts:
    facts = ArrayFacts(**{**entry, "dtype": sys.intern(entry["dtype"])})
    _require(np.dtype(facts.dtype).kind in "iuf", "an array does not hold numbers")
    _require(type(facts.dimension) is int and facts.dimension > 0, "an array has no values")
    _require(type(facts.digest) is str, "the digest of an array is not a text")
    return facts


def _check_entry(entry: Mapping[str, Any], shard_bytes: int) -> None:
    for name in _TEXTS:
        _require(type(entry[name]) is str, f"{name} is not a text")
    for name in _SIZES:
        _require(type(entry[name]) is int and entry[name] > 0, f"{name} is not a positive whole number")
    _require(type(entry["offset"]) is int and entry["offset"] >= 0, "offset is not a whole number from 0 on")
    _require(entry["split"] in SPLITS, f"split is not one of {', '.join(SPLITS)}")
    _require(entry["codec"] in CODECS, f"codec is not one of {', '.join(CODECS)}")
    fps = entry["fps"]
    _require(type(fps) in (int, float) and math.isfinite(fps) and fps > 0, "fps is not a positive number")
    pixels = entry["num_frames"] * entry["height"] * entry["width"] * 3
    _require(entry["codec"] != "raw" or entry["nbytes"] == pixels, "nbytes does not fit the number and size of frames")
    for offset, nbytes in [(entry["offset"], entry["nbytes"]), *entry.get("arrays", {}).values()]:
        _require(0 <= offset <= offset + nbytes <= shard_bytes, "a clip ends after its shard")


def _failure(entry: Mapping[str, Any], opened: Translation) -> ClipFailure:
    for value in entry.values():
        _require(type(value) is str, "a failure holds something other than texts")
    return ClipFailure(**{**entry, "source": opened(entry["source"])})


def _check_size(shard: Path, size: int) -> None:
    try:
        found = shard.stat().st_size
    except FileNotFoundError:
        raise ArtefactError(f"{shard} is missing; run `lvt ingest` again to make it") from None
    if found != size:
        raise ArtefactError(
            f"{shard} has {found:,} bytes, its receipt records {size:,}; it is damaged: delete it and its receipt "
            f"and run `lvt ingest` again"
        )
