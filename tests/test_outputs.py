"""Where a command may write: not over its inputs, and not over what another command or a person made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.outputs import require_output_file, require_output_folder
from lvt_pipeline.provenance import Provenance, write_record
from tests.toy_codes import FIVE, files_of, write

Lvt = Callable[..., tuple[int, str, str]]
MARK = b'"short_clips": '


def record(stage: str) -> Provenance:
    return Provenance(kind="evaluation", stage=stage, version=1, settings={}, inputs={}, fingerprint="f")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "data.zarr", FIVE)
    return tmp_path / "data.zarr"


def test_an_output_that_is_an_input_is_refused_under_every_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link.zarr").symlink_to(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    names = (store, tmp_path / "link.zarr", Path("data.zarr"), tmp_path / "elsewhere/../data.zarr", Path("./data.zarr"))
    for output in names:
        for source in names:
            with pytest.raises(LVTError, match=r"is both an input and the output of lvt test; choose another output$"):
                require_output_folder(output, "test", [None, source])


def test_an_output_within_an_input_or_around_it_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)
    with pytest.raises(LVTError, match="is inside the input"):
        require_output_folder(store / "samples.zarr", "sample", [store])
    with pytest.raises(LVTError, match="is inside the input"):
        require_output_folder(tmp_path / "link/samples.zarr", "sample", [store])
    with pytest.raises(LVTError, match="contains the input"):
        require_output_folder(tmp_path, "sample", [store])
    with pytest.raises(LVTError, match="is inside the code store"):
        require_output_file(store / "eval.json", "evaluate", [store], mark=MARK)
    require_output_folder(tmp_path / "samples.zarr", "sample", [store, tmp_path / "missing"])


def test_what_another_command_made_is_refused_and_named(store: Path, tmp_path: Path) -> None:
    require_output_folder(store, "test")
    with pytest.raises(ArtefactError, match=r"was made by lvt test, and lvt sample does not change it"):
        require_output_folder(store, "sample")
    file = tmp_path / "eval.json"
    file.write_text("{}")
    write_record(file, record("evaluate"))
    require_output_file(file, "evaluate", mark=MARK)
    with pytest.raises(ArtefactError, match="was made by lvt evaluate, and lvt report does not change it"):
        require_output_file(file, "report", mark=MARK)


def test_a_file_of_nobody_is_kept_and_that_of_a_killed_command_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text('{"mine": 1}')
    with pytest.raises(ArtefactError, match="exists and lvt evaluate did not write it"):
        require_output_file(file, "evaluate", mark=MARK)
    file.write_text('{"split": "test", "short_clips": 0}')  # killed before its record was written
    require_output_file(file, "evaluate", mark=MARK)
    require_output_file(tmp_path / "new.json", "evaluate", mark=MARK)
    with pytest.raises(ArtefactError, match="is a folder"):
        require_output_file(tmp_path, "evaluate", mark=MARK)
    with pytest.raises(ArtefactError, match="is a file"):
        require_output_folder(file, "sample")


def test_no_command_replaces_its_input_or_the_output_of_another(store: Path, tmp_path: Path, lvt: Lvt) -> None:
    """Every command that takes `-o`, with an output that it must leave alone; nothing changes and one line says why."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    before = files_of(tmp_path)
    commands = [
        ["sample", "--prior", run, "--codes", store, "-o", store],
        ["sample", "--prior", run, "--codes", tmp_path / "other.zarr", "-o", store],
        ["encode-dataset", "--frames", run, "--vqvae", run, "-o", store],
        ["encode-dataset", "--frames", run, "--vqvae", run, "-o", store, "--repair"],
        ["encode-dataset", "--frames", run, "--vqvae", run, "-o", store, "--overwrite"],
        ["import-codes", tmp_path, "-o", store],
        ["import-codes", tmp_path / "folder", "-o", store],
        ["export", store, "--format", "npy", "-o", store],
        ["export", store, "--format", "npy", "-o", store / "export"],
        ["decode", "--codes", store, "--vqvae", run, "-o", store],
        ["evaluate", "--codes", store, "-o", mine],
        ["evaluate", "--codes", store, "-o", store],
        ["manifest", "build", mine, "-o", mine],
        ["manifest", "build", tmp_path, "-o", mine],
        ["ingest", "--manifest", mine, "-o", mine],
        ["ingest", "--manifest", mine, "-o", store],
        ["train-vqvae", "--frames", run, "-o", store],
        ["train-prior", "--codes", store, "-o", store],
        ["train-prior", "--codes", store, "-o", tmp_path],
    ]
    for command in commands:
        code, _, errors = lvt(*command)
        assert (code, errors.count("\n")) == (1, 1), (command, errors)
        assert any(
            words in errors
            for words in ("choose another output", "choose an output", "is a file;", "is a folder;", "did not write it")
        ), (command, errors)
    assert files_of(tmp_path) == before
