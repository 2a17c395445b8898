"""What can happen to a code store besides damage: a refusing system, other tools, other folders, forged numbers."""

from __future__ import annotations

import builtins
import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvt_pipeline.codes import layout
from lvt_pipeline.codes.layout import group_metadata, read_root
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.schema import shard_name
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep.maintenance import find_garbage
from lvt_pipeline.codes.upkeep.repair import repair_store
from lvt_pipeline.codes.verify import find_damaged_shards, verify_store
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import LVTError, StoreError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.verify import verify_frames
from tests.toy_codes import FIVE, SCHEMA, codes_of, files_of, planned, record, write
from tests.toy_work import make_frames

Lvt = Callable[..., tuple[int, str, str]]
ERRORS = [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EINTR]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "data.zarr", FIVE)
    return tmp_path / "data.zarr"


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "frames"
    make_frames(folder)
    return folder


# Errors of the operating system ---------------------------------------------------------------------------------------


def refusing(monkeypatch: pytest.MonkeyPatch, number: int, part: str) -> None:
    """Every attempt to open, read or look at a file whose path holds `part` fails with this error."""

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(path, str | os.PathLike) and part in os.fspath(path):
                raise OSError(number, os.strerror(number), os.fspath(path))
            return real(path, *arguments, **named)

        return call

    monkeypatch.setattr(os, "open", wrap(os.open))
    monkeypatch.setattr(os, "stat", wrap(os.stat))
    monkeypatch.setattr(Path, "read_bytes", wrap(Path.read_bytes))


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("part", ["codes/c/", "generations/000001", "codes/zarr.json", "data.zarr/zarr.json"])
def test_an_error_of_the_system_is_never_called_damage(
    store: Path, monkeypatch: pytest.MonkeyPatch, number: int, part: str
) -> None:
    held, streamed = open_codes(store), CodeWindows(store, frames=4, cache="stream")
    held["a"]
    with monkeypatch.context() as patch:
        refusing(patch, number, part)
        actions: list[Callable[[], object]] = [
            lambda: open_codes(store)["a"],
            lambda: verify_store(store),
            lambda: find_damaged_shards(store),
            lambda: CodeWindows(store, frames=4, cache="ram"),
        ]
        if part == "codes/c/":
            actions += [lambda: held["a"], lambda: streamed[0]]
        for action in actions:
            with pytest.raises(LVTError) as caught:
                action()
            message = str(caught.value)
            assert not isinstance(caught.value, StoreError)
            assert "\n" not in message
            assert not any(word in message for word in ("damaged", "missing", "delete this file"))
    assert np.array_equal(held["a"], codes_of(FIVE[0]))
    assert verify_store(store).problems == ()


def test_repair_leaves_a_shard_in_place_until_the_new_one_is_complete(store: Path) -> None:
    file = store / shard_name(1)
    sound = file.read_bytes()
    with CodeStoreWriter.open(store, SCHEMA, FIVE, damaged=lambda: (1,)) as writer:
        assert file.read_bytes() == sound
        (shard,) = writer.pending_shards()
    assert (shard.index, file.read_bytes()) == (1, sound)  # killed before it wrote: nothing is lost
    assert verify_store(store).problems == ()
    by_id = {clip.id: clip for clip in FIVE}
    with CodeStoreWriter.open(store, SCHEMA, FIVE, damaged=lambda: (1,)) as writer:
        parts = [codes_of(by_id[part.clip_id])[part.start : part.stop] for part in shard.parts]
        writer.write_shard(1, np.concatenate(parts))
        assert writer.pending_shards() == []
        writer.publish(record())
    assert file.read_bytes() == sound


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_an_error_of_the_system_on_frames_is_never_called_damage(
    frames: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    shards, real = FrameShards(frames), builtins.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path).endswith(".tar"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **named)

    with monkeypatch.context() as patch:
        refusing(patch, number, ".tar")
        patch.setattr(builtins, "open", refuse)
        for action in (lambda: shards.read(shards.clips[0]), lambda: verify_frames(frames)):
            with pytest.raises(LVTError, match=r"^reading .*\.tar failed: ") as caught:
                action()
            assert not any(word in str(caught.value) for word in ("damaged", "missing", "make it again"))
    assert verify_frames(frames).problems == []


def test_frames_opened_by_a_relative_path_work_from_any_folder(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = FrameShards(frames)
    monkeypatch.chdir(frames.parent)
    found = FrameShards(frames.name)
    monkeypatch.chdir(tmp_path)
    for clip in expected.clips:
        assert np.array_equal(found.read(clip), expected.read(clip))


# Other folders and other tools ----------------------------------------------------------------------------------------


def test_a_store_opened_by_a_relative_path_works_from_any_folder(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = open_codes("data.zarr")
    windows = {cache: CodeWindows("data.zarr", frames=4, cache=cache) for cache in ("ram", "mmap", "stream")}  # type: ignore[arg-type]
    with CodeStoreWriter.open(Path("data.zarr"), SCHEMA, [*FIVE, planned("new", 9)]) as writer:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        writer.write_shard(writer.pending_shards()[0].index, codes_of(planned("new", 9)))
        writer.publish(record())
    assert np.array_equal(found["a"], codes_of(FIVE[0]))
    assert all(np.array_equal(one[0], codes_of(FIVE[0])[:4]) for one in windows.values())
    assert np.array_equal(open_codes(store)["new"], codes_of(planned("new", 9)))
    assert os.listdir() == []


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_additions_of_others_change_nothing(store: Path, lvt: Lvt) -> None:
    group = zarr.open_group(store, mode="r+")
    group.attrs["mine"] = {"note": "a dataset of ours", "numbers": [1, 2.5, None]}
    assert np.array_equal(open_codes(store)["a"], codes_of(FIVE[0]))
    zarr.consolidate_metadata(store)
    zarr.open_group(store / "generations/000001", mode="r+").attrs["seen"] = True
    zarr.open_array(store / "codes", mode="r+").attrs["units"] = "code"
    assert np.array_equal(open_codes(store)["a"], codes_of(FIVE[0]))
    report = verify_store(store)
    assert report.problems == ()
    assert report.notes == ("the root has attributes that lvt did not write: mine",)
    assert find_garbage(store).is_empty
    assert lvt("inspect", store)[0] == 0
    write(store, [*FIVE, planned("new", 9)])
    assert verify_store(store).problems == ()
    assert zarr.open_group(store, mode="r").attrs["mine"]["note"] == "a dataset of ours"
    assert np.array_equal(zarr.open_group(store, mode="r")["codes"][:20], codes_of(FIVE[0]))


def test_additions_do_not_hide_a_change(store: Path) -> None:
    zarr.open_group(store, mode="r+").attrs["mine"] = 1
    file = store / "zarr.json"
    file.write_text(file.read_text().replace('"codebook_size": 512', '"codebook_size": 500'))
    with pytest.raises(StoreError, match=r"its bytes do not match its digest; lvt verify .* --repair rebuilds it"):
        open_codes(store)


@pytest.mark.parametrize("stage", ["encode-dataset", "sample", "import-codes"])
def test_the_advice_for_a_damaged_store_works_whichever_command_made_it(tmp_path: Path, lvt: Lvt, stage: str) -> None:
    path = tmp_path / "data.zarr"
    with CodeStoreWriter.open(path, SCHEMA, FIVE, settings={"stage": stage}) as writer:
        by_id = {clip.id: clip for clip in FIVE}
        for shard in writer.pending_shards():
            parts = [codes_of(by_id[part.clip_id])[part.start : part.stop] for part in shard.parts]
            writer.write_shard(shard.index, np.concatenate(parts))
        writer.publish(replace(record(), stage=stage))
    before = files_of(path)
    for name in ("zarr.json", "codes/zarr.json", "codes/README.md", "generations/zarr.json"):
        (path / name).write_bytes(before[name][:-20])
        code, _, errors = lvt("verify", path)
        assert code == 1
        code, out, errors = lvt("verify", path, "--repair")
        assert (code, errors) == (0, ""), name
        assert f"repaired {name}" in out
        root = read_root(path)
        assert root is not None
        assert root.stage == stage
        assert np.array_equal(open_codes(path)["b/c"], codes_of(FIVE[1]))
    assert repair_store(path) == []


def test_only_the_command_that_made_a_store_continues_it_finished_or_not(tmp_path: Path) -> None:
    def begin(path: Path, stage: str, **options: Any) -> None:
        with CodeStoreWriter.open(path, SCHEMA, FIVE, settings={"stage": stage}, **options) as writer:
            writer.write_shard(0, np.concatenate([codes_of(FIVE[0]), codes_of(FIVE[1])[:44]]))

    begin(tmp_path / "begun", "sample")
    before = files_of(tmp_path / "begun")
    for options in ({}, {"overwrite": True}, {"reencode": True}):
        with pytest.raises(StoreError, match="was made by lvt sample, and lvt encode-dataset does not change it"):
            begin(tmp_path / "begun", "encode-dataset", **options)
    assert files_of(tmp_path / "begun") == before
    begin(tmp_path / "begun", "sample")


# Forged metadata ------------------------------------------------------------------------------------------------------


def forge(store: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the attributes of the root and of the only table, and seal both as if lvt had written them."""
    table = json.loads((store / "generations/000001/zarr.json").read_text())["attributes"]
    root = json.loads((store / "zarr.json").read_text())["attributes"]
    change(root, table)
    for attributes in (root, table):
        attributes.pop("digest")
    data = group_metadata(table, indent=None)
    (store / "generations/000001/zarr.json").write_bytes(data)
    if isinstance(root.get("files"), dict):
        root["files"]["generations/000001/zarr.json"] = layout.digest_bytes(data)
    (store / "zarr.json").write_bytes(group_metadata(root))


HUGE = 10**12
FORGERIES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "a clip of 10^12 frames": lambda root, table: table["clips"]["length"].__setitem__(0, HUGE),
    "a long clip in a long array": lambda root, table: (
        table["clips"]["length"].__setitem__(0, HUGE),
        table.update(array_frames=2 * HUGE),
    ),
    "a clip far away": lambda root, table: table["clips"]["offset"].__setitem__(0, HUGE),
    "a negative offset": lambda root, table: table["clips"]["offset"].__setitem__(0, -1),
    "an array of 10^12 frames": lambda root, table: table.update(array_frames=HUGE),
    "a length that is a text": lambda root, table: table["clips"]["length"].__setitem__(0, "20"),
    "a length that is true": lambda root, table: table["clips"]["length"].__setitem__(0, True),
    "an id with a line break": lambda root, table: table["clips"]["id"].__setitem__(0, "a\nb"),
    "a column that is missing": lambda root, table: table["clips"].pop("fps"),
    "a column that is short": lambda root, table: table["clips"]["fps"].pop(),
    "no columns": lambda root, table: table.update(clips=[]),
    "a frame rate of 0": lambda root, table: table["clips"]["fps"].__setitem__(0, 0),
    "huge shards": lambda root, table: (root["lvt"].update(shard_frames=HUGE), table["lvt"].update(shard_frames=HUGE)),
    "huge frames": lambda root, table: (root["lvt"].update(grid=[HUGE, HUGE]), table["lvt"].update(grid=[HUGE, HUGE])),
    "a grid of texts": lambda root, table: table["lvt"].update(grid=["3", "4"]),
    "no codes": lambda root, table: table["lvt"].update(codebook_size=0),
    "a chunk of no frames": lambda root, table: table["lvt"].update(chunk_frames=-1),
    "a generation that is a text": lambda root, table: root["lvt"].update(generation="1"),
    "a generation that is not there": lambda root, table: root["lvt"].update(generation=7),
    "a history that is a number": lambda root, table: root.update(generations=3),
    "files that are a list": lambda root, table: root.update(files=[]),
    "a file outside of the store": lambda root, table: root["files"].update({"../../etc/passwd": "0" * 64}),
    "no record": lambda root, table: root.update(provenance=None),
    "a record without outputs": lambda root, table: root["provenance"].pop("outputs"),
    "short shards that are texts": lambda root, table: root.update(short_shards={"x": "y"}),
    "a deep nest": lambda root, table: root.update(mine=json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_metadata_is_refused_or_harmless_in_every_command(store: Path, lvt: Lvt, name: str) -> None:
    forge(store, lambda root, table: FORGERIES[name](root, table) and None)
    for command in (
        ["inspect", store],
        ["verify", store],
        ["gc", store],
        ["compact", store, "--dry-run"],
        ["export", store, "--format", "npy", "-o", store.parent / "out"],
    ):
        code, _, errors = lvt(*command)
        assert (code, errors.count("\n")) in ((0, 0), (1, 1)), (command, errors)
        assert "Traceback" not in errors


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x00b", "a\x1b[31mb", "a\u2028b", "a\x85b", "", "a\udc80"])
def test_an_id_that_breaks_a_line_does_not_enter_a_store(tmp_path: Path, text: str) -> None:
    with pytest.raises(StoreError) as caught:
        write(tmp_path / "s", [planned("fine"), planned(text, content="x")])
    assert str(caught.value).isprintable()
    assert "has a line break or control character" in str(caught.value)
    assert not (tmp_path / "s").exists()


# Any damage to any file -----------------------------------------------------------------------------------------------

OTHERS = [b"", b"null", b"[]", b"{}", b"[" * 50_000, b"9" * 6_000, b"\xff\xfe", b"PK\x03\x04"]


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One kind of accident to the bytes of a file."""
    share, noise = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=40))
    word, other = draw(st.sampled_from([b"0", b"1", b'"', b":", b"codes"])), draw(st.sampled_from(OTHERS))
    kinds: list[Callable[[bytes, int], bytes]] = [
        lambda data, at: data[:at],
        lambda data, at: data[:at] + noise + data[at:],
        lambda data, at: data[:at] + noise + data[at + len(noise) :],
        lambda data, at: other,
        lambda data, at: data.replace(word, b"7"),
        lambda data, at: data * 2,
    ]
    kind = draw(st.sampled_from(kinds))
    return lambda data: kind(data, round(share * len(data)))


def check_damage(store: Path, lvt: Lvt, name: str, damage: Callable[[bytes], bytes]) -> None:
    """Damage one file: every command gives the right result or one line, and then the file is put back."""
    before = files_of(store)
    (store / name).write_bytes(damage(before[name]))
    with suppress(LVTError):
        found = open_codes(store)
        assert all(np.array_equal(found[clip.id], codes_of(clip)) for clip in FIVE)
    for command in (["inspect", store], ["verify", store], ["gc", store], ["verify", store, "--repair"]):
        code, _, errors = lvt(*command)
        assert (code, errors.count("\n")) in ((0, 0), (1, 1)), (name, command, errors)
    for other, data in before.items():
        if not (store / other).exists() or (store / other).read_bytes() != data:
            (store / other).write_bytes(data)
    for other in {*files_of(store)} - {*before}:
        (store / other).unlink()


FILES = [
    *("zarr.json", "codes/zarr.json", "codes/README.md", "generations/zarr.json", "generations/000001/zarr.json"),
    *(shard_name(index) for index in range(3)),
]
ONE_STORE = [HealthCheck.function_scoped_fixture]  # it is put back after every example


@given(st.sampled_from(FILES), damages())
@settings(max_examples=30, deadline=None, suppress_health_check=ONE_STORE)
def test_any_damage_gives_the_right_codes_or_one_line(
    store: Path, lvt: Lvt, name: str, damage: Callable[[bytes], bytes]
) -> None:
    check_damage(store, lvt, name, damage)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(st.sampled_from(FILES), damages())
@settings(max_examples=2000, deadline=None, suppress_health_check=ONE_STORE)
def test_much_damage_gives_the_right_codes_or_one_line(
    store: Path, lvt: Lvt, name: str, damage: Callable[[bytes], bytes]
) -> None:
    check_damage(store, lvt, name, damage)
