"""The shape of the code base: imports point one way, and files and functions stay small. See `docs/contributing.md`.

`python -m tests.house` prints all the numbers. A limit may only be lowered.
"""

from __future__ import annotations

import pytest

from tests import house

# Modules that import others of ours inside functions, each with its reason.
TORCH = "torch loads only when a network is used"
ALLOWED_IN_FUNCTIONS = {
    "lvt_pipeline.jobs.encode_shards": TORCH,
    "lvt_pipeline.jobs.import_codes": TORCH,
    "lvt_pipeline.jobs.sample": TORCH,
    "lvt_pipeline.runs.compatibility": TORCH,
    "lvt_pipeline.runs.read": TORCH,
    "lvt_pipeline.workspace.doctor": "a broken package must fail its own check of `lvt doctor` only",
    "lvt_pipeline.workspace.inspect": "an artefact loads only the reader of its own kind",
}

# Still above the limits. These lists only get shorter.
STILL_LARGE_FILES: dict[str, int] = {}
STILL_LONG_FUNCTIONS: dict[str, int] = {}


def test_every_folder_is_a_room_with_declared_arrows() -> None:
    rooms = {house.room_of(module) for module in house.modules()}
    assert rooms == {*house.ROOMS, house.GROUND}


def test_declared_arrows_point_one_way() -> None:
    for room, below in house.ROOMS.items():
        for other in below - {room}:
            assert room not in house.ROOMS[other] or "stages" in (room, other) or "entry" in (room, other)


def test_imports_follow_the_arrows() -> None:
    assert house.against_the_arrows() == []


def test_no_modules_import_each_other() -> None:
    assert house.cycles() == []


def test_the_library_does_not_know_click() -> None:
    for module in house.modules():
        if house.room_of(module) not in ("stages", "entry"):
            assert "import click" not in house.modules()[module].read_text(), module


def test_imports_inside_functions_have_a_reason() -> None:
    assert {item.importer for item in house.imports_in_functions()} == {*ALLOWED_IN_FUNCTIONS}


def test_files_fit_on_a_few_screens() -> None:
    large = {module: house.num_lines(module) for module in house.modules() if house.num_lines(module) > 400}
    assert {*large} == {*STILL_LARGE_FILES}
    assert all(lines <= STILL_LARGE_FILES[module] for module, lines in large.items()), large


def test_functions_fit_on_one_screen() -> None:
    measured = [item for item in house.functions() if item.lines > 60 and not item.is_signature]
    long = {f"{item.module}.{item.name}": item.lines for item in measured}
    assert {*long} == {*STILL_LONG_FUNCTIONS}
    assert all(lines <= STILL_LONG_FUNCTIONS[name] for name, lines in long.items()), long


def test_folders_hold_few_modules() -> None:
    full = {str(folder): count for folder, count in house.modules_in_folders().items() if count > 15}
    full.pop("stages", None)  # one file per command
    assert full == {}


@pytest.mark.parametrize(
    ("name", "limit"),
    [("lines", 46_675), ("median_lines", 8), ("ninetieth_percentile", 25), ("over_40", 26), ("mean_arguments", 2)],
)
def test_numbers_of_the_house_stay_within_their_limits(name: str, limit: float) -> None:
    assert getattr(house.numbers(), name) <= limit


def test_most_public_names_have_a_docstring() -> None:
    assert house.numbers().documented >= 0.98


def test_public_functions_announce_the_errors_they_raise() -> None:
    assert house.silent_raises() == []


def test_the_map_in_the_documentation_names_every_room() -> None:
    page = (house.REPOSITORY / "docs" / "contributing.md").read_text()
    map_block = page.split("```text")[1].split("```")[0]
    drawn = {line.split("/")[0].strip("| ") for line in map_block.splitlines() if line.startswith(" | ")}
    assert drawn == {*house.ROOMS} - {"stages", "entry"}
