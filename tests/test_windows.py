"""Windows of codes: never across clips, the same from memory and from a file, and fast."""

from __future__ import annotations

import gc
import os
import pickle
import re
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from lvt_pipeline.codes.loading import cache as window_cache
from lvt_pipeline.codes.loading import split_arrays as windows_module
from lvt_pipeline.codes.loading.batches import make_batches
from lvt_pipeline.codes.loading.order import batch_indices, clip_batch
from lvt_pipeline.codes.loading.windows import CodeWindows, cache_file
from lvt_pipeline.codes.loading.workers import _SharedPlaces
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import ConfigError, LVTError, StoreError
from lvt_pipeline.provenance import Provenance

SCHEMA = CodeSchema(codebook_size=512, num_codebooks=2, grid=(2, 3), tokenizer="t", shard_frames=64)
LENGTHS = {"a": 20, "v": 30, "b": 7, "c": 100, "d": 16, "e": 41}


def clip(name: str, length: int, content: str = "") -> PlannedClip:
    return PlannedClip(
        id=name,
        split="val" if name == "v" else "train",
        label=f"label of {name}" if name != "d" else None,
        length=length,
        fingerprint=content or name,
        fps=10.0,
        source="",
    )


def codes_of(planned: PlannedClip) -> np.ndarray:
    seed = int.from_bytes(planned.fingerprint.encode(), "little")
    return np.random.default_rng(seed).integers(0, 512, (planned.length, 2, 3, 2))


def write(path: Path, clips: list[PlannedClip]) -> None:
    by_id = {planned.id: planned for planned in clips}
    with CodeStoreWriter.open(path, SCHEMA, clips) as writer:
        for shard in writer.pending_shards():
            parts = [codes_of(by_id[part.clip_id])[part.start : part.stop] for part in shard.parts]
            writer.write_shard(shard.index, np.concatenate(parts))
        writer.publish(Provenance(kind="codes", stage="test", version=1, settings={}, inputs={}, fingerprint=""))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "data.zarr", [clip(name, length) for name, length in LENGTHS.items()])
    return tmp_path / "data.zarr"


def expected_windows(lengths: dict[str, int], frames: int, stride: int) -> list[np.ndarray]:
    return [
        codes_of(clip(name, length))[start : start + frames]
        for name, length in lengths.items()
        if name != "v"
        for start in range(0, length - frames + 1, stride)
    ]


@pytest.mark.parametrize("cache", ["ram", "mmap"])
@pytest.mark.parametrize(("frames", "stride"), [(16, 1), (16, 5), (1, 1), (20, 100), (7, 16)])
def test_windows_are_those_of_a_slow_obvious_loop(store: Path, cache: str, frames: int, stride: int) -> None:
    windows = CodeWindows(store, frames=frames, stride=stride, cache=cache)
    expected = expected_windows(LENGTHS, frames, stride)
    assert len(windows) == len(expected)
    for index, codes in enumerate(expected):
        window = windows[index]
        assert window.dtype == torch.int64
        assert np.array_equal(window.numpy(), codes)
    assert np.array_equal(windows[-1].numpy(), expected[-1])
    order = np.random.default_rng(0).permutation(len(expected))
    assert np.array_equal(windows.batch(order).numpy(), np.stack([expected[i] for i in order]))
    with pytest.raises(IndexError):
        windows[len(expected)]


def test_short_clips_are_skipped_and_counted(store: Path) -> None:
    windows = CodeWindows(store, frames=16)
    assert (windows.num_clips, windows.num_short_clips) == (4, 1)
    assert [windows.clip(i).id for i in (0, 4, 5, 89, 90, 91, 116)] == ["a", "a", "c", "c", "d", "e", "e"]
    assert windows.label(5) == "label of c"
    assert windows.label(90) is None
    assert len(CodeWindows(store, split="val")) == 15


def test_windows_may_begin_anywhere_for_one_window_per_clip(store: Path) -> None:
    windows = CodeWindows(store, frames=16, stride=50)
    clips, starts = clip_batch(windows.num_starts, 32, seed=0, step=3)
    batch = windows.at(clips, starts)
    for codes, position, start in zip(batch.numpy(), clips, starts, strict=True):
        name = windows.clips[position].id
        assert np.array_equal(codes, codes_of(clip(name, LENGTHS[name]))[start : start + 16])
    for wrong in (-1, windows.num_starts[0]):
        with pytest.raises(IndexError, match="outside its clip"):
            windows.at(np.array([0]), np.array([wrong]))


def test_no_window_at_all_is_said_in_one_line(store: Path) -> None:
    with pytest.raises(LVTError, match="the longest has 100 frames and a window needs 101"):
        CodeWindows(store, frames=101)
    with pytest.raises(LVTError, match=r"no clips in split test; it has train \(5\), val \(1\)"):
        CodeWindows(store, split="test")
    with pytest.raises(ConfigError, match="frames=0 must be an integer from 1"):
        CodeWindows(store, frames=0)
    with pytest.raises(ConfigError, match="not one of auto, ram, mmap, stream"):
        CodeWindows(store, cache="disk")  # type: ignore[arg-type]


def test_an_extended_store_gives_the_windows_of_the_generation_asked_for(store: Path) -> None:
    changed = {**LENGTHS, "b": 25, "z": 18}
    write(store, [clip(name, length, "new b" if name == "b" else "") for name, length in changed.items()])
    for cache in ("ram", "mmap"):
        old = CodeWindows(store, generation=1, cache=cache)
        new = CodeWindows(store, cache=cache)
        assert (old.num_clips, new.num_clips) == (4, 6)
        expected = expected_windows(LENGTHS, 16, 1)
        assert np.array_equal(old.batch(range(len(old))).numpy(), np.stack(expected))
        position = [c.id for c in new.clips].index("b")
        codes = new.at(np.array([position]), np.array([9]))[0]
        assert np.array_equal(codes.numpy(), codes_of(clip("b", 25, "new b"))[9:25])


def test_the_mapped_file_is_made_once_and_again_only_when_it_is_not_whole(store: Path) -> None:
    first = CodeWindows(store, cache="mmap")
    file = cache_file(open_codes(store), "train")
    assert file.parent == store.with_name("data.zarr.cache")
    made = file.stat().st_mtime_ns
    assert np.array_equal(CodeWindows(store, cache="mmap")[3], first[3])
    assert file.stat().st_mtime_ns == made
    file.write_bytes(file.read_bytes()[:-100])
    again = CodeWindows(store, cache="mmap")
    assert np.array_equal(again.batch(range(len(again))), CodeWindows(store, cache="ram").batch(range(len(again))))


def test_two_processes_that_need_the_file_make_it_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = windows_module._read_clips

    def slow(*arguments: object) -> object:
        reads.append(1)
        time.sleep(0.3)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(windows_module, "_read_clips", slow)
    threads = [threading.Thread(target=CodeWindows, args=(store,), kwargs={"cache": "mmap"}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1


def test_auto_takes_memory_when_there_is_plenty_and_a_file_when_there_is_not(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CodeWindows(store).cache == "ram"
    num_bytes = 184 * 2 * 3 * 2 * 2
    monkeypatch.setattr(window_cache, "available_memory", lambda: 4 * num_bytes)
    assert CodeWindows(store).cache == "ram"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each rank would hold a copy
    assert CodeWindows(store).cache == "mmap"


def test_mapped_windows_are_pickled_without_their_codes(store: Path) -> None:
    windows = CodeWindows(store, cache="mmap")
    windows[0]
    data = pickle.dumps(windows)
    assert len(data) < 6000
    assert torch.equal(pickle.loads(data)[5], windows[5])


@pytest.mark.parametrize(("num_workers", "method"), [(0, None), (2, "fork"), (1, "spawn")])
def test_a_data_loader_fetches_a_batch_with_one_gather(
    store: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int, method: str | None
) -> None:
    windows = CodeWindows(store)
    expected = windows.batch(range(len(windows)))
    if num_workers == 0:
        monkeypatch.setattr(CodeWindows, "__getitem__", None)
    loader = DataLoader(windows, batch_size=50, num_workers=num_workers, multiprocessing_context=method)
    assert torch.equal(torch.cat(list(loader)), expected)
    assert all(torch.equal(a, b) for a, b in zip(windows.__getitems__([3, -1]), expected[[3, -1]], strict=True))


@pytest.mark.parametrize("cache", ["ram", "mmap", "stream"])
@pytest.mark.parametrize(("num_workers", "method"), [(0, None), (2, "fork"), (1, "forkserver"), (1, "spawn")])
def test_a_loader_gives_whole_batches_in_every_tier_and_with_every_start_method(
    store: Path, cache: Any, num_workers: int, method: str | None
) -> None:
    windows = CodeWindows(store, cache=cache)
    chosen = [*range(10, 80), -1, 3]
    loader = windows.loader(32, sampler=chosen, num_workers=num_workers, multiprocessing_context=method)
    batches = list(loader)
    assert [(len(batch), batch.dtype) for batch in batches] == [(32, torch.int64), (32, torch.int64), (8, torch.int64)]
    assert torch.equal(torch.cat(batches), windows.batch(chosen))
    del batches
    before = open_files()  # after those that multiprocessing opens once in a process
    assert torch.equal(torch.cat(list(loader)), windows.batch(chosen))
    assert not Counter(open_files()) - Counter(before)  # what an earlier test left may close meanwhile


@pytest.mark.parametrize(
    "options",
    [
        {"prefetch_factor": 1},
        {"prefetch_factor": 4, "num_workers": 1, "persistent_workers": True},
        {"batch_sampler": BatchSampler(range(70), 8, drop_last=False)},
        {"batch_sampler": [[3], [*range(60)], [-1, 5]]},  # of unknown size: as torch sends them
    ],
    ids=["one ahead", "workers that stay", "a batch sampler", "lists"],
)
def test_batches_in_shared_memory_stay_whole_while_workers_run_ahead(store: Path, options: dict[str, Any]) -> None:
    windows = CodeWindows(store)
    sizes = {} if "batch_sampler" in options else {"batch_size": 8}
    loader = windows.loader(**{"num_workers": 2, "multiprocessing_context": "fork"} | sizes | options)
    assert loader.batch_sampler is not None
    expected = [windows.batch(chosen) for chosen in loader.batch_sampler]
    broken_off = iter(loader)
    assert torch.equal(next(broken_off), expected[0])
    for _ in range(2):
        found = []
        for batch in loader:
            time.sleep(0.01)  # the workers fill what they may
            found.append(batch)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    if not loader.persistent_workers:
        assert torch.equal(next(broken_off), expected[1])  # the other loops did not write to its memory
        assert all(torch.equal(a, b) for a, b in zip(loader, loader, strict=True))


def test_a_worker_sends_a_batch_in_the_dtype_of_the_store_or_its_place(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = CodeWindows(store)
    expected = windows.batch([3, 5])
    make = windows.loader(2).collate_fn
    assert torch.equal(make([3, 5]), expected)
    monkeypatch.setattr("lvt_pipeline.codes.loading.workers.get_worker_info", lambda: SimpleNamespace(id=1))
    sent = make([3, 5])
    assert (sent.arguments[0]["codes"].dtype, sent.arguments[0]["codes"].shape) == (torch.uint16, expected.shape)
    assert torch.equal(ForkingPickler.loads(ForkingPickler.dumps(sent)), expected)
    make = replace(make, shared=_SharedPlaces(2, 2, 2 * windows.window_bytes))
    for indices in ([3, 5], [4], [1, 2]):
        sent = ForkingPickler.dumps(make(indices))
        assert len(sent) < 500
        assert torch.equal(ForkingPickler.loads(sent), windows.batch(indices))


def open_files() -> list[str]:
    """Where the file descriptors of this process lead, without numbers."""
    gc.collect()
    return sorted(re.sub(r"\d+", "", os.readlink(link)) for link in Path("/proc/self/fd").iterdir() if link.exists())


def test_a_batch_is_gathered_far_faster_than_a_model_could_use_it(tmp_path: Path) -> None:
    write(tmp_path / "s.zarr", [clip(f"clip {i}", 40) for i in range(100)])
    windows = CodeWindows(tmp_path / "s.zarr")
    started = time.monotonic()
    for step in range(100):
        windows.batch(batch_indices(len(windows), 64, 0, step))
    assert 6400 / (time.monotonic() - started) > 5_000  # windows a second; measured: over 100,000


@pytest.mark.parametrize("cache", ["ram", "mmap", "stream"])
def test_negative_indices_count_from_the_end_in_every_method(store: Path, cache: Any) -> None:
    windows = CodeWindows(store, frames=4, cache=cache)
    last = len(windows) - 1
    for negative, index in ((-1, last), (-2, last - 1), (-len(windows), 0)):
        assert torch.equal(windows[negative], windows[index])
        assert torch.equal(windows.batch([negative])[0], windows[index])
        assert windows.clip(negative) == windows.clip(index)
        assert windows.label(negative) == windows.label(index)
        assert torch.equal(windows[np.int16(negative)], windows[index])
    zeros = np.zeros(1, np.int64)
    assert torch.equal(windows.at(np.array([-1]), zeros), windows.at(np.array([windows.num_clips - 1]), zeros))
    assert windows.batch([]).shape[0] == 0
    for wrong in (len(windows), -len(windows) - 1, 10**15):
        for method in (windows.__getitem__, windows.clip, windows.label, lambda index: windows.batch([0, index])):
            with pytest.raises(IndexError, match=f"window {wrong} of {len(windows)}"):
                method(wrong)
    for odd in (0.0, 1.5, float("nan"), "0", None):
        for method in (windows.__getitem__, windows.clip, lambda index: windows.batch([index])):
            with pytest.raises(TypeError):
                method(odd)  # type: ignore[operator]


@pytest.mark.parametrize("value", [0, -1, 1.0, float("nan"), float("inf"), True, "4", None, 2**63, 10**30])
def test_arguments_that_are_not_counts_are_refused_in_one_line(store: Path, value: Any) -> None:
    for settings in ({"frames": value}, {"stride": value}):
        with pytest.raises(ConfigError, match=r"must be an integer from 1 to"):
            CodeWindows(store, **settings)
    windows = CodeWindows(store, frames=np.int64(4), stride=np.int8(2))
    assert (windows.frames, windows.stride) == (4, 2)
    with pytest.raises(ConfigError, match=r"batch_size=.* must be an integer from 1 to"):
        make_batches([windows], value, seed=0)
    if value != 0:
        with pytest.raises(ConfigError, match=r"seed=.* must be an integer from 0 to"):
            make_batches([windows], 4, seed=value)
    if value is not None and type(value) is not int:
        with pytest.raises(StoreError, match="is not the number of a generation"):
            open_codes(store, value)
    with pytest.raises(ConfigError, match="is not one of auto, ram, mmap, stream"):
        CodeWindows(store, frames=4, cache=value)


def test_the_largest_counts_are_taken_as_they_are(store: Path) -> None:
    windows = CodeWindows(store, frames=4, stride=2**62)
    assert len(windows) == windows.num_clips
    with pytest.raises(LVTError, match="is long enough"):
        CodeWindows(store, frames=2**62)
