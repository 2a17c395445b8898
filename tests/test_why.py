"""Why a clip is stale: each link of its chain, changed alone, is named, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.errors import StoreError
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint
from lvt_pipeline.provenance import fingerprint, short
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_mp4
from lvt_pipeline.workspace.why import explain_clip
from tests.toy_work import make_tokenizer, moving_square

Lvt = Callable[..., tuple[int, str, str]]


def pixels(seed: int, length: int = 6) -> np.ndarray:
    return moving_square(seed, length)


def sample(name: str, seed: int, length: int = 6, **changes: Any) -> FrameSample:
    made = FrameSample.from_array(name, pixels(seed, length), fps=5.0)
    # What ingest does: geometry, decoder and time range enter the fingerprint besides the content.
    parts = [made.clip.fingerprint, *(str(value) for value in changes.values())]
    known = {name: value for name, value in changes.items() if name in ("decoder", "split", "label")}
    return replace(made, clip=replace(made.clip, fingerprint=fingerprint(parts), **known))


def frames(root: Path, samples: list[FrameSample], geometry: dict[str, Any] | None = None) -> Path:
    settings = {"geometry": geometry or {"size": 16, "fps": None}}
    write_frames(root, samples, stage="ingest", settings=settings, inputs={"manifest": "0" * 64})
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "run")
    old = frames(tmp_path / "frames", [sample("a", 1), sample("b", 2), sample("c", 3)])
    encode_dataset(old, tmp_path / "run", tmp_path / "data.zarr", EncodeSettings(), device="cpu")
    return tmp_path / "data.zarr"


@pytest.mark.parametrize(
    ("newer", "geometry", "expected"),
    [
        (sample("a", 1), None, []),
        (sample("a", 9), None, ["source content: "]),
        (sample("a", 1, range="1-2"), None, ["time range: another part of the source"]),
        (sample("a", 1, decoder="pyav 14"), None, ["decoder: array -> pyav 14"]),
        (sample("a", 1, size=32), {"size": 32, "fps": None}, ["geometry.size: 16 -> 32"]),
        (sample("a", 1, fps=5.0), {"size": 16, "fps": 5.0}, ["geometry.fps: null -> 5.0"]),
        (sample("a", 9, length=8), None, ["source content: ", "length: 6 -> 8 frames"]),
        (
            sample("a", 9, decoder="x"),
            {"size": 8},
            ["source content: ", "decoder: ", "geometry.size: "],
        ),
        (sample("a", 1, split="val"), None, ["split: train -> val (its codes are kept)"]),
    ],
)
def test_each_link_that_changed_is_named(
    store: Path, tmp_path: Path, newer: FrameSample, geometry: dict[str, Any] | None, expected: list[str]
) -> None:
    if newer.clip.split != "train":
        newer = replace(newer, clip=replace(newer.clip, fingerprint=sample("a", 1).clip.fingerprint))
    root = frames(tmp_path / "newer", [newer], geometry)
    reasons = explain_clip(store, "a", frames=root)
    assert len(reasons) == len(expected), reasons
    assert all(reason.startswith(start) for reason, start in zip(reasons, expected, strict=True)), reasons
    if "source content" in str(expected):
        digests = short(sample("a", 1).clip.digest), short(newer.clip.digest)
        assert reasons[0] == f"source content: {digests[0]} -> {digests[1]}"


def test_what_is_kept_by_an_incremental_encode_is_still_explained(store: Path, tmp_path: Path) -> None:
    second = frames(tmp_path / "second", [sample("c", 3), sample("a", 1), sample("d", 4)])
    encode_dataset(second, tmp_path / "run", store, EncodeSettings(), device="cpu")
    third = frames(tmp_path / "third", [sample("a", 7), sample("c", 3), sample("d", 4, decoder="pyav 14")])
    assert explain_clip(store, "a", frames=third)[0].startswith("source content: ")
    assert explain_clip(store, "c", frames=third) == []
    assert explain_clip(store, "d", frames=third) == ["decoder: array -> pyav 14"]
    assert explain_clip(store, "b", frames=third, generation=1) == ["it is in the store but no longer in the frames"]


def test_tokenizer_renames_losses_and_unknown_clips_are_named(store: Path, tmp_path: Path) -> None:
    root = tmp_path / "frames"
    other = tokenizer_fingerprint(make_tokenizer(tmp_path / "other", seed=1))
    (reason,) = explain_clip(store, "a", frames=root, vqvae=tmp_path / "other")
    assert reason.startswith("tokenizer: ")
    assert reason.endswith(short(other))
    assert explain_clip(store, "a", vqvae=tmp_path / "other") == [reason]

    newer = frames(tmp_path / "newer", [sample("a2", 1), sample("new", 8)])
    newer_a = explain_clip(store, "a2", frames=newer)
    assert newer_a == ["it is in the store as a"]
    assert explain_clip(store, "new", frames=newer) == ["it is in the frames but not in the store yet"]
    with pytest.raises(StoreError, match="no clip 'aa'; did you mean a"):
        explain_clip(store, "aa", frames=root)
    (store / "codes/c/0/0/0/0").unlink()
    assert explain_clip(store, "a", frames=root) == ["codes: shard 0, which holds some of them, is missing"]


def test_the_manifest_tells_why_the_frames_themselves_are_stale(tmp_path: Path) -> None:
    video = tmp_path / "videos" / "a.mp4"
    write_mp4(video, pixels(1, 12), fps=10)
    table = tmp_path / "videos.csv"
    table.write_text("id,path\na,videos/a.mp4\n")
    settings = IngestSettings(geometry=GeometrySettings(size=16))
    manifest = tmp_path / "m.jsonl"
    build_manifest(table, manifest)
    ingest(manifest, tmp_path / "frames", settings, num_workers=0)
    make_tokenizer(tmp_path / "run")
    store = tmp_path / "data.zarr"
    encode_dataset(tmp_path / "frames", tmp_path / "run", store, EncodeSettings(), device="cpu")

    def why() -> list[str]:
        return explain_clip(store, "a", frames=tmp_path / "frames", manifest=manifest)

    assert why() == []
    table.write_text("id,path,start,end\na,videos/a.mp4,0.2,\n")
    build_manifest(table, manifest)
    assert why() == ["its frames, which lvt ingest would make again: time range: now from 0.2 s to the end"]
    table.write_text("id,path\na,videos/a.mp4\n")
    with open(video, "ab") as stream:
        stream.write(b"\0")
    build_manifest(table, manifest)
    (reason,) = why()
    assert reason.startswith("its frames, which lvt ingest would make again: source content: ")
    table.write_text("id,path\nb,videos/a.mp4\n")
    build_manifest(table, manifest)
    assert why() == ["its frames: it is no longer in the manifest"]


def test_the_command_compares_with_what_is_given(store: Path, tmp_path: Path, lvt: Lvt) -> None:
    newer = frames(tmp_path / "newer", [sample("a", 1, decoder="pyav 14")])
    code, out, _ = lvt("why", store, "a", "--frames", newer, "--vqvae", tmp_path / "run")
    assert (code, out) == (0, "a: decoder: array -> pyav 14\n")
    code, out, _ = lvt("why", store, "a", "--frames", newer, "--json")
    assert json.loads(out) == {"a": ["decoder: array -> pyav 14"]}
    assert lvt("why", store, "a")[:2] == (0, "a: up to date\n")  # the frames next to it count
    (tmp_path / "frames").rename(tmp_path / "elsewhere")
    code, _, err = lvt("why", store.rename(tmp_path / "codes.zarr"), "a")
    assert code == 1
    assert "not in a work directory" in err
    assert lvt("why", tmp_path, "--frames", newer)[0] == 2
