"""Code stores in a bucket: the bytes of a local one, one commit, few requests, and nothing lost when anything dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.codes import clip_table
from lvt_pipeline.codes.layout import PAGES
from lvt_pipeline.codes.loading.batches import make_batches
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep.compaction import compact_store
from lvt_pipeline.codes.upkeep.maintenance import collect_garbage, find_garbage
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import BusyError, StoreError
from lvt_pipeline.storage import Place, as_place, open_storage
from tests.object_stores import Proxy, connect, files_in, new_url, proxy_to
from tests.test_encoding import make_frames, make_model, make_run
from tests.toy_codes import FIVE, SCHEMA, codes_of, planned, write

Lvt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(bucket: Place) -> Place:
    return bucket / "data.zarr"


def shown(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files but for those that hold times or the place of the store."""
    return {name: data for name, data in files.items() if name.startswith("codes/")}


def test_a_store_in_a_bucket_has_the_bytes_of_a_local_one(url: Place, tmp_path: Path) -> None:
    clips = [planned(f"clip{number}", 50, source="") for number in range(5)]
    for place in (url, tmp_path / "data.zarr"):
        write(place, clips[:3])
        write(place, clips[1:])
        compact_store(place)
    remote, local = files_in(url), files_in(tmp_path / "data.zarr")
    assert {*remote} == {*local}
    differ = [name for name in local if remote[name] != local[name]]
    assert set(differ) <= {"zarr.json"}  # it holds the time at which it was written
    assert verify_store(url).problems == ()
    store = open_codes(str(url))
    assert np.array_equal(store["clip3"], codes_of(clips[3]))
    assert str(url) in repr(store)


@pytest.mark.parametrize("store", ["google", pytest.param("azurite", marks=pytest.mark.slow)])
def test_stores_of_google_and_azure_have_them_too(request: pytest.FixtureRequest, store: str, tmp_path: Path) -> None:
    place = as_place(request.getfixturevalue(store))
    test_a_store_in_a_bucket_has_the_bytes_of_a_local_one(place / "data.zarr", tmp_path)
    several_writers(place / "several.zarr", tmp_path / "several", 2)
    test_of_two_commits_from_one_generation_the_second_is_refused(place / "two.zarr", tmp_path)


@pytest.mark.parametrize("cache", ["ram", "mmap", "stream"])
def test_a_prior_sees_the_batches_of_a_local_store_in_every_tier(url: Place, tmp_path: Path, cache: str) -> None:
    for place in (url, tmp_path / "data.zarr"):
        write(place, FIVE)
    batches = [
        make_batches([CodeWindows(place, frames=8, cache=tier)], 4, 0, shuffle="shards")  # type: ignore[arg-type]
        for place, tier in ((url, cache), (tmp_path / "data.zarr", "ram"))
    ]
    for step in range(4):
        assert np.array_equal(batches[0].read(step, range(4)), batches[1].read(step, range(4)))
    assert (tmp_path / "cache").exists() == (cache == "mmap")


def test_a_shard_takes_one_request_and_opening_takes_no_listing(url: Place, proxy: Proxy) -> None:
    write(url, [planned("a", 256 * 3)], replace(SCHEMA, shard_frames=256, chunk_frames=64))
    proxy.counts.clear()
    CodeWindows(url, frames=8, cache="ram")
    assert proxy.counts == {"GET": 3 + 3}  # root, clip table, metadata of the array; then the shards
    proxy.counts.clear()
    windows = CodeWindows(url, frames=8, cache="stream")
    assert proxy.counts == {"GET": 3}
    windows.read(np.zeros(2, int), np.array([70, 251]))
    assert proxy.counts == {"GET": 3 + 2 + 2}  # of both shards the index, and one range
    windows.read(np.zeros(1, int), np.array([30]))
    assert proxy.counts == {"GET": 3 + 2 + 3}


def test_only_old_generations_and_old_files_are_collected_in_a_bucket(url: Place) -> None:
    write(url, FIVE)
    write(url, FIVE[2:])
    open_storage(url).create("codes/c/99/0/0/0", b"abandoned")
    kept = find_garbage(url)
    assert [*kept.in_use] == [1]
    assert "--grace" in kept.in_use[1]
    assert kept.shards == ()
    garbage = collect_garbage(url, grace_hours=0)
    assert garbage.dropped == (1,)
    assert "codes/c/99/0/0/0" in garbage.shards
    assert verify_store(url).problems == ()
    assert np.array_equal(open_codes(url)[FIVE[3].id], codes_of(FIVE[3]))


def test_a_second_plan_is_refused_and_its_shards_have_numbers_of_their_own(url: Place) -> None:
    write(url, FIVE)
    write(url, [*FIVE, planned("g", 150)], stop_after=1)
    with pytest.raises(StoreError, match="another command has not finished") as error:
        write(url, [*FIVE, planned("h", 90)])
    assert "lvt gc" in str(error.value)
    collect_garbage(url, drop_pending=True)
    write(url, [*FIVE, planned("h", 90)])
    assert open_codes(url).root.used_shards or open_codes(url).shards()[-1] > 3
    assert verify_store(url).problems == ()


def test_of_two_commits_from_one_generation_the_second_is_refused(url: Place, tmp_path: Path) -> None:
    from lvt_pipeline.codes.commit import commit_root

    write(url, FIVE)
    first, second = open_codes(url), open_codes(url)
    commit_root(url, first.root, first.table)
    before = files_in(url)
    write(url, FIVE[1:])
    with pytest.raises(BusyError, match="another command has changed"):
        commit_root(url, second.root, second.table)
    assert before["zarr.json"] != files_in(url)["zarr.json"]
    assert open_codes(url).generation == 2


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PAGED_ROWS": 12, "PAGE_ROWS": 4, "PAGE_DIVISOR": 3}.items():
        monkeypatch.setattr(clip_table, name, value)


MANY = [planned(f"clip{number:02}", 3, source="") for number in range(60)]


def pages_in(place: Place) -> dict[str, bytes]:
    return {name: data for name, data in files_in(place).items() if name.startswith(PAGES)}


def test_pages_of_a_clip_table_are_those_of_a_local_store_and_one_clip_more_puts_few(
    url: Place, proxy: Proxy, tmp_path: Path, small_pages: None
) -> None:
    for place in (url, tmp_path / "data.zarr"):
        write(place, MANY)
    assert pages_in(url) == pages_in(tmp_path / "data.zarr")
    assert len(pages_in(url)) > 5
    puts: list[str] = []
    proxy.loses = lambda method, path: puts.append(path) if method == "PUT" and "page-" in path else False
    write(url, [*MANY[:30], planned("one more", 3, source=""), *MANY[30:]])
    assert 1 <= len(puts) <= 2
    assert len(open_codes(url).clips) == 61
    assert verify_store(url).problems == ()


def test_of_two_processes_with_one_plan_and_pages_the_second_takes_what_the_first_published(
    url: Place, monkeypatch: pytest.MonkeyPatch, small_pages: None
) -> None:
    write(url, MANY)
    more, real = [*MANY, planned("one more", 3, source="")], CodeStoreWriter._write_root

    def late(self: CodeStoreWriter, *arguments: Any) -> None:
        monkeypatch.setattr(CodeStoreWriter, "_write_root", real)
        write(url, more)
        real(self, *arguments)

    monkeypatch.setattr(CodeStoreWriter, "_write_root", late)
    write(url, more)
    assert open_codes(url).generations == [1, 2]
    assert verify_store(url).problems == ()


def test_pages_that_nothing_needs_are_collected_in_a_bucket_when_they_are_old(url: Place, small_pages: None) -> None:
    write(url, MANY)
    write(url, MANY[20:])
    every = set(pages_in(url))
    options = {"keep_generations": 1, "ignore_readers": True}
    collect_garbage(url, **options)
    assert set(pages_in(url)) == every  # young
    collect_garbage(url, **options, grace_hours=0)
    needed = {f"{PAGES}{page.digest}/zarr.json" for page in open_codes(url).table.pages}
    assert set(pages_in(url)) == needed != every
    assert verify_store(url).problems == ()


def test_a_lost_answer_to_the_commit_changes_nothing(url: Place, proxy: Proxy, tmp_path: Path) -> None:
    with proxy.losing_first_writes() as lost:
        write(url, FIVE)
    assert lost
    write(tmp_path / "data.zarr", FIVE)
    assert shown(files_in(url)) == shown(files_in(tmp_path / "data.zarr"))
    assert verify_store(url).problems == ()


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from lvt_pipeline.storage import as_place
    from lvt_pipeline.codes.writer import CodeStoreWriter
    from tests.toy_codes import FIVE, write
    CodeStoreWriter.publish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    write(as_place({url!r}), FIVE)
"""


def killed_before_the_root(url: Place, tmp_path: Path) -> None:
    script = textwrap.dedent(KILLED).format(root=str(Path(__file__).parents[1]), url=str(url))
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(StoreError, match="unfinished"):
        open_codes(url)
    write(url, FIVE)
    write(tmp_path / "data.zarr", FIVE)
    assert shown(files_in(url)) == shown(files_in(tmp_path / "data.zarr"))
    assert verify_store(url).problems == ()


def test_a_run_killed_between_the_last_shard_and_the_root_ends_in_the_same_bytes(url: Place, tmp_path: Path) -> None:
    killed_before_the_root(url, tmp_path)


HELPING = """
    import sys
    sys.path.insert(0, {root!r})
    from lvt_pipeline.storage import as_place
    from tests.toy_codes import FIVE, planned, write
    write(as_place({url!r}), [*FIVE, planned("g", 150)])
"""


def several_writers(url: Place, tmp_path: Path, count: int) -> None:
    """Several processes make the same store at the same time."""
    script = textwrap.dedent(HELPING).format(root=str(Path(__file__).parents[1]), url=str(url))
    running = [subprocess.Popen([sys.executable, "-c", script], env={**os.environ}) for _ in range(count)]
    assert [process.wait(120) for process in running] == [0] * count
    write(tmp_path / "data.zarr", [*FIVE, planned("g", 150)])
    assert shown(files_in(url)) == shown(files_in(tmp_path / "data.zarr"))
    assert open_codes(url).generations == [1]
    assert verify_store(url).problems == ()


def test_several_processes_with_the_same_plan_make_one_store(url: Place, tmp_path: Path) -> None:
    several_writers(url, tmp_path, 2)


@pytest.mark.slow
def test_seaweedfs_gives_the_same_bytes_and_a_killed_run_ends_in_them(
    weed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(weed, monkeypatch)
    killed_before_the_root(as_place(f"{new_url()}/data.zarr"), tmp_path / "killed")
    test_a_store_in_a_bucket_has_the_bytes_of_a_local_one(as_place(f"{new_url()}/data.zarr"), tmp_path)
    with proxy_to(weed) as proxy:
        connect(proxy.address, monkeypatch)
        url = as_place(f"{new_url()}/data.zarr")
        test_a_lost_answer_to_the_commit_changes_nothing(url, proxy, tmp_path / "lost")
        for number in range(5):
            several_writers(as_place(f"{new_url()}/data.zarr"), tmp_path / f"several{number}", 3)


def test_the_commands_take_urls(url: Place, tmp_path: Path, lvt: Lvt) -> None:
    write(url, FIVE)
    write(url, FIVE[1:])
    for command in (["inspect"], ["verify"], ["compact", "--dry-run"], ["gc", "--grace", "0"], ["gc", "--cache"]):
        code, out, err = lvt(command[0], url, *command[1:])
        assert (code, err) == (0, ""), err
        assert str(url) in out or "would move" in out or "given back" in out, out
    code, out, _ = lvt("export", url, "--format", "npy", "-o", tmp_path / "out")
    assert code == 0
    assert np.array_equal(np.load(tmp_path / "out" / f"{FIVE[1].id}.npy"), codes_of(FIVE[1]))
    code, _, err = lvt("inspect", f"{url}x")
    assert (code, err.count("\n")) == (1, 1)
    assert "does not exist" in err


def test_frames_in_a_bucket_encode_to_the_same_store_and_are_read_once(
    url: Place, proxy: Proxy, tmp_path: Path, lvt: Lvt
) -> None:
    frames, vqvae = make_frames(tmp_path / "frames"), make_run(tmp_path / "run", make_model())
    remote = url.with_name("frames")
    for file in frames.iterdir():
        open_storage(remote).create(file.name, file.read_bytes())
    code, _, err = lvt("encode-dataset", "--frames", frames, "--vqvae", vqvae, "-o", tmp_path / "data.zarr")
    assert code == 0, err
    proxy.counts.clear()
    code, _, err = lvt("encode-dataset", "--frames", remote, "--vqvae", vqvae, "-o", url)
    assert code == 0, err
    first = proxy.counts.pop("GET")
    assert shown(files_in(url)) == shown(files_in(tmp_path / "data.zarr"))
    proxy.counts.clear()
    assert lvt("encode-dataset", "--frames", remote, "--vqvae", vqvae, "-o", url.with_name("again.zarr"))[0] == 0
    assert proxy.counts["GET"] == first - len([*frames.glob("*.tar")])  # the shards were on this machine
    code, out, err = lvt("verify", remote)
    assert (code, err) == (0, "")
    assert "is sound" in out
    assert lvt("inspect", remote)[0] == 0
    name = next(file.name for file in frames.glob("*.tar"))
    open_storage(remote).replace(name, b"x" * (frames / name).stat().st_size)
    code, out, err = lvt("verify", remote)
    assert (code, name in out) == (1, True)
