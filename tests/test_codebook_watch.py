"""When a codebook counts as collapsed, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest

from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.training.monitors import CodebookWatch, collapsed_codebooks
from tests.listener import Listener


def counts(*used: int, size: int = 100, times: int = 50) -> np.ndarray:
    """Rows in which the first `used` codes occur, `times` times each."""
    return np.stack([np.where(np.arange(size) < number, times, 0) for number in used]).astype(np.int64)


def test_less_than_a_tenth_of_the_codes_is_a_collapse() -> None:
    assert collapsed_codebooks(counts(9, 10, 100)) == [0]


def test_few_positions_cannot_use_many_codes() -> None:
    assert collapsed_codebooks(counts(8, size=1000, times=1)) == []
    assert collapsed_codebooks(counts(1, size=1000, times=8)) == [0]


def test_one_code_is_a_collapse_however_small_the_codebook_and_no_code_is_none() -> None:
    assert collapsed_codebooks(counts(1, 2, size=4)) == [0]
    assert collapsed_codebooks(counts(1, size=1)) == []
    assert collapsed_codebooks(counts(0)) == []


def test_empty_background_alone_is_no_collapse() -> None:
    row = counts(100)
    row[0, 0] = 1_000_000
    assert collapsed_codebooks(row) == []


def test_each_change_is_said_once() -> None:
    lines = Listener()
    watch = CodebookWatch(VQVAEConfig(), lines)
    states = [counts(50, 50), counts(5, 50), counts(5, 5), counts(5, 5), counts(50, 5), counts(4, 5)]
    assert [watch.look(state, is_settled=True) for state in states] == [[], [0], [0, 1], [0, 1], [1], [0, 1]]
    assert [line.split(" (")[0] for line in lines.said] == [
        "codebook 0 has collapsed",
        "codebook 1 has collapsed",
        "codebook 0 is in use again",
        "codebook 0 has collapsed",
    ]
    assert "(5 of 100 codes used, perplexity 5.0); train a new run with" in lines.said[0]


def test_nothing_is_judged_before_the_averages_have_settled() -> None:
    lines = Listener()
    assert CodebookWatch(VQVAEConfig(), lines).look(counts(1, 1), is_settled=False) == []
    assert not lines.said


@pytest.mark.parametrize(
    ("settings", "named", "not_named"),
    [
        ({}, ("kmeans", "consistent", "resample", "fsq"), ()),
        ({"ema_init": "consistent", "dead_code": "resample"}, ("kmeans", "fsq"), ("consistent", "resample")),
        ({"codebook_init": "kmeans"}, ("resample", "fsq"), ("kmeans", "consistent")),
        ({"quantizer": "fsq", "fsq_levels": (8, 8, 8)}, ("fsq_levels", "learning_rate"), ("kmeans", "resample")),
    ],
)
def test_advice_names_what_is_not_set_yet(
    settings: dict[str, object], named: tuple[str, ...], not_named: tuple[str, ...]
) -> None:
    lines = Listener()
    CodebookWatch(VQVAEConfig(**settings), lines).look(counts(1), is_settled=True)  # type: ignore[arg-type]
    assert all(name in lines.said[0] for name in named)
    assert not any(name in lines.said[0] for name in not_named)
