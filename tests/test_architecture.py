"""The shape of the code base: imports point one way, and files and functions stay small. See `docs/contributing.md`.

`python -m tests.house` prints all the numbers. A limit may only be lowered.
"""

from __future__ import annotations

import pytest

from tests import house

# Imports of our own modules inside functions of the library, each with its reason.
ALLOWED_IN_FUNCTIONS: dict[tuple[str, str], str] = {
    (importer, imported): "a broken package must fail its own check of `lvt doctor` only"
    for importer, imported in sorted({(item.importer, item.imported) for item in house.imports_in_functions()})
    if importer == "lvt_pipeline.workspace.doctor"
}

# What is still above the aim of 0. These numbers only fall.
STILL_AGAINST_THE_ARROWS = 14
STILL_IN_CYCLES = 3
STILL_IN_FUNCTIONS = 19
STILL_LARGE_FILES = 11
STILL_LONG_FUNCTIONS = 24
STILL_FULL_FOLDERS = 2


def test_every_folder_is_a_room_with_declared_arrows() -> None:
    rooms = {house.room_of(module) for module in house.modules()}
    assert rooms == {*house.ROOMS, house.GROUND}


def test_declared_arrows_point_one_way() -> None:
    for room, below in house.ROOMS.items():
        for other in below - {room}:
            assert room not in house.ROOMS[other] or "stages" in (room, other) or "entry" in (room, other)


def test_imports_follow_the_arrows() -> None:
    wrong = house.against_the_arrows()
    assert len(wrong) <= STILL_AGAINST_THE_ARROWS, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    found = house.cycles()
    assert len(found) <= STILL_IN_CYCLES, found


def test_the_library_does_not_know_click() -> None:
    for module in house.modules():
        if house.room_of(module) not in ("stages", "entry"):
            assert "import click" not in house.modules()[module].read_text(), module


def test_imports_inside_functions_have_a_reason() -> None:
    found = {(item.importer, item.imported) for item in house.imports_in_functions()}
    wrong = sorted(found - {*ALLOWED_IN_FUNCTIONS})
    assert len(wrong) <= STILL_IN_FUNCTIONS, wrong
    assert {*ALLOWED_IN_FUNCTIONS} <= found, "a reason for an import that is gone"


def test_files_fit_on_a_few_screens() -> None:
    large = {module: house.num_lines(module) for module in house.modules() if house.num_lines(module) > 400}
    assert len(large) <= STILL_LARGE_FILES, large


def test_functions_fit_on_one_screen() -> None:
    long = [item for item in house.functions() if item.lines > 60 and not item.is_signature]
    assert len(long) <= STILL_LONG_FUNCTIONS, long


def test_folders_hold_few_modules() -> None:
    full = {str(folder): count for folder, count in house.modules_in_folders().items() if count > 15}
    full.pop("stages", None)  # one file per command
    assert len(full) <= STILL_FULL_FOLDERS, full


@pytest.mark.parametrize(
    ("name", "limit"),
    [("lines", 41_000), ("median_lines", 8), ("ninetieth_percentile", 27), ("over_40", 64), ("mean_arguments", 2.1)],
)
def test_numbers_of_the_house_stay_within_their_limits(name: str, limit: float) -> None:
    assert getattr(house.numbers(), name) <= limit


def test_most_public_names_have_a_docstring() -> None:
    assert house.numbers().documented >= 0.9


def test_the_map_in_the_documentation_names_every_room() -> None:
    page = (house.REPOSITORY / "docs" / "contributing.md").read_text()
    map_block = page.split("```text")[1].split("```")[0]
    drawn = {line.split("/")[0].strip("| ") for line in map_block.splitlines() if line.startswith(" | ")}
    assert drawn == {*house.ROOMS} - {"stages", "entry"}
