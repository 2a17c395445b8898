"""The habits of language that we dropped stay dropped: see "Words" in `docs/contributing.md`."""

from __future__ import annotations

import pytest

from tests import house

# How often each habit may still occur in pages, messages, help and comments. These numbers only fall.
LIMITS = {
    "go on with": 67,
    "beside": 127,
    "is no X": 90,
    "what ... as a noun": 300,
    "told, said, spoken": 260,
    "learnt": 46,
    "anew": 13,
    "mend": 8,
    "so many times": 15,
    "ever after": 4,
    "lies": 120,
}


def test_every_habit_has_a_limit() -> None:
    assert {*LIMITS} == {*house.HABITS}


@pytest.mark.parametrize("habit", LIMITS)
def test_habits_of_language_only_fall(habit: str) -> None:
    assert house.habits()[habit] <= LIMITS[habit], "python -m tests.house places prints where"
