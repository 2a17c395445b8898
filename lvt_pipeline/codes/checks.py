"""Checks before a code store is written: its clips, its place, and the command that made the store that is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lvt_pipeline.codes.layout import PENDING, DamagedRootError, StoreRoot, read_attributes, read_root
from lvt_pipeline.codes.schema import PlannedClip
from lvt_pipeline.codes.store import CodeStore, is_ours, is_unfinished, open_codes
from lvt_pipeline.errors import ArtefactError, StoreError
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import has_line_break


def require_clips(clips: Sequence[PlannedClip]) -> None:
    """Refuse clips that cannot make a store.

    Raises:
        StoreError: there are none, one has no frames or an id that cannot be printed, or two have one id.
    """
    if not clips:
        raise StoreError("there are no clips to put into the code store")
    for clip in clips:
        if not clip.id or has_line_break(clip.id):
            raise StoreError(
                f"clip id {clip.id!r} is empty or has a line break or control character in it; rename the clip"
            )
        if clip.length < 1:
            raise StoreError(f"clip {clip.id} has no frames")
    twice = [clip_id for clip_id, count in Counter(clip.id for clip in clips).items() if count > 1]
    if twice:
        raise StoreError(f"clip {twice[0]} appears twice; clip ids must differ")


def require_place(path: Path) -> None:
    """Refuse a place where a store cannot be.

    Raises:
        StoreError: something else is there.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; choose another path for the code store")
    if not (path / ZARR_METADATA).exists() and path.is_dir() and any(path.iterdir()) and not is_unfinished(path):
        raise StoreError(f"{path} is a folder with other things in it; choose another path for the code store")


def is_unpublished(path: Path, root: StoreRoot) -> bool:
    """Whether an interrupted command left a plan that this root does not contain yet."""
    try:
        return int(read_attributes(path / PENDING)["generation"]) > root.generation
    except (ArtefactError, KeyError, ValueError, TypeError):
        return False


def require_stage(path: Path, stage: str) -> None:
    """Refuse to change a store, finished or not, that another command made.

    Args:
        stage: the command that is about to write, such as "encode-dataset"; empty: it changes the store of any command.

    Raises:
        StoreError: another command made it.
    """
    try:
        root = read_root(path)
        maker = read_attributes(path / PENDING).get("stage", "") if root is None else root.stage
    except ArtefactError:
        return  # nothing is there, or it is damaged, which is reported when it is opened
    if stage and maker and maker != stage:
        raise StoreError(
            f"{path} was made by lvt {maker}, and lvt {stage} does not change it; choose another output, or delete it "
            "first"
        )


def open_current(path: Path, overwrite: bool) -> CodeStore | None:
    """The store at `path` that a plan starts from; None when there is none, or when it is not to be looked at.

    Raises:
        StoreError: something else is there, or a store that is damaged and not to be overwritten.
    """
    try:
        root = read_root(path)
    except DamagedRootError:
        if not overwrite or not is_ours(path):
            raise
        return None
    return None if root is None or overwrite else open_codes(path, holds=False)
