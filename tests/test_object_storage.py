"""One protocol for a folder and for a bucket: whole files, one winner of a race, and lost answers found out."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier

import pytest

from lvt_pipeline.errors import LVTError
from lvt_pipeline.storage import PosixStorage, Storage, StoreURL, as_place, objects, open_storage
from tests.object_stores import connect, new_url, proxy_to


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty storage on a disk or on one of the servers."""
    if request.param == "disk":
        return open_storage(tmp_path / "data", "staging")
    if request.param in ("google", "azurite"):
        return open_storage(request.getfixturevalue(request.param))
    connect(request.getfixturevalue(request.param), monkeypatch)
    return open_storage(new_url())


EVERYWHERE = pytest.mark.parametrize("storage", ["disk", "moto", "weed", "google", "azurite"], indirect=True)


@EVERYWHERE
def test_a_folder_and_a_bucket_do_the_same(storage: Storage) -> None:
    assert storage.read("a/b") is None
    assert storage.list() == []
    assert storage.create("a/b", b"12345")
    assert storage.create("a/b", b"12345")  # its bytes are there, whoever wrote them
    assert not storage.create("a/b", b"other")
    found = storage.read("a/b")
    assert found is not None
    assert (found.data, found.size) == (b"12345", 5)
    part = storage.read_range("a/b", 1, 3)
    assert part is not None
    assert (part.data, part.size) == (b"23", 5)
    beyond = [storage.read_range("a/b", start, 20) for start in (3, 5)]
    assert [(item.data, item.size) for item in beyond if item] == [(b"45", 5), (b"", 5)]
    assert storage.replace("a/b", b"6", found.tag)
    assert not storage.replace("a/b", b"7", found.tag)
    assert not storage.replace("absent", b"7", found.tag)
    assert storage.replace("c", b"8")
    assert storage.replace("c", b"9")
    assert [(entry.name, entry.size) for entry in storage.list()] == [("a/b", 1), ("c", 1)]
    assert [entry.name for entry in storage.list("a")] == ["a/b"]
    assert storage.list()[0].modified > 0
    storage.delete(["a/b", "absent"])
    assert [entry.name for entry in storage.list()] == ["c"]
    copy: Storage = pickle.loads(pickle.dumps(storage))
    assert copy.place == storage.place
    assert [entry.name for entry in copy.list()] == ["c"]


def test_a_folder_has_no_file_but_those_written(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path, "staging")
    storage.create("a/b", b"1")
    storage.replace("a/b", b"2", storage.read("a/b").tag)  # type: ignore[union-attr]
    storage.delete(["a/b"])
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["staging"]


def race(storage: Storage, rounds: int) -> None:
    """Two committers start from the same root, again and again."""
    barrier = Barrier(2)

    def commit(name: str) -> list[bool]:
        other = open_storage(storage.place, "staging")
        won = []
        for number in range(rounds):
            barrier.wait()
            root = other.read("root")
            barrier.wait()
            data = f"{name}{number}".encode()
            won.append(other.replace("root", data, root.tag) if root else other.create("root", data))
        return won

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(commit, "ab")
    assert [one + other for one, other in zip(first, second, strict=True)] == [1] * rounds


@pytest.mark.parametrize("storage", ["disk", "weed", "google", "azurite"], indirect=True)
def test_of_two_committers_one_wins_each_time(storage: Storage) -> None:
    race(storage, 20)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["disk", "weed"], indirect=True)
def test_of_two_committers_one_wins_two_hundred_times(storage: Storage) -> None:
    race(storage, 200)


def test_an_answer_that_is_lost_after_the_write_is_found_out(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy_to(moto) as proxy:
        connect(proxy.address, monkeypatch)
        storage = open_storage(new_url())
        left = count(1)
        proxy.loses = lambda method, path: method == "PUT" and next(left) == 1
        assert storage.create("root", b"1")
        root = storage.read("root")
        assert root is not None
        left = count(1)
        assert storage.replace("root", b"2", root.tag)
        left = count(1)
        assert not storage.replace("root", b"3", root.tag)
        left = count(1)
        assert not storage.create("root", b"4")
        assert storage.read("root").data == b"2"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("bucket", "there is no bucket elsewhere; create it"),
        ("key", "the server refused the key for bucket; check AWS_ACCESS_KEY_ID"),
        ("server", "the server answered with status 501"),
        ("connection", "no answer from the server; check the connection"),
    ],
)
def test_each_refusal_is_one_line_in_our_words(
    moto: str, monkeypatch: pytest.MonkeyPatch, cause: str, message: str
) -> None:
    monkeypatch.setattr(objects, "RETRIES", 1)
    with proxy_to(moto) as proxy:
        connect(proxy.address, monkeypatch)
        storage = open_storage("s3://elsewhere/x" if cause == "bucket" else new_url())
        proxy.status = {"key": 403, "server": 501}.get(cause, 0)
        if cause == "connection":
            proxy.loses = lambda method, path: True
        actions: list[Callable[[], object]] = [
            lambda: storage.read("a"),
            lambda: storage.read_range("a", 0, 1),
            lambda: storage.create("a", b""),
            lambda: storage.replace("a", b""),
            lambda: storage.replace("a", b"", "tag"),
            lambda: storage.list(),
            lambda: storage.delete(["a"]),
        ]
        for action in actions:
            with pytest.raises(LVTError, match=message) as error:
                action()
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 300


def test_a_missing_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRIES", 0)
    connect("http://127.0.0.1:1", monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(LVTError, match=r"there is no key for bucket; set AWS_ACCESS_KEY_ID"):
        open_storage(new_url()).read("a")


def test_a_forked_process_is_told_to_spawn(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(moto, monkeypatch)
    storage = open_storage(new_url())
    storage.create("a", b"1")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(LVTError, match="multiprocessing_context='spawn'"):
        storage.read("a")
    monkeypatch.undo()
    connect(moto, monkeypatch)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(storage.read, ["a"]).data == b"1"


def test_without_obstore_a_url_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    objects.connection.cache_clear()
    with pytest.raises(LVTError, match=r"pip install 'lvt-pipeline\[s3\]'"):
        open_storage("s3://bucket/x")


def test_a_url_stays_a_url(tmp_path: Path) -> None:
    url = as_place("s3://bucket/a/data.zarr")
    assert isinstance(url, StoreURL)
    assert (str(url), url.bucket, url.name) == ("s3://bucket/a/data.zarr", "bucket", "data.zarr")
    assert str(url / "codes" / "c") == "s3://bucket/a/data.zarr/codes/c"
    assert str(url.with_name("x").absolute()) == "s3://bucket/a/x"
    assert as_place(Path("s3://bucket/a/data.zarr")) == as_place(url) == pickle.loads(pickle.dumps(url))
    assert as_place(str(tmp_path)) == tmp_path
    assert isinstance(as_place("s3"), Path)
