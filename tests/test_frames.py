"""Frame shards: what is written is read back, equal inputs give equal bytes, and damage is named."""

from __future__ import annotations

import gc
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from lvt_pipeline.errors import ArtefactError, ShapeError
from lvt_pipeline.frames.codecs import decode_frames, encode_frames, lossy_version
from lvt_pipeline.frames.receipts import read_receipt
from lvt_pipeline.frames.records import ClipFailure, FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.tar import tar_key
from lvt_pipeline.frames.writer import write_frames, write_shard


def pixels(num_frames: int = 5, height: int = 6, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def folder_of(root: Path, samples: list[FrameSample], clips_per_shard: int = 2) -> FrameShards:
    write_frames(root, samples, stage="test", settings={}, inputs={}, clips_per_shard=clips_per_shard)
    return FrameShards(root)


def three_clips(codec: str = "raw") -> list[FrameSample]:
    return [
        FrameSample.from_array("a/one", pixels(5, seed=1), codec=codec, label="a"),
        FrameSample.from_array("b.c/two.x", pixels(3, seed=2), codec=codec, split="val", fps=25.0),
        FrameSample.from_array("three", pixels(7, seed=3), codec=codec),
    ]


@pytest.mark.parametrize("codec", ["raw", "png", "webp"])
def test_frames_come_back_as_they_were_written(tmp_path: Path, codec: str) -> None:
    shards = folder_of(tmp_path / "frames", three_clips(codec))
    for name, count, seed in (("a/one", 5, 1), ("b.c/two.x", 3, 2), ("three", 7, 3)):
        assert np.array_equal(shards.read(name), pixels(count, seed=seed))
        assert np.array_equal(shards.read(shards[name], 1, 3), pixels(count, seed=seed)[1:3])
    assert shards.read("three", 6, 100).shape == (1, 6, 8, 3)
    assert shards.read("three", 5, 5).shape == (0, 6, 8, 3)
    assert shards.num_frames == 15


def test_clips_keep_who_they_are(tmp_path: Path) -> None:
    shards = folder_of(tmp_path / "frames", three_clips())
    assert [(clip.id, clip.split, clip.label, clip.fps, clip.num_frames) for clip in shards.clips] == [
        ("a/one", "train", "a", 10.0, 5),
        ("three", "train", None, 10.0, 7),
        ("b.c/two.x", "val", None, 25.0, 3),
    ]
    assert [clip.id for clip in shards.split("val")] == ["b.c/two.x"]
    assert shards.split("test") == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    folder_of(tmp_path / "frames", three_clips())
    urls = sorted(map(str, (tmp_path / "frames").glob("*.tar")))
    samples = {
        sample["json"]["id"]: sample["npy"] for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()
    }
    assert set(samples) == {"a/one", "b.c/two.x", "three"}
    assert np.array_equal(samples["b.c/two.x"], pixels(3, seed=2))
    gc.collect()


def test_equal_clips_give_equal_bytes_anywhere(tmp_path: Path) -> None:
    folder_of(tmp_path / "one", three_clips())
    folder_of(tmp_path / "two", three_clips())
    for path in sorted((tmp_path / "one").glob("*-*")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_shard_tells_nothing_about_the_machine(tmp_path: Path) -> None:
    folder_of(tmp_path / "frames", three_clips())
    with tarfile.open(tmp_path / "frames" / "train-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


def test_the_fingerprint_follows_content_and_names(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "one", three_clips())
    again = folder_of(tmp_path / "two", three_clips("png"))
    other = folder_of(tmp_path / "three", three_clips()[:2])
    assert first.fingerprint == again.fingerprint == first.record.fingerprint
    assert first.fingerprint != other.fingerprint


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=2, unique=True))
def test_different_ids_have_different_keys_without_dots(ids: list[str]) -> None:
    keys = [tar_key(clip_id) for clip_id in ids]
    assert keys[0] != keys[1]
    assert all("." not in key.rpartition("/")[2] and not key.startswith("__") for key in keys)


@pytest.mark.parametrize("codec", ["png", "webp"])
@given(num_frames=st.integers(1, 12), height=st.integers(1, 9), width=st.integers(1, 9))
def test_lossless_codecs_give_the_same_pixels_back(codec: Any, num_frames: int, height: int, width: int) -> None:
    frames = pixels(num_frames, height, width)
    assert np.array_equal(decode_frames(encode_frames(frames, codec), codec, num_frames, height, width), frames)


def test_jpeg_gives_every_frame_back_in_its_place_and_nearly_the_same() -> None:
    frames = np.broadcast_to(np.arange(0, 210, 30, np.uint8)[:, None, None, None], (7, 8, 16, 3))
    back = decode_frames(encode_frames(frames, "jpeg"), "jpeg", 7, 8, 16)
    assert np.abs(back.astype(int) - frames).max() <= 2
    assert lossy_version("jpeg") is not None
    assert lossy_version("webp") is None


def test_more_frames_than_a_webp_picture_holds_are_refused_with_what_to_do() -> None:
    with pytest.raises(ShapeError, match=r"16 frames of 4100x1 are too many for one webp picture; .*--clip-seconds"):
        encode_frames(np.zeros((16, 1, 4100, 3), np.uint8), "webp")


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ShapeError, match="frame codec 'bmp' is not one of raw, png, webp, jpeg"):
        encode_frames(pixels(), "bmp")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("codec", ["png", "webp"])
def test_plain_webdataset_reads_pictures_of_frames(tmp_path: Path, codec: str) -> None:
    shards = folder_of(tmp_path / "frames", three_clips(codec), clips_per_shard=8)
    dataset = webdataset.WebDataset(str(tmp_path / "frames" / "train-000000.tar"), shardshuffle=False)
    found = {}
    for sample in dataset.decode("rgb8"):
        picture, about = sample[codec], sample["json"]
        frames = rearrange(picture, "(r h) (q w) c -> (r q) h w c", h=about["height"], w=about["width"])
        found[about["id"]] = frames[: about["num_frames"]]
    gc.collect()
    assert sorted(found) == ["a/one", "three"]
    assert all(np.array_equal(frames, shards.read(name)) for name, frames in found.items())


def test_failures_are_kept_in_the_receipt_and_an_empty_shard_has_no_tar(tmp_path: Path) -> None:
    video = tmp_path / "videos" / "x.mp4"
    failure = ClipFailure(
        id="x", source=str(video), reason="damaged", message="x.mp4 is damaged", decoder="auto", fingerprint="f"
    )
    (tmp_path / "frames").mkdir()
    shard = tmp_path / "frames" / "train-000000.tar"
    shard.write_bytes(b"of an earlier run")
    write_shard(shard, [], [failure])
    assert not shard.exists()
    receipt = shard.with_suffix(".json")
    assert json.loads(receipt.read_text())["failures"][0]["source"] == "../videos/x.mp4"
    assert read_receipt(receipt).failures == [failure]


def test_threads_and_pickles_may_read(tmp_path: Path) -> None:
    shards = pickle.loads(pickle.dumps(folder_of(tmp_path / "frames", three_clips())))
    with ThreadPoolExecutor(4) as pool:
        for frames in pool.map(lambda _: shards.read("three", 2, 6), range(50)):
            assert np.array_equal(frames, pixels(7, seed=3)[2:6])


def test_frames_of_a_wrong_kind_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"found float32 \(2, 4, 4, 3\)"):
        FrameSample.from_array("x", np.zeros((2, 4, 4, 3), np.float32))


def test_what_is_not_a_finished_folder_of_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        FrameShards(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match="is not a folder of frames"):
        FrameShards(tmp_path / "empty")
    folder_of(tmp_path / "frames", three_clips())
    (tmp_path / "frames" / "provenance.json").unlink()
    with pytest.raises(ArtefactError, match="is not finished; run the same `lvt ingest` command again"):
        FrameShards(tmp_path / "frames")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_cut_shard_is_named(tmp_path: Path, damage: str) -> None:
    folder_of(tmp_path / "frames", three_clips())
    shard = tmp_path / "frames" / "val-000000.tar"
    shard.unlink() if damage == "missing" else shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=r"val-000000\.tar is missing or has another size"):
        FrameShards(tmp_path / "frames")


def test_a_shard_that_vanishes_while_open_is_named(tmp_path: Path) -> None:
    shards = folder_of(tmp_path / "frames", three_clips())
    (tmp_path / "frames" / "val-000000.tar").unlink()
    with pytest.raises(ArtefactError, match=r"val-000000\.tar is missing"):
        shards.read("b.c/two.x")


def test_an_unknown_clip_is_answered_with_the_closest(tmp_path: Path) -> None:
    shards = folder_of(tmp_path / "frames", three_clips())
    with pytest.raises(ArtefactError, match="did you mean 'three'"):
        shards.read("tree")
    with pytest.raises(ArtefactError, match="split 'dev' is not one of"):
        shards.split("dev")


def test_frames_are_not_written_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="is not empty"):
        folder_of(tmp_path, three_clips())
