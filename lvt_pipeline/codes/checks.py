"""Before a code store is written: checks of its clips, of its place and of the store there, and the plan to write.

The plan of a command that has not published it yet is in the group `pending` of its store. It is written before the
first shard, so that the same command continues after an interruption, other processes can help, and the numbers of its
shards are known when another plan takes its place: a late process may still write shards of an abandoned plan, and must
not meet those of another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from lvt_pipeline.codes.layout import (
    PENDING,
    PENDING_FILE,
    DamagedRootError,
    digest_bytes,
    group_metadata,
    read_attributes,
    read_file,
    read_root,
    storage_of,
)
from lvt_pipeline.codes.schema import CodeSchema, FrameArray, PlannedClip, shard_name
from lvt_pipeline.codes.shard_file import checked_values, require_sound, shard_bytes
from lvt_pipeline.codes.store import CodeStore, is_ours, is_published, open_codes
from lvt_pipeline.errors import ArtefactError, BusyError, StoreError
from lvt_pipeline.storage import Place, has_line_break


def require_clips(clips: Sequence[PlannedClip]) -> None:
    """Refuse clips that cannot make a store.

    Raises:
        StoreError: there are none, one has no frames or an id that cannot be printed, or two have one id.
    """
    if not clips:
        raise StoreError("there are no clips to put into the code store")
    ids = [clip.id for clip in clips]
    if not all(ids) or has_line_break("".join(ids)):  # one search is faster than one for each clip
        wrong = next(clip_id for clip_id in ids if not clip_id or has_line_break(clip_id))
        raise StoreError(f"clip id {wrong!r} is empty or has a line break or control character in it; rename the clip")
    if min(clip.length for clip in clips) < 1:
        raise StoreError(f"clip {next(clip.id for clip in clips if clip.length < 1)} has no frames")
    if len({*ids}) < len(ids):
        raise StoreError(f"clip {Counter(ids).most_common(1)[0][0]} appears twice; clip ids must differ")


def require_place(path: Place) -> None:
    """Refuse a place where a store cannot be.

    Raises:
        StoreError: something else is there.
    """
    here = storage_of(path).local()
    if here is not None and here.exists() and not here.is_dir():
        raise StoreError(f"{path} is a file; choose another path for the code store")
    if storage_of(path).members() and not is_published(path) and not is_ours(path):
        raise StoreError(f"{path} is a folder with other things in it; choose another path for the code store")


def require_stage(path: Place, stage: str) -> None:
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


def open_current(path: Place, overwrite: bool) -> CodeStore | None:
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

    def write(self, store: Place) -> None:
        """Make this the pending plan of a store.

        Raises:
            BusyError: another command has just begun with a plan of its own.
        """
        storage, data = storage_of(store), group_metadata(asdict(self))
        found = storage.read(PENDING_FILE)
        is_done = storage.replace(PENDING_FILE, data, found.tag) if found else storage.create(PENDING_FILE, data)
        if not is_done:
            raise BusyError(f"another command has just begun to write {store}; run this again when it has finished")


def read_pending(store: Place) -> PendingPlan | None:
    """The pending plan of a store, None when there is none or it cannot be used."""
    try:
        attributes = read_attributes(store / PENDING)
        return PendingPlan(**{name: value for name, value in attributes.items() if name != "digest"})
    except (ArtefactError, TypeError):
        return None


def is_unpublished(path: Place, generation: int) -> bool:
    """Whether an interrupted command left a plan for a later generation than this."""
    pending = read_pending(path)
    return pending is not None and pending.generation > generation


def require_pending(path: Place, plan: str) -> None:
    """Refuse to write for a plan that a store does not wait for.

    Raises:
        StoreError: it does not.
    """
    pending = read_pending(path)
    if pending is None or pending.plan != plan:
        raise StoreError(
            f"{path} does not wait for this plan: it was finished, another one took its place, or --plan-only did not "
            "run with these settings"
        )


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of one plan. It can be pickled, and any process on any machine may use it.

    Attributes:
        plan: identity of the plan that the store must wait for; None for the owner of the store.
    """

    path: Place
    schema: CodeSchema
    plan: str | None

    def create(self, index: int, codes: NDArray[Any], arrays: Mapping[str, NDArray[Any]]) -> str:
        """Put the files of a shard on disk, each whole. Where several processes write the same one, the first one wins.

        Args:
            codes: any integers in [0, K), (N, h, w, n_c), all frames of the shard.
            arrays: rows of every side array for the same frames, (N, d), by name.

        Returns:
            SHA-256 of the file of the codes, which another process may have made.

        Raises:
            ShapeError: these are not codes and rows of the store.
            StoreError: a file that is not a shard has its name; or the plan was abandoned.
            LVTError: the disk is full or refuses.
        """
        digest = ""
        for array, data in self._files(codes, arrays):
            name = shard_name(index, array)
            if self.plan is not None:
                require_pending(self.path, self.plan)
            if not storage_of(self.path).create(name, data):
                data = read_file(self.path / name) or b""
                require_sound(self.path / name, data, array)
            digest = digest_bytes(data)
        return digest

    def replace(self, index: int, codes: NDArray[Any], arrays: Mapping[str, NDArray[Any]]) -> str:
        """Put a shard in the place of a damaged one, which stays until then. Arguments and errors as in `create`."""
        digest = ""
        for array, data in self._files(codes, arrays):
            storage_of(self.path).replace(shard_name(index, array), data)
            digest = digest_bytes(data)
        return digest

    def _files(self, codes: NDArray[Any], arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[FrameArray, bytes]]:
        """The files of a shard. That of the codes comes last: it declares the shard finished."""
        for array in reversed(self.schema.every_array):
            values = codes if array.name == self.schema.name else arrays.get(array.name)
            where = str(self.path / array.folder)
            yield array, shard_bytes(checked_values(values, array, len(codes), where), array)
