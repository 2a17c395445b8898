"""Fingerprints hash meaning; records say what is stale and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.provenance import (
    DigestMemo,
    Provenance,
    canonical_json,
    differences,
    digest_file,
    fingerprint,
    missing_outputs,
    read_record,
    recipe,
    write_record,
)


def record(**changes: object) -> Provenance:
    facts: dict[str, object] = {
        "kind": "frames",
        "stage": "ingest",
        "version": 1,
        "settings": {"size": 64, "geometry": {"fps": None}},
        "inputs": {"manifest": "a" * 64},
        "fingerprint": "b" * 64,
    }
    return Provenance(**{**facts, **changes})  # type: ignore[arg-type]


def test_fingerprint_ignores_key_order_and_sees_values() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_paths_cannot_enter_a_fingerprint() -> None:
    with pytest.raises(TypeError, match="cannot be part of a fingerprint"):
        canonical_json({"path": Path("x")})


def test_recipe_ignores_where_when_and_how_long() -> None:
    quick, slow = record(seconds=1.0, command=["a"]), record(seconds=9.0, command=["b"], finished="2020")
    assert quick.recipe == slow.recipe == recipe("ingest", 1, quick.settings, quick.inputs)


def test_record_round_trips_beside_a_file_and_inside_a_folder(tmp_path: Path) -> None:
    file, folder = tmp_path / "M.jsonl", tmp_path / "frames"
    file.write_text("{}\n")
    folder.mkdir()
    for output in (file, folder):
        write_record(output, record())
        assert read_record(output) == record()
    assert (tmp_path / "M.jsonl.provenance.json").exists()
    assert (folder / "provenance.json").exists()


def test_output_without_a_record_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        read_record(tmp_path)


def test_differences_name_the_field_that_changed() -> None:
    lines = differences(record(), 2, {"size": 32, "geometry": {"fps": 10.0}}, {"manifest": "c" * 64})
    assert lines == [
        "algorithm version: 1 -> 2",
        "setting geometry.fps: null -> 10.0",
        "setting size: 64 -> 32",
        f'input manifest: "{"a" * 12}" -> "{"c" * 12}"',
    ]
    assert differences(record(), 1, record().settings, record().inputs) == []


def test_lost_and_cut_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"123")
    (tmp_path / "cut").write_bytes(b"1")
    promised = record(outputs={"whole": 3, "cut": 3, "gone": 3})
    assert missing_outputs(tmp_path, promised) == ["cut", "gone"]


def test_memo_sees_changed_content_and_ignores_a_touched_time(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"one")
    memo = DigestMemo(tmp_path / "memo.sqlite")
    first = memo.digest(video)
    assert first == digest_file(video)
    os.utime(video, ns=(1, 1))
    assert memo.digest(video) == first
    video.write_bytes(b"two")
    assert memo.digest(video) == digest_file(video) != first
    memo.close()


@pytest.mark.parametrize("content", [b"not a database", b""])
def test_damaged_memo_costs_time_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "memo.sqlite").write_bytes(content)
    video = tmp_path / "v.mp4"
    video.write_bytes(b"one")
    memo = DigestMemo(tmp_path / "memo.sqlite")
    assert memo.digest(video) == digest_file(video)
    memo.close()


@pytest.mark.parametrize("content", ["[]", '{"attributes": null}', '{"attributes": {"provenance": []}}', "{}"])
def test_damaged_group_metadata_is_an_artefact_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(ArtefactError, match="no provenance record"):
        read_record(tmp_path)


def test_record_with_a_field_of_the_wrong_type_is_an_artefact_error(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    path = tmp_path / "provenance.json"
    path.write_text(path.read_text().replace('"outputs": {}', '"outputs": 3'))
    with pytest.raises(ArtefactError, match="outputs is not a table"):
        read_record(tmp_path)


@pytest.mark.parametrize("position", range(0, 8192, 97))
def test_a_flipped_byte_in_the_memo_changes_no_digest(tmp_path: Path, position: int) -> None:
    database, file = tmp_path / "memo.sqlite", tmp_path / "video"
    file.write_bytes(b"content")
    memo = DigestMemo(database)
    memo.digest(file)
    memo.close()
    data = bytearray(database.read_bytes())
    data[position % len(data)] ^= 1
    database.write_bytes(data)
    again = DigestMemo(database)
    assert again.digest(file) == digest_file(file)
    again.recall("another", (1, 2, 3), lambda: "digest")
    again.close()
    assert DigestMemo(database).digest(file) == digest_file(file)


def test_every_byte_of_a_digest_in_the_memo_is_guarded(tmp_path: Path) -> None:
    database, file = tmp_path / "memo.sqlite", tmp_path / "video"
    file.write_bytes(b"content")
    memo = DigestMemo(database)
    digest = memo.digest(file)
    memo.close()
    at = database.read_bytes().index(digest.encode())
    for position in range(at, at + len(digest), 7):
        data = bytearray(database.read_bytes())
        data[position] ^= 1
        database.write_bytes(data)
        assert DigestMemo(database).digest(file) == digest
