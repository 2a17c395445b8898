"""The skeleton of long jobs: what is done, what is refused, and what a record says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from lvt_pipeline.errors import ArtefactError, BusyError
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.provenance import Provenance, read_record, record_path
from lvt_pipeline.storage import exclusive_lock

JOB = Job(stage="count", version=1, kind="numbers")
INPUTS = {"codes": "a" * 64}


@dataclass(frozen=True)
class Settings:
    limit: int = 3


def make_folder(
    out: Path, settings: Settings = Settings(), inputs: Mapping[str, str] = INPUTS, *, overwrite: bool = False
) -> tuple[Provenance, bool]:
    """Write a file of numbers into a folder; returns the record and whether there was something to do."""
    with JOB.open_folder(out, settings, inputs, overwrite=overwrite) as work:
        if work.is_current:
            return work.record, False
        work.begin()
        (out / "numbers.txt").write_text(" ".join(map(str, range(settings.limit))))
        size = (out / "numbers.txt").stat().st_size
        return work.finish("f" * 64, {"numbers.txt": size}, {"numbers": settings.limit}), True


def test_unchanged_work_is_not_repeated(tmp_path: Path) -> None:
    first, was_made = make_folder(tmp_path / "out")
    again, was_made_again = make_folder(tmp_path / "out")
    assert (was_made, was_made_again) == (True, False)
    assert first == again == read_record(tmp_path / "out")


@pytest.mark.parametrize("change", ["setting", "input", "lost file", "overwrite"])
def test_whatever_changed_is_made_again(tmp_path: Path, change: str) -> None:
    make_folder(tmp_path / "out")
    settings, inputs = Settings(limit=4 if change == "setting" else 3), dict(INPUTS)
    if change == "input":
        inputs["codes"] = "b" * 64
    if change == "lost file":
        (tmp_path / "out" / "numbers.txt").write_text("")
    assert make_folder(tmp_path / "out", settings, inputs, overwrite=change == "overwrite")[1]


def test_a_folder_whose_record_cannot_be_read_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "out")
    (tmp_path / "out" / "provenance.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"has a provenance\.json that cannot be read"):
        make_folder(tmp_path / "out")


def test_an_interrupted_folder_is_unfinished(tmp_path: Path) -> None:
    make_folder(tmp_path / "out")
    with (
        pytest.raises(RuntimeError),
        JOB.open_folder(tmp_path / "out", Settings(limit=9), INPUTS) as work,
    ):
        work.begin()
        raise RuntimeError
    assert not record_path(tmp_path / "out").exists()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("miaow")
    with pytest.raises(ArtefactError, match="holds other things than the output of lvt count"):
        make_folder(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_the_output_of_another_stage_is_refused_and_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "out")
    other = Job(stage="draw", version=1, kind="pictures")
    with (
        pytest.raises(ArtefactError, match="was made by lvt count, and lvt draw does not change it"),
        other.open_folder(tmp_path / "out", {}, {}),
    ):
        pass


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "out"), pytest.raises(BusyError):
        make_folder(tmp_path / "out")


def test_what_a_killed_writer_left_half_written_is_removed(tmp_path: Path) -> None:
    make_folder(tmp_path / "out")
    (tmp_path / "out" / ".numbers.txt.123.partial").write_text("0 1")
    make_folder(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["numbers.txt", "provenance.json"]


def test_the_record_of_a_file_names_its_size(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    with JOB.open_file(out, Settings(), INPUTS) as work:
        assert not work.is_current
        out.write_text("[1, 2]")
        work.finish("f" * 64)
    with JOB.open_file(out, Settings(), INPUTS) as work:
        assert work.is_current
        assert work.record.outputs == {"numbers.json": 6}
    out.write_text("[]")
    with JOB.open_file(out, Settings(), INPUTS) as work:
        assert not work.is_current


def test_all_times_are_utc_to_the_second(tmp_path: Path) -> None:
    record, _ = make_folder(tmp_path / "out")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.finished)


def test_a_resumed_job_counts_the_time_of_the_interrupted_ones() -> None:
    assert JOB.recorder({}, {}, Clock(earlier_seconds=100.0)).new_record().seconds >= 100
