"""The code store: every clip as a slice of one zarr array of integer codes, and the table of the slices.

Stage 1 of the paper (section 3.1) turns frames into codes once; everything after it reads them from here.

    data.zarr/zarr.json                     which generation is current, and its provenance: the commit point
    data.zarr/codes/                        array (frames, h, w, n_c), sharded; all clips one after another
    data.zarr/arrays/action/                side array (frames, d), such as actions; aligned with the codes
    data.zarr/generations/000001/zarr.json  a clip table, never changed once it is there
    data.zarr/generations/page-.../zarr.json  rows of large clip tables, shared by generations
    data.zarr/pending/zarr.json             what an unfinished encode is going to publish
    data.zarr/codes/README.md               a description of the store for people

Everything is plain zarr v3 with core codecs, so any reader opens it. This file reads; `writer.py` writes; `layout.py`
defines the root. A reader stays with one generation as long as it exists, so a store can grow under it, and holds
a lock on that generation, so `lvt gc` leaves it in place.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes import layout
from lvt_pipeline.codes.array import ClipArray, CodeArray, require_metadata
from lvt_pipeline.codes.clip_table import REMEDY, ClipTable, DamagedTableError, read_generation
from lvt_pipeline.codes.layout import OUR_GROUPS, SHARDS, StoreRoot
from lvt_pipeline.codes.readers import BeingRemovedError, Hold
from lvt_pipeline.codes.schema import CodeClip, CodeSchema, SideArray
from lvt_pipeline.errors import ArtefactError, BusyError, LVTError, StoreError
from lvt_pipeline.file_systems import is_lock_file
from lvt_pipeline.machine import paused_collection
from lvt_pipeline.progress import SILENT, Progress, count_of
from lvt_pipeline.provenance import ZARR_METADATA, Provenance
from lvt_pipeline.storage import Place, as_place, open_storage
from lvt_pipeline.video.notebook import SHOWN_ROWS, Film, clips_html
from lvt_pipeline.video.pictures import colour_codes

ATTEMPTS = 100  # to open a store that changes at the same time
WAIT_SECONDS = 0.1  # between two of them
HELD_OUT_FIRST = ("test", "val", "train")


class DecodesCodes(Protocol):
    """What `CodeStore.show` needs of a VQ-VAE."""

    def decode(self, codes: Any) -> Any:
        """Integers (T, h, w, n_c) -> a tensor, uint8 (T, H, W, 3)."""


class CodeStore:
    """One generation of a code store, read-only. Make it with `open_codes`.

    `store["a/clip"]` is the clip's codes, (T, h, w, n_c) uint8 or uint16. Reading is thread-safe. Reading many short
    windows through zarr is slow; `codes.loading.windows.CodeWindows` is for that.

    Attributes:
        path: the zarr group, as an absolute path or a URL.
        schema: K, n_c, grid, tokenizer, ...
        root: the generations and files of the store.
        generation: the generation that is read; `generations` lists those that can be.
        table: the clip table by column.
        fingerprint: hash of the content of this generation.
        provenance: the record of what made it.
        codes: the frames of all generations, by position.
        array_frames: length of the array up to this generation, gaps and dead ranges included.
    """

    def __init__(
        self,
        path: Place,
        schema: CodeSchema,
        root: StoreRoot,
        generation: int,
        attributes: Mapping[str, Any],
        provenance: Provenance,
        hold: Hold | None = None,
    ) -> None:
        self.path = path
        self.schema = schema
        self.root = root
        self.generation = generation
        self.generations: list[int] = root.numbers
        self.table = ClipTable.read(path, attributes)
        self.fingerprint = str(attributes["fingerprint"])
        self.array_frames = int(attributes["array_frames"])
        self.provenance = provenance
        # The root knows the sizes of shards that were repaired after this generation was published.
        sizes = {**provenance.outputs, **root.provenance["outputs"]}
        self.codes = CodeArray(path, schema, sizes, generation)
        self._side = {array.name: CodeArray(path, array, sizes, generation) for array in schema.arrays}
        self._hold = hold  # lvt gc leaves this generation alone as long as the store is open

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.schema.frame_shape))
        arrays = f", {', '.join(map(str, self.schema.arrays))}" if self.schema.arrays else ""
        return (
            f"CodeStore({str(self.path)!r}, {len(self.clips):,} clips, {self.num_frames:,} frames of {shape} codes, "
            f"K={self.codebook_size}{arrays}, generation {self.generation})"
        )

    def _repr_html_(self) -> str:
        rows = [
            {"id": clip.id, "split": clip.split, "label": clip.label, "frames": clip.length, "fps": f"{clip.fps:g}"}
            for clip in self.clips[:SHOWN_ROWS]
        ]
        return clips_html(repr(self), rows, len(self.clips))

    def show(self, clip: CodeClip | str, vqvae: DecodesCodes | None = None) -> Film:
        """A clip as a film that a notebook plays.

        Args:
            vqvae: decodes the codes, as `load_vqvae` gives it; None: one fixed colour for every code of codebook 0.
        """
        row = self.clip(clip) if isinstance(clip, str) else clip
        codes = self.read(row)
        frames = colour_codes(codes[..., 0], self.codebook_size) if vqvae is None else vqvae.decode(codes).numpy()
        return Film(frames, row.fps, row.id)

    @property
    def clips(self) -> list[CodeClip]:
        """The clip table, in manifest order."""
        return self.table.rows

    @cached_property
    def _by_id(self) -> dict[str, CodeClip]:
        return {clip.id: clip for clip in self.clips}

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.schema.codebook_size

    @property
    def num_codebooks(self) -> int:
        """n_c."""
        return self.schema.num_codebooks

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.schema.grid

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer that made the codes."""
        return self.schema.tokenizer

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return self.schema.dtype

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return self.table.num_frames

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._by_id

    def __getitem__(self, clip_id: str) -> NDArray[np.unsignedinteger[Any]]:
        """All codes of a clip, (T, h, w, n_c)."""
        return self.read(clip_id)

    def clip(self, clip_id: str) -> CodeClip:
        """The table's row for a clip.

        Raises:
            StoreError: no clip has that id; a similar one is suggested.
        """
        try:
            return self._by_id[clip_id]
        except KeyError:
            close = difflib.get_close_matches(str(clip_id), self._by_id, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {count_of(len(self.clips), 'clip')}"
            raise StoreError(f"{self.path} has no clip {clip_id!r}; {hint}") from None

    def split(self, name: str) -> list[CodeClip]:
        """The clips of one split ("train", "val" or "test"), in order; empty when there are none."""
        return [clip for clip in self.clips if clip.split == name]

    def read(self, clip: CodeClip | str, start: int = 0, stop: int | None = None) -> NDArray[np.unsignedinteger[Any]]:
        """Codes of frames [start, stop) of a clip, (stop - start, h, w, n_c).

        Raises:
            StoreError: no such clip, or a shard is missing or damaged.
            IndexError: the range is not within the clip.
        """
        row = self.clip(clip) if isinstance(clip, str) else clip
        return self.read_range(*row.place(start, stop))

    @property
    def arrays(self) -> dict[str, SideArray]:
        """Side arrays by name, such as actions; each states its `dtype` and `dimension`."""
        return {array.name: array for array in self.schema.arrays}

    def array(self, name: str) -> ClipArray:
        """A side array: `store.array("action")[clip_id]` is (T, d), float32 or integers.

        Raises:
            StoreError: the store has no such array; those that it has are named.
        """
        if name not in self._side:
            has = ", ".join(self._side) or "none; lvt encode-dataset takes those of the frames"
            raise StoreError(f"{self.path} has no array {name!r}; it has {has}")
        return ClipArray(self.arrays[name], self._side[name], self.clip)

    def problems(self, indices: Sequence[int]) -> dict[int, str]:
        """Shards whose files are missing or have another size than was written, each with its problem in words."""
        return dict(item for each in (*self._side.values(), self.codes) for item in each.problems(indices))

    def read_range(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        """Frames [start, stop) of the code array, of any clips.

        Raises:
            StoreError: a shard is missing or damaged; it is named.
        """
        return self.codes.read(start, stop)

    @property
    def next_shard(self) -> int:
        """The number of the first shard of the next plan: no plan has ever used it."""
        return max(-(-self.array_frames // self.schema.shard_frames), self.root.used_shards)

    def shards(self) -> list[int]:
        """Indices of the shards that hold the clips of this generation, ascending."""
        return self.table.shards(self.schema.shard_frames)


@paused_collection()
def open_codes(path: Place | str, generation: int | None = None, *, holds: bool = True) -> CodeStore:
    """Open a code store for reading.

    Args:
        path: a folder, or a URL such as s3://bucket/data.zarr.
        generation: which generation to read; the current one by default.
        holds: keep `lvt gc` from removing the generation as long as the store is open.

    Raises:
        StoreError: there is no finished store at `path`, it is damaged, or it has no such generation.
        BusyError: it keeps changing.
        LVTError: the operating system refused to read it.
    """
    path = as_place(path).absolute()
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_SECONDS)
        data = layout.read_file(path / ZARR_METADATA)
        if data is None:
            raise StoreError(_why_unreadable(path))
        root = layout.parse_root(path, data)
        chosen = root.generation if generation is None else generation
        if not isinstance(chosen, int | np.integer) or isinstance(chosen, bool):
            raise StoreError(f"generation={chosen!r} is not the number of a generation")
        chosen = int(chosen)
        if chosen not in root.numbers:
            gone = "; lvt gc has removed it" if 1 <= chosen < root.generation else ""
            raise StoreError(f"{path} has no generation {chosen}{gone}; it has {layout.numbers_as_text(root.numbers)}")
        try:
            hold = Hold.on(path, chosen) if holds else None
            store = _open_generation(path, root, chosen, hold)
        except BeingRemovedError:
            continue
        except (FileNotFoundError, StoreError) as error:
            if layout.read_file(path / ZARR_METADATA) != data:
                continue  # the store changed meanwhile
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path / layout.table_name(chosen)} is missing; {REMEDY.format(path=path)}") from None
        # Between reading the root and taking the lock, the generation may have been removed.
        if hold is None or (hold.is_current and layout.read_file(path / ZARR_METADATA) == data):
            return store
    raise BusyError(f"{path} keeps changing; open it when the commands that write it have finished")


def _open_generation(path: Place, root: StoreRoot, generation: int, hold: Hold | None) -> CodeStore:
    source = path / layout.table_name(generation)
    attributes = read_generation(path, root, generation)
    try:
        schema = CodeSchema.from_json(attributes["lvt"])
        record = root.provenance if generation == root.generation else attributes["provenance"]
        if not isinstance(attributes["fingerprint"], str):
            raise TypeError("its fingerprint is not a text")
        store = CodeStore(path, schema, root, generation, attributes, Provenance.from_json(record, source), hold)
        num_shards = sum(name.startswith(f"{SHARDS}/") for name in store.provenance.outputs)
        store.table.require_places(attributes["array_frames"], num_shards, schema.shard_frames)
    except DamagedTableError:
        raise  # it names a page
    except (ArtefactError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{source} is damaged or not ours ({layout.as_one_line(error)}); {REMEDY.format(path=path)}"
        ) from error
    for array in schema.every_array:
        require_metadata(path, root, array, store.array_frames)
    return store


def published_arrays(path: Place) -> tuple[SideArray, ...]:
    """The side arrays of the current generation of a store; () when there is none, or its root is damaged."""
    try:
        root = layout.read_root(path)
    except ArtefactError:
        return ()
    return CodeSchema.from_json(root.about).arrays if root is not None else ()


def is_published(path: Place) -> bool:
    """Whether a folder is a store with something to read, sound or not."""
    return layout.read_file(path / ZARR_METADATA) is not None


def is_unfinished(path: Place) -> bool:
    """Whether a folder holds what a first encode leaves when it is interrupted, and nothing else."""
    return is_ours(path) and not is_published(path)


def is_ours(path: Place) -> bool:
    """Whether a folder holds only what belongs into a code store, and some of it next to the root."""
    names = {name for name in open_storage(path).members() or () if not is_lock_file(name)}
    return bool(names & OUR_GROUPS) and names <= {*OUR_GROUPS, ZARR_METADATA}


def _why_unreadable(path: Place) -> str:
    if open_storage(path).members() is None:
        return f"{path} does not exist; make a code store with lvt encode-dataset"
    if is_unfinished(path):
        return f"{path} is unfinished: its first encode was interrupted; run the command that makes it again"
    return f"{path} is not a code store (it has no {ZARR_METADATA}); give the output of lvt encode-dataset or sample"


def clips_of_split(
    store: CodeStore, split: str, min_frames: int, *, progress: Progress = SILENT
) -> tuple[list[CodeClip], int]:
    """Clips of a split that are long enough.

    A small dataset may lack a split, or have only short clips in it; then the first of test, val and train that has
    some is taken, and the progress reports it.

    Args:
        split: "train", "val" or "test".
        min_frames: clips with fewer frames are left out and counted.

    Returns:
        The clips, in the store's order, and how many of that split were too short.

    Raises:
        LVTError: no split has a clip of that length.
    """
    for name in (split, *(other for other in HELD_OUT_FIRST if other != split)):
        clips = store.split(name)
        long_enough = [clip for clip in clips if clip.length >= min_frames]
        if long_enough:
            if name != split:
                progress.say(f"{store.path} has no {split} clip of {min_frames} frames or more; using {name} clips")
            return long_enough, len(clips) - len(long_enough)
    longest = max((clip.length for clip in store.clips), default=0)
    raise LVTError(
        f"{store.path} has no clip of {min_frames} frames or more (the longest has {longest}); "
        f"ask for fewer frames, or encode longer clips"
    )
