"""Export: the same codes in the files of other tools, resumable, the same bytes every time."""

from __future__ import annotations

import builtins
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import webdataset

from lvt_pipeline.codes.exchange.units import Unit
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError
from lvt_pipeline.jobs import export as exporting
from lvt_pipeline.jobs.export import export_codes
from lvt_pipeline.jobs.settings import ExportSettings
from lvt_pipeline.provenance import read_record
from tests.toy_codes import LENGTHS, TOKENIZER, make_store

Lvt = Callable[..., tuple[int, str, str]]
FORMATS = ("npy", "npy-frames", "memmap", "webdataset", "parquet")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CodeStore:
    return make_store(tmp_path_factory.mktemp("stores") / "data.zarr")


def export(store: CodeStore, out: Path, file_format: Any, **settings: Any) -> Any:
    return export_codes(store.path, out, ExportSettings(format=file_format, **settings))


def identities(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file but the record and the plan, to see which were written again."""
    files = [out / name for name in files_of(out) if name != "export.json"]
    return {file.relative_to(out).as_posix(): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def files_of(out: Path) -> dict[str, bytes]:
    """Everything but the record, which tells when it was made."""
    return {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and file.name != "provenance.json"
    }


# Formats --------------------------------------------------------------------------------------------------------------


def test_npy_is_one_array_per_clip_in_the_stored_type(store: CodeStore, tmp_path: Path) -> None:
    export(store, tmp_path / "out", "npy")
    for clip_id in store:
        codes = np.load(tmp_path / "out" / f"{clip_id}.npy")
        assert codes.dtype == np.uint16
        assert np.array_equal(codes, store[clip_id])
    lines = [json.loads(line) for line in (tmp_path / "out/clips.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(LENGTHS)
    assert lines[1] == {"id": "train/b", "split": "train", "label": "label of train/b", "fps": 12.5, "frames": 30}


@pytest.mark.parametrize(("num_codebooks", "shape"), [(2, (2, 4, 3)), (1, (4, 3))])
def test_npy_frames_have_the_layout_of_the_released_code(
    tmp_path: Path, num_codebooks: int, shape: tuple[int, ...]
) -> None:
    store = make_store(tmp_path / "s", frame_shape=(4, 3, num_codebooks))
    export(store, tmp_path / "out", "npy-frames")
    folder = tmp_path / "out" / "train" / "a"
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{number}.npy" for number in range(11))
    for number, frame in enumerate(store["train/a"]):
        saved = np.load(folder / f"{number}.npy")
        assert (saved.dtype, saved.shape) == (np.int64, shape)
        assert np.array_equal(saved if num_codebooks > 1 else saved[None], frame.transpose(2, 0, 1))


def test_memmap_is_all_codes_and_a_table(store: CodeStore, tmp_path: Path) -> None:
    export(store, tmp_path / "out", "memmap")
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    codes = np.memmap(tmp_path / "out" / meta["file"], meta["dtype"], mode="r", shape=tuple(meta["shape"]))
    assert (meta["codebook_size"], meta["tokenizer"], len(codes)) == (512, TOKENIZER, sum(LENGTHS.values()))
    for row in meta["clips"]:
        assert np.array_equal(codes[row["offset"] : row["offset"] + row["frames"]], store[row["id"]])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_tars(store: CodeStore, tmp_path: Path) -> None:
    record = export(store, tmp_path / "out", "webdataset", clips_per_file=1)
    names = [name for name in record.outputs if name.endswith(".tar")]
    assert names == ["train-000000.tar", "train-000001.tar", "val-000000.tar", "test-000000.tar"]
    dataset = webdataset.WebDataset([str(tmp_path / "out" / name) for name in names], shardshuffle=False).decode()
    samples = {sample["json"]["id"]: sample for sample in dataset}
    gc.collect()  # webdataset leaves its files to the garbage collector
    assert list(samples) == list(LENGTHS)
    for clip_id, sample in samples.items():
        assert np.array_equal(sample["npy"], store[clip_id])
        assert sample["json"]["codebook_size"] == 512


def test_parquet_files_are_named_by_split_and_hold_a_row_per_clip(store: CodeStore, tmp_path: Path) -> None:
    export(store, tmp_path / "out", "parquet", clips_per_file=1)
    names = sorted(file.name for file in (tmp_path / "out/data").iterdir())
    assert names == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "val-00000-of-00001.parquet",
    ]
    seen = {}
    for name in names:
        for row in pyarrow.parquet.read_table(tmp_path / "out/data" / name).to_pylist():
            shape = (row["frames"], row["height"], row["width"], row["codebooks"])
            seen[row["id"]] = np.array(row["codes"], np.uint16).reshape(shape)
            assert row["split"] == row["id"].partition("/")[0]
    assert set(seen) == set(LENGTHS)
    assert all(np.array_equal(codes, store[clip_id]) for clip_id, codes in seen.items())


def test_small_codebooks_are_bytes_everywhere(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", codebook_size=256)
    export(store, tmp_path / "npy", "npy")
    export(store, tmp_path / "memmap", "memmap")
    export(store, tmp_path / "parquet", "parquet")
    assert np.load(tmp_path / "npy/train/a.npy").dtype == np.uint8
    assert (tmp_path / "memmap/codes.bin").stat().st_size == store.num_frames * 4 * 3 * 2
    schema = pyarrow.parquet.read_schema(tmp_path / "parquet/data/val-00000-of-00001.parquet")
    assert schema.field("codes").type == pyarrow.large_list(pyarrow.uint8())


# Being run again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
def test_same_store_same_bytes_and_nothing_to_do_the_second_time(
    store: CodeStore, tmp_path: Path, file_format: Any
) -> None:
    first = export(store, tmp_path / "one", file_format)
    export(store, tmp_path / "two", file_format)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").rglob("*")}
    assert export(store, tmp_path / "one", file_format) == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "one").rglob("*")} == times
    assert read_record(tmp_path / "one") == first
    assert first.inputs == {"codes": store.fingerprint, "tokenizer": TOKENIZER}


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_store_that_changed_is_exported_as_if_for_the_first_time(tmp_path: Path, file_format: Any) -> None:
    export(make_store(tmp_path / "s"), tmp_path / "out", file_format, clips_per_file=2)
    lengths = {"train/a": 11, "train/new": 4, "train/b": 30, "test/ü e": 19}
    store = make_store(tmp_path / "s", lengths, content={"train/b": "other"})
    before = identities(tmp_path / "out")
    export(store, tmp_path / "out", file_format, clips_per_file=2)
    export(store, tmp_path / "scratch", file_format, clips_per_file=2)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "scratch")
    assert not (tmp_path / "out" / "val").exists()
    if file_format == "npy":
        written = {name for name, seen in identities(tmp_path / "out").items() if before.get(name) != seen}
        assert written == {"train/new.npy", "train/b.npy", "clips.jsonl"}


def test_only_what_is_missing_or_cut_is_written_again(store: CodeStore, tmp_path: Path) -> None:
    export(store, tmp_path / "out", "npy")
    before = files_of(tmp_path / "out")
    seen = identities(tmp_path / "out")
    (tmp_path / "out/train/a.npy").unlink()
    os.truncate(tmp_path / "out/train/b.npy", 100)
    export(store, tmp_path / "out", "npy")
    written = {name for name, now in identities(tmp_path / "out").items() if seen[name] != now}
    assert written == {"train/a.npy", "train/b.npy"}
    assert files_of(tmp_path / "out") == before


def test_another_format_in_the_same_folder_replaces_the_first(store: CodeStore, tmp_path: Path) -> None:
    for file_format in FORMATS:
        export(store, tmp_path / "out", file_format)
    export(store, tmp_path / "scratch", FORMATS[-1])
    assert files_of(tmp_path / "out") == files_of(tmp_path / "scratch")


def test_an_older_generation_and_one_split_can_be_exported(tmp_path: Path, lvt: Lvt) -> None:
    make_store(tmp_path / "s")
    make_store(tmp_path / "s", {"train/a": 11, "val/x": 3})
    assert lvt("export", tmp_path / "s", "--format", "npy", "-o", tmp_path / "out", "--at", 1, "--split", "val")[0] == 0
    assert np.array_equal(np.load(tmp_path / "out/val/c.d.npy"), open_codes(tmp_path / "s", generation=1)["val/c.d"])
    assert [name for name in files_of(tmp_path / "out") if name.endswith(".npy")] == ["val/c.d.npy"]


KILLED_EXPORT = """
    import os, signal, sys
    from pathlib import Path
    from lvt_pipeline.codes import store as codes
    from lvt_pipeline.jobs.export import ExportSettings, export_codes
    real, left = codes.CodeStore.read, [{reads}]
    def read(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments)
    codes.CodeStore.read = read
    export_codes(Path({store!r}), Path({out!r}), ExportSettings(format={file_format!r}, clips_per_file=2))
"""


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_killed_export_resumes_to_the_same_bytes(store: CodeStore, tmp_path: Path, file_format: Any) -> None:
    out = tmp_path / "out"
    script = KILLED_EXPORT.format(reads=3, store=str(store.path), out=str(out), file_format=file_format)
    lines = "\n".join(line.removeprefix("    ") for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], check=False, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (out / "provenance.json").exists()
    export(store, out, file_format, clips_per_file=2)
    export(store, tmp_path / "scratch", file_format, clips_per_file=2)
    assert files_of(out) == files_of(tmp_path / "scratch")


def test_a_stop_request_keeps_what_is_finished(
    store: CodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lvt: Lvt
) -> None:
    real = exporting.clip_units
    written = []

    def signalling(*arguments: Any) -> list[Unit]:
        def write(unit: Unit, path: Path) -> None:
            unit.write(path)
            written.append(unit.name)
            os.kill(os.getpid(), signal.SIGTERM)

        return [
            Unit(unit.name, unit.fingerprint, unit.num_frames, lambda path, unit=unit: write(unit, path))
            for unit in real(*arguments)
        ]

    monkeypatch.setattr(exporting, "clip_units", signalling)
    code, _, error = lvt("export", store.path, "--format", "npy", "-o", tmp_path / "out")
    assert code == 75
    assert "run the same command again to resume" in error
    assert written == ["train/a.npy"]
    monkeypatch.setattr(exporting, "clip_units", real)
    before = identities(tmp_path / "out")
    resumed = export(store, tmp_path / "out", "npy")
    assert identities(tmp_path / "out")["train/a.npy"] == before["train/a.npy"]
    whole = export(store, tmp_path / "whole", "npy")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert replace(resumed, seconds=0.0, finished="") == replace(whole, seconds=0.0, finished="")


# Messages -------------------------------------------------------------------------------------------------------------


def test_a_folder_with_other_things_is_not_written_to(store: CodeStore, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("a face")
    with pytest.raises(
        ArtefactError, match="holds other things than the output of lvt export; choose another output folder"
    ):
        export(store, tmp_path / "photos", "npy")
    (tmp_path / "photos" / "export.json").write_text(json.dumps({"units": {"../store": "x"}}))
    with pytest.raises(ArtefactError, match="is damaged or was not written by lvt export; choose a new folder"):
        export(store, tmp_path / "photos", "npy")


@pytest.mark.parametrize("clip_id", ["train/../../out", "/train/x", "train//a"])
def test_ids_that_lead_out_of_the_folder_are_refused(tmp_path: Path, clip_id: str) -> None:
    from lvt_pipeline.codes.exchange.units import clip_path

    with pytest.raises(LVTError, match="cannot be the name of a file; rename it in the manifest"):
        clip_path(clip_id)


def test_a_clip_inside_another_is_refused_as_frames(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"train/a": 3, "train/a/b": 2})
    with pytest.raises(LVTError, match="clip train/a/b would be inside that of clip train/a; use --format npy"):
        export(store, tmp_path / "out", "npy-frames")
    export(store, tmp_path / "out", "npy")


def test_parquet_without_pyarrow_says_what_to_install(
    store: CodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lvt: Lvt
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError("No module named 'pyarrow'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, error = lvt("export", store.path, "--format", "parquet", "-o", tmp_path / "out")
    assert code == 1
    assert error.count("\n") == 1
    assert "pip install 'lvt-pipeline[parquet]'" in error
    assert not (tmp_path / "out").exists()


def test_settings_and_stores_that_cannot_be_exported_are_refused(store: CodeStore, tmp_path: Path, lvt: Lvt) -> None:
    with pytest.raises(ConfigError, match="format='csv' is not one of npy, npy-frames"):
        export(store, tmp_path / "out", "csv")
    with pytest.raises(ConfigError, match="split='dev' is not one of train, val, test"):
        export(store, tmp_path / "out", "npy", split="dev")
    small = make_store(tmp_path / "s", {"train/a": 3})
    with pytest.raises(LVTError, match="has no clip in split test; leave the split out for all"):
        export(small, tmp_path / "out", "npy", split="test")
    code, _, error = lvt("export", tmp_path / "nothing", "--format", "npy", "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert "does not exist" in error
