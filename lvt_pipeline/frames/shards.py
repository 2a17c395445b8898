"""Frames on disk: webdataset shards of uint8 clips, with a receipt next to each shard.

The network of the paper sees square frames in the order they were shown; this is the one place they are kept. A shard
is a plain tar that `webdataset` reads: every clip is `<key>.json` (who it is and how it was made) and `<key>.npy` (raw
uint8, T x H x W x 3) or one picture of all frames (`frames.codecs`). The receipt records the offset in the tar at which
the pixels of each clip begin, so any frame is one seek away, and which clips failed. A shard without a receipt is
unfinished. The record `provenance.json` is written last; a folder without it is unfinished.

Nothing in a shard or receipt depends on the clock, the machine or the order in which workers finished.
"""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ArtefactError, ShapeError
from lvt_pipeline.frames.codecs import decode_frames
from lvt_pipeline.frames.copies import local_shard
from lvt_pipeline.frames.receipts import read_in_order, read_receipt
from lvt_pipeline.frames.records import ArrayFacts, ClipFailure, FrameClip, content_fingerprint, receipts_in
from lvt_pipeline.frames.verify import require_sound
from lvt_pipeline.machine import paused_collection
from lvt_pipeline.provenance import RECORD_NAME, Provenance, missing_outputs, read_record
from lvt_pipeline.storage import Place, as_place, describe_os_error, open_storage
from lvt_pipeline.video.clips import SPLITS
from lvt_pipeline.video.geometry import Frames as Frames
from lvt_pipeline.video.locations import opened_sources
from lvt_pipeline.video.notebook import SHOWN_ROWS, Film, clips_html


class FrameReader:
    """Reads frames of known clips, opening no more than the receipts of their shards. Threads may share it."""

    def __init__(self, root: Place | str) -> None:
        self.root = as_place(root).absolute()  # frames are read later, perhaps from another working directory
        self._opened: dict[str, tuple[str, Sequence[FrameClip]]] = {}

    def read(self, clip: FrameClip, start: int = 0, stop: int | None = None) -> Frames:
        """Frames `start` to `stop` (excluded, like a slice) of a clip.

        Returns:
            uint8 (T, H, W, 3), a fresh array.

        Raises:
            ArtefactError: the shard cannot be read.
        """
        start, stop, _ = slice(start, stop).indices(clip.num_frames)
        count = max(0, stop - start)
        if clip.codec != "raw":
            return pixels_of(clip, self.payload(clip))[start : start + count].copy()
        frame_bytes = clip.height * clip.width * 3
        pixels = self._read_bytes(clip.shard, clip.offset + start * frame_bytes, count * frame_bytes)
        return np.frombuffer(pixels, np.uint8).reshape(count, clip.height, clip.width, 3)

    def arrays(self, clip: FrameClip) -> dict[str, NDArray[Any]]:
        """Arrays that the source holds next to a clip's frames, one row per frame, by name; empty for videos."""
        return read_arrays(clip, self._tar(clip.shard))

    def array_facts(self, clip: FrameClip) -> Mapping[str, ArrayFacts]:
        """What those arrays hold, by name. Receipts of older versions do not state it; then the arrays are read."""
        if clip.array_facts is None and clip.arrays:
            return {name: ArrayFacts.of(array) for name, array in self.arrays(clip).items()}
        return clip.array_facts or {}

    def payload(self, clip: FrameClip) -> bytes | bytearray:
        """The clip's bytes as stored in the shard: plain pixels (raw) or a picture (other codecs)."""
        return self._read_bytes(clip.shard, clip.offset, clip.nbytes)

    def _contents(self, shard: str) -> tuple[str, Sequence[FrameClip]]:
        """The digest of a shard and its clips."""
        if shard not in self._opened:
            receipt = read_receipt((self.root / shard).with_suffix(".json"))
            self._opened[shard] = receipt.digest or "", receipt.clips
        return self._opened[shard]

    def _tar(self, shard: str) -> Path:
        """The tar of a shard, which is on this machine and sound."""
        digest, clips = self._contents(shard)
        tar = local_shard(self.root / shard, digest)
        require_sound(tar, digest, clips)
        return tar

    def _read_bytes(self, shard: str, offset: int, count: int) -> bytearray:
        return read_range(self._tar(shard), offset, count)


class FrameShards(FrameReader):
    """A finished folder of frames, read-only. Threads may share it; it can be pickled and holds no open file.

    Attributes:
        root: the folder.
        record: its provenance.
        clips: every clip, split by split (train, val, test) and in manifest order within one.
        failures: every clip that gave no frames.
    """

    @paused_collection()
    def __init__(self, root: Place | str) -> None:
        """Open a folder that `lvt ingest` finished, or a copy of one in a bucket.

        Raises:
            ArtefactError: it is another folder, is unfinished, or a shard is missing or of the wrong size.
        """
        super().__init__(root)
        self.record = _finished_record(self.root)
        self.clips: list[FrameClip] = []
        self.failures: list[ClipFailure] = []
        self._shards: dict[str, tuple[str, int, int]] = {}  # by name: digest, and where its clips are in `clips`
        read = partial(read_receipt, opened=opened_sources(self.root))
        for receipt in read_in_order(self.root, read, _receipts_in_order(self.root, self.record)):
            if receipt.digest is not None:
                first = len(self.clips)
                self._shards[receipt.clips[0].shard] = (receipt.digest, first, first + len(receipt.clips))
            self.clips += receipt.clips
            self.failures += receipt.failures
        if content_fingerprint(self.clips) != self.record.fingerprint:
            raise ArtefactError(f"the receipts in {self.root} do not agree with its {RECORD_NAME}; ingest again")

    def __repr__(self) -> str:
        failed = f", {len(self.failures):,} failed" if self.failures else ""
        return f"FrameShards({str(self.root)!r}, {len(self.clips):,} clips, {self.num_frames:,} frames{failed})"

    def _repr_html_(self) -> str:
        rows = [
            {"id": clip.id, "split": clip.split, "label": clip.label, "frames": clip.num_frames, "fps": f"{clip.fps:g}"}
            for clip in self.clips[:SHOWN_ROWS]
        ]
        return clips_html(repr(self), rows, len(self.clips))

    def show(self, clip: FrameClip | str) -> Film:
        """A clip as a film that a notebook plays."""
        row = self[clip] if isinstance(clip, str) else clip
        return Film(self.read(row), row.fps, row.id)

    @cached_property
    def _by_id(self) -> dict[str, FrameClip]:
        return {clip.id: clip for clip in self.clips}

    @property
    def fingerprint(self) -> str:
        """Hash of which clips there are, in order, and what each is made of."""
        return self.record.fingerprint

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return sum(clip.num_frames for clip in self.clips)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, clip_id: str) -> FrameClip:
        """The clip with this id.

        Raises:
            ArtefactError: there is none; the closest id is named.
        """
        if clip_id in self._by_id:
            return self._by_id[clip_id]
        close = difflib.get_close_matches(clip_id, self._by_id, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ArtefactError(f"{self.root} has no clip {clip_id!r} among its {len(self.clips)}{hint}")

    def split(self, name: str) -> list[FrameClip]:
        """The clips of "train", "val" or "test"; empty when there are none.

        Raises:
            ArtefactError: the split does not exist.
        """
        if name not in SPLITS:
            raise ArtefactError(f"split {name!r} is not one of {', '.join(SPLITS)}")
        return [clip for clip in self.clips if clip.split == name]

    def read(self, clip: FrameClip | str, start: int = 0, stop: int | None = None) -> Frames:
        """Frames `start` to `stop` of a clip or of the clip with an id; see `FrameReader.read`."""
        return super().read(self[clip] if isinstance(clip, str) else clip, start, stop)

    def arrays(self, clip: FrameClip | str) -> dict[str, NDArray[Any]]:
        """Arrays of a clip or of the clip with an id; see `FrameReader.arrays`."""
        return super().arrays(self[clip] if isinstance(clip, str) else clip)

    def _contents(self, shard: str) -> tuple[str, Sequence[FrameClip]]:
        digest, first, stop = self._shards[shard]
        return digest, self.clips[first:stop]


def pixels_of(clip: FrameClip, payload: bytes | bytearray) -> Frames:
    """All frames of a clip, uint8 (T, H, W, 3), from its bytes in the shard.

    Raises:
        ArtefactError: they are damaged.
    """
    try:
        return decode_frames(payload, clip.codec, clip.num_frames, clip.height, clip.width)
    except ShapeError as error:
        raise ArtefactError(f"{clip.shard}: the frames of clip {clip.id!r} are damaged: {error}") from error


def read_arrays(clip: FrameClip, shard: Path) -> dict[str, NDArray[Any]]:
    """The arrays next to a clip's frames in this shard, by name.

    Raises:
        ArtefactError: the shard cannot be read.
    """
    return {name: _parsed(read_range(shard, *place), shard, name) for name, place in (clip.arrays or {}).items()}


def _parsed(data: bytearray, shard: Path, name: str) -> NDArray[Any]:
    """The array of a `.npy` file. Its header is checked before memory is taken."""
    stream = io.BytesIO(data)
    try:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError
        return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
    except (ValueError, TypeError, SyntaxError):
        raise ArtefactError(f"{shard}: an array {name!r} next to the frames is damaged; ingest again") from None


def read_range(path: Path, offset: int, count: int) -> bytearray:
    """`count` bytes of a file from `offset` on.

    Opening the file again costs some ten microseconds and keeps readers free of shared state: threads, forks and
    pickles are safe.

    Raises:
        ArtefactError: the file is missing or ends too early.
    """
    buffer = bytearray(count)
    view = memoryview(buffer)
    try:
        with open(path, "rb", buffering=0) as stream:
            stream.seek(offset)
            done = 0
            while done < count:
                got = stream.readinto(view[done:])
                if not got:
                    raise ArtefactError(f"{path} ends {count - done:,} bytes too early; it is damaged, ingest again")
                done += got
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing; run `lvt ingest` again to make it") from error
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    return buffer


def _finished_record(root: Place) -> Provenance:
    names = open_storage(root).members()
    if names is None:
        raise ArtefactError(f"{root} does not exist; `lvt ingest` makes a folder of frames")
    if RECORD_NAME not in names:
        if receipts_in(root):
            raise ArtefactError(f"{root} is not finished; run the same `lvt ingest` command again to complete it")
        raise ArtefactError(f"{root} is not a folder of frames: it has no {RECORD_NAME}; `lvt ingest` makes one")
    record = read_record(root)
    if record.kind != "frames":
        raise ArtefactError(f"{root} holds {record.kind}, not frames; give the folder that `lvt ingest` made")
    missing = missing_outputs(root, record)
    if missing:
        raise ArtefactError(
            f"{root / missing[0]} is missing or has another size than recorded"
            f"{f' ({len(missing)} such files)' if len(missing) > 1 else ''}; run `lvt ingest` again to repair it"
        )
    return record


def _receipts_in_order(root: Place, record: Provenance) -> list[Place]:
    names = [Path(name) for name in record.outputs if name.endswith(".json")]
    return [root / name for name in sorted(names, key=lambda name: (_split_rank(name.stem), name.stem))]


def _split_rank(stem: str) -> int:
    split = stem.rpartition("-")[0]
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)
