"""Clips longer than a prior's own: sampled in windows that show it only what it was trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.prior.network import PriorNetwork
from lvt_pipeline.models.sampling.numbers import RandomNumbers
from lvt_pipeline.models.sampling.rule import SamplingRule
from lvt_pipeline.models.sampling.windows import plan_rollout, window_frames
from tests.slow_sampler import sample_by_recomputing
from tests.toy_prior import ORDERS, make_prior, random_codes

WINDOW_ORDERS = ["single-frame", "spatiotemporal"]
FRAME_BY_FRAME: list[dict[str, Any]] = [
    {"subscale": (4, 1, 1)},
    {"subscale": (4, 1, 1), "kernel_reach": "past", "encoder_position": True},
    {"subscale": (4, 2, 2), "kernel": (5, 3, 3)},
]


@pytest.mark.parametrize("order", WINDOW_ORDERS)
def test_the_first_window_of_a_long_sample_is_the_sample_of_one_window(order: str) -> None:
    model = make_prior(**ORDERS[order])
    priming = random_codes(2, model, 2)
    whole = model.sample(priming, seed=3)
    assert torch.equal(model.sample(priming, frames=9, seed=3)[:, :4], whole)


@pytest.mark.parametrize("order", WINDOW_ORDERS)
def test_a_longer_sample_begins_with_the_shorter_one(order: str) -> None:
    model = make_prior(**ORDERS[order])
    priming = random_codes(2, model, 2)
    longest = model.sample(priming, frames=9, seed=3)
    for frames in (3, 4, 5, 8):
        assert torch.equal(model.sample(priming, frames=frames, seed=3), longest[:, :frames])


@pytest.mark.parametrize("lookahead", [1, 3])
@pytest.mark.parametrize("order", WINDOW_ORDERS)
def test_long_samples_equal_those_of_the_recomputing_sampler(order: str, lookahead: int) -> None:
    model = make_prior(**ORDERS[order], num_classes=2, class_dropout=0.5)
    priming = random_codes(2, model, 1)
    rule = SamplingRule(guidance=2.0, top_p=0.9)
    expected = sample_by_recomputing(model, priming, rule, RandomNumbers(seed=1), frames=7, labels=[0, 1])
    found = model.sample(priming, frames=7, seed=1, labels=[0, 1], guidance=2.0, top_p=0.9, lookahead=lookahead)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("settings", FRAME_BY_FRAME)
def test_a_further_frame_is_sampled_as_the_last_of_a_window(settings: dict[str, Any]) -> None:
    model = make_prior(**settings)
    uniforms = torch.rand(16 * 5, 3, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = model.sample(random_codes(1, model, 2), frames=7, uniforms=uniforms)
    for frame in (4, 5, 6):
        own = uniforms[16 * (frame - 2) : 16 * (frame - 1)]
        expected = model.sample(found[:, frame - 3 : frame], uniforms=own)
        assert torch.equal(found[:, frame - 3 : frame + 1], expected)


def test_other_orders_are_primed_again_with_the_last_frames_of_the_window_before() -> None:
    model = make_prior(**ORDERS["spatiotemporal"])
    uniforms = torch.rand(16 * 6, 3, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = model.sample(random_codes(1, model, 2), frames=8, uniforms=uniforms)
    for start in (2, 4):
        expected = model.sample(found[:, start : start + 2], uniforms=uniforms[16 * start : 16 * (start + 2)])
        assert torch.equal(found[:, start : start + 4], expected)


def test_a_spatial_prior_samples_the_papers_length_at_once_and_windows_after_it() -> None:
    model = make_prior(**ORDERS["spatial-blocks"])
    assert [window_frames(model.config, frames) for frames in (3, 6, 16, 64)] == [4, 6, 16, 16]
    priming = random_codes(1, model, 5)
    uniforms = torch.rand(16 * 22, 3, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = model.sample(priming, frames=20, uniforms=uniforms)
    assert torch.equal(found[:, :16], model.sample(priming, frames=16, uniforms=uniforms[: 16 * 11]))
    again = model.sample(found[:, 11:16], frames=16, uniforms=uniforms[16 * 11 :])
    assert torch.equal(found[:, 11:], again[:, :9])


@pytest.mark.parametrize("priming_frames", [1, 3])
def test_a_long_sample_shows_the_model_only_slices_that_were_trained(
    priming_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_prior(priming_frames=priming_frames)
    shown: set[int] = set()
    encode = PriorNetwork.encode_context

    def watching(self: Prior, codes: Any, slice_indices: Any, *rest: Any) -> Any:
        shown.update(slice_indices.tolist())
        return encode(self, codes, slice_indices, *rest)

    monkeypatch.setattr(PriorNetwork, "encode_context", watching)
    model.sample(random_codes(1, model, 3), frames=9)
    assert shown <= set(model.trainable_slices)


def test_a_long_sample_of_a_clip_is_the_same_in_any_group() -> None:
    model = make_prior()
    priming = random_codes(3, model, 2)
    names = ["a", "b", "c"]
    together = model.sample(priming, frames=7, clip_ids=names)
    alone = model.sample(priming[2:], frames=7, clip_ids=["c"])
    assert torch.equal(alone[0], together[2])


def test_more_priming_frames_than_a_window_are_used_as_far_as_it_reaches() -> None:
    model = make_prior()
    priming = random_codes(1, model, 6)
    uniforms = torch.rand(32, 3, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = model.sample(priming, frames=8, uniforms=uniforms)
    assert torch.equal(found[:, :6], priming)
    assert torch.equal(found[:, 3:7], model.sample(priming[:, 3:6], uniforms=uniforms[:16]))


@pytest.mark.parametrize("frames", [4, 5, 9, 64])
@pytest.mark.parametrize("order", ORDERS)
def test_every_frame_after_the_priming_ones_is_sampled_once(order: str, frames: int) -> None:
    model = make_prior(**ORDERS[order])
    rollout = plan_rollout(model, 2, frames)
    assert rollout.num_frames >= frames
    assert rollout.num_open_pixels == (rollout.num_frames - 2) * 16
