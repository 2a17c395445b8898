"""Batches of windows: one order for every tier and any number of processes, in bounded memory, from several stores."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvt_pipeline.codes import shard_file as code_reading
from lvt_pipeline.codes.loading import cache as window_cache
from lvt_pipeline.codes.loading.batches import as_tensor, make_batches
from lvt_pipeline.codes.loading.cache import cache_file, remove_cache
from lvt_pipeline.codes.loading.order import MIXTURE_BLOCK, clip_batch, clip_sequence, mixture, mixture_positions
from lvt_pipeline.codes.loading.shard_order import ShardOrder
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import ConfigError, LVTError, StoreError
from tests.listener import Listener
from tests.toy_codes import make_store

LENGTHS = {f"train/{i}": 4 + (i * 7) % 23 for i in range(40)}
FRAMES = 5
POOL = 8 * FRAMES * 4 * 3 * 2 * 2  # bytes of eight windows


@pytest.fixture
def store(tmp_path: Path) -> CodeStore:
    return make_store(tmp_path / "a.zarr", LENGTHS)


def windows_of(store: CodeStore, cache: str) -> CodeWindows:
    return CodeWindows(store, frames=FRAMES, cache=cache)  # type: ignore[arg-type]


def order_of(windows: CodeWindows, seed: int, batch_size: int = 6, **options: int) -> ShardOrder:
    return ShardOrder(
        windows.offsets,
        windows.num_starts,
        seed,
        shard_frames=windows.store.schema.shard_frames,
        rows=lambda first, stop: np.arange(first, stop) % batch_size,
        **options,
    )


def order_of_clips(shards: np.ndarray, pool_windows: int, num_starts: int = 1, batch_size: int = 6) -> ShardOrder:
    return ShardOrder(
        shards * 1000 + np.arange(len(shards)),
        np.full(len(shards), num_starts),
        0,
        shard_frames=1000,
        pool_windows=pool_windows,
        rows=lambda first, stop: np.arange(first, stop) % batch_size,
    )


def test_every_tier_gives_the_batches_of_the_shard_order_bit_for_bit(store: CodeStore) -> None:
    tiers = [
        make_batches([windows_of(store, cache)], 6, seed=3, shuffle="shards", pool_bytes=POOL)
        for cache in ("ram", "mmap", "stream")
    ]
    for step in (0, 1, 2, 30, 31, 5):  # forward, far ahead, and back
        drawn = tiers[0].draw(step)
        expected = np.stack(
            [store[clip.id][start : start + FRAMES] for clip, start in zip(drawn.clips, drawn.starts, strict=True)]
        )
        for batches in tiers:
            assert batches.draw(step) == drawn
            batch = batches.read(step, range(6))
            assert batch.dtype == torch.int16  # K=512: as narrow as the codes are stored
            assert np.array_equal(batch.numpy(), expected)


def test_streamed_batches_stay_what_they_are_while_others_are_read(store: CodeStore) -> None:
    streamed, resident = (
        make_batches([windows_of(store, cache)], 6, seed=3, shuffle="shards", pool_bytes=POOL)
        for cache in ("stream", "ram")
    )
    # Several threads, as when a training breaks down while batches are prepared. Pools follow one another in memory.
    steps = np.random.default_rng(0).permutation(60).tolist()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda step: streamed.read(step, range(6)), steps))
    for step, batch in zip(steps, found, strict=True):
        assert torch.equal(batch, resident.read(step, range(6)))


def test_codes_too_large_for_int16_keep_their_values() -> None:
    codes = np.array([0, 40_000, 65_535], np.uint16)
    assert as_tensor(codes, 2**16).tolist() == codes.tolist()
    assert as_tensor(codes[:1], 2**15).dtype == torch.int16
    assert as_tensor(codes[:1].astype(np.uint8), 256).dtype == torch.uint8


def test_parts_of_a_batch_are_rows_of_it_whoever_reads_them(store: CodeStore) -> None:
    whole = make_batches([windows_of(store, "stream")], 8, seed=1, shuffle="shards", pool_bytes=POOL)
    for ranks in (2, 4):
        size = 8 // ranks
        for rank in range(ranks):
            own = make_batches([windows_of(store, "stream")], 8, seed=1, shuffle="shards", pool_bytes=POOL)
            for step in range(12):
                rows = range(rank * size, (rank + 1) * size)
                assert torch.equal(own.read(step, rows), whole.read(step, range(8))[rows.start : rows.stop])


@pytest.mark.parametrize("repeats", [1, 3])
def test_every_clip_comes_equally_often_in_an_epoch_of_shards(store: CodeStore, repeats: int) -> None:
    windows = windows_of(store, "stream")
    order = order_of(windows, 0, pool_windows=20, windows_per_clip=repeats)
    assert order.num_items == windows.num_clips * repeats
    for epoch in range(3):
        clips, starts = order.items(epoch * order.num_items, (epoch + 1) * order.num_items)
        assert np.array_equal(np.bincount(clips), np.full(windows.num_clips, repeats))
        assert np.all((starts >= 0) & (starts < windows.num_starts[clips]))


def test_the_shard_order_depends_on_position_and_seed_alone(store: CodeStore) -> None:
    windows = windows_of(store, "stream")

    def order(seed: int) -> ShardOrder:
        return order_of(windows, seed, pool_windows=15)

    forward = order(0)
    parts = [forward.items(first, first + 7) for first in range(0, 210, 7)]
    whole = order(0).items(0, 210)
    for index in (0, 1):
        assert np.array_equal(np.concatenate([part[index] for part in parts]), whole[index])
    assert np.array_equal(order(0).items(203, 210)[0], whole[0][203:])
    assert (order(1).items(0, 210)[0] == whole[0]).mean() < 0.2
    epochs = whole[0][: 3 * forward.num_items].reshape(3, -1)
    assert (epochs[0] == epochs[1]).mean() < 0.3


def test_pools_hold_no_more_windows_than_asked_unless_a_shard_does() -> None:
    shards = np.repeat(np.arange(30), [3, 4, 5] * 10)
    order = order_of_clips(shards, 16)
    position = 0
    while position < 3 * order.num_items:
        pool = order.pool_at(position)
        assert pool.first == position
        assert 12 <= len(pool.clips) <= 16 or pool.stop % order.num_items == 0
        position = pool.stop
    big = order_of_clips(np.zeros(50, np.int64), 16)
    assert len(big.pool_at(0).clips) == 50
    first, second = big.items(0, 50)[0], big.items(50, 100)[0]
    assert (first == second).mean() < 0.3  # one pool, but another order in every epoch


def test_every_batch_spans_its_pool_and_rows_keep_to_their_part_of_it() -> None:
    order = order_of_clips(np.repeat(np.arange(40), 8), 160, batch_size=16)
    for position in (0, 160):
        pool = order.pool_at(position)
        batches = pool.clips.reshape(10, 16)
        shards = list(dict.fromkeys(sorted(pool.clips // 8)))
        for row in range(16):  # ten neighbours in whatever order the shards have
            assert len(set(batches[:, row] // 8)) <= 3
            assert not np.array_equal(np.argsort(batches[:, row]), np.arange(10))
        for batch in batches:
            assert len(set(batch // 8)) >= 0.7 * min(16, len(shards))
    groups = [frozenset(order.items(first, first + 16)[0]) for first in range(0, 10 * order.num_items, 16)]
    assert len(set(groups)) == len(groups)  # no two batches of ten epochs are alike


def test_the_order_of_shards_never_changes() -> None:
    # Runs that are resumed with a later version must see the order they began with.
    order = order_of_clips(np.repeat(np.arange(5), 2), 4, num_starts=9, batch_size=3)
    clips, starts = order.items(0, 10)
    assert clips.tolist() == [8, 9, 4, 5, 1, 7, 0, 6, 3, 2]
    assert starts.tolist() == [0, 2, 3, 5, 2, 4, 0, 7, 1, 0]


def test_streamed_windows_may_begin_anywhere(store: CodeStore) -> None:
    streamed, resident = windows_of(store, "stream"), windows_of(store, "ram")
    indices = np.random.default_rng(0).integers(0, len(resident), 200)
    assert torch.equal(streamed.batch(indices), resident.batch(indices))
    assert torch.equal(streamed[7], resident[7])
    assert streamed.batch([]).shape == (0, FRAMES, 4, 3, 2)
    long = [CodeWindows(store, frames=22, cache=cache) for cache in ("ram", "stream")]  # over three chunks and shards
    assert torch.equal(long[0].batch(range(len(long[0]))), long[1].batch(range(len(long[1]))))
    with pytest.raises(LVTError, match="are streamed"):
        _ = streamed.codes


def test_streaming_names_a_missing_shard(store: CodeStore) -> None:
    batches = make_batches([windows_of(store, "stream")], 6, seed=3, shuffle="shards", pool_bytes=POOL)
    (store.path / "codes/c/3/0/0/0").unlink()
    with pytest.raises(StoreError, match=r"codes/c/3/0/0/0 is missing"):
        for step in range(10):
            batches.read(step, range(6))


def test_an_order_that_cannot_be_streamed_is_refused(store: CodeStore) -> None:
    with pytest.raises(ConfigError, match=r"is streamed, which gives training.shuffle=shards only"):
        make_batches([windows_of(store, "stream")], 4, seed=0)
    with pytest.raises(ConfigError, match="not one of clips, shards"):
        make_batches([windows_of(store, "ram")], 4, seed=0, shuffle="frames")


# Mixing ------------------------------------------------------------------------------------------------------------


def test_a_mixture_has_the_shares_asked_for_and_remembers_nothing() -> None:
    weights = [0.7, 0.2, 0.1]
    stores, before = mixture(weights, 0, 0, 5 * MIXTURE_BLOCK)
    assert before.tolist() == [0, 0, 0]
    assert np.bincount(stores).tolist() == [3500, 1000, 500]
    for first, stop in ((0, 1), (999, 1003), (1234, 3210)):
        part, counts = mixture(weights, 0, first, stop)
        assert np.array_equal(part, stores[first:stop])
        assert np.array_equal(counts, np.bincount(stores[:first], minlength=3))
    positions = [mixture_positions(weights, 0, number, 0, 1000) for number in range(3)]
    for number, found in enumerate(positions):
        assert np.array_equal(found[: len(np.flatnonzero(stores == number))], np.flatnonzero(stores == number)[:1000])
        assert np.array_equal(mixture_positions(weights, 0, number, 137, 452), found[137:452])
    assert np.array_equal(mixture_positions([1.0], 0, 0, 990, 2010), np.arange(990, 2010))
    assert np.bincount(mixture([1e-9, 1.0], 0, 0, MIXTURE_BLOCK)[0]).tolist() == [1, MIXTURE_BLOCK - 1]
    assert np.bincount(mixture([1, 1, 1], 0, 0, MIXTURE_BLOCK)[0]).tolist() == [334, 333, 333]


def test_a_sequence_of_clips_is_the_same_in_any_pieces() -> None:
    num_starts = np.array([3, 1, 50, 7])
    clips, starts = clip_sequence(num_starts, 5, 0, 40)
    assert all(sorted(clips[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 40, 4))
    assert np.all((starts >= 0) & (starts < num_starts[clips]))
    assert len(set(starts[clips == 2])) > 5
    for first, stop in ((0, 3), (3, 4), (17, 40)):
        part = clip_sequence(num_starts, 5, first, stop)
        assert np.array_equal(part[0], clips[first:stop])
        assert np.array_equal(part[1], starts[first:stop])


@pytest.mark.parametrize(("shuffle", "cache"), [("clips", "ram"), ("clips", "mmap"), ("shards", "stream")])
def test_stores_are_mixed_by_weight_and_each_goes_through_its_own_epochs(
    store: CodeStore, tmp_path: Path, shuffle: str, cache: str
) -> None:
    other = make_store(tmp_path / "b.zarr", {f"train/other{i}": 9 for i in range(6)})
    stores = [windows_of(store, cache), windows_of(other, cache)]
    batches = make_batches(stores, 10, seed=0, shuffle=shuffle, mix=[3, 1], pool_bytes=POOL)
    seen: list[str] = []
    for step in range(MIXTURE_BLOCK // 10):
        drawn = batches.draw(step)
        batch = torch.cat([batches.read(step, range(4)), batches.read(step, range(4, 10))])
        for clip, start, window in zip(drawn.clips, drawn.starts, batch.numpy(), strict=True):
            codes = (other if "other" in clip.id else store)[clip.id]
            assert np.array_equal(codes[start : start + FRAMES], window)
            seen.append(clip.id)
    ours, theirs = [name for name in seen if "other" not in name], [name for name in seen if "other" in name]
    assert (len(ours), len(theirs)) == (750, 250)
    assert all(len(set(theirs[i : i + 6])) == 6 for i in range(0, 246, 6))
    num_clips = stores[0].num_clips
    assert len(set(ours[:num_clips])) == num_clips


def test_weights_that_do_not_fit_the_stores_are_refused(store: CodeStore) -> None:
    windows = windows_of(store, "ram")
    with pytest.raises(ConfigError, match=r"has 3 weights for 2 code stores"):
        make_batches([windows, windows], 4, seed=0, mix=[1, 2, 3])
    with pytest.raises(ConfigError, match="needs weights above 0"):
        make_batches([windows, windows], 4, seed=0, mix=[1, 0])


def test_one_store_has_the_order_it_always_had(store: CodeStore) -> None:
    windows = windows_of(store, "ram")
    for step in (0, 1, 700):
        clips, starts = clip_batch(windows.num_starts, 4, 0, step)
        drawn = make_batches([windows], 4, seed=0).draw(step)
        assert (drawn.clips, drawn.starts) == ([windows.clips[clip] for clip in clips], starts.tolist())


# The mapped file ---------------------------------------------------------------------------------------------------


def test_auto_streams_what_fits_neither_memory_nor_disk(store: CodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_cache, "available_memory", lambda: 0)
    monkeypatch.setattr(window_cache, "free_disk_bytes", lambda folder: 2**20)
    assert windows_of(store, "auto").cache == "stream"
    monkeypatch.undo()
    windows_of(store, "mmap")
    monkeypatch.setattr(window_cache, "available_memory", lambda: 0)
    monkeypatch.setattr(window_cache, "free_disk_bytes", lambda folder: 0)
    assert windows_of(store, "auto").cache == "mmap"  # the file is there already


def test_a_mapped_file_with_a_single_wrong_bit_is_found_and_made_again(store: CodeStore) -> None:
    expected = windows_of(store, "mmap").batch(range(30))
    file = cache_file(store, "train")
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1  # far from the ends of any clip
    for bad in (flipped, good[:-300] + bytes(300), good[:-10], good[:-4], good + b"more", b"", b"\x93NUMPY\x01"):
        file.write_bytes(bad)
        lines = Listener()
        again = CodeWindows(store, frames=FRAMES, cache="mmap", progress=lines)
        assert lines.said == [f"{file} is damaged and is made again"]
        assert torch.equal(again.batch(range(30)), expected)
        assert file.read_bytes() == good
        assert np.array_equal(np.load(file), windows_of(store, "ram").codes)


def test_the_mapped_file_may_be_removed_at_any_time(store: CodeStore) -> None:
    windows, late = windows_of(store, "mmap"), pickle.dumps(windows_of(store, "mmap"))
    file = cache_file(store, "train")
    assert remove_cache(store.path) == [file]
    assert not file.parent.exists()
    expected = windows_of(store, "ram").batch(range(20))
    assert torch.equal(windows.batch(range(20)), expected)  # what has it open keeps it, even before its first read
    assert remove_cache(store.path) == []
    with pytest.raises(LVTError, match="is gone; run the same command again"):
        pickle.loads(late).batch(range(20))
    assert torch.equal(windows_of(store, "mmap").batch(range(20)), expected)
    assert torch.equal(pickle.loads(late).batch(range(20)), expected)


def test_a_disk_that_does_not_keep_what_is_written_is_said_and_not_tried_for_ever(
    store: CodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_cache, "is_sound", lambda *arguments: False)
    with pytest.raises(LVTError, match="is not what was just written into it; use --cache ram"):
        windows_of(store, "mmap")


# Bounded memory ----------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
from lvt_pipeline.codes.loading.batches import make_batches
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.loading.windows import CodeWindows

path, cache, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = open_codes(path)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
try:
    windows = CodeWindows(store, frames=16, cache=cache)
    batches = make_batches([windows], 64, 0, shuffle="shards", pool_bytes=limit // 10)
    seen = 0
    for step in range(windows.num_clips // 64):
        seen += int(batches.read(step, range(64)).shape[0])
    print("windows", seen)
except MemoryError:
    print("out of memory")
"""


@pytest.mark.slow
def test_a_store_five_times_the_memory_limit_is_streamed_within_it(tmp_path: Path) -> None:
    limit = 96 * 2**20
    frames = 5 * limit // (16 * 16 * 4 * 2)
    store = make_store(
        tmp_path / "big.zarr",
        {f"train/{i}": 40 for i in range(frames // 40)},
        frame_shape=(16, 16, 4),
        shard_frames=4096,
        content={f"train/{i}": f"{i % 8}" for i in range(frames // 40)},
    )
    assert store.num_frames * 2048 >= 5 * limit - 40 * 2048
    for cache, expected in (("stream", f"windows {len(store) // 64 * 64}"), ("ram", "out of memory")):
        result = subprocess.run(
            [sys.executable, "-c", LIMITED, str(store.path), cache, str(limit)],
            capture_output=True,
            text=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )
        assert result.stdout.strip() == expected, result.stderr


def test_a_pool_is_read_with_every_chunk_decompressed_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "s.zarr", {f"train/{i}": 40 for i in range(200)}, shard_frames=1024)
    decoded = []
    decode = code_reading.decode_chunk

    def counting(*arguments: Any) -> Any:
        decoded.append(arguments[1])
        return decode(*arguments)

    monkeypatch.setattr(code_reading, "decode_chunk", counting)
    windows = CodeWindows(store, frames=16, cache="stream")
    windows.read(np.arange(200), np.zeros(200, np.int64))
    assert len(decoded) <= 1.1 * 200 * 40 / store.schema.frames_per_chunk
