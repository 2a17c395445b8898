"""Windows of codes for training the prior: no video, no pixels and no tokenizer is opened.

A window is `frames` consecutive frames of one clip (16 in the paper). Reading windows through zarr decompresses a chunk
for each; so the codes of a split are loaded into memory once, or into a memory-mapped file that all processes of a host
share, and a batch is one gather. A store that fits into neither is streamed: `batches` reads pools of windows ahead,
shard by shard.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lvt_pipeline.codes.loading.cache import Cache, Tier, cache_file, choose_tier, split_bytes
from lvt_pipeline.codes.loading.split_arrays import SplitArray
from lvt_pipeline.codes.loading.workers import WindowLoader, widened
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ConfigError, LVTError
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.storage import Place

LARGEST_COUNT = 2**62  # of frames or windows: larger numbers do not fit the arithmetic of int64


class CodeWindows(Dataset[Any]):
    """Every window of one split: `windows[i]` is int64 (frames, h, w, n_c) in [0, K). With `arrays=("action",)` it is a
    dict of these as "codes" and of the rows of the same frames, "action" (frames, d).

    Windows begin `stride` frames apart within a clip and never cross clips. Clips shorter than a window are skipped
    and counted.

    Attributes:
        store: the generation of the code store that is read.
        clips: the clips that hold at least one window, in order.
        offsets: int64 (clips,), where each of them begins in the store's code array.
        num_starts: int64 (clips,), in how many places a window fits in each of them, whatever the stride.
        num_short_clips: clips of the split that are shorter than a window.
        cache: "ram", "mmap" or "stream".
    """

    def __init__(
        self,
        store: CodeStore | Place | str,
        frames: int = 16,
        stride: int = 1,
        split: str = "train",
        cache: Cache = "auto",
        generation: int | None = None,
        *,
        arrays: Sequence[str] = (),
        progress: Progress = SILENT,
    ) -> None:
        """Open a split and load its codes and side arrays, unless they are streamed.

        Args:
            frames: frames in a window.
            stride: frames from the beginning of one window to that of the next in the same clip.
            cache: where the codes are kept: "ram", "mmap" (a file in the folder `<store>.cache`, made once for each
                content), "stream" (not at all: windows are read from the store, which is slow one by one and fast in
                the order of `batches`), or "auto": ram if they take less than a quarter of the available memory, mmap
                if the disk has room for the file, stream otherwise.
            generation: which generation of the store, the current one by default.
            arrays: side arrays of the store, such as "action", whose rows come with each window.

        Raises:
            StoreError: the store cannot be opened, has no such array, or a shard is damaged.
            LVTError: no clip of the split is long enough for a window.
            ConfigError: a number is out of range, or there is no such tier.
        """
        frames, stride = require_count("frames", frames), require_count("stride", stride)
        self.store = store if isinstance(store, CodeStore) else open_codes(store, generation)
        self.frames = frames
        self.stride = stride
        self.arrays = (arrays,) if isinstance(arrays, str) else tuple(arrays)
        self.split = split
        members = self.store.split(split)
        self.clips = [clip for clip in members if clip.length >= frames]
        self.num_short_clips = len(members) - len(self.clips)
        if not self.clips:
            raise LVTError(_why_empty(self.store, split, frames))

        positions = np.cumsum([0, *(clip.length for clip in members)])[:-1]
        self._first_frame = np.array(
            [position for position, clip in zip(positions, members, strict=True) if clip.length >= frames], np.int64
        )
        self.offsets = np.array([clip.offset for clip in self.clips], np.int64)
        self.num_starts = np.array([clip.length - frames + 1 for clip in self.clips], np.int64)
        counts = -(-self.num_starts // stride)
        self._end_of_clip = np.cumsum(counts)  # windows up to and including each clip

        self._load(cache, members, progress)

    def _load(self, cache: Cache, members: Sequence[CodeClip], progress: Progress) -> None:
        """Choose where the arrays of the split are kept, and load them there."""
        arrays = {"codes": self.store.codes, **{name: self.store.array(name).array for name in self.arrays}}
        files = {name: cache_file(self.store, self.split, name) for name in arrays}
        self.cache: Tier = choose_tier(cache, split_bytes(self.store, self.split, self.arrays), files["codes"])
        self._loaded = {
            name: SplitArray(array, members, self.cache, files[name], progress) for name, array in arrays.items()
        }

    def __repr__(self) -> str:
        return f"CodeWindows({str(self.store.path)!r}, {len(self):,} windows of {self.frames} frames, {self.split})"

    def __len__(self) -> int:
        return int(self._end_of_clip[-1])

    @property
    def num_clips(self) -> int:
        """Clips that hold at least one window."""
        return len(self.clips)

    def __getitem__(self, index: int) -> Any:
        """One window, int64 (frames, h, w, n_c); with side arrays a dict of it as "codes" and of (frames, d) by name.
        Here and in all methods a negative index counts from the end.

        Raises:
            IndexError: the index is out of range.
        """
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Windows by index, in one gather: a `torch.utils.data.DataLoader` fetches a batch with it."""
        windows = self.batch(indices)
        if not isinstance(windows, dict):
            return list(windows.unbind())
        return [dict(zip(windows, each, strict=True)) for each in zip(*windows.values(), strict=True)]

    def batch(self, indices: NDArray[np.integer[Any]] | Sequence[int]) -> Any:
        """Windows by index, int64 (B, frames, h, w, n_c), in one gather; with side arrays a dict as in
        `windows[index]`. Errors as there.
        """
        clips, starts = self._locate(indices)
        return self.at(clips, starts)

    def at(self, clips: NDArray[np.integer[Any]], starts: NDArray[np.integer[Any]]) -> Any:
        """Windows that begin at any frame: the companion of `codes.loading.order.clip_batch`.

        Args:
            clips: integers (B,), positions in `self.clips`.
            starts: integers (B,), first frames, in [0, num_starts) of the clip.

        Returns:
            int64 (B, frames, h, w, n_c); with side arrays a dict as in `windows[index]`.
        """
        return widened(self._stored(clips, starts))

    def loader(self, batch_size: int = 1, **options: Any) -> DataLoader[Any]:
        """A `torch.utils.data.DataLoader` that gives whole batches, each as `batch` does.

        Worker processes put codes, as narrow as they are stored, into memory that they share with this process, which
        makes int64 of them; batches of a `batch_sampler` without `batch_size` are sent as torch does it.

        Args:
            options: further arguments of the `DataLoader`, such as shuffle, sampler and num_workers.
        """
        shape = (self.frames, *self.store.schema.frame_shape)
        return WindowLoader(self._by_index, len(self), shape, self.store.dtype, batch_size, **options)

    def empty(self, num_windows: int) -> dict[str, NDArray[Any]]:
        """Memory for that many windows, (num_windows, frames, ...) by name: "codes" and the side arrays."""
        return {name: array.empty(num_windows, self.frames) for name, array in self._loaded.items()}

    def read(
        self,
        clips: NDArray[np.integer[Any]],
        starts: NDArray[np.integer[Any]],
        out: NDArray[Any] | None = None,
        name: str = "codes",
    ) -> NDArray[Any]:
        """As `at`, one array (B, frames, h, w, n_c), or (B, frames, d) of a side array.

        Args:
            out: where they are put, in any dtype that holds them; by default a new array in that of the store.
            name: "codes" or that of a side array.

        Raises:
            IndexError: there is no such clip, or a window would reach beyond its clip.
        """
        clips = _positions(clips, len(self.clips), "clip")
        starts = _integers(starts)
        if np.any(starts < 0) or np.any(starts >= self.num_starts[clips]):
            raise IndexError("a window would begin outside its clip or reach beyond the end of it")
        return self._loaded[name].read(
            self._first_frame[clips] + starts, self.offsets[clips] + starts, self.frames, out
        )

    def clip(self, index: int) -> CodeClip:
        """The clip that a window is cut from."""
        return self.clips[int(self._locate([operator.index(index)])[0][0])]

    def label(self, index: int) -> str | None:
        """The label of the clip that a window is cut from."""
        return self.clip(index).label

    @property
    def codes(self) -> NDArray[Any]:
        """Codes of all clips of the split, short ones too, one after another: (frames, h, w, n_c) uint8 or uint16.
        Errors as in `SplitArray.values`.
        """
        return self._loaded["codes"].values

    @property
    def window_bytes(self) -> int:
        """Bytes of the codes of a window in the dtype of the store."""
        return self.frames * int(np.prod(self.store.schema.frame_shape)) * self.store.dtype.itemsize

    def _stored(
        self, clips: NDArray[np.integer[Any]], starts: NDArray[np.integer[Any]], out: NDArray[Any] | None = None
    ) -> dict[str, Tensor]:
        """As `at`, in a dict, with codes in the dtype of the store and perhaps in `out`."""
        side = side_tensors({name: self.read(clips, starts, name=name) for name in self.arrays})
        return {"codes": torch.from_numpy(self.read(clips, starts, out)), **side}

    def _by_index(self, indices: Sequence[int], out: NDArray[Any] | None) -> dict[str, Tensor]:
        return self._stored(*self._locate(indices), out)

    def _locate(self, indices: NDArray[np.integer[Any]] | Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The clip and the first frame within it of each window."""
        found = _positions(indices, len(self), "window")
        clips = np.searchsorted(self._end_of_clip, found, side="right")
        before = np.where(clips > 0, self._end_of_clip[clips - 1], 0)
        return clips, (found - before) * self.stride


def side_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Side arrays as tensors. Unsigned integers of more than a byte become int64: torch does little with them."""
    wide = {name: values.dtype.kind == "u" and values.itemsize > 1 for name, values in arrays.items()}
    return {name: torch.from_numpy(rows.astype(np.int64) if wide[name] else rows) for name, rows in arrays.items()}


def require_count(name: str, value: Any, at_least: int = 1) -> int:
    """An argument that must be an integer in range; NumPy integers are accepted.

    Raises:
        ConfigError: it is something else.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not at_least <= value <= LARGEST_COUNT:
        raise ConfigError(f"{name}={value!r} must be an integer from {at_least} to {LARGEST_COUNT}")
    return int(value)


def _integers(values: Any) -> NDArray[np.int64]:
    found = np.asarray(values)
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"windows are found by integers, not by {found.dtype}")
    return found.astype(np.int64)


def _positions(values: Any, count: int, noun: str) -> NDArray[np.int64]:
    """Positions in [0, count) from indices, of which negative ones count from the end."""
    found = _integers(values)
    wrong = found[(found < -count) | (found >= count)]
    if wrong.size:
        raise IndexError(f"{noun} {wrong.flat[0]} of {count}")
    return np.where(found < 0, found + count, found)


def _why_empty(store: CodeStore, split: str, frames: int) -> str:
    members = store.split(split)
    if not members:
        found = ", ".join(f"{name} ({len(store.split(name))})" for name in sorted({c.split for c in store.clips}))
        return f"{store.path} has no clips in split {split}; it has {found}"
    longest = max(clip.length for clip in members)
    return (
        f"no clip of split {split} in {store.path} is long enough: the longest has {longest} frames and a window needs "
        f"{frames}; use shorter windows or longer clips"
    )
