"""Priors that are conditioned on actions: what acts on which code, guidance, long samples, and steering."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.sampling.numbers import RandomNumbers
from lvt_pipeline.models.sampling.rule import SamplingRule
from tests.slow_sampler import sample_by_recomputing
from tests.toy_prior import ORDERS, make_prior, random_codes

ACTING: dict[str, Any] = {"actions": ("action",), "action_widths": (2,)}
EVERY_ORDER = {**ORDERS, "single-frame-past": {"kernel_reach": "past"}, "frames-in-parts": {"subscale": (4, 2, 2)}}


def random_actions(batch: int, frames: int, seed: int = 2) -> Tensor:
    """float32 (B, T, 2)."""
    return torch.randn(batch, frames, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_a_code_depends_on_no_action_of_its_own_frame_or_later(order: str) -> None:
    model = make_prior(**EVERY_ORDER[order], **ACTING)
    codes, actions = random_codes(1, model), random_actions(1, 4).requires_grad_()
    logits = model.logits(codes, actions=actions)
    changed = [model.logits(codes, actions=torch.where(torch.arange(4)[:, None] == t, 3.0, actions)) for t in range(4)]
    for frame in range(4):
        (gradient,) = torch.autograd.grad(logits[:, frame].square().sum(), actions, retain_graph=True)
        reached = gradient[0].abs().sum(-1).gt(0).tolist()
        moved = [not torch.equal(one[:, frame], logits[:, frame]) for one in changed]
        assert reached == moved
        assert not any(moved[frame:])
        assert frame == 0 or moved[frame - 1]  # the step to this frame


@pytest.mark.parametrize("order", ["single-frame", "spatiotemporal"])
def test_a_frame_is_acted_on_since_the_earliest_frame_that_it_sees(order: str) -> None:
    model = make_prior(**ORDERS[order], **ACTING)
    assert model.config.action_steps == {"single-frame": 3, "spatiotemporal": 2}[order]
    assert make_prior(kernel_reach="past", kernel=(2, 1, 1), **ACTING).config.action_steps == 2


@pytest.mark.parametrize("order", EVERY_ORDER)
def test_a_new_conditioned_prior_with_the_weights_of_a_plain_one_gives_its_logits(order: str) -> None:
    plain = make_prior(**EVERY_ORDER[order])
    acting = Prior(make_prior(**EVERY_ORDER[order], **ACTING).config)
    left = acting.load_state_dict(plain.state_dict(), strict=False)
    assert sorted(left.missing_keys) == [f"encoder.actions.{name}" for name in ("mean", "std", "weight")]
    codes = random_codes(2, plain)
    with torch.no_grad():
        assert torch.equal(acting.logits(codes, actions=random_actions(2, 4)), plain.logits(codes))


def test_unknown_actions_count_as_left_out_row_by_row() -> None:
    model = make_prior(**ACTING)
    codes, actions = random_codes(2, model), random_actions(2, 4)
    actions[0] = torch.nan
    with torch.no_grad():
        found = model.logits(codes, actions=actions)
        assert torch.equal(found[0], model.logits(codes)[0])
        assert not torch.equal(found[1], model.logits(codes)[1])
        actions[1, 2, 0] = torch.nan  # half of a row
        part = model.logits(codes, actions=actions)
    assert torch.equal(part[1, :3], found[1, :3])
    assert bool(part.isfinite().all())
    assert not torch.equal(part[1, 3], found[1, 3])


def test_actions_are_normalised_and_a_constant_number_is_shifted_only() -> None:
    model = make_prior(**ACTING)
    codes, actions = random_codes(1, model), random_actions(1, 4)
    with torch.no_grad():
        before = model.logits(codes, actions=actions)
        assert model.encoder.actions is not None
        model.encoder.actions.normalise_by(np.array([3.0, -1.0]), np.array([5.0, 0.0]))
        again = model.logits(codes, actions=actions * torch.tensor([5.0, 1.0]) + torch.tensor([3.0, -1.0]))
    torch.testing.assert_close(again, before, rtol=1e-4, atol=1e-4)


def test_actions_enter_loss_and_bits_per_dim() -> None:
    model = make_prior(**ACTING)
    codes, actions = random_codes(2, model), random_actions(2, 4)
    slices = torch.tensor([1, 3])
    loss, other = (model(codes, slices, actions=one).loss for one in (actions, -actions))
    assert loss is not None
    assert other is not None
    assert not torch.equal(loss, other)
    loss.backward()
    assert model.encoder.actions is not None
    assert model.encoder.actions.weight.grad is not None
    assert bool(model.encoder.actions.weight.grad.any())
    together = model.nats_by_code(codes, actions=actions, batch_size=5)
    alone = [model.nats_by_code(codes[i : i + 1], actions=actions[i : i + 1].numpy()).by_code for i in range(2)]
    torch.testing.assert_close(together.by_code, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert model.bits_per_dim(codes, actions=actions[:, :3]) == together.bits_per_dim  # the last row acts on nothing
    assert model.bits_per_dim(codes) != together.bits_per_dim


@pytest.mark.parametrize("lookahead", [1, 3])
@pytest.mark.parametrize("order", ["single-frame", "spatiotemporal", "spatial-blocks"])
def test_steered_samples_of_any_length_equal_those_of_the_recomputing_sampler(order: str, lookahead: int) -> None:
    model = make_prior(**ORDERS[order], **ACTING, num_classes=2, class_dropout=0.5)
    priming, actions = random_codes(2, model)[:, :2], random_actions(2, 7)
    rule = SamplingRule(guidance=2.0, top_p=0.9)
    expected = sample_by_recomputing(
        model, priming, rule, RandomNumbers(seed=1), frames=7, labels=[0, 1], actions=actions
    )
    options: dict[str, Any] = {"frames": 7, "seed": 1, "labels": [0, 1], "guidance": 2.0, "top_p": 0.9}
    found = model.sample(priming, **options, actions=actions, lookahead=lookahead)
    assert torch.equal(found, expected)
    assert not torch.equal(model.sample(priming, **options, actions=-actions, lookahead=lookahead), expected)


def test_a_window_of_a_long_sample_takes_the_actions_of_its_own_frames() -> None:
    model = make_prior(subscale=(4, 1, 1), **ACTING)
    uniforms = torch.rand(16 * 5, 3, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    actions = random_actions(1, 7)
    found = model.sample(random_codes(1, model)[:, :2], frames=7, uniforms=uniforms, actions=actions)
    for frame in (4, 5, 6):
        first, own = frame - 3, uniforms[16 * (frame - 2) : 16 * (frame - 1)]
        expected = model.sample(found[:, first:frame], uniforms=own, actions=actions[:, first : frame + 1])
        assert torch.equal(found[:, frame], expected[:, -1])


def test_a_code_is_sampled_before_its_own_frames_action_is_known() -> None:
    model = make_prior(**ACTING)
    priming, actions = random_codes(1, model)[:, :1], random_actions(1, 6)
    later = torch.cat([actions[:, :3], random_actions(1, 3, seed=9)], dim=1)
    options: dict[str, Any] = {"frames": 6, "seed": 4}
    found, other = (model.sample(priming, **options, actions=one) for one in (actions, later))
    assert torch.equal(found[:, :4], other[:, :4])
    assert not torch.equal(found, other)


def test_guidance_leaves_out_the_actions_where_training_did() -> None:
    dropping, always = (make_prior(**ACTING, action_dropout=share) for share in (None, 0.0))
    priming, actions = random_codes(1, dropping)[:, :2], random_actions(1, 4)
    plain = dropping.sample(priming, actions=actions)
    assert torch.equal(dropping.sample(priming, actions=actions, guidance=1.0), plain)
    assert not torch.equal(dropping.sample(priming, actions=actions, guidance=4.0), plain)
    with pytest.raises(ShapeError, match="guidance needs a prior that was also trained without classes, or without ac"):
        always.sample(priming, actions=actions, guidance=4.0)


def test_actions_that_do_not_fit_are_refused() -> None:
    model = make_prior(**ACTING)
    codes = random_codes(2, model)
    wanted = r"actions are numbers \(B, T, d\) = \(2, 4, 2\), the last row may be left out; found "
    for wrong in (random_actions(2, 2), random_actions(1, 4), torch.zeros(2, 4, 3), torch.zeros(2, 4)):
        with pytest.raises(ShapeError, match=wanted + r"\("):
            model.logits(codes, actions=wrong)
    with pytest.raises(ShapeError, match=wanted + "'left'"):
        model.sample(codes[:, :2], actions="left")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="is not conditioned on actions; leave the actions out"):
        make_prior().logits(codes, actions=random_actions(2, 4))
    with pytest.raises(ConfigError, match="need one number per array"):
        make_prior(action_widths=(2,))
    with pytest.raises(ConfigError, match="action_dropout needs actions"):
        make_prior(action_dropout=0.5)
