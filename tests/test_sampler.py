"""Sampling: the cached sampler against the recomputing one, reproducibility, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.prior import Prior, PriorConfig
from lvt_pipeline.models.sampler import draw, sample, sample_by_recomputing

TOY = PriorConfig(
    frames=4,
    grid=(4, 4),
    num_codebooks=3,
    codebook_size=11,
    subscale=(4, 1, 1),
    width=24,
    head_width=8,
    num_heads=2,
    embedding_width=12,
    encoder_layers=1,
    decoder_layers=2,
)
ORDERS: dict[str, dict[str, Any]] = {
    "single-frame": {"subscale": (4, 1, 1), "kernel": (7, 1, 1)},
    "spatiotemporal": {"subscale": (2, 2, 2), "kernel": (5, 3, 3)},
    "spatial": {"subscale": (1, 2, 2), "kernel": (1, 3, 3)},
    "spatial-blocks": {"subscale": (1, 2, 2), "kernel": (1, 3, 3), "block": (2, 2, 1)},
}


def make_prior(**settings: Any) -> Prior:
    """A toy prior with opinions: every parameter away from its start."""
    torch.manual_seed(0)
    model = Prior(dataclasses.replace(TOY, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_codes(batch: int, frames: int, model: Prior, seed: int = 1) -> Tensor:
    """int64 (B, frames, h, w, n_c) for a model."""
    config = model.config
    shape = (batch, frames, *config.grid, config.num_codebooks)
    return torch.randint(0, config.codebook_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["query-key", "key-only", "distance-only"])
@pytest.mark.parametrize("order", ORDERS)
def test_cached_sampler_equals_the_recomputing_one(order: str, kind: str) -> None:
    model = make_prior(**ORDERS[order], attention=kind)
    for given in (1, 2, 3):  # with two or three frames, spatiotemporal slices are partly primed
        priming = random_codes(3, given, model)
        assert torch.equal(model.sample(priming, frames=4, seed=5), sample_by_recomputing(model, priming, seed=5))


@pytest.mark.parametrize("settings", [{"head": "shared"}, {"head": "tied"}, {"num_codebooks": 1}, {"num_classes": 2}])
def test_cached_sampler_equals_the_recomputing_one_for_variants(settings: dict[str, Any]) -> None:
    model = make_prior(**settings)
    priming = random_codes(2, 2, model)
    labels = [0, 1] if "num_classes" in settings else None
    found = sample(model, priming, labels=labels, temperature=0.7)
    assert torch.equal(found, sample_by_recomputing(model, priming, labels=labels, temperature=0.7))


@pytest.mark.parametrize("order", ORDERS)
def test_sampling_follows_the_teacher_forced_logits(order: str) -> None:
    """The slowest definition: the logits of the whole video again for every single code."""
    model = make_prior(**ORDERS[order], grid=(2, 2)) if "blocks" not in order else make_prior(**ORDERS[order])
    priming = random_codes(2, 2, model)
    positions = model.geometry(4).positions.flatten()
    area = model.config.grid[0] * model.config.grid[1]
    open_positions = [p for p in positions.tolist() if p >= 2 * area]
    uniforms = torch.rand(len(open_positions), 3, 2, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(2, 4 * area, 3, dtype=torch.int64)
    expected[:, : 2 * area] = priming.flatten(1, 3)
    with torch.no_grad():
        for row, position in enumerate(open_positions):
            for j in range(3):
                logits = model.logits(expected.reshape(2, 4, *model.config.grid, 3)).flatten(1, 3)[:, position, j]
                cumulative = logits.double().softmax(-1).cumsum(-1)
                for clip in range(2):
                    exceeds = cumulative[clip] > float(uniforms[row, j, clip])
                    expected[clip, position, j] = int(exceeds.nonzero()[0])
    found = model.sample(priming, frames=4, uniforms=uniforms)
    assert torch.equal(found, expected.reshape(found.shape))
    assert torch.equal(found, model.sample(priming, frames=4, uniforms=uniforms.double().numpy()))


def test_a_drawn_code_is_the_first_whose_cumulative_probability_exceeds_its_number() -> None:
    logits = torch.tensor([[0.25, 0.25, 0.0, 0.5]]).log().expand(7, 4)
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, numbers).tolist() == [0, 0, 1, 1, 3, 3, 3]


def test_a_number_equal_to_a_cumulative_probability_draws_the_next_code() -> None:
    numbers = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert draw(torch.zeros(3, 4), numbers).tolist() == [1, 2, 3]  # four equal probabilities are exact


def test_temperature_sharpens() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]]).expand(3, 3)
    numbers = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)
    assert draw(logits, numbers, temperature=0.01).tolist() == [1, 1, 1]
    assert draw(logits, numbers, temperature=100).tolist() == [0, 1, 2]


def test_priming_frames_come_back_unchanged_and_codes_are_in_range() -> None:
    model = make_prior()
    priming = random_codes(3, 2, model)
    codes = model.sample(priming.numpy().astype(np.uint16), frames=4)
    assert codes.shape == (3, 4, 4, 4, 3)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[:, :2], priming)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 11
    assert codes[:, 2:].unique().numel() > 3


def test_codes_of_a_clip_do_not_depend_on_batch_size_or_order() -> None:
    model = make_prior()
    priming = random_codes(11, 1, model)
    names = [f"clip{number}" for number in range(11)]
    together = model.sample(priming, clip_ids=names)
    backwards = model.sample(priming.flip(0), clip_ids=names[::-1]).flip(0)
    alone = torch.cat([model.sample(priming[i : i + 1], clip_ids=names[i : i + 1]) for i in range(11)])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)


def test_seed_clip_and_sample_number_each_give_other_codes() -> None:
    model = make_prior()
    priming = random_codes(1, 1, model)
    base: dict[str, Any] = {"seed": 0, "clip_ids": ["a"], "sample_ids": [0]}
    first = model.sample(priming, **base)
    assert torch.equal(first, model.sample(priming, **base))
    for change in ({"seed": 1}, {"clip_ids": ["b"]}, {"sample_ids": [1]}):
        assert not torch.equal(first, model.sample(priming, **(base | change)))


def test_global_random_state_plays_no_part() -> None:
    model = make_prior()
    priming = random_codes(1, 1, model)
    torch.manual_seed(1)
    first = model.sample(priming)
    state = torch.get_rng_state()
    assert torch.equal(first, model.sample(priming))
    assert torch.equal(state, torch.get_rng_state())


def test_sampled_codes_can_be_trained_on() -> None:
    model = make_prior()
    codes = model.sample(random_codes(1, 1, model))
    loss = model.slice_loss(codes, torch.tensor([1])).loss
    assert loss is not None
    loss.backward()


def test_a_wholly_primed_video_and_an_empty_batch_come_back_as_they_are() -> None:
    model = make_prior()
    whole = random_codes(2, 4, model)
    assert torch.equal(model.sample(whole, frames=4), whole)
    assert model.sample(whole[:0, :1]).shape == (0, 4, 4, 4, 3)


def test_spatial_prior_samples_longer_clips_than_it_was_made_for() -> None:
    model = make_prior(**ORDERS["spatial-blocks"])
    priming = random_codes(2, 1, model)
    assert torch.equal(model.sample(priming, frames=6), sample_by_recomputing(model, priming, frames=6))


def test_single_frame_prior_cannot_start_from_nothing() -> None:
    model = make_prior()
    with pytest.raises(ShapeError, match="needs at least 1 priming frames, found 0"):
        model.sample(torch.zeros(1, 0, 4, 4, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="needs at least 3 priming frames, found 2"):
        make_prior(priming_frames=3).sample(random_codes(1, 2, model))


def test_spatiotemporal_prior_can_start_from_nothing() -> None:
    model = make_prior(**ORDERS["spatiotemporal"])
    assert model.sample(torch.zeros(1, 0, 4, 4, 3, dtype=torch.int64)).shape == (1, 4, 4, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 5}, "this prior takes clips of exactly 4 frames, found 5"),
        ({"frames": 1}, "2 priming frames are more than the 1 frames asked for"),
        ({"uniforms": torch.rand(31, 3, 2)}, "uniforms are float (pixels, n_c, B) = (32, 3, 2)"),
        ({"uniforms": torch.ones(32, 3, 2)}, "uniforms lie in [0, 1)"),
        ({"clip_ids": ["a"]}, "clip_ids has 1 entries for 2 clips"),
        ({"sample_ids": [1, 2, 3]}, "sample_ids has 3 entries for 2 clips"),
        ({"labels": [0, 1]}, "not conditioned on classes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = make_prior()
    with pytest.raises(ShapeError) as error:
        model.sample(random_codes(2, 2, model), **arguments)
    assert message in str(error.value)


def test_priming_of_another_model_is_refused() -> None:
    model = make_prior()
    with pytest.raises(ShapeError, match=r"this prior has a \(4, 4\) grid"):
        model.sample(torch.zeros(1, 1, 8, 8, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"codes lie in \[0, 11\)"):
        model.sample(torch.full((1, 1, 4, 4, 3), 11))


def test_temperature_must_be_positive() -> None:
    model = make_prior()
    with pytest.raises(ConfigError, match=r"temperature=0\.0 must be above 0"):
        model.sample(random_codes(1, 1, model), temperature=0.0)
