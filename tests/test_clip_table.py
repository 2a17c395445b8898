"""Clip tables in pages: one clip more changes one page, and nothing that a store does depends on them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.codes import clip_table
from lvt_pipeline.codes.clip_table import ClipTable, page_ends
from lvt_pipeline.codes.layout import PAGED_VERSION, PAGES, SCHEMA_VERSION, digest_bytes, read_root
from lvt_pipeline.codes.plan import plan_codes
from lvt_pipeline.codes.schema import PlannedClip
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep.compaction import compact_store
from lvt_pipeline.codes.upkeep.maintenance import collect_garbage, find_garbage
from lvt_pipeline.codes.upkeep.repair import repair_metadata, repair_store
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import StoreError
from tests.toy_codes import SCHEMA, files_of, planned, write

Lvt = Callable[..., tuple[int, str, str]]

SMALL = {"PAGED_ROWS": 12, "PAGE_ROWS": 4, "PAGE_DIVISOR": 3}  # a table of 60 clips has about nine pages
CLIPS = [planned(f"clip{number:02}", 2 + number % 3, source_digest=f"{number:064x}") for number in range(60)]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(clip_table, name, value)


def pages_of(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(path).items() if name.startswith(PAGES)}


def with_one_more(place: int, clips: Sequence[PlannedClip] = CLIPS) -> list[PlannedClip]:
    return [*clips[:place], planned("one more", 5, source_digest="f" * 64), *clips[place:]]


# Cutting ------------------------------------------------------------------------------------------------------------


def test_small_tables_have_no_pages() -> None:
    assert page_ends([f"clip{number}" for number in range(4095)]) == []
    assert page_ends([f"clip{number}" for number in range(20_000)]) != []


def test_pages_have_no_fewer_rows_than_the_least_and_about_as_many_as_intended() -> None:
    ends = page_ends([f"clip{number}" for number in range(200_000)])
    sizes = [stop - first for first, stop in pairwise([0, *ends])]
    assert min(sizes) >= clip_table.PAGE_ROWS
    assert 1500 < sum(sizes) / len(sizes) < 2700


@pytest.mark.parametrize("change", ["add", "remove", "rename"])
def test_one_change_anywhere_changes_few_pages(change: str) -> None:
    ids = [f"clip{number}" for number in range(60_000)]
    generator = random.Random(0)

    def pages(names: list[str]) -> set[tuple[str, ...]]:
        return {tuple(names[first:stop]) for first, stop in pairwise([0, *page_ends(names)])}

    before, changed = pages(ids), []
    for number in range(50):
        place, others = generator.randrange(len(ids)), list(ids)
        if change == "remove":
            del others[place]
        else:
            others[place : place + (change == "rename")] = [f"new{number}"]
        changed.append(len(pages(others) - before))
    assert max(changed) <= 6
    assert sum(changed) / len(changed) < 2


# What pages change, and what they do not ----------------------------------------------------------------------------


def test_a_store_with_pages_holds_what_one_without_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_pages: None
) -> None:
    clips = [*CLIPS, planned("labelled", 3, "val", label="a", fps=12.5, decoder="d 1"), planned("ü e", 3, "test")]
    write(tmp_path / "pages", clips)
    monkeypatch.undo()
    write(tmp_path / "whole", clips)
    assert len(pages_of(tmp_path / "pages")) > 3
    assert pages_of(tmp_path / "whole") == {}
    pages, whole = open_codes(tmp_path / "pages"), open_codes(tmp_path / "whole")
    assert pages.clips == whole.clips
    assert pages.table.columns == whole.table.columns
    assert pages.fingerprint == whole.fingerprint
    assert all((pages[clip.id] == whole[clip.id]).all() for clip in clips)
    assert verify_store(tmp_path / "pages").problems == ()


@pytest.mark.parametrize("place", [0, 1, 30, 59, 60])
def test_one_clip_more_writes_few_pages_and_reads_back(tmp_path: Path, small_pages: None, place: int) -> None:
    path = tmp_path / "s"
    write(path, CLIPS)
    before = {file: file.stat().st_ino for file in path.glob("generations/page-*/zarr.json")}
    write(path, with_one_more(place))
    after = {file: file.stat().st_ino for file in path.glob("generations/page-*/zarr.json")}
    assert before.items() <= after.items()
    assert len(after) - len(before) <= 2
    assert [clip.id for clip in open_codes(path).clips] == [clip.id for clip in with_one_more(place)]
    assert [clip.id for clip in open_codes(path, 1).clips] == [clip.id for clip in CLIPS]
    assert set(pages_of(path)) == {name for name in files_of(path) if name.startswith(PAGES)}
    assert verify_store(path).problems == ()


def test_the_pages_of_a_store_follow_from_its_content(tmp_path: Path, small_pages: None) -> None:
    """Also those that were not serialised again: a page is the same file however the store came to its rows."""
    write(tmp_path / "grown", CLIPS[:40])
    write(tmp_path / "grown", CLIPS)
    write(tmp_path / "grown", CLIPS[:40])
    before = set(pages_of(tmp_path / "grown"))
    write(tmp_path / "once", CLIPS[:40])
    assert {*read_root(tmp_path / "once").provenance["outputs"]} & before == set(pages_of(tmp_path / "once"))  # type: ignore[union-attr]


def test_a_changed_fact_of_a_clip_that_is_kept_changes_its_page(tmp_path: Path, small_pages: None) -> None:
    write(tmp_path / "s", CLIPS)
    others = [*CLIPS[:5], planned("clip05", 4, "val", source="elsewhere.mp4", source_digest="e" * 64), *CLIPS[6:]]
    write(tmp_path / "s", others)
    table = open_codes(tmp_path / "s").table
    assert (table.rows[5].split, table.columns["source_digest"][5]) == ("val", "e" * 16)
    assert table.rows[5].source.endswith("/elsewhere.mp4")
    assert table.rows[6:] == open_codes(tmp_path / "s", 1).table.rows[6:]


def test_values_that_all_rows_of_a_page_share_are_written_once(tmp_path: Path, small_pages: None) -> None:
    write(tmp_path / "s", CLIPS)
    for data in pages_of(tmp_path / "s").values():
        clips = json.loads(data)["attributes"]["clips"]
        assert (clips["split"], clips["label"], clips["fps"]) == ("train", None, 10.0)
        assert all(isinstance(clips[name], list) for name in ("id", "offset", "length", "fingerprint", "source"))


def test_the_snippets_of_the_card_read_a_store_with_pages(
    tmp_path: Path, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "s", CLIPS)
    store = open_codes(tmp_path / "s")
    monkeypatch.chdir(tmp_path / "s")
    snippets = Path("codes/README.md").read_text().split("```python\n")[1:]
    assert len(snippets) == 2
    for snippet in snippets:
        names: dict[str, np.ndarray] = {}
        exec(snippet.partition("```")[0], names)
        assert np.array_equal(names["codes"], store[store.clips[0].id])


def test_only_stores_with_pages_have_the_newer_format(tmp_path: Path, small_pages: None, lvt: Lvt) -> None:
    path = tmp_path / "s"
    for clips, version in ((CLIPS[:5], SCHEMA_VERSION), (CLIPS, PAGED_VERSION), (CLIPS[:5], PAGED_VERSION)):
        write(path, clips)
        assert read_root(path).about["schema"] == version  # type: ignore[union-attr]
    # A version of lvt that knows no pages compares this number with its own, as this one does.
    data = (path / "zarr.json").read_bytes()
    blank = data.replace(b'"schema": 3', b'"schema": 4').replace(
        data[data.index(b'"digest": "') + 11 :][:64], b"0" * 64
    )
    (path / "zarr.json").write_bytes(blank.replace(b"0" * 64, digest_bytes(blank).encode(), 1))
    code, _, error = lvt("inspect", path)
    assert code == 1
    assert error.count("\n") == 1
    assert "has code store format 4, this version of lvt reads formats 2 and 3" in error


# Rows that two tables have in common --------------------------------------------------------------------------------


def test_planning_from_the_ends_that_are_alike_agrees_with_planning_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(1)
    names = [planned(f"{number}", 3, content=f"content {generator.randrange(15)}") for number in range(30)]
    write(tmp_path / "s", names)
    for number in range(200):
        clips = list(names)
        for _ in range(generator.randrange(1, 4)):
            place = generator.randrange(len(clips))
            if generator.random() < 0.5:
                del clips[place]
            else:
                new = planned(f"new {generator.random()}", 3, content=f"content {generator.randrange(20)}")
                clips.insert(place, new)
        quick = plan_codes(tmp_path / "s", SCHEMA, clips)
        with monkeypatch.context() as patch:
            patch.setattr(ClipTable, "alike_ends", lambda *tables: (0, 0))
            slow = plan_codes(tmp_path / "s", SCHEMA, clips)
        assert quick.table.rows == slow.table.rows, number
        assert (quick.change, quick.shards) == (slow.change, slow.shards)


# Damage -------------------------------------------------------------------------------------------------------------


def damage(path: Path, how: str, number: int = 1) -> tuple[str, bytes]:
    """Damage one page of the current generation."""
    name = f"{PAGES}{open_codes(path).table.pages[number].digest}/zarr.json"
    data = (path / name).read_bytes()
    if how == "missing":
        (path / name).unlink()
    else:
        (path / name).write_bytes(data[:-200] if how == "cut" else data.replace(b"clip1", b"clip2", 1))
        assert (path / name).read_bytes() != data
    return name, data


@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
def test_a_damaged_page_is_one_line_and_is_rebuilt(tmp_path: Path, small_pages: None, lvt: Lvt, how: str) -> None:
    path = tmp_path / "s"
    write(path, CLIPS)
    name, data = damage(path, how)
    with pytest.raises(StoreError, match=f"{name} is {'missing' if how == 'missing' else 'damaged'}") as error:
        open_codes(path)
    assert str(error.value).count("lvt verify") == 1
    code, out, _ = lvt("verify", path)
    assert code == 1
    assert f"{name} is {'missing' if how == 'missing' else 'not what was written'}: its generation" in out
    assert repair_metadata(path, SCHEMA, CLIPS) == [name]
    assert (path / name).read_bytes() == data
    assert verify_store(path).problems == ()


def test_a_page_of_a_later_generation_is_rebuilt_where_its_clips_are_as_first_encoded(
    tmp_path: Path, small_pages: None
) -> None:
    path = tmp_path / "s"
    write(path, CLIPS)
    write(path, [*CLIPS, planned("one more", 5, source_digest="f" * 64)])
    before = files_of(path)
    name, _ = damage(path, "missing")
    assert repair_metadata(path, SCHEMA, [*CLIPS, planned("one more", 5, source_digest="f" * 64)]) == [name]
    assert files_of(path) == before


def test_a_page_that_cannot_be_rebuilt_is_one_line_that_names_the_generations_left(
    tmp_path: Path, small_pages: None
) -> None:
    path = tmp_path / "s"
    write(path, CLIPS[20:])
    write(path, CLIPS)  # the first pages have places that no first encode gives
    name, _ = damage(path, "missing", 0)
    with pytest.raises(StoreError, match=rf"{name} is damaged and cannot be rebuilt; .* with --at \(1\)"):
        repair_metadata(path, SCHEMA, CLIPS)
    with pytest.raises(StoreError, match=f"{name} is damaged and cannot be rebuilt"):
        repair_store(path)
    assert [clip.id for clip in open_codes(path, 1).clips] == [clip.id for clip in CLIPS[20:]]


def test_a_lost_root_is_rebuilt_from_tables_with_pages(tmp_path: Path, small_pages: None) -> None:
    path = tmp_path / "s"
    write(path, CLIPS)
    write(path, with_one_more(30))
    before = read_root(path)
    (path / "zarr.json").unlink()
    assert "zarr.json" in repair_store(path)
    after = read_root(path)
    assert before is not None
    assert after is not None
    assert (after.about, after.files, after.numbers) == (before.about, before.files, before.numbers)
    assert after.provenance["outputs"] == before.provenance["outputs"]
    assert verify_store(path).problems == ()


def test_additions_of_others_to_a_page_change_nothing(tmp_path: Path, small_pages: None) -> None:
    path = tmp_path / "s"
    write(path, CLIPS)
    file = next(iter(path.glob("generations/page-*/zarr.json")))
    group = json.loads(file.read_text())
    group["attributes"]["mine"] = 1
    file.write_text(json.dumps(group, indent=2))
    assert [clip.id for clip in open_codes(path).clips] == [clip.id for clip in CLIPS]
    assert verify_store(path).problems == ()


# Garbage, compaction, histories -------------------------------------------------------------------------------------


def test_gc_keeps_the_pages_of_the_generations_that_it_keeps(tmp_path: Path, small_pages: None) -> None:
    path = tmp_path / "s"
    write(path, CLIPS)
    write(path, with_one_more(30))
    every = set(pages_of(path))
    assert find_garbage(path, keep_generations=2).is_empty
    first = {f"{PAGES}{page.digest}/zarr.json" for page in open_codes(path, 1).table.pages}
    second = {f"{PAGES}{page.digest}/zarr.json" for page in open_codes(path, 2).table.pages}
    assert every == first | second
    collect_garbage(path)
    assert set(pages_of(path)) == second
    assert verify_store(path).problems == ()


def test_gc_keeps_every_page_while_a_plan_is_pending(tmp_path: Path, small_pages: None) -> None:
    path = tmp_path / "s"
    write(path, CLIPS)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(CodeStoreWriter, "_write_root", interrupt)
        write(path, with_one_more(30))
    before = set(pages_of(path))
    assert len(before) > len(open_codes(path).table.pages)
    collect_garbage(path)
    assert set(pages_of(path)) == before
    write(path, with_one_more(30))
    assert verify_store(path).problems == ()
    write(path, CLIPS)
    collect_garbage(path)
    assert len(pages_of(path)) == len(open_codes(path).table.pages)


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("seed", range(3))
def test_any_history_holds_what_a_store_made_at_once_holds(tmp_path: Path, small_pages: None, seed: int) -> None:
    generator = random.Random(seed)
    path, clips = tmp_path / "s", list(CLIPS)
    for step in range(8):
        write(path, clips)
        if step % 3 == 1:
            compact_store(path)
        if step % 3 == 2:
            collect_garbage(path, keep_generations=generator.randrange(1, 3))
        assert [clip.id for clip in open_codes(path).clips] == [clip.id for clip in clips]
        assert verify_store(path).problems == ()
        clips = [clip for clip in clips if generator.random() > 0.1]
        for number in range(generator.randrange(3)):
            new = planned(f"new {step} {number}", 4, source_digest=f"{step}{number:062}")
            clips.insert(generator.randrange(len(clips)), new)
    write(tmp_path / "fresh", clips)
    write(path, clips)
    old, new = open_codes(path), open_codes(tmp_path / "fresh")
    assert old.fingerprint == new.fingerprint
    assert all((old[clip.id] == new[clip.id]).all() for clip in clips)
    assert old.table.columns["source_digest"] == new.table.columns["source_digest"]


def test_compaction_keeps_the_origin_of_clips_and_the_pages_that_do_not_move(
    tmp_path: Path, small_pages: None, lvt: Lvt
) -> None:
    path = tmp_path / "s"
    write(path, CLIPS)
    write(path, CLIPS[:50] + CLIPS[55:])
    before = open_codes(path)
    assert compact_store(path).clips > 0
    after = open_codes(path)
    assert after.generation == before.generation + 1
    assert after.table.columns["source_digest"] == before.table.columns["source_digest"]
    for command in ("inspect", "verify"):
        assert lvt(command, path)[0] == 0
    assert lvt("export", path, "-o", tmp_path / "out", "--format", "npy")[0] == 0
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 55


# Killed and racing --------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from lvt_pipeline.codes import clip_table
    from tests import test_clip_table as tests
    from tests.toy_codes import write
    for name, value in tests.SMALL.items():
        setattr(clip_table, name, value)
    files = {files}
    def counted(real):
        def call(*arguments, **options):
            global files
            result = real(*arguments, **options)
            files -= "/generations/" in str(arguments[-1]) or str(arguments[-1]).endswith("s/zarr.json")
            if files < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return call
    os.link, os.replace = counted(os.link), counted(os.replace)
    write(Path({path!r}), tests.CLIPS)
"""


@pytest.mark.parametrize("files", [0, 1, 4, 7, 8, 9, 10])
def test_an_encode_killed_between_pages_table_and_root_ends_in_the_same_bytes(
    tmp_path: Path, small_pages: None, files: int
) -> None:
    path = tmp_path / "s"
    write(tmp_path / "whole", CLIPS)
    script = textwrap.dedent(KILLED).format(root=str(Path(__file__).parents[1]), path=str(path), files=files)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    write(path, CLIPS)
    assert files_of(path) == files_of(tmp_path / "whole")
    assert verify_store(path).problems == ()


def test_a_page_that_a_killed_process_left_damaged_is_written_again(tmp_path: Path, small_pages: None) -> None:
    path = tmp_path / "s"
    write(tmp_path / "whole", CLIPS)
    name = next(iter(pages_of(tmp_path / "whole")))
    write(path, CLIPS, stop_after=0)
    (path / name).parent.mkdir(parents=True)
    (path / name).write_bytes(b"{")
    write(path, CLIPS)
    assert files_of(path) == files_of(tmp_path / "whole")


def test_a_place_that_overflows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", CLIPS[:3])
    table = open_codes(tmp_path / "s").table
    for offset in (-1, 2**62, 2**63 - 1, 2**70):
        wrong = ClipTable({**table.columns, "offset": [0, 2, offset]})
        with pytest.raises((ValueError, OverflowError)):
            wrong.require_places(9, 1, 64)
