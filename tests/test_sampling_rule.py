"""How codes are sampled: temperature, top-k, top-p, guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.sampling.rule import SamplingRule

# Probabilities 0.1, 0.4, 0.3, 0.2.
LOGITS = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()


def sampled(numbers: list[float], **rule: Any) -> list[int]:
    """Codes sampled from LOGITS with each of some numbers."""
    logits = LOGITS.expand(len(numbers), 4)
    return SamplingRule(**rule).sample(logits, torch.tensor(numbers, dtype=torch.float64)).tolist()


def test_top_k_keeps_the_likeliest_codes_and_their_ratio() -> None:
    # Of codes 1 and 2: 4/7 and 3/7.
    assert sampled([0.0, 0.57, 0.572, 0.999], top_k=2) == [1, 1, 2, 2]
    assert sampled([0.0, 0.5, 0.999], top_k=1) == [1, 1, 1]
    assert sampled([0.05, 0.999], top_k=100) == [0, 3]


def test_top_k_ties_keep_the_lowest_codes() -> None:
    logits = torch.zeros(3, 5)
    assert SamplingRule(top_k=2).sample(logits, torch.tensor([0.0, 0.5, 0.999]).double()).tolist() == [0, 1, 1]


def test_top_p_keeps_the_fewest_likeliest_codes_that_hold_the_share() -> None:
    # 0.4 + 0.3 reach 0.69, so codes 1 and 2 stay; 0.71 needs code 3 too.
    assert set(sampled([n / 50 for n in range(50)], top_p=0.69)) == {1, 2}
    assert set(sampled([n / 50 for n in range(50)], top_p=0.71)) == {1, 2, 3}
    assert set(sampled([n / 50 for n in range(50)], top_p=0.01)) == {1}
    assert sampled([0.05, 0.999], top_p=1.0) == [0, 3]


def test_a_dropped_code_is_never_sampled_even_by_the_largest_number() -> None:
    largest = 1 - 2.0**-53
    numbers = torch.full((200,), largest, dtype=torch.float64)
    assert SamplingRule(top_k=3).sample(LOGITS.repeat(200, 1), numbers).unique().tolist() == [3]
    assert sampled([largest], top_k=2) == [2]


def test_temperature_per_codebook_applies_to_its_codebook_only() -> None:
    rule = SamplingRule(temperature=(1.0, 0.01))
    numbers = torch.tensor([0.05]).double()
    assert rule.sample(LOGITS[None], numbers, 0).tolist() == [0]
    assert rule.sample(LOGITS[None], numbers, 1).tolist() == [1]


def test_temperature_comes_before_top_p() -> None:
    # Hot enough, the four codes are nearly equal, and 0.69 needs three of them.
    assert set(sampled([n / 50 for n in range(50)], top_p=0.69, temperature=100.0)) == {1, 2, 3}


def test_guidance_moves_from_no_class_through_the_class_and_beyond() -> None:
    conditional, unconditional = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0])
    for strength, expected in ((0.0, 1.0), (1.0, 2.0), (3.0, 4.0)):
        rule = SamplingRule(guidance=strength)
        p = float(torch.sigmoid(torch.tensor(-expected)))  # of code 0
        logits = torch.stack([conditional, conditional, unconditional, unconditional])
        numbers = torch.tensor([p - 1e-4, p + 1e-4]).double()
        assert rule.sample(logits, numbers, 0).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": (1.0, -1.0)}, "must be above 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
    ],
)
def test_values_out_of_range_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingRule(**rule)
