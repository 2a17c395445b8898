"""import-codes with files that are not what they seem: the right codes, or one line."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import LVTError
from lvt_pipeline.jobs.export import export_codes
from lvt_pipeline.jobs.import_codes import import_codes
from lvt_pipeline.jobs.settings import ExportSettings, ImportSettings
from tests.toy_codes import FIVE, codes_of, write

Lvt = Callable[..., tuple[int, str, str]]
CODES = np.arange(24).reshape(2, 3, 4, 1)


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def with_header(text: str, version: int = 1) -> bytes:
    data = text.encode("latin-1")
    length = len(data).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + data + b"\0" * 64


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", npy(CODES))
    return stream.getvalue()


ODD_FILES = {
    "junk that begins like a zip": b"PK\x03\x04" + b"\0" * 500,
    "a real zip": zipped(),
    "time differences": npy(CODES.astype("timedelta64[s]")),
    "dates": npy(CODES.astype("datetime64[s]")),
    "objects": npy(np.array([[["x", 1, None]]], dtype=object), allow_pickle=True),
    "texts": npy(CODES.astype("U5")),
    "records": npy(np.zeros((2, 3, 4, 1), dtype=[("a", "i4")])),
    "booleans": npy(CODES > 3),
    "numbers with a fraction": npy(CODES.astype(float)),
    "numbers that are not finite": npy(np.full((2, 3, 4, 1), np.nan)),
    "nothing": b"",
    "no axes": npy(np.array(5)),
    "five axes": npy(CODES[None]),
    "no frames": npy(CODES[:0]),
    "a nested header": with_header("(" * 5_000 + ")" * 5_000),
    "a header of brackets": with_header("[" * 60_000),
    "a header that is no dictionary": with_header("[1, 2]\n"),
    "a header that calls": with_header("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (1,)}\n"),
    "an enormous shape": with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 8, 8, 4)}\n"),
    "a negative shape": with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-8, -1, 1, 1)}\n"),
    "a shape of long numbers": with_header(
        "{'descr': '<i8', 'fortran_order': False, 'shape': (" + "9" * 5_000 + ",)}\n", version=2
    ),
    "an enormous type": with_header("{'descr': '|S2000000000', 'fortran_order': False, 'shape': (1, 1, 1, 1)}\n"),
    "an unknown version": b"\x93NUMPY\x09\x00" + b"\0" * 100,
    "a header that breaks off": npy(CODES)[:40],
    "data that break off": npy(CODES)[:-5],
    "more data than announced": npy(CODES) + b"x",
    "codes below 0": npy(CODES - 1),
    "codes beyond the codebook": npy(CODES + 500),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_a_file_that_is_not_codes_is_refused_in_one_line(tmp_path: Path, lvt: Lvt, name: str) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/fine.npy", CODES)
    (tmp_path / "in/odd.npy").write_bytes(ODD_FILES[name])
    code, _, errors = lvt("import-codes", tmp_path / "in", "--codebook-size", 512, "-o", tmp_path / "s")
    assert (code, errors.count("\n")) == (1, 1), errors
    assert "odd.npy" in errors
    assert not (tmp_path / "s").exists()


def test_what_is_not_a_file_is_refused_and_never_waited_for(tmp_path: Path, lvt: Lvt) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in/pipe.npy")
    code, _, errors = lvt("import-codes", tmp_path / "in", "--codebook-size", 512, "-o", tmp_path / "s")
    assert (code, errors.count("\n")) == (1, 1)
    assert "pipe.npy cannot be read as an array: it is a named pipe, not a regular file" in errors


@pytest.mark.parametrize("name", [b"a\nb", b"a\x1b[2J", b"a\xff"])
def test_a_name_that_breaks_a_line_is_refused_and_never_printed_raw(tmp_path: Path, lvt: Lvt, name: bytes) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"in", name)
    os.makedirs(folder)
    np.save(os.path.join(os.fsdecode(folder), "0.npy"), CODES[0, :, :, 0])
    code, _, errors = lvt("import-codes", tmp_path / "in", "--codebook-size", 512, "-o", tmp_path / "s")
    assert (code, errors.count("\n"), errors.rstrip("\n").isprintable()) == (1, 1, True)
    assert "has a line break or control character in it; rename it" in errors


def test_arrays_in_every_order_and_integer_type_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for kind in ("u1", "i1", "<u2", ">u2", "<i4", ">i8", "<u8"):
        np.save(tmp_path / f"in/{kind.strip('<>')}{kind[0] == '>'}.npy", np.asfortranarray(CODES.astype(kind)))
    import_codes(tmp_path / "in", tmp_path / "s", ImportSettings(codebook_size=512))
    store = open_codes(tmp_path / "s")
    assert len(store) == 7
    assert all(np.array_equal(store[clip_id], CODES) for clip_id in store)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"id": 3, "split": "train", "label": null, "fps": 10}',
        '{"id": "a", "split": ["train"], "label": null, "fps": 10}',
        '{"id": "a", "split": "train", "label": 5, "fps": 10}',
        '{"id": "a", "split": "train", "label": null, "fps": "10"}',
        '{"id": "a", "split": "train", "label": null, "fps": -1}',
        '{"id": "a", "split": "train", "label": null, "fps": 1e400}',
        '{"id": "a", "split": "train", "label": null, "fps": ' + "9" * 6_000 + "}",
        "[" * 100_000,
        "\x00",
    ],
)
def test_an_odd_list_of_clips_is_refused_with_its_line(tmp_path: Path, lvt: Lvt, line: str) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", CODES)
    (tmp_path / "in/clips.jsonl").write_text("\n" + line + "\n")
    code, _, errors = lvt("import-codes", tmp_path / "in", "--codebook-size", 512, "-o", tmp_path / "s")
    assert (code, errors.count("\n")) == (1, 1), errors
    assert "clips.jsonl:2" in errors


# Any damage to any file -----------------------------------------------------------------------------------------------

DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 2000), st.just(b"")),
    st.tuples(st.just("put"), st.integers(0, 2000), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("over"), st.integers(0, 2000), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("all"), st.just(0), st.sampled_from([*ODD_FILES.values(), b"null", b"{}", b"[" * 50_000])),
)


def damaged(data: bytes, damage: tuple[str, int, bytes]) -> bytes:
    kind, position, other = damage
    position = min(position, len(data))
    match kind:
        case "cut":
            return data[:position]
        case "put":
            return data[:position] + other + data[position:]
        case "over":
            return data[:position] + other + data[position + len(other) :]
        case _:
            return other


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write(folder / "data.zarr", FIVE)
    export_codes(folder / "data.zarr", folder / "out", ExportSettings(format="npy"))
    return folder / "out"


def check_damaged_folder(exported: Path, number: int, damage: tuple[str, int, bytes]) -> None:
    """Codes that a changed file holds are read as they are; everything else is one line."""
    files = sorted(file for file in exported.rglob("*") if file.is_file())
    file = files[number % len(files)]
    before = file.read_bytes()
    out = exported.with_name("imported.zarr")
    try:
        file.write_bytes(damaged(before, damage))
        with suppress(LVTError):
            import_codes(exported, out, overwrite=out.exists())
            store = open_codes(out)
            for clip in FIVE:
                name = exported / f"{clip.id}.npy"
                assert clip.id not in store or name == file or np.array_equal(store[clip.id], codes_of(clip))
    finally:
        file.write_bytes(before)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 50), damage=DAMAGE)
def test_any_damage_to_a_folder_is_read_right_or_refused(
    exported: Path, number: int, damage: tuple[str, int, bytes]
) -> None:
    check_damaged_folder(exported, number, damage)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 50), damage=DAMAGE)
def test_much_damage_to_a_folder_is_read_right_or_refused(
    exported: Path, number: int, damage: tuple[str, int, bytes]
) -> None:
    check_damaged_folder(exported, number, damage)
