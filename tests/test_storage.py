"""Files appear whole or not at all, and an output has one writer."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lvt_pipeline.errors import ArtefactError, BusyError, LVTError
from lvt_pipeline.storage import (
    atomic_directory,
    atomic_writer,
    exclusive_lock,
    read_json,
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
