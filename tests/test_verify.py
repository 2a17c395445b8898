"""Verifying and repairing a store: one changed byte anywhere is found, named with its clips, and undone."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.codes.clip_table import ClipTable
from lvt_pipeline.codes.loading.windows import CodeWindows, cache_file
from lvt_pipeline.codes.schema import codes_fingerprint, shard_name
from lvt_pipeline.codes.shard_file import chunks_of, damaged_frames, decode_chunk
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep.repair import repair_metadata
from lvt_pipeline.codes.verify import VerifyReport, find_damaged_shards, verify_store
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import ConfigError, MismatchError, StoreError
from lvt_pipeline.evaluation.recheck_codes import verify_codes
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint
from lvt_pipeline.pipeline.making import make_codes
from lvt_pipeline.pipeline.options import Making
from lvt_pipeline.progress import SILENT
from lvt_pipeline.workspace.stages import Stage, StageState
from tests.toy_codes import FIVE, SCHEMA, codes_of, files_of, planned, record, shards_of, write
from tests.toy_work import ToyWork, make_tokenizer, make_toy_work, moving_square

Lvt = Callable[..., tuple[int, str, str]]
MORE = [*FIVE[:2], *FIVE[3:], planned("g", 90)]  # d is removed, g is new


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two generations, four shards, one of them with a dead range."""
    write(tmp_path / "data.zarr", FIVE)
    write(tmp_path / "data.zarr", MORE)
    return tmp_path / "data.zarr"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    work = make_toy_work(tmp_path_factory.mktemp("toy"))
    shutil.rmtree(work.codes)
    encode_dataset(work.frames, work.vqvae, work.codes, EncodeSettings(batch_size=8), device="cpu")
    return work


@pytest.fixture
def work(finished: ToyWork, tmp_path: Path) -> ToyWork:
    return ToyWork(Path(shutil.copytree(finished.root, tmp_path / "work")))


def flip(file: Path, position: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


def problems(report: VerifyReport) -> dict[str, str]:
    return {problem.file: problem.message for problem in report.problems}


# Finding --------------------------------------------------------------------------------------------------------------


def test_a_sound_store_has_no_problem_and_every_file_is_read(store: Path) -> None:
    report = verify_store(store)
    assert report.problems == report.notes == ()
    assert report.files == len(files_of(store))
    assert report.bytes == sum(map(len, files_of(store).values()))
    assert (report.generations, report.clips) == ((1, 2), 5)


def test_one_flipped_bit_anywhere_is_found_and_its_file_named(store: Path) -> None:
    """Every file; the first and last bytes of each, where headers, checksums and line breaks are, and random ones."""
    generator = random.Random(0)
    for name, data in files_of(store).items():
        ends = {0, 1, len(data) - 1, len(data) - 2, len(data) - 5}
        inside = {generator.randrange(len(data)) for _ in range(25 if name.endswith("zarr.json") else 10)}
        for position in sorted(ends | inside):
            flip(store / name, position, bit := generator.randrange(8))
            report = verify_store(store)
            assert name in problems(report), (name, position, bit)
            (store / name).write_bytes(data)
    assert verify_store(store).problems == ()


@pytest.mark.slow
def test_every_single_byte_of_a_store_counts(store: Path) -> None:
    for name, data in files_of(store).items():
        for position in range(len(data)):
            flip(store / name, position, position % 8)
            assert name in problems(verify_store(store)), (name, position)
            (store / name).write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "longer", "missing"])
def test_a_file_that_is_cut_or_gone_is_found(store: Path, how: str) -> None:
    for name, data in files_of(store).items():
        if how == "missing":
            (store / name).unlink()
        else:
            (store / name).write_bytes(data[:-1] if how == "cut" else data + b"\0")
        if (how, name) == ("missing", "zarr.json"):
            with pytest.raises(StoreError, match="unfinished"):
                verify_store(store)
        else:
            assert name in problems(verify_store(store)), name
        (store / name).write_bytes(data)


def test_the_clips_named_are_those_in_the_damaged_chunk(tmp_path: Path) -> None:
    schema = replace(SCHEMA, shard_frames=128, chunk_frames=32)
    clips = [planned(f"clip{number}", 16) for number in range(8)]
    write(tmp_path / "s", clips, schema)
    file = tmp_path / "s" / shard_name(0)
    third = chunks_of(file.read_bytes(), schema)[2]
    flip(file, third.offset + third.size // 2)
    (problem,) = verify_store(tmp_path / "s").problems
    assert problem.clips == ("clip4", "clip5")
    assert problem.message == "the chunk of its frames 64 to 95 does not match its checksum"
    assert problem.line() == f"{shard_name(0)} {problem.message}: 2 clips affected (clip4, clip5)"
    flip(file, file.stat().st_size - 1)  # the index: no chunk can be found any more
    (problem,) = verify_store(tmp_path / "s").problems
    assert len(problem.clips) == 8
    assert problem.line().endswith("8 clips affected (clip0, clip1, clip2 and 5 more)")


def test_the_shard_reader_agrees_with_zarr(store: Path) -> None:
    codes = open_codes(store)
    data = (store / shard_name(1)).read_bytes()
    chunks = [(memoryview(data)[c.offset : c.offset + c.size], c) for c in chunks_of(data, codes.schema)]
    found = np.concatenate([decode_chunk(part, chunk, codes.schema) for part, chunk in chunks])
    assert np.array_equal(found, codes.read_range(64, 128))
    assert list(damaged_frames(data, codes.schema)) == []


def test_codes_beyond_the_codebook_are_found_though_all_checksums_match(tmp_path: Path) -> None:
    wide = replace(SCHEMA, codebook_size=600)
    clip = planned("a", 64)
    with CodeStoreWriter.open(tmp_path / "s", wide, [clip]) as writer:
        writer.write_shard(0, np.full((64, 3, 4, 2), 599))
        writer.plan = replace(writer.plan, schema=SCHEMA)
        writer.publish(record())
    assert problems(verify_store(tmp_path / "s")) == {shard_name(0): "holds the code 599, which is not in [0, 512)"}


def test_a_table_that_contradicts_the_array_is_found(tmp_path: Path) -> None:
    clips = [planned("a", 20), planned("b", 30)]
    for name, message in [
        ("overlap", "has clips that overlap"),
        ("outside", "clip b has frames 30 to 59, which are not in the array of 50 frames"),
    ]:
        path = tmp_path / name
        with CodeStoreWriter.open(path, SCHEMA, clips) as writer:
            codes = np.concatenate([codes_of(clip) for clip in clips])
            writer.write_shard(0, codes)
            offsets = [0, 10 if name == "overlap" else 30]
            writer.plan = replace(writer.plan, table=ClipTable({**writer.plan.table.columns, "offset": offsets}))
            writer.publish(record())
        found = problems(verify_store(path))
        assert list(found) == ["generations/000001/zarr.json"]
        assert message in found["generations/000001/zarr.json"]


def test_a_damaged_cache_is_found(store: Path) -> None:
    CodeWindows(store, frames=4, cache="mmap")
    assert verify_store(store).problems == ()
    file = cache_file(open_codes(store), "train")
    for distance, clips in ((5, ("g",)), (1, ())):  # the last code, and the checksum behind it
        flip(file, file.stat().st_size - distance)
        (problem,) = verify_store(store).problems
        flip(file, file.stat().st_size - distance)
        assert problem.file == str(file)
        assert "delete it" in problem.message
        assert problem.clips == clips


def test_one_generation_can_be_verified_alone(store: Path) -> None:
    flip(store / shard_name(3), 10)  # new in generation 2
    assert verify_store(store, generation=1).problems == ()
    assert shard_name(3) in problems(verify_store(store, generation=2))
    with pytest.raises(StoreError, match="no generation 7; it has 1 and 2"):
        verify_store(store, generation=7)


def test_an_unfinished_encode_is_a_note_and_no_problem(store: Path) -> None:
    write(store, [*MORE, planned("h", 150)], stop_after=1)
    report = verify_store(store)
    assert report.problems == ()
    assert any("unfinished" in note for note in report.notes)


def test_the_command_prints_a_line_per_problem_and_ends_with_1(store: Path, lvt: Lvt) -> None:
    code, out, err = lvt("verify", store)
    assert (code, err) == (0, "")
    assert out.startswith(f"{store} is sound: ")
    flip(store / shard_name(0), 10)
    flip(store / "codes/README.md", 10)
    code, out, err = lvt("verify", store)
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["codes/README.md", shard_name(0)]
    assert err.startswith(f"lvt: {store} has 2 problems touching 2 clips")
    code, out, _ = lvt("verify", store, "--json")
    assert code == 1
    assert json.loads(out)["problems"][1]["clips"] == ["a", "b/c"]
    code, _, err = lvt("verify", store, "--decode", 3)
    assert (code, err.splitlines()[0]) == (2, "lvt: --decode needs --vqvae and --frames; see lvt verify --help")


# Decoding again -------------------------------------------------------------------------------------------------------


def test_clips_are_encoded_and_decoded_again(work: ToyWork) -> None:
    report = verify_codes(work.codes, work.frames, work.vqvae, 3, device="cpu")
    assert (report.same_codes, report.problems, len(report.checked)) == (1.0, (), 3)
    assert report.psnr is not None
    again = verify_codes(work.codes, work.frames, work.vqvae, 3, device="cpu")
    assert again == report
    other = verify_codes(work.codes, work.frames, work.vqvae, 3, seed=1, device="cpu")
    assert {clip.id for clip in other.checked} != {clip.id for clip in report.checked}
    assert len(verify_codes(work.codes, work.frames, work.vqvae, 99, device="cpu").checked) == 8
    with pytest.raises(ConfigError, match="at least 1"):
        verify_codes(work.codes, work.frames, work.vqvae, 0)
    make_tokenizer(work.root / "other", seed=1)
    with pytest.raises(MismatchError, match="was made by tokenizer"):
        verify_codes(work.codes, work.frames, work.root / "other", 1, device="cpu")


def test_codes_of_another_clip_are_found_though_every_byte_is_as_written(work: ToyWork, tmp_path: Path) -> None:
    tokenizer, frames = make_tokenizer(tmp_path / "run"), FrameShards(work.frames)
    store = open_codes(work.codes)
    clips = [
        planned(clip.id, clip.num_frames, fingerprint_of=codes_fingerprint(clip.fingerprint, store.tokenizer))
        for clip in frames.clips
    ]
    shutil.rmtree(work.codes)
    with CodeStoreWriter.open(work.codes, store.schema, clips) as writer:
        swapped = [*reversed(frames.clips)]
        writer.write_shard(0, np.concatenate([tokenizer.encode(frames.read(clip)).numpy() for clip in swapped]))
        writer.publish(record())
    assert verify_store(work.codes).problems == ()
    report = verify_codes(work.codes, work.frames, work.vqvae, 8, device="cpu")
    assert {clip for problem in report.problems for clip in problem.clips} == set(store)


def test_clips_whose_frames_have_changed_are_skipped(work: ToyWork, lvt: Lvt) -> None:
    other = [FrameSample.from_array("train/0", moving_square(99, 8))]
    write_frames(work.root / "newer", other, stage="test", settings={}, inputs={})
    arguments = ["--vqvae", work.vqvae, "--frames", work.root / "newer", "--device", "cpu"]
    code, out, _ = lvt("verify", work.codes, "--decode", 8, *arguments)
    assert code == 0
    assert "0 clips decoded again, 8 skipped because their frames have changed" in out


# Repair ---------------------------------------------------------------------------------------------------------------


def repair(work: ToyWork) -> tuple[str, ...]:
    settings = EncodeSettings(batch_size=8)
    report = encode_dataset(work.frames, work.vqvae, work.codes, settings, device="cpu", repair=True)
    return tuple(report.repaired)


def test_repair_of_a_sound_store_writes_nothing(work: ToyWork) -> None:
    before = {file: file.stat().st_mtime_ns for file in work.codes.rglob("*") if file.is_file()}
    assert repair(work) == ()
    assert {file: file.stat().st_mtime_ns for file in work.codes.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "name",
    ["codes/c/0/0/0/0", "codes/zarr.json", "codes/README.md", "generations/zarr.json", "generations/000001/zarr.json"],
)
def test_repair_restores_every_byte_of_a_damaged_file(work: ToyWork, name: str) -> None:
    before = files_of(work.codes)
    for damage in ("flip", "cut", "missing"):
        file = work.codes / name
        if damage == "flip":
            flip(file, len(before[name]) // 2)
        elif damage == "cut":
            file.write_bytes(before[name][: len(before[name]) // 2])
        else:
            file.unlink()
        assert verify_store(work.codes).problems
        assert name in repair(work)
        after = files_of(work.codes)
        assert {other for other in before if after[other] != before[other]} <= {"zarr.json"}
        assert verify_store(work.codes).problems == ()


def test_repair_rebuilds_a_root_that_is_damaged_or_gone(work: ToyWork) -> None:
    before, history = files_of(work.codes), open_codes(work.codes).root
    for damage in ("flip", "cut", "missing"):
        root = work.codes / "zarr.json"
        if damage == "missing":
            root.unlink()
        else:
            flip(root, 900) if damage == "flip" else root.write_bytes(before["zarr.json"][:700])
        assert "zarr.json" in repair(work)
        after = files_of(work.codes)
        assert {name for name in before if after[name] != before[name]} == {"zarr.json"}
        rebuilt = open_codes(work.codes)
        assert rebuilt.root.files == history.files
        assert rebuilt.provenance.recipe == history.provenance["recipe"]
        assert verify_store(work.codes).problems == ()


def test_repair_redoes_only_the_damaged_shard(store: Path) -> None:
    before = files_of(store)
    flip(store / shard_name(3), 10)
    assert find_damaged_shards(store) == (3,)
    with CodeStoreWriter.open(store, SCHEMA, MORE, damaged=lambda: find_damaged_shards(store)) as writer:
        assert [shard.index for shard in writer.pending_shards()] == [3]
        (shard,) = writer.pending_shards()
        clip = MORE[-1]
        writer.write_shard(3, np.concatenate([codes_of(clip)[part.start : part.stop] for part in shard.parts]))
        writer.publish(record())
    assert shards_of(store) == {name: data for name, data in before.items() if name.startswith("codes/c/")}
    assert verify_store(store).problems == ()


def test_a_later_clip_table_cannot_be_rebuilt_and_the_line_says_what_is_left(store: Path) -> None:
    flip(store / "generations/000002/zarr.json", 300)
    with pytest.raises(StoreError, match=r"000002/zarr.json is damaged: it does not match its digest"):
        open_codes(store)
    with pytest.raises(StoreError, match=r"cannot be rebuilt; .* older generations can still be read with --at \(1\)"):
        repair_metadata(store, SCHEMA, MORE)
    assert [clip.id for clip in open_codes(store, 1).clips] == [clip.id for clip in FIVE]


def test_a_store_whose_root_is_damaged_can_be_overwritten_but_no_folder_of_others(store: Path) -> None:
    flip(store / "zarr.json", 700)
    with pytest.raises(StoreError, match=r"zarr.json is damaged: its bytes do not match its digest; .*--repair"):
        write(store, FIVE)
    (store / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is damaged"):
        write(store, FIVE, overwrite=True)
    (store / "notes.txt").unlink()
    write(store, FIVE, overwrite=True)
    assert open_codes(store).generations == [1]
    assert verify_store(store).problems == ()


def test_a_run_repairs_a_damaged_store_and_keeps_its_older_generations(work: ToyWork, lvt: Lvt) -> None:
    other = make_tokenizer(work.root / "other", seed=3)
    settings = EncodeSettings(batch_size=8)
    encode_dataset(work.frames, work.root / "other", work.codes, settings, device="cpu", reencode=True)
    flip(work.codes / "zarr.json", 700)
    said: list[str] = []
    sources = {"frames": work.frames, "tokenizer": work.root / "other"}
    stage = Stage(role="codes", name="encode-dataset", output=work.codes, version=1, settings=settings, sources=sources)
    state = StageState(stage.name, stage.output, "stale", [], None)
    make_codes(stage, Making(device="cpu", progress=Saying(said)), state)
    assert "repaired zarr.json" in said[0]
    assert open_codes(work.codes).generations == [1, 2]
    assert open_codes(work.codes).tokenizer == tokenizer_fingerprint(other)


class Saying:
    """Progress that keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self.say = said.append
        self.bar = SILENT.bar


def test_another_format_is_refused_in_one_line(store: Path, lvt: Lvt) -> None:
    group = json.loads((store / "zarr.json").read_text())
    for name in ("digest", "generations", "files", "short_shards"):
        group["attributes"].pop(name)
    for format_number in (1, 4):
        group["attributes"]["lvt"]["schema"] = format_number
        (store / "zarr.json").write_text(json.dumps(group))
        for command in (["inspect", store], ["verify", store], ["gc", store], ["verify", store, "--repair"]):
            code, _, errors = lvt(*command)
            assert (code, errors.count("\n")) == (1, 1), errors
            assert f"has code store format {format_number}, this version of lvt reads formats 2 and 3" in errors
