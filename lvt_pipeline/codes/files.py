"""How files and groups of a code store appear, are replaced and go: each in one step.

Temporary files live inside `codes/`, where no zarr reader looks for members.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.card import card_bytes
from lvt_pipeline.codes.layout import (
    ARRAY,
    ARRAY_METADATA,
    CARD,
    GENERATIONS,
    PENDING,
    StoreRoot,
    digest_bytes,
    read_attributes,
    table_name,
    with_history,
)
from lvt_pipeline.codes.shard_file import is_sound
from lvt_pipeline.codes.store import CodeClip, open_codes, shard_name
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.provenance import ZARR_METADATA, digest_file
from lvt_pipeline.storage import describe_os_error, remove_leftovers, sync_directory, write_bytes


def is_unpublished(path: Path, root: StoreRoot) -> bool:
    """Whether an interrupted command left a plan that is not what this root already says."""
    try:
        return int(read_attributes(path / PENDING)["generation"]) > root.generation
    except (ArtefactError, KeyError, ValueError):
        return False


def with_digests(path: Path, root: StoreRoot) -> StoreRoot:
    """The root as format 2 has it. A shard of format 1 whose own checksums fail gets no digest: it stays damaged.

    Raises:
        ArtefactError: a table is missing or damaged.
    """
    if root.has_digests:
        return root
    names = [ARRAY_METADATA, f"{GENERATIONS}/{ZARR_METADATA}", *map(table_name, root.numbers)]
    digests = {name: digest_file(path / name) for name in names}
    about: dict[str, Any] = {}
    for number in root.numbers:
        store = open_codes(path, number)
        about = {**store.schema.to_json(), "generation": number}
        for name in map(shard_name, store.shards()):
            if name not in digests and (path / name).exists() and is_sound(path / name, store.schema):
                digests[name] = digest_file(path / name)
    return replace(with_history(path, root), about=about, files=digests)


def commit_root(path: Path, root: StoreRoot, clips: Sequence[CodeClip]) -> None:
    """Make this the root of a store, then renew the card, which says what the root does.

    Args:
        root: with the digests of all files but the card.
        clips: the clip table of its current generation.
    """
    card = card_bytes(root, clips)
    root = replace(root, files={**root.files, CARD: digest_bytes(card)})
    replace_file(path, ZARR_METADATA, root.to_bytes())
    replace_file(path, CARD, card)


def replace_file(store: Path, name: str, data: bytes) -> None:
    """Replace a file of a store, whole or not at all, with nothing beside it that zarr could take for a member."""
    with told_as_one_line(f"writing {store / name}"):
        staged = store / ARRAY / ".staged"
        remove_tree(staged)
        write_bytes(staged / ZARR_METADATA, data)
        os.replace(staged / ZARR_METADATA, store / name)
        sync_directory((store / name).parent)
        remove_tree(staged)


def write_group(store: Path, group: Path, data: bytes) -> None:
    """Make or replace a group of a store; `data` is its `zarr.json`."""
    if group.exists():
        replace_file(store, str((group / ZARR_METADATA).relative_to(store)), data)
        return
    with told_as_one_line(f"writing {group}"):
        staged = store / ARRAY / ".staged"
        remove_tree(staged)
        write_bytes(staged / ZARR_METADATA, data)
        os.replace(staged, group)
        sync_directory(group.parent)


def remove_group(store: Path, group: Path) -> None:
    """Remove a group of a store in one step, if it is there."""
    if group.exists():
        with told_as_one_line(f"removing {group}"):
            staged = store / ARRAY / ".staged-for-removal"
            remove_tree(staged)
            os.replace(group, staged)
            sync_directory(group.parent)
            remove_tree(staged)


def remove_temporary_files(store: Path) -> None:
    """Remove what a killed writer left half-written. Call it only while holding the lock."""
    remove_leftovers(store / ARRAY)
    for leftover in (store / ARRAY).glob(".staged*"):
        remove_tree(leftover)


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def told_as_one_line(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into the one-line error; `doing` is such as "writing data.zarr"."""
    try:
        yield
    except LVTError:
        raise
    except OSError as error:
        raise describe_os_error(error, doing) from error
