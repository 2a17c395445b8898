"""Code stores that several processes read, write and collect at the same time."""

from __future__ import annotations

import errno
import fcntl
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.codes import layout
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.readers import NO_LOCKS
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep.maintenance import collect_garbage, find_garbage
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.errors import BusyError, StoreError
from tests.toy_codes import codes_of, planned, write

ROOT = str(Path(__file__).parents[1])
CLIPS = [planned(f"clip{number:02}", 16) for number in range(12)]
REAL_READ = layout.read_file
Lvt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Generation 1 has 12 clips in 3 shards; generation 2 needs the last two of them only."""
    write(tmp_path / "data.zarr", CLIPS)
    write(tmp_path / "data.zarr", CLIPS[4:])
    return tmp_path / "data.zarr"


@contextmanager
def running(script: str, **values: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process that can import the tests and has printed "ready"; it is killed at the end of the block."""
    code = f"import sys\nsys.path.insert(0, {ROOT!r})\n" + textwrap.dedent(script).format(**values)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


STREAMING = """
    from lvt_pipeline.codes.loading.windows import CodeWindows
    windows = CodeWindows({path!r}, frames=4, cache="stream", generation=1)
    print("ready", flush=True)
    while sys.stdin.readline():
        print(int(windows.batch(range(len(windows))).sum()), flush=True)
"""


def test_gc_keeps_the_generation_that_another_process_streams_and_names_it(store: Path, lvt: Lvt) -> None:
    expected = int(CodeWindows(store, frames=4, cache="ram", generation=1).batch(range(156)).sum())
    with running(STREAMING, path=str(store)) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        code, out, _ = lvt("gc", store, "--apply")
        assert code == 0
        assert f"generation 1 is kept: it is being read by process {reader.pid} ({sys.executable} -c" in out
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert int(reader.stdout.readline()) == expected
        assert open_codes(store).generations == [1, 2]
    assert collect_garbage(store).dropped == (1,)  # a dead reader leaves no lock


def test_a_store_that_is_read_is_not_overwritten(store: Path) -> None:
    with running(STREAMING, path=str(store)) as reader:
        with pytest.raises(BusyError, match=rf"cannot be replaced: it is being read by process {reader.pid}"):
            write(store, CLIPS, overwrite=True)
        assert verify_store(store).problems == ()
    write(store, CLIPS, overwrite=True)
    assert open_codes(store).generations == [1]


def test_windows_that_move_to_another_process_hold_the_generation_there(store: Path) -> None:
    windows = pickle.loads(pickle.dumps(CodeWindows(store, frames=4, cache="stream", generation=1)))
    assert collect_garbage(store).dropped == ()
    assert np.array_equal(windows[0].numpy(), codes_of(CLIPS[0])[:4])
    del windows
    assert collect_garbage(store).dropped == (1,)


def test_without_locks_gc_keeps_every_generation_unless_nobody_is_said_to_read(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert np.array_equal(open_codes(store, 1)["clip00"], codes_of(CLIPS[0]))
    assert collect_garbage(store).in_use == {1: NO_LOCKS}
    assert open_codes(store).generations == [1, 2]
    assert collect_garbage(store, ignore_readers=True).dropped == (1,)
    assert open_codes(store).generations == [2]


# Verifying and collecting at the same time ----------------------------------------------------------------------------


def change(path: Path, step: int) -> None:
    """One of the changes that commands make to a store, always leaving it sound."""
    if step % 3 == 0:
        write(path, [*CLIPS[4:], planned(f"new{step}", 30)])
    elif step % 3 == 1:
        write(path, [*CLIPS[4:], planned("unfinished", 90)], stop_after=1)
    else:
        collect_garbage(path, drop_pending=True)


@pytest.mark.parametrize("kind", range(3))
def test_a_change_at_any_moment_of_a_verification_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    for moment in range(200):
        path = tmp_path / str(moment) / "data.zarr"
        write(path, CLIPS)
        write(path, CLIPS[4:])
        if kind == 2:
            change(path, 1)
        reads = 0

        def read(file: Path, path: Path = path, moment: int = moment) -> bytes | None:
            nonlocal reads
            reads += 1
            if reads == moment + 1:
                change(path, kind)
            return REAL_READ(file)

        with monkeypatch.context() as patch:
            for module in (layout,):
                patch.setattr(module, "read_file", read)
            assert verify_store(path).problems == (), (kind, moment)
        if reads <= moment:
            assert moment > 10
            return
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("moment", range(12))
def test_a_store_that_changes_while_it_is_opened_is_opened(
    store: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    reads = 0

    def read(file: Path) -> bytes | None:
        nonlocal reads
        reads += 1
        if reads == moment + 1:
            change(store, 0)
            change(store, 2)
        return REAL_READ(file)

    monkeypatch.setattr(layout, "read_file", read)
    found = open_codes(store)
    assert np.array_equal(found["clip11"], codes_of(CLIPS[11]))
    assert len(find_garbage(store).kept) >= 1


CHANGING = """
    import time
    from pathlib import Path
    from lvt_pipeline.errors import BusyError
    from tests.test_readers import change
    print("ready", flush=True)
    for step in range({first}, {first} + {steps}):
        try:
            change(Path({path!r}), step)
        except BusyError:
            time.sleep(0.01)
"""


def verify_while_it_changes(store: Path, steps: int) -> None:
    """Verify a store again and again while two processes change it."""
    values = {"path": str(store), "steps": steps}
    with running(CHANGING, **values, first=0) as one, running(CHANGING, **values, first=2) as other:
        is_over = False
        while not is_over:
            is_over = one.poll() is not None and other.poll() is not None
            assert verify_store(store).problems == ()
            find_garbage(store)
            found = open_codes(store)
            assert np.array_equal(found["clip11"], codes_of(CLIPS[11]))
        assert [one.wait(), other.wait()] == [0, 0]


def test_verify_and_gc_are_right_while_other_processes_change_the_store(store: Path) -> None:
    verify_while_it_changes(store, 12)


@pytest.mark.slow
def test_verify_and_gc_are_right_for_a_long_time(store: Path) -> None:
    verify_while_it_changes(store, 400)


def test_a_generation_that_is_gone_is_named(store: Path) -> None:
    collect_garbage(store)
    with pytest.raises(StoreError, match=r"has no generation 1; lvt gc has removed it; it has 2"):
        open_codes(store, 1)
