"""Loading under torchrun: the processes together see the batches of one, share a mapped file and share the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.codes import shard_file as code_reading
from lvt_pipeline.codes.loading.batches import Batches, make_batches
from lvt_pipeline.codes.loading.cache import cache_folder
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.training.prior import train_prior
from tests.run_files import metrics_of
from tests.test_prior_training import settings_of
from tests.toy_codes import make_store

STEPS, BATCH, FRAMES, PARTS = 6, 8, 5, 2
POOL = 24 * FRAMES * 4 * 3 * 2 * 2  # bytes of 24 windows: the batches of three steps
TIERS = [("clips", "ram"), ("clips", "mmap"), ("shards", "ram"), ("shards", "mmap"), ("shards", "stream")]

# What every process runs. It opens the windows in all tiers, takes its rows of every step as a training does that
# accumulates gradients in PARTS parts, and leaves them as a file.
WORKER = """
import sys
from pathlib import Path
import numpy as np
from lvt_pipeline.codes.loading import split_arrays as windows_module
from lvt_pipeline.training.distributed import joined_ranks
from tests.test_parallel_loading import BATCH, PARTS, STEPS, TIERS, batches_of

made = []
read_clips = windows_module._read_clips
windows_module._read_clips = lambda *arguments: (made.append(1), read_clips(*arguments))[1]
folder, found = Path(sys.argv[1]), {}
with joined_ranks("cpu") as workers:
    size = BATCH // PARTS // workers.size
    for shuffle, cache in TIERS:
        workers.wait()
        made.clear()
        batches = batches_of(folder, shuffle, cache)
        parts = []
        for step in range(STEPS):
            for part in range(PARTS):
                first = (part * workers.size + workers.rank) * size
                parts.append(batches.read(step, range(first, first + size)).numpy())
        found[f"{shuffle} {cache}"] = np.stack(parts)
        found[f"made {shuffle} {cache}"] = np.array(len(made))
    np.savez(folder / f"rank{workers.rank}.npz", **found)
"""


def batches_of(folder: Path, shuffle: str, cache: str) -> Batches:
    """Batches of the two stores of a test."""
    stores = [CodeWindows(folder / name, frames=FRAMES, cache=cache) for name in ("a.zarr", "b.zarr")]  # type: ignore[arg-type]
    return make_batches(stores, BATCH, seed=2, shuffle=shuffle, mix=[3, 1], pool_bytes=POOL)


def torchrun(num_processes: int, *command: str | Path) -> None:
    """Start processes that find each other as on one node of a cluster, and wait for them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([*launch, *command], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_see_the_batches_of_one_in_every_tier(tmp_path: Path, num_processes: int) -> None:
    make_store(tmp_path / "a.zarr", {f"train/{i}": 4 + (i * 7) % 23 for i in range(40)})
    make_store(tmp_path / "b.zarr", {f"train/other{i}": 9 for i in range(12)})
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun(num_processes, tmp_path / "worker.py", tmp_path)
    ranks = [np.load(tmp_path / f"rank{rank}.npz") for rank in range(num_processes)]
    size = BATCH // PARTS // num_processes
    for shuffle, cache in TIERS:
        whole = batches_of(tmp_path, shuffle, "ram")
        for step in range(STEPS):
            expected = whole.read(step, range(BATCH)).numpy().reshape(PARTS, num_processes, size, FRAMES, 4, 3, 2)
            for number, rank in enumerate(ranks):
                seen = rank[f"{shuffle} {cache}"][step * PARTS : (step + 1) * PARTS]
                assert np.array_equal(seen, expected[:, number]), (shuffle, cache, step)
    # A mapped file for each store, made by whichever process came first; memory is everyone's own.
    assert sum(int(rank["made clips mmap"]) for rank in ranks) == 2
    assert sum(int(rank["made shards mmap"]) for rank in ranks) == 0
    assert [int(rank["made clips ram"]) for rank in ranks] == [2] * num_processes
    assert [int(rank["made shards stream"]) for rank in ranks] == [0] * num_processes
    assert all(
        file.suffix == ".npy" for name in ("a", "b") for file in cache_folder(tmp_path / f"{name}.zarr").iterdir()
    )


@pytest.mark.parametrize("repeats", [1, 4])
def test_processes_that_stream_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeats: int) -> None:
    make_store(tmp_path / "s.zarr", {f"train/{i}": 40 for i in range(400)}, shard_frames=1024)
    decoded: list[int] = []
    decode = code_reading.decode_chunk

    def counting(*arguments: Any) -> Any:
        decoded.append(1)
        return decode(*arguments)

    monkeypatch.setattr(code_reading, "decode_chunk", counting)

    def work(ranks: int, rank: int) -> int:
        windows = CodeWindows(tmp_path / "s.zarr", frames=16, cache="stream")
        batches = make_batches([windows], 64, seed=0, shuffle="shards", windows_per_clip=repeats)
        assert len(windows.clips) * repeats * windows.window_bytes < 2**27  # an epoch is one pool
        decoded.clear()
        size = 64 // ranks
        batches.read(0, range(rank * size, (rank + 1) * size))
        batches.read(0, range(rank * size, (rank + 1) * size))
        for sequence in batches._sequences:  # type: ignore[attr-defined]
            sequence._thread.shutdown()
        return len(decoded)

    alone = work(1, 0)
    for ranks in (2, 4, 8):
        shares = [work(ranks, rank) / alone for rank in range(ranks)]
        assert max(shares) < 1 / ranks + 0.05, shares


@pytest.mark.slow
def test_streaming_training_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    lengths = {f"train/{i}": 4 + i % 5 for i in range(11)} | {"val/a": 6, "val/b": 5}
    store = make_store(tmp_path / "a.zarr", lengths, codebook_size=8, frame_shape=(4, 4, 2)).path
    script = (
        "import sys\nfrom pathlib import Path\nfrom lvt_pipeline.training.prior import train_prior\n"
        "from tests.test_prior_training import settings_of\n"
        "settings = settings_of(shuffle='shards', log_every=1, max_steps=int(sys.argv[3]))\n"
        "train_prior(Path(sys.argv[1]), Path(sys.argv[2]), settings, cache='stream', device='cpu')\n"
    )
    (tmp_path / "worker.py").write_text(script)
    train_prior(store, tmp_path / "whole", settings_of(shuffle="shards", log_every=1), cache="ram", device="cpu")
    torchrun(2, tmp_path / "worker.py", store, tmp_path / "parts", "3")
    torchrun(1, tmp_path / "worker.py", store, tmp_path / "parts", "6")
    torchrun(2, tmp_path / "worker.py", store, tmp_path / "parts", "8")
    whole, parts = (
        [line["loss"] for line in metrics_of(tmp_path / name) if line["split"] == "train"]
        for name in ("whole", "parts")
    )
    assert parts == pytest.approx(whole, rel=1e-4)  # sums in another order; other windows would be off by percents
