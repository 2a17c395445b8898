"""Whatever happened to a dataset and its store, every clip has the codes of a fresh encode, code for code.

Hypothesis invents histories: clips are added, changed, removed, renamed and put into another order; encodes run, are
interrupted at any write or frame, and go on or give way to other changes; dead ranges are compacted and reclaimed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from lvt_pipeline.codes.plan import plan_codes
from lvt_pipeline.codes.schema import CodeSchema
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep.compaction import compact_store
from lvt_pipeline.codes.upkeep.maintenance import collect_garbage
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.errors import StoreError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.jobs import encode_shards
from lvt_pipeline.jobs.change_table import change_table
from lvt_pipeline.jobs.encode import EncodeReport, encode_dataset
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.models.vqvae.model import VQVAE
from lvt_pipeline.progress import Bar
from lvt_pipeline.video.write import write_mp4
from tests.test_encoding import SIZE, make_frames, make_model, make_run, pixels

Lvt = Callable[..., tuple[int, str, str]]
SHARD_FRAMES, BATCH = 16, 8
LENGTHS = {"one": 1, "two": 2, "few": 7, "even": 16, "odd": 17, "some": 24, "many": 40}  # frames by content
IDS = tuple("abcdefgh")

contents = st.sampled_from(sorted(LENGTHS))
ids = st.sampled_from(IDS)


@cache
def tokenizer() -> tuple[VQVAE, Path]:
    """A tiny tokenizer and its run directory, which stays for the session."""
    model = make_model()
    return model, make_run(Path(tempfile.mkdtemp(prefix="history-")) / "vqvae", model)


@cache
def codes_of(content: str) -> np.ndarray:
    """The codes of encoding a clip alone."""
    return tokenizer()[0].encode(pixels(content, LENGTHS[content]), batch_size=BATCH).numpy()


class Interruption:
    """Ends the work with Ctrl-C at the n-th moment, a moment being a file that is put in place or a batch of codes."""

    def __init__(self, moments: int) -> None:
        self.left = moments

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    @contextmanager
    def armed(self) -> Iterator[None]:
        real = os.replace

        def replace(*arguments: Any) -> None:
            self.tick()
            real(*arguments)

        os.replace = replace
        try:
            yield
        finally:
            os.replace = real

    @contextmanager
    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Bar]:
        yield self

    def advance(self, amount: int = 1, **facts: Any) -> None:
        self.tick()

    def say(self, line: str) -> None:
        pass


class History(RuleBasedStateMachine):
    """A dataset as a table of ids and contents, a store of it, and what each published generation should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="history-"))
        self.store = self.folder / "data.zarr"
        self.clips: dict[str, str] = {}
        self.generations: dict[int, dict[str, str]] = {}
        self.num_folders = 0

    @initialize(clips=st.dictionaries(ids, contents, min_size=1, max_size=4))
    def begin(self, clips: dict[str, str]) -> None:
        self.clips = clips

    @rule(clip_id=ids, content=contents)
    def add_or_change(self, clip_id: str, content: str) -> None:
        self.clips[clip_id] = content

    @precondition(lambda self: len(self.clips) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        del self.clips[data.draw(st.sampled_from(sorted(self.clips)))]

    @precondition(lambda self: len(self.clips) < len(IDS))
    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(sorted(self.clips)))
        new = data.draw(st.sampled_from([name for name in IDS if name not in self.clips]))
        self.clips = {new if name == old else name: content for name, content in self.clips.items()}

    @rule(data=st.data())
    def put_in_another_order(self, data: st.DataObject) -> None:
        self.clips = {name: self.clips[name] for name in data.draw(st.permutations(sorted(self.clips)))}

    @rule()
    def encode(self) -> None:
        before = open_codes(self.store).generation if self.generations else 0
        report = self.run(self.store)
        self.check(self.store, self.clips)
        if report.generation == before:
            assert self.generations[before] == self.clips
            assert list(self.generations[before]) == list(self.clips)
        self.generations[report.generation] = dict(self.clips)

    @rule(moments=st.integers(0, 30))
    def encode_until_interrupted(self, moments: int) -> None:
        interruption = Interruption(moments)
        try:
            with interruption.armed():
                report = self.run(self.store, progress=interruption)
        except KeyboardInterrupt:
            # The commit may have been made just before.
            if self.generations or (self.store / "zarr.json").exists():
                current = open_codes(self.store).generation
                if current not in self.generations:
                    self.generations[current] = dict(self.clips)
            return
        self.generations[report.generation] = dict(self.clips)

    @precondition(lambda self: self.generations)
    @rule()
    def compact(self) -> None:
        current = max(self.generations)
        try:
            report = compact_store(self.store)
        except StoreError as error:
            if "an interrupted command left" in str(error):  # what it had done is not thrown away
                return
            raise
        if report.generation != current:
            self.generations[report.generation] = self.generations[current]

    @precondition(lambda self: self.generations)
    @rule(keep=st.integers(1, 2))
    def collect_garbage(self, keep: int) -> None:
        collect_garbage(self.store, keep_generations=keep)
        kept = open_codes(self.store).generations
        self.generations = {number: self.generations[number] for number in kept}

    def teardown(self) -> None:
        try:
            if self.clips:
                self.encode()
                for number, clips in self.generations.items():
                    self.check(self.store, clips, number)
                self.run(self.folder / "fresh.zarr")
                store, fresh = open_codes(self.store), open_codes(self.folder / "fresh.zarr")
                assert store.fingerprint == fresh.fingerprint
                assert all(np.array_equal(store[clip_id], fresh[clip_id]) for clip_id in fresh)
                assert verify_store(self.store).problems == ()
        finally:
            shutil.rmtree(self.folder)

    def run(self, out: Path, **options: Any) -> EncodeReport:
        self.num_folders += 1
        lengths = {name: LENGTHS[content] for name, content in self.clips.items()}
        frames = make_frames(self.folder / f"frames{self.num_folders}", lengths, self.clips)
        return encode_dataset(frames, tokenizer()[1], out, EncodeSettings(batch_size=BATCH), device="cpu", **options)

    def check(self, path: Path, clips: dict[str, str], generation: int | None = None) -> None:
        store = open_codes(path, generation)
        assert list(store) == list(clips)
        for clip_id, content in clips.items():
            assert np.array_equal(store[clip_id], codes_of(content)), (clip_id, content, generation)


def live_histories(monkeypatch: pytest.MonkeyPatch, *, num_histories: int, num_steps: int, **options: Any) -> None:
    monkeypatch.setattr(encoding, "SHARD_FRAMES", SHARD_FRAMES)
    monkeypatch.setattr(encode_shards, "PIECE_BYTES", 5 * SIZE * SIZE * 3)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here, and it is what takes time
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        History,
        settings=settings(
            max_examples=num_histories,
            stateful_step_count=num_steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_any_history_ends_with_the_codes_of_a_fresh_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    live_histories(monkeypatch, num_histories=12, num_steps=12, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_long_histories_end_with_the_codes_of_a_fresh_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    live_histories(monkeypatch, num_histories=300, num_steps=50)


# From source files to the table of changes ----------------------------------------------------------------------------


class Dataset:
    """Videos, and the commands that bring manifest, frames and store up to date with them."""

    def __init__(self, folder: Path, lvt: Lvt) -> None:
        self.folder, self.lvt = folder, lvt
        self.videos = folder / "videos" / "train"
        for number in range(4):
            noise = np.random.default_rng(number).integers(0, 256, (5 + number, 20, 20, 3), np.uint8)
            write_mp4(self.videos / f"{number}.mp4", noise, fps=10)
            comment = self.videos / f"{number}.mp4"
            comment.write_bytes(comment.read_bytes() + (12).to_bytes(4) + b"free" + b"note")

    def encode(self, *options: object) -> Any:
        """Everything up to the store; the report of the last step."""
        manifest, frames, store = (self.folder / name for name in ("m.jsonl", "frames", "data.zarr"))
        run = tokenizer()[1]
        ingest = ["--manifest", manifest, "-o", frames, "--size", SIZE, "--workers", 0]
        encode = ["--frames", frames, "--vqvae", run, "-o", store, "--batch-size", BATCH, "--device", "cpu", "--json"]
        for command in (["manifest", "build", self.folder / "videos", "-o", manifest], ["ingest", *ingest]):
            code, _, error = self.lvt(*command)
            assert code == 0, error
        code, output, error = self.lvt("encode-dataset", *encode, *options)
        assert code == 0, error
        return json.loads(output)

    def numbers(self) -> dict[str, tuple[int, int]]:
        """Clips and frames of each kind that an encode would find."""
        table = self.encode("--dry-run")["table"]
        return {row["kind"]: (row["clips"], row["frames"]) for row in table["rows"]}


@pytest.fixture
def dataset(tmp_path: Path, lvt: Lvt) -> Dataset:
    dataset = Dataset(tmp_path, lvt)
    dataset.encode()
    return dataset


UNCHANGED = {"kept": (4, 26), "added": (0, 0), "changed": (0, 0), "removed": (0, 0)}


def test_touching_renaming_and_moving_a_source_is_no_change(dataset: Dataset) -> None:
    os.utime(dataset.videos / "0.mp4", (1, 1))
    assert dataset.numbers() == UNCHANGED
    (dataset.videos / "1.mp4").rename(dataset.videos / "renamed.mp4")
    assert dataset.numbers() == UNCHANGED
    (dataset.videos / "deeper").mkdir()
    (dataset.videos / "2.mp4").rename(dataset.videos / "deeper" / "2.mp4")
    assert dataset.numbers() == UNCHANGED
    assert dataset.encode("--dry-run")["change"]["frames"] == 0


def test_one_changed_byte_of_a_source_is_a_change(dataset: Dataset) -> None:
    data = bytearray((dataset.videos / "3.mp4").read_bytes())
    data[-1] ^= 1  # in a comment: the pictures are the same, the content is another
    (dataset.videos / "3.mp4").write_bytes(data)
    assert dataset.numbers() == {**UNCHANGED, "kept": (3, 18), "changed": (1, 8)}


def test_the_table_of_changes_has_clips_frames_time_and_bytes(dataset: Dataset, lvt: Lvt) -> None:
    (dataset.videos / "0.mp4").unlink()
    shutil.copy(dataset.videos / "3.mp4", dataset.videos / "1.mp4")
    noise = np.random.default_rng(9).integers(0, 256, (50, 20, 20, 3), np.uint8)
    write_mp4(dataset.videos / "new.mp4", noise, fps=10)
    table = dataset.encode("--dry-run")["table"]
    assert {row["kind"]: (row["clips"], row["frames"]) for row in table["rows"]} == {
        "kept": (3, 23),  # a copy of a clip has its codes already
        "added": (1, 50),
        "changed": (0, 0),
        "removed": (1, 5),
    }
    assert table["frames"] == 50
    assert table["seconds"] >= 0
    stored = 50 * 4 * 4 * 2
    assert stored / 10 < table["bytes"] < 2 * stored
    report = dataset.encode()
    assert report["table"]["rows"] == table["rows"]
    assert dataset.encode()["table"] is None
    frames, store = dataset.folder / "frames", dataset.folder / "data.zarr"
    command = ["encode-dataset", "--frames", frames, "--vqvae", tokenizer()[1], "-o", store, "--dry-run"]
    output = lvt(*command)[1]
    assert [line.split() for line in output.splitlines()] == [
        ["clips", "frames"],
        ["kept", "4", "73"],
        ["added", "0", "0"],
        ["changed", "0", "0"],
        ["removed", "0", "0"],
        ["nothing", "to", "encode"],
    ]
    output = lvt(*command[:-3], "-o", dataset.folder / "other", "--dry-run")[1]
    assert re.fullmatch(r"to encode: 73 frames, about [\d.]+ s and \d+ KiB", output.splitlines()[-1])
    assert not (dataset.folder / "other").exists()


def test_the_estimate_is_that_of_the_batches_to_come(tmp_path: Path) -> None:
    frames = FrameShards(make_frames(tmp_path / "frames", {"a": 100, "b": 300}))
    schema = CodeSchema(codebook_size=256, num_codebooks=2, grid=(4, 4), tokenizer="t" * 64)
    plan = plan_codes(tmp_path / "s", schema, encoding._planned_clips(frames, schema))
    sizes = []

    def encode(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        time.sleep(0.1)
        return np.random.default_rng(0).integers(0, 256, (len(pixels), 4, 4, 2))

    table = change_table(plan, frames, encode, batch_size=10)
    assert set(sizes) == {10}
    assert table.seconds == pytest.approx(4.0, rel=0.5)
    assert table.bytes == pytest.approx(400 * 32, rel=0.3)  # such codes cannot be compressed
