"""The habits of language that we dropped stay dropped: see "Words" in `docs/contributing.md`."""

from __future__ import annotations

import pytest

from tests import house

# How often each habit may still occur in pages, messages, help and comments. These numbers only fall.
LIMITS = {
    "go on with": 1,
    "beside": 6,
    "is no X": 4,
    "what ... as a noun": 44,
    "told, said, spoken": 30,
    "learnt": 1,
    "anew": 1,
    "mend": 0,
    "so many times": 0,
    "ever after": 0,
    "lies": 5,
}


def test_every_habit_has_a_limit() -> None:
    assert {*LIMITS} == {*house.HABITS}


@pytest.mark.parametrize("habit", LIMITS)
def test_habits_of_language_only_fall(habit: str) -> None:
    assert house.habits()[habit] <= LIMITS[habit], "python -m tests.house places prints where"
