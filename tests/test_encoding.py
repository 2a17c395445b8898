"""Encoding: a frame's codes depend on the frame and the tokenizer only, and what is there is not made again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvt_pipeline.codes import writer as code_writer
from lvt_pipeline.codes.schema import CodeSchema
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.usage import perplexity, usage
from lvt_pipeline.errors import BusyError, ConfigError, MismatchError, Stopped, StoreError
from lvt_pipeline.evaluation.metrics import CodeCounts, pool
from lvt_pipeline.evaluation.recheck_codes import verify_codes
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.jobs import encode_shards
from lvt_pipeline.jobs.decode import decode_store
from lvt_pipeline.jobs.encode import EncodeReport, encode_dataset
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.progress import Bar
from lvt_pipeline.provenance import differences, read_record, short
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.read import VQVAE_KIND, precision_of

SIZE = 16
LENGTHS = {"a": 11, "b/c": 30, "d": 1, "e#1": 19, "f": 24}
SHARD_FRAMES = 16
TINY = VQVAEConfig(
    num_codebooks=2, codebook_size=32, code_width=8, stem_width=8, residual_width=4, num_residual_blocks=1
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    model: VQVAEConfig


def pixels(name: str, length: int) -> np.ndarray:
    rng = np.random.default_rng(int.from_bytes(name.encode(), "little"))
    coarse = rng.integers(0, 256, (length, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)


def make_frames(
    root: Path,
    lengths: Mapping[str, int] = LENGTHS,
    content: Mapping[str, str] | None = None,
    arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    **options: Any,
) -> Path:
    """Frames of clips, with the rows of each array of those clips that it has."""
    content = content or {}
    samples = []
    for name, length in lengths.items():
        own = {array: rows[name] for array, rows in (arrays or {}).items() if name in rows}
        sample = FrameSample.from_array(name, pixels(content.get(name, name), length), **options)
        samples.append(replace(sample, arrays=own))
    write_frames(root, samples, stage="test", settings={"geometry": {"size": SIZE}}, inputs={}, clips_per_shard=2)
    return root


def make_model(seed: int = 0) -> VQVAE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VQVAE(TINY)
        images = torch.rand(64, 3, SIZE, SIZE) * 2 - 1
        for _ in range(5):  # a few steps of the codebooks, so that many codes are in use
            model(images)
    return model.eval()


def make_run(path: Path, model: VQVAE) -> Path:
    counts = {"tokenizer": tokenizer_fingerprint(model)}
    save_model_run(path, VQVAE_KIND, model, RunSettings(model=TINY), stage="test", version=1, counts=counts)
    return path


@pytest.fixture(scope="module")
def model() -> VQVAE:
    return make_model()


@pytest.fixture(scope="module")
def run(model: VQVAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "vqvae", model)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_frames(tmp_path_factory.mktemp("data") / "frames")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and pieces so small that every border there can be is met."""
    monkeypatch.setattr(encoding, "SHARD_FRAMES", SHARD_FRAMES)
    monkeypatch.setattr(encode_shards, "PIECE_BYTES", 5 * SIZE * SIZE * 3)


def encode(frames: Path, run: Path, out: Path, batch_size: int = 8, **options: Any) -> EncodeReport:
    return encode_dataset(frames, run, out, EncodeSettings(batch_size=batch_size), device="cpu", **options)


def shards_of(store: Path) -> dict[str, bytes]:
    files = sorted((store / "codes").rglob("*"))
    return {str(file.relative_to(store)): file.read_bytes() for file in files if file.is_file()}


def alone(model: VQVAE, name: str, length: int, batch_size: int = 8) -> np.ndarray:
    return model.encode(pixels(name, length), batch_size=batch_size).numpy()


# Codes ----------------------------------------------------------------------------------------------------------------


def test_every_clip_has_the_codes_of_encoding_it_alone(frames: Path, run: Path, model: VQVAE, tmp_path: Path) -> None:
    report = encode(frames, run, tmp_path / "s")
    store = open_codes(tmp_path / "s")
    for name, length in LENGTHS.items():
        assert np.array_equal(store[name], alone(model, name, length))
    assert len(np.unique(store.read_range(0, 85))) > 8  # otherwise equality would say little
    assert store.array_frames == store.num_frames == sum(LENGTHS.values()) == report.num_frames
    assert store.grid == (4, 4)
    assert store.tokenizer == tokenizer_fingerprint(model)
    assert store.schema.geometry == {"size": SIZE}


@pytest.mark.parametrize(
    "variation", ["shard size", "order", "other neighbours", "batch size", "png", "pieces", "threads"]
)
def test_codes_do_not_depend_on_what_is_around_a_clip(
    frames: Path, run: Path, model: VQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variation: str
) -> None:
    batch_size = 8
    lengths = dict(LENGTHS)
    if variation == "shard size":
        monkeypatch.setattr(encoding, "SHARD_FRAMES", 64)
    elif variation == "order":
        frames = make_frames(tmp_path / "frames", dict(reversed(LENGTHS.items())))
    elif variation == "other neighbours":
        lengths = {"x": 3, "f": 24, "y": 10, "a": 11}
        frames = make_frames(tmp_path / "frames", lengths)
    elif variation == "batch size":
        batch_size = 5
    elif variation == "png":
        frames = make_frames(tmp_path / "frames", codec="png")
    elif variation == "pieces":
        monkeypatch.setattr(encode_shards, "PIECE_BYTES", 1)
    elif variation == "threads":
        monkeypatch.setattr(encode_shards, "READERS", 4)
        monkeypatch.setattr(encode_shards, "PIECES_AHEAD", 20)
    encode(frames, run, tmp_path / "s", batch_size)
    store = open_codes(tmp_path / "s")
    for name, length in lengths.items():
        assert np.array_equal(store[name], alone(model, name, length, batch_size)), name


def test_the_encoder_is_fed_batches_of_one_size_across_clips_and_shards(
    frames: Path, model: VQVAE, tmp_path: Path
) -> None:
    sizes = []

    class Watched:
        def encode(self, batch: np.ndarray, batch_size: int) -> torch.Tensor:
            sizes.append(len(batch))
            return model.encode(batch, batch_size=batch_size)

    source = FrameShards(frames)
    schema = CodeSchema(codebook_size=32, num_codebooks=2, grid=(4, 4), tokenizer="t", shard_frames=SHARD_FRAMES)
    planned = encoding._planned_clips(source, schema)
    with code_writer.CodeStoreWriter.open(tmp_path / "s", schema, planned) as writer:
        plans = [
            encode_shards.EncodePlan(shard, {clip.id: clip for clip in source.clips}) for shard in writer.plan.shards
        ]
        encoder = encode_shards.ShardEncoder(source, Watched(), writer.shards, writer.write_shard, batch_size=12)
        receipts = list(encoder(plans, StopAfter(1000, None), lambda: False))
    assert sizes == [12] * 7 + [1]
    assert sum(receipt.tally.num_frames for receipt in receipts) == 85


def test_perplexity_and_usage_are_those_of_the_new_codes(frames: Path, run: Path, tmp_path: Path) -> None:
    report = encode(frames, run, tmp_path / "s")
    store = open_codes(tmp_path / "s")
    counts = pool((CodeCounts.of(store[name], 32) for name in store), 2, 32).occurrences
    assert report.perplexity == pytest.approx(perplexity(counts), abs=1e-4)
    assert report.usage == pytest.approx(usage(counts), abs=1e-4)
    assert read_record(tmp_path / "s").counts["perplexity"] == report.perplexity


# Incremental ----------------------------------------------------------------------------------------------------------


def test_nothing_new_encodes_nothing_and_publishes_nothing(frames: Path, run: Path, tmp_path: Path) -> None:
    first = encode(frames, run, tmp_path / "s")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "s").rglob("*") if file.is_file()}
    second = encode(frames, run, tmp_path / "s")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "s").rglob("*") if file.is_file()} == before
    assert second.provenance == first.provenance
    assert (second.generation, second.limited_by, second.change.frames) == (1, "", 0)
    assert second.change.summary() == "5 clips kept, 0 added, 0 changed, 0 removed"


def test_only_added_and_changed_clips_are_encoded(
    frames: Path, run: Path, model: VQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(frames, run, tmp_path / "s")
    lengths = {"a": 11, "b/c": 20, "e#1": 19, "f": 24, "g": 9}
    content = {"b/c": "another"}
    newer = make_frames(tmp_path / "newer", lengths, content)
    plan = encode(newer, run, tmp_path / "s", dry_run=True)
    assert open_codes(tmp_path / "s").generation == 1
    assert plan.change.summary() == "3 clips kept, 1 added, 1 changed, 1 removed"
    assert plan.provenance is None

    read = []
    real = FrameShards.read
    monkeypatch.setattr(
        FrameShards,
        "read",
        lambda self, clip, start=0, stop=None: (read.append(clip.id), real(self, clip, start, stop))[1],
    )
    report = encode(newer, run, tmp_path / "s")
    assert set(read) == {"b/c", "g"}
    assert report.change == plan.change
    store = open_codes(tmp_path / "s")
    assert store.generation == report.generation == 2
    encode(newer, run, tmp_path / "scratch")
    scratch = open_codes(tmp_path / "scratch")
    assert store.fingerprint == scratch.fingerprint
    for name, length in lengths.items():
        assert np.array_equal(store[name], scratch[name])
        assert np.array_equal(store[name], alone(model, content.get(name, name), length))
    assert np.array_equal(open_codes(tmp_path / "s", generation=1)["d"], alone(model, "d", 1))


def test_another_tokenizer_is_refused_and_a_finetuned_decoder_is_not(
    frames: Path, run: Path, model: VQVAE, tmp_path: Path
) -> None:
    encode(frames, run, tmp_path / "s")
    finetuned = make_model()
    with torch.no_grad():
        finetuned.decoder.up2.bias += 0.5
    assert not encode(frames, make_run(tmp_path / "tuned", finetuned), tmp_path / "s").change.publishes

    other = make_model(seed=1)
    other_run = make_run(tmp_path / "other", other)
    names = f"{short(tokenizer_fingerprint(model))} but this one is {short(tokenizer_fingerprint(other))}"
    for dry_run in (True, False):
        with pytest.raises(StoreError, match=f"{names}.*--reencode"):
            encode(frames, other_run, tmp_path / "s", dry_run=dry_run)
    report = encode(frames, other_run, tmp_path / "s", reencode=True)
    assert len(report.change.changed) == 5
    assert np.array_equal(open_codes(tmp_path / "s")["f"], alone(other, "f", 24))
    assert np.array_equal(open_codes(tmp_path / "s", generation=1)["f"], alone(model, "f", 24))


def test_codes_of_another_precision_are_of_another_tokenizer_that_the_same_run_decodes(
    frames: Path, run: Path, model: VQVAE, tmp_path: Path
) -> None:
    half = EncodeSettings(batch_size=8, precision="bfloat16")
    encode_dataset(frames, run, tmp_path / "half", half, device="cpu")
    encode(frames, run, tmp_path / "full")
    tokenizer = tokenizer_fingerprint(model)
    store, full = open_codes(tmp_path / "half"), open_codes(tmp_path / "full")
    assert full.tokenizer == tokenizer
    assert (store.tokenizer != tokenizer, precision_of(store.tokenizer, tokenizer)) == (True, "bfloat16")
    flipped = np.mean([(store[name] != full[name]).mean() for name in store])
    assert 0 < flipped < 0.1
    with pytest.raises(StoreError, match=r"was made by tokenizer .* but this one is .*--reencode"):
        encode_dataset(frames, run, tmp_path / "full", half, device="cpu")
    decode_store(tmp_path / "half", run, tmp_path / "videos", device="cpu")
    checks = verify_codes(tmp_path / "half", frames, run, num_clips=5, device="cpu")
    assert [check.same_codes for check in checks.checked] == [1.0] * 5


def test_float32_is_what_a_store_is_made_with_unless_asked(frames: Path, run: Path, tmp_path: Path) -> None:
    encode(frames, run, tmp_path / "s")
    named = EncodeSettings(batch_size=8, precision="float32")
    assert named == EncodeSettings(batch_size=8)
    assert not encode_dataset(frames, run, tmp_path / "s", named, device="cpu").change.publishes
    with pytest.raises(ConfigError, match="precision='float16' is not one of float32, bfloat16"):
        EncodeSettings(precision="float16")  # type: ignore[arg-type]


def test_other_settings_that_change_no_clip_renew_the_record_only(frames: Path, run: Path, tmp_path: Path) -> None:
    encode(frames, run, tmp_path / "s", batch_size=8)
    report = encode(frames, run, tmp_path / "s", batch_size=9)
    record = read_record(tmp_path / "s")
    assert report.generation == 1
    assert record.settings == {"batch_size": 9, "precision": None}
    assert differences(record, encoding.VERSION, {"batch_size": 9}, record.inputs) == []


def test_a_dry_run_writes_nothing(frames: Path, run: Path, tmp_path: Path) -> None:
    report = encode(frames, run, tmp_path / "s", dry_run=True)
    assert len(report.change.added) == 5
    assert not (tmp_path / "s").exists()


def test_a_lost_shard_is_encoded_again_in_place(frames: Path, run: Path, tmp_path: Path) -> None:
    encode(frames, run, tmp_path / "s")
    before = shards_of(tmp_path / "s")
    (tmp_path / "s" / "codes/c/2/0/0/0").unlink()
    report = encode(frames, run, tmp_path / "s")
    assert report.change.frames == 16
    assert shards_of(tmp_path / "s") == before
    assert read_record(tmp_path / "s").counts["encoded_frames"] == 85


# Being stopped --------------------------------------------------------------------------------------------------------


class StopAfter:
    """Progress that asks for a stop, or ends the process, after some frames."""

    def __init__(self, num_frames: int, action: Any) -> None:
        self.left = num_frames
        self.action = action
        self.done: list[int] = []

    @contextmanager
    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Bar]:
        self.done.append(done)
        assert (task, total, unit) == ("encode", 85, "frames")
        yield self

    def advance(self, amount: int = 1, **facts: Any) -> None:
        self.left -= amount
        if self.left <= 0 and self.action:
            action, self.action = self.action, None
            action()

    def say(self, line: str) -> None:
        pass


def test_a_signal_stops_after_the_shard_in_flight_and_the_same_command_goes_on(
    frames: Path, run: Path, tmp_path: Path
) -> None:
    asks = StopAfter(20, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"stopped by SIGTERM: 2 of 6 shards are finished; run the same command again"):
        encode(frames, run, tmp_path / "s", progress=asks)
    with pytest.raises(StoreError, match="unfinished"):
        open_codes(tmp_path / "s")
    assert len(list((tmp_path / "s/codes/c").iterdir())) == 2
    watch = StopAfter(1000, None)
    resumed = encode(frames, run, tmp_path / "s", progress=watch)
    assert watch.done == [32]
    whole = encode(frames, run, tmp_path / "whole")
    assert shards_of(tmp_path / "s") == shards_of(tmp_path / "whole")
    assert (resumed.perplexity, resumed.usage) == (whole.perplexity, whole.usage)


def test_an_error_while_reading_keeps_the_finished_shards(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = make_frames(tmp_path / "frames")
    real = FrameShards.read

    def failing(self: FrameShards, clip: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
        if clip.id == "f":
            raise OSError("the disk went away")
        return real(self, clip, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(FrameShards, "read", failing)
        with pytest.raises(OSError, match="the disk went away"):
            encode(frames, run, tmp_path / "s")
    assert len(list((tmp_path / "s/codes").glob("c/*/0/0/0"))) >= 2
    encode(frames, run, tmp_path / "s")
    encode(frames, run, tmp_path / "whole")
    assert shards_of(tmp_path / "s") == shards_of(tmp_path / "whole")


def test_a_second_encode_of_the_same_store_is_refused(frames: Path, run: Path, tmp_path: Path) -> None:
    refused = []

    def second() -> None:
        try:
            encode(frames, run, tmp_path / "s")
        except BusyError as error:
            refused.append(str(error))

    def start_second() -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    encode(frames, run, tmp_path / "s", progress=StopAfter(10, start_second))
    assert refused
    assert "another process is writing" in refused[0]


# Speed and messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["read", "encode", "write"])
def test_the_report_says_which_phase_limits(
    frames: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    owner, name = {
        "read": (FrameShards, "read"),
        "encode": (VQVAE, "encode"),
        "write": (code_writer.CodeStoreWriter, "write_shard"),
    }[slow]
    real = getattr(owner, name)

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, slowly)
    monkeypatch.setattr(encode_shards, "READERS", 1)
    report = encode(frames, run, tmp_path / "s")
    assert report.limited_by == slow
    assert report.phases[slow] > 0.25
    assert report.seconds >= max(report.phases.values()) - 0.1


def test_phases_overlap(frames: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((FrameShards, "read"), (VQVAE, "encode"), (code_writer.CodeStoreWriter, "write_shard")):
        real = getattr(owner, name)
        seconds = {"read": 0.02, "encode": 0.04, "write_shard": 0.06}[name]
        monkeypatch.setattr(
            owner, name, lambda *a, real=real, seconds=seconds, **o: (time.sleep(seconds), real(*a, **o))[1]
        )
    report = encode(frames, run, tmp_path / "s")
    busy = sum(report.phases[name] for name in ("read", "encode", "write"))
    encoding_alone = report.phases["encode"] + report.phases["waited_for_read"] + report.phases["waited_for_write"]
    assert encoding_alone < 0.8 * busy


def test_settings_and_frames_that_cannot_be_encoded_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=0 must be from 1 to"):
        EncodeSettings(batch_size=0)
    samples: Sequence[FrameSample] = [
        FrameSample.from_array("small", np.zeros((2, 16, 16, 3), np.uint8)),
        FrameSample.from_array("large", np.zeros((2, 24, 24, 3), np.uint8)),
    ]
    write_frames(tmp_path / "mixed", samples, stage="test", settings={}, inputs={})
    with pytest.raises(MismatchError, match="clip large is 24x24 but small is 16x16; ingest them with one --size"):
        encode(tmp_path / "mixed", run, tmp_path / "s")
    odd = [FrameSample.from_array("odd", np.zeros((2, 18, 18, 3), np.uint8))]
    write_frames(tmp_path / "odd", odd, stage="test", settings={}, inputs={})
    with pytest.raises(MismatchError, match="18x18 pixels; the tokenizer needs multiples of 4"):
        encode(tmp_path / "odd", run, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_report_is_plain_data(frames: Path, run: Path, tmp_path: Path) -> None:
    report = encode(frames, run, tmp_path / "s")
    facts = json.loads(json.dumps(report.to_json()))
    assert facts["num_clips"] == 5
    assert facts["provenance"]["inputs"]["frames"] == FrameShards(frames).fingerprint
