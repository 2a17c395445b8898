"""Other readers of zarr v3 get the same codes from a store, also from one that grew and has dead ranges.

They run in fresh processes: tensorstore and zarrs hang or crash in a process that was forked while they were loaded.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

from lvt_pipeline.codes import schema as codes_module
from lvt_pipeline.codes import shard_file
from lvt_pipeline.codes.schema import shard_name
from lvt_pipeline.codes.shard_file import ShardFile, read_frames
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.storage import open_storage
from tests.toy_codes import LENGTHS, make_store

READERS = {
    "zarr": """
        import zarr
        codes = zarr.open_array(store + "/codes", mode="r")[:]
    """,
    "zarrs": """
        import zarr
        import zarrs
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        array = zarr.open_array(store + "/codes", mode="r")
        assert type(array._async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
        codes = array[:]
    """,
    "tensorstore": """
        import tensorstore
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": store + "/codes/"}}
        codes = tensorstore.open(spec, open=True, read=True).result().read().result()
    """,
}


def read_with(reader: str, store: Path, out: Path) -> np.ndarray:
    """The whole array of a store, read by another library in a fresh process."""
    script = f"import sys\nimport numpy\nstore, out = sys.argv[1:]\n{textwrap.dedent(READERS[reader])}"
    script += "\nnumpy.save(out, codes)\n"
    command = [sys.executable, "-W", "ignore", "-c", script, str(store), str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return np.load(out)


@pytest.fixture(scope="module", params=[256, 512], ids=["uint8", "uint16"])
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CodeStore:
    """A store of two generations: a clip is gone, one changed, one is new; shards of several chunks."""
    path = tmp_path_factory.mktemp("stores") / "data.zarr"
    lengths = {**LENGTHS, "train/long": 300}
    make_store(path, lengths, codebook_size=request.param, shard_frames=256)
    del lengths["train/a"]
    return make_store(
        path,
        {**lengths, "train/new": 70},
        codebook_size=request.param,
        shard_frames=256,
        content={"train/long": "other"},
    )


@pytest.mark.parametrize("reader", READERS)
def test_other_readers_get_equal_arrays(grown: CodeStore, tmp_path: Path, reader: str) -> None:
    if reader != "zarr":
        pytest.importorskip(reader)
    codes = read_with(reader, grown.path, tmp_path / "codes.npy")
    assert codes.dtype == grown.dtype
    assert codes.shape == (grown.array_frames, *grown.schema.frame_shape)
    assert np.array_equal(codes, grown.read_range(0, grown.array_frames))
    for clip in grown.clips:
        assert np.array_equal(codes[clip.offset : clip.offset + clip.length], grown[clip.id])


def test_lvt_reads_any_range_as_zarr_does(grown: CodeStore) -> None:
    array = zarr.open_array(grown.path / "codes", mode="r")
    generator = np.random.default_rng(0)
    ranges = np.sort(generator.integers(0, grown.array_frames + 1, (60, 2)), axis=1).tolist()
    for start, stop in [[0, grown.array_frames], [255, 257], [63, 65], [0, 0], *ranges]:
        assert np.array_equal(grown.read_range(start, stop), array[start:stop]), (start, stop)


def shard_of(store: CodeStore, index: int) -> ShardFile:
    name = shard_name(index)
    return ShardFile(open_storage(store.path), name, (store.path / name).stat().st_size)


def test_threads_read_what_one_reads(grown: CodeStore) -> None:
    whole = grown.read_range(0, grown.array_frames)
    for start, stop in [(0, grown.array_frames), (3, grown.array_frames - 5), (200, 300)]:
        codes = read_frames(partial(shard_of, grown), grown.schema, start, stop, threads=3)
        assert np.array_equal(codes, whole[start:stop])


def test_a_store_keeps_its_chunks_when_it_grows_under_another_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {"train/a": 200, "train/b": 90}
    with monkeypatch.context() as patch:
        patch.setattr(codes_module, "CHUNK_FRAMES", 16)
        patch.setattr(shard_file, "ZSTD_LEVEL", 1)
        make_store(tmp_path / "s", lengths, shard_frames=256)
    before = (tmp_path / "s/codes/c/0/0/0/0").read_bytes()
    store = make_store(tmp_path / "s", {**lengths, "train/c": 130}, shard_frames=256)
    assert (store.schema.chunk_frames, (tmp_path / "s/codes/c/0/0/0/0").read_bytes()) == (16, before)
    fresh = make_store(tmp_path / "fresh", {**lengths, "train/c": 130}, shard_frames=256)
    assert fresh.schema.chunk_frames == codes_module.CHUNK_FRAMES
    array = zarr.open_array(tmp_path / "s" / "codes", mode="r")
    for clip in store.clips:
        assert np.array_equal(store[clip.id], fresh[clip.id])
        assert np.array_equal(array[clip.offset : clip.offset + clip.length], fresh[clip.id])
