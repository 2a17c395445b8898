"""Files appear whole or not at all, and an output has one writer."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from lvt_pipeline import file_systems
from lvt_pipeline.codes.exchange.units import clip_path
from lvt_pipeline.errors import ArtefactError, BusyError, ConfigError, LVTError
from lvt_pipeline.file_systems import LOCK_NAME, missing_guarantees
from lvt_pipeline.frames.tar import tar_key
from lvt_pipeline.jobs.decode import _file_name
from lvt_pipeline.provenance import Provenance, missing_outputs
from lvt_pipeline.storage import (
    atomic_directory,
    atomic_writer,
    clip_file,
    exclusive_lock,
    is_locked,
    json_log,
    open_regular,
    read_json,
    read_json_lines,
    read_text,
    read_toml,
    remove_leftovers,
    write_bytes,
    write_json,
)


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_writer(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_failed_directory_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "made") as folder:
        (folder / "part").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_json_round_trips(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, None]}


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"a\.json cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_second_writer_is_refused_in_one_line(tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / "out"),
        pytest.raises(BusyError, match="another process is writing"),
        exclusive_lock(tmp_path / "out"),
    ):
        pass


def test_lock_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lvt_pipeline.storage import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])):\n    print('mine', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"mine\n"
    with pytest.raises(BusyError), exclusive_lock(tmp_path):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with exclusive_lock(tmp_path):
        pass


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".x.12.partial").write_text("half")
    (tmp_path / ".y.12.partial").mkdir()
    (tmp_path / "kept").write_text("whole")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


def test_file_size_limit_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from lvt_pipeline.storage import write_bytes\n"
        "from lvt_pipeline.errors import LVTError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    write_bytes(Path(sys.argv[1]), bytes(10000))\n"
        "except LVTError as error:\n    print(error)"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big")], capture_output=True, text=True, check=True
    )
    assert "file-size limit is reached" in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LVTError, match="permission denied"):
        write_bytes(tmp_path / "a", b"x")


# What is read --------------------------------------------------------------------------------------------------------

SEPARATORS = "\u2028\u2029\u0085\x0b\x0c"
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "wrong at line 1, column 2"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (b"", "empty"),
        (DEEP, "nested too deeply"),
        (b'{"a": ' + b"7" * 6000 + b"}", "too large"),
        (b'{"a": NaN}', "not finite"),
        (b'{"a": 1e999}', "not finite"),
        (b'{"a": "\\ud800"}', "half of a character"),
    ],
)
def test_unusable_json_is_one_line_with_the_file_and_the_cause(tmp_path: Path, content: bytes, reason: str) -> None:
    for read in (read_json, read_json_lines):
        (tmp_path / "a.json").write_bytes(content)
        if read is read_json_lines and not content:
            assert read(tmp_path / "a.json") == []
            continue
        with pytest.raises(ConfigError, match=reason) as caught:
            read(tmp_path / "a.json", error=ConfigError)
        assert "a.json" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_json_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"caption": f"one{char}two"} for char in SEPARATORS]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n\n" for row in rows), newline="")
    assert [row for _, row in read_json_lines(path)] == rows
    assert [number for number, _ in read_json_lines(path)] == [1, 3, 5, 7, 9]
    path.write_bytes(b'{"a":\r1}\n')
    assert read_json_lines(path) == [(1, {"a": 1})]
    path.write_bytes(b'{"a": 1}\n[2]\n')
    with pytest.raises(ArtefactError, match=r"a\.jsonl:2: not a JSON object, found \[2\]"):
        read_json_lines(path)


def test_a_log_keeps_its_whole_lines_around_a_damaged_one() -> None:
    data = b'{"step": 1, "note": "a\xe2\x80\xa8b"}\n{"step": \xff}\n' + DEEP + b'\n{"step": 3}\n{"st'
    assert [line["step"] for line in json_log(data)] == [1, 3]


def test_json_that_is_not_finite_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(LVTError, match="not finite"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("content", [b"a = " + b"9" * 6000, b"a = " + b"[" * 50_000, b"\xff", b"a ="])
def test_unusable_toml_is_one_line_with_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"a\.toml") as caught:
        read_toml(tmp_path / "a.toml")
    assert "\n" not in str(caught.value)


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path is limited to 108 bytes
        server.bind("socket")
    for path, kind in (("pipe", "a named pipe"), ("socket", "a socket"), ("/dev/zero", "a device"), (".", "a folder")):
        with pytest.raises(OSError, match=kind):
            open_regular(tmp_path / path)
        with pytest.raises(ArtefactError, match=kind):
            read_text(tmp_path / path)


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["長" * 83, "x" * 255, "é" * 127])
def test_files_of_clips_have_names_that_every_file_system_takes(tmp_path: Path, name: str) -> None:
    relative = clip_file(f"{name}/{name}", ".npy")
    assert all(len(part.encode()) <= 255 for part in relative.split("/"))
    write_bytes(tmp_path / relative, b"x")
    assert (tmp_path / relative).read_bytes() == b"x"
    assert clip_file(f"{name}/{name}", ".npy") == relative
    assert clip_file(f"{name}/{name[:-1]}?", ".npy") != relative


@pytest.mark.parametrize("name", ["長" * 83, "x" * 251, "." * 100 + "y" * 151])
def test_every_stage_names_the_file_of_a_clip_with_a_long_name(tmp_path: Path, name: str) -> None:
    for relative in (
        _file_name(f"{name}/{name}", "mp4"),
        f"{clip_path(f'{name}/{name}')}.npy",
        f"{tar_key(f'{name}/{name}')}.endeffector_pos.npy",
    ):
        write_bytes(tmp_path / relative, b"x")
        assert (tmp_path / relative).read_bytes() == b"x"


def test_short_names_stay_as_they_are() -> None:
    assert clip_file("walk/a.b@3.5", ".mp4") == "walk/a.b@3.5.mp4"


# File systems that lack something ------------------------------------------------------------------------------------


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_file_system_without_flock_gets_a_lock_file(tmp_path: Path, without_flock: None) -> None:
    with exclusive_lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(BusyError, match=r"no flock.*delete"), exclusive_lock(tmp_path):
            pass
    assert not is_locked(tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_lock_file_of_a_dead_process_is_replaced(tmp_path: Path, without_flock: None) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    (tmp_path / LOCK_NAME).write_text(f"{socket.gethostname()} {child.pid}")
    with exclusive_lock(tmp_path):
        pass
    (tmp_path / LOCK_NAME).write_text(f"another-machine {child.pid}")
    with pytest.raises(BusyError, match="another-machine"), exclusive_lock(tmp_path):
        pass


def abandoned_lock(path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    path.write_text(f"{socket.gethostname()} {child.pid} {path.name}")


def test_of_two_processes_that_find_an_abandoned_lock_file_one_owns_it(
    tmp_path: Path, without_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned_lock(tmp_path / LOCK_NAME)
    judge = file_systems._living_owner
    competitor = ExitStack()

    def judge_slowly(content: str) -> str | None:
        owner = judge(content)
        monkeypatch.setattr(file_systems, "_living_owner", judge)
        competitor.enter_context(exclusive_lock(tmp_path))  # another process is quicker
        return owner

    monkeypatch.setattr(file_systems, "_living_owner", judge_slowly)
    with competitor:
        with pytest.raises(BusyError, match="another process is writing"), exclusive_lock(tmp_path):
            pass
        assert os.listdir(tmp_path) == [LOCK_NAME]  # the lock file of the quicker one
    assert os.listdir(tmp_path) == []


def test_a_process_that_died_while_it_replaced_a_lock_file_is_replaced_too(tmp_path: Path, without_flock: None) -> None:
    abandoned_lock(tmp_path / LOCK_NAME)
    mark = hashlib.sha256((tmp_path / LOCK_NAME).read_bytes()).hexdigest()[:16]
    abandoned_lock(tmp_path / f"{LOCK_NAME}.{mark}")
    with exclusive_lock(tmp_path):
        assert os.listdir(tmp_path) == [LOCK_NAME]
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_links_has_lock_files(
    tmp_path: Path, without_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with exclusive_lock(tmp_path), pytest.raises(BusyError, match="no flock"), exclusive_lock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_flushed_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missing_guarantees(tmp_path) == []

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
    assert "cannot flush" in missing_guarantees(tmp_path)[0]


def test_a_process_of_a_group_learns_that_a_sibling_may_hold_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"another process is writing .*; wait for it to finish, or stop it and run this again"
    with exclusive_lock(tmp_path):
        with pytest.raises(BusyError, match=message), exclusive_lock(tmp_path):
            pass
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        message = r"this is process 1 of 2 that were started together.*: start one process and run this again"
        with pytest.raises(BusyError, match=message), exclusive_lock(tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_text_that_the_system_refuses_to_read_is_never_called_damaged_or_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = tmp_path / "a.json"
    file.write_text("{}")

    def refuse(*arguments: object, **named: object) -> int:
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(os, "open", refuse)
    for read in (read_json, read_json_lines, read_toml, read_text):
        with pytest.raises(LVTError, match=r"^reading .*a\.json failed: ") as caught:
            read(file)
        assert type(caught.value) is LVTError
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["n" * 300, "a/b", "null\0"])
def test_an_output_whose_recorded_name_cannot_exist_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(b"")
    record = Provenance(
        kind="frames", stage="test", version=1, settings={}, inputs={}, fingerprint="", outputs={name: 1}
    )
    assert missing_outputs(tmp_path, record) == [name]
