"""Before a code store is written: checks of its clips, of its place and of the store there, and the plan to write.

The plan of a command that has not published it yet is in the group `pending` of its store. It is written before the
first shard, so that the same command continues after an interruption, other processes can help, and the numbers of its
shards are known when another plan takes its place: a late process may still write shards of an abandoned plan, and must
not meet those of another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lvt_pipeline.codes.layout import PENDING, DamagedRootError, group_metadata, read_attributes, read_root, write_group
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


def require_stage(path: Path, stage: str) -> None:
    """Refuse to change a store, finished or not, that another command made.

    Args:
        stage: the command that is about to write, such as "encode-dataset"; empty: it changes the store of any command.

    Raises:
        StoreError: another command made it.
    """
    try:
        root = read_root(path)
    except ArtefactError:
        return  # it is damaged, which is reported when it is opened
    made_by = root or read_pending(path)
    maker = made_by.stage if made_by else ""
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


# The pending plan -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PendingPlan:
    """What is known about an unpublished plan.

    Attributes:
        plan: its identity (`CodePlan.identity`).
        generation: the number that it will be published under.
        array: SHA-256 of the metadata of the array, as long as the plan needs it.
        stage: the command that made the plan.
        first_shard, end_shard: its new shards have numbers in [first_shard, end_shard).
    """

    plan: str
    generation: int
    array: str
    stage: str
    first_shard: int
    end_shard: int

    def __post_init__(self) -> None:
        if not all(type(number) is int for number in (self.generation, self.first_shard, self.end_shard)):
            raise TypeError("a number of a plan is not an integer")

    def write(self, store: Path) -> None:
        """Make this the pending plan of a store."""
        write_group(store, store / PENDING, group_metadata(asdict(self)))


def read_pending(store: Path) -> PendingPlan | None:
    """The pending plan of a store, None when there is none or it cannot be used."""
    try:
        attributes = read_attributes(store / PENDING)
        return PendingPlan(**{name: value for name, value in attributes.items() if name != "digest"})
    except (ArtefactError, TypeError):
        return None


def is_unpublished(path: Path, generation: int) -> bool:
    """Whether an interrupted command left a plan for a later generation than this."""
    pending = read_pending(path)
    return pending is not None and pending.generation > generation
