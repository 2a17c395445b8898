"""Sampling: the cached sampler against the recomputing one, reproducibility, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lvt_pipeline.errors import ConfigError, LVTError, ShapeError
from lvt_pipeline.models import cpu
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.sampling.decoder import SliceDecoder
from lvt_pipeline.models.sampling.numbers import RandomNumbers
from lvt_pipeline.models.sampling.pixel_weights import PixelWeights
from lvt_pipeline.models.sampling.rule import SamplingRule
from lvt_pipeline.models.sampling.sampler import sample
from tests.slow_sampler import sample_by_recomputing
from tests.toy_prior import ORDERS, TOY, make_prior, random_codes


@pytest.fixture(params=["few keys", "many keys"])
def key_count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as for few and for many keys, which have their own ways."""
    if request.param == "many keys":
        monkeypatch.setattr(cpu, "_LARGE_KEYS", 0)


@pytest.mark.parametrize("kind", ["query-key", "key-only", "distance-only"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.usefixtures("key_count")
def test_cached_sampler_equals_the_recomputing_one(order: str, kind: str) -> None:
    model = make_prior(**ORDERS[order], attention=kind)
    for given in (1, 2, 3):  # with two or three frames, spatiotemporal slices are partly primed
        priming = random_codes(3, model, given)
        expected = sample_by_recomputing(model, priming, numbers=RandomNumbers(seed=5))
        assert torch.equal(model.sample(priming, frames=4, seed=5), expected)


VARIANTS: list[dict[str, Any]] = [
    {"head": "shared"},
    {"head": "tied"},
    {"num_codebooks": 1},
    {"num_classes": 2},
    {"kernel_reach": "past", "encoder_position": True},
    {"decoder_input": "adaptive", "head": "adaptive-tied", "cutoffs": (3, 7)},
    {"decoder_layers": 0},
]


@pytest.mark.parametrize("lookahead", [1, 3])
@pytest.mark.parametrize("settings", VARIANTS)
def test_cached_samplers_equal_the_recomputing_one_for_variants(settings: dict[str, Any], lookahead: int) -> None:
    model = make_prior(**settings)
    priming = random_codes(2, model, 2)
    labels = [0, 1] if "num_classes" in settings else None
    found = model.sample(priming, labels=labels, temperature=0.7, lookahead=lookahead)
    assert torch.equal(found, sample_by_recomputing(model, priming, SamplingRule(temperature=0.7), labels=labels))


@pytest.mark.parametrize("lookahead", [2, 5, 40])
@pytest.mark.parametrize("kind", ["query-key", "key-only", "distance-only"])
@pytest.mark.parametrize("order", ORDERS)
def test_looking_ahead_draws_the_same_codes(order: str, kind: str, lookahead: int) -> None:
    model = make_prior(**ORDERS[order], attention=kind)
    for given in (1, 3):
        priming = random_codes(3, model, given)
        one_by_one = model.sample(priming, frames=4, seed=5)
        assert torch.equal(model.sample(priming, frames=4, seed=5, lookahead=lookahead), one_by_one)


def still_prior(**settings: Any) -> tuple[Prior, Tensor]:
    """A toy prior that learnt a still picture, and the picture (1, 1, 4, 4, 3)."""
    torch.manual_seed(0)
    model = Prior(dataclasses.replace(TOY, frames=2, subscale=(2, 1, 1), qkv_init="standard", **settings))
    picture = random_codes(1, model, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model.slice_loss(picture.repeat(1, 2, 1, 1, 1), torch.tensor([1])).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), picture


def test_looking_ahead_needs_fewer_passes_where_codes_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    model, picture = still_prior()
    passes = []
    decode = SliceDecoder._decode
    monkeypatch.setattr(SliceDecoder, "_decode", lambda *a: (passes.append(1), decode(*a))[1])
    found = model.sample(picture, frames=2, lookahead=8, top_k=1)
    assert torch.equal(found, model.sample(picture, frames=2, top_k=1))
    assert torch.equal(found[:, 1], picture[:, 0])
    assert len(passes) <= 4  # 16 pixels, 8 at a time, with room for two wrong guesses


@pytest.mark.parametrize("rule", [{"top_k": 1}, {"temperature": 4.0}])
def test_samples_do_not_depend_on_how_far_passes_look_ahead_by_themselves(rule: dict[str, Any]) -> None:
    model, picture = still_prior()
    decoders: dict[Any, SliceDecoder] = {}
    found = sample(model, picture, SamplingRule(**rule), frames=6, decoders=decoders)
    assert [decoder.longest for decoder in decoders.values()] == [16]
    assert torch.equal(found, model.sample(picture, frames=6, lookahead=1, **rule))


def test_greedy_sampling_is_exact_with_and_without_looking_ahead() -> None:
    model = make_prior()
    priming = random_codes(2, model, 1)
    greedy = model.sample(priming, top_k=1, seed=1)
    assert torch.equal(greedy, model.sample(priming, top_k=1, seed=2, lookahead=7))
    with torch.no_grad():
        likeliest = model.logits(greedy).argmax(-1)
    assert torch.equal(greedy[:, 1:], likeliest[:, 1:])


@pytest.mark.parametrize("lookahead", [1, 4])
def test_drawn_codes_are_distributed_as_the_model_says(lookahead: int) -> None:
    """Chi-square of the first drawn pixel's two codes, jointly, over 4,000 samples of one clip."""
    model = make_prior(grid=(1, 2), codebook_size=3, num_codebooks=2)
    priming = random_codes(1, model, 1)
    count = 4000
    numbers = RandomNumbers(sample_ids=range(count), clip_ids=["a"] * count)
    codes = sample(model, priming.repeat(count, 1, 1, 1, 1), numbers=numbers, lookahead=lookahead, clips_per_pass=500)
    drawn = codes[:, 1, 0, 1].numpy()
    # The probability of the second pixel's codes, summed over what the first pixel may be.
    expected = np.zeros((3, 3))
    videos = torch.zeros(81, 4, 1, 2, 2, dtype=torch.int64)
    videos[:, 0] = priming[0, 0]
    videos[:, 1] = torch.cartesian_prod(*[torch.arange(3)] * 4).reshape(81, 1, 2, 2)
    with torch.no_grad():
        log_p = model.logits(videos).double().log_softmax(-1).gather(-1, videos[..., None])[:, 1].sum((1, 2, 3, 4))
    np.add.at(expected, (videos[:, 1, 0, 1, 0].numpy(), videos[:, 1, 0, 1, 1].numpy()), log_p.exp().numpy())
    assert expected.sum() == pytest.approx(1)
    found = np.zeros((3, 3))
    np.add.at(found, (drawn[:, 0], drawn[:, 1]), 1)
    chi_square = float(((found - count * expected) ** 2 / (count * expected)).sum())
    assert chi_square < 26.1  # 8 degrees of freedom: one in a thousand is above
    assert chi_square > 0.8  # nor is it too good to be random


@pytest.mark.parametrize("lookahead", [1, 3])
def test_guidance_equals_the_recomputing_sampler_and_changes_samples(lookahead: int) -> None:
    model = make_prior(num_classes=2, class_dropout=0.1)
    priming = random_codes(3, model, 2)
    labels = [0, 1, 1]
    guided = model.sample(priming, labels=labels, guidance=3.0, lookahead=lookahead)
    assert torch.equal(guided, sample_by_recomputing(model, priming, SamplingRule(guidance=3.0), labels=labels))
    plain = model.sample(priming, labels=labels)
    assert not torch.equal(guided, plain)
    assert torch.equal(model.sample(priming, labels=labels, guidance=1.0), plain)
    without = model.sample(priming)
    assert torch.equal(model.sample(priming, labels=labels, guidance=0.0), without)
    assert not torch.equal(without, plain)


@pytest.mark.parametrize(
    "rule", [{"top_k": 2}, {"top_p": 0.5}, {"temperature": (0.5, 1.0, 2.0)}, {"top_k": 5, "top_p": 0.9}]
)
def test_ways_of_drawing_equal_the_recomputing_sampler(rule: dict[str, Any]) -> None:
    model = make_prior()
    priming = random_codes(2, model, 2)
    found = model.sample(priming, **rule)
    assert torch.equal(found, sample_by_recomputing(model, priming, SamplingRule(**rule)))
    assert torch.equal(found, model.sample(priming, lookahead=4, **rule))
    assert not torch.equal(found, model.sample(priming))


def test_guidance_needs_a_prior_that_learnt_without_classes() -> None:
    model = make_prior(num_classes=2)
    with pytest.raises(ShapeError, match=r"model\.class_dropout"):
        model.sample(random_codes(1, model, 2), labels=[0], guidance=2.0)


def test_number_of_temperatures_must_fit_the_codebooks() -> None:
    with pytest.raises(ConfigError, match="2 values for 3 codebooks"):
        model = make_prior()
        model.sample(random_codes(1, model, 2), temperature=(1.0, 2.0))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("lookahead", [1, 4])
@pytest.mark.usefixtures("key_count")
def test_decoder_outputs_of_a_clip_are_the_same_bits_in_any_group(
    lookahead: int, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stronger than equal codes: what the codes are drawn from does not depend on the other clips."""
    torch.manual_seed(0)
    model = Prior(
        PriorConfig(
            frames=2,
            grid=(8, 8),
            subscale=(2, 1, 1),
            num_codebooks=2,
            codebook_size=64,
            width=96,
            head_width=16,
            num_heads=4,
            embedding_width=48,
            encoder_layers=1,
            decoder_layers=2,
            qkv_init="standard",
        )
    ).eval()
    seen: list[Tensor] = []
    sample_codes = PixelWeights.sample
    monkeypatch.setattr(
        PixelWeights, "sample", lambda self, y, *rest: (seen.append(y.clone()), sample_codes(self, y, *rest))[1]
    )
    priming = random_codes(5, model, 1)
    names = list("abcde")
    alone = []
    for clip, name in zip(priming, names, strict=True):
        seen.clear()
        model.sample(clip[None], clip_ids=[name], lookahead=lookahead, weights=weights)
        alone.append(torch.stack(seen))
    if lookahead == 1:
        for order in ([0, 1, 2, 3, 4], [4, 2, 0]):
            seen.clear()
            model.sample(priming[order], clip_ids=[names[clip] for clip in order], lookahead=lookahead, weights=weights)
            together = torch.stack(seen)
            for place, clip in enumerate(order):
                assert torch.equal(together[:, place], alone[clip][:, 0])  # the rows after the clips are fillers
    else:  # clips go at their own pace: compare what the first pass of both saw
        seen.clear()
        model.sample(priming[[3, 1]], clip_ids=["d", "b"], lookahead=lookahead, weights=weights)
        assert torch.equal(seen[0], torch.cat([alone[3][0], alone[1][0]]))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("lookahead", [4, 5, 16])
@pytest.mark.usefixtures("key_count")
def test_keys_and_values_are_the_same_bits_however_far_a_pass_looks_ahead(
    lookahead: int, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stronger than equal codes: rounding does not depend on the number of pixels or clips in a pass."""
    model = make_prior(grid=(8, 8), width=96, head_width=32, codebook_size=64)
    made: list[SliceDecoder] = []
    begin = SliceDecoder.__init__
    monkeypatch.setattr(SliceDecoder, "__init__", lambda self, *a, **k: (begin(self, *a, **k), made.append(self))[0])
    priming = random_codes(3, model, 3)
    one_by_one = sample(model, priming, lookahead=1, clips_per_pass=3, weights=weights)
    assert torch.equal(sample(model, priming, lookahead=lookahead, clips_per_pass=3, weights=weights), one_by_one)
    pixels = slice(made[0].num_pixels)
    for one, other in zip(made[0]._caches, made[-1]._caches, strict=True):
        assert torch.equal(one[:, :, pixels], other[:, :, pixels])


@pytest.mark.parametrize("lookahead", [1, 4])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", [{}, {"guidance": 2.0}, {"top_p": 0.9, "temperature": 0.8}, {"top_k": 5}])
def test_replaying_a_captured_pass_gives_the_same_codes(
    order: str, lookahead: int, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, with a stand-in for the graph: one capture per count of keys, and no look at the positions."""
    model = make_prior(**ORDERS[order], num_classes=2, class_dropout=0.1)
    captured, replays = [], []

    def capture(run: Any) -> Any:
        captured.append(run)
        run()
        return lambda: (replays.append(1), run())

    priming = random_codes(3, model, 1)
    arguments = {"labels": [0, 1, 1], "lookahead": lookahead, **rule}
    expected = model.sample(priming, **arguments)
    begin = SliceDecoder.__init__
    monkeypatch.setattr(SliceDecoder, "__init__", lambda self, *a, **k: begin(self, *a, **k, capture=capture))
    assert torch.equal(model.sample(priming, **arguments), expected)
    assert len(captured) == 1  # the slices of these priors have fewer pixels than one step of keys
    assert len(replays) >= 3


def test_a_pass_reads_and_writes_memory_that_stays_in_place() -> None:
    """What a captured graph needs: a second slice is sampled in the buffers of the first."""
    model = make_prior()
    geometry = model.geometry(4)
    with torch.inference_mode():
        decoder = SliceDecoder(PixelWeights(model, geometry, 8), 2, SamplingRule(), 4)
        state = [*decoder._caches, *(value for value in vars(decoder).values() if isinstance(value, Tensor))]
        before = [tensor.data_ptr() for tensor in state]
        for _ in range(2):
            decoder.sample_slice(
                random_codes(2, model, 1).flatten(1, 3),
                torch.randn(2, geometry.num_pixels, model.config.width),
                0,
                torch.rand(geometry.num_pixels, 3, 2, dtype=torch.float64),
            )
        after = [*decoder._caches, *(value for value in vars(decoder).values() if isinstance(value, Tensor))]
    assert [tensor.data_ptr() for tensor in after] == before


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_smaller_weights_change_few_codes(weights: Any) -> None:
    model, _ = still_prior()
    priming = random_codes(4, model, 1, seed=3)
    plain = model.sample(priming, frames=2, temperature=2.0)
    found = model.sample(priming, frames=2, temperature=2.0, weights=weights)
    share = float((plain != found)[:, 1:].float().mean())
    assert share < 0.25
    assert torch.equal(found, model.sample(priming, frames=2, temperature=2.0, weights=weights, lookahead=1))


def test_unknown_weights_are_refused() -> None:
    model = make_prior()
    with pytest.raises(ConfigError, match="weights='int4' is not one of float32, bfloat16, int8"):
        model.sample(random_codes(1, model, 2), weights="int4")  # type: ignore[arg-type]


def test_samples_of_one_clip_share_the_encoder_where_they_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_prior()
    calls = []
    encode = Prior.encode_context
    monkeypatch.setattr(Prior, "encode_context", lambda *a: (calls.append(1), encode(*a))[1])
    model.sample(random_codes(1, model, 2).repeat(4, 1, 1, 1, 1), frames=4, sample_ids=range(4), clip_ids=["a"] * 4)
    assert len(calls) == 1 + 4  # the first open slice once, the second for every sample


@pytest.mark.parametrize("order", ORDERS)
def test_sampling_follows_the_teacher_forced_logits(order: str) -> None:
    """The slowest definition: the logits of the whole video again for every single code."""
    model = make_prior(**ORDERS[order], grid=(2, 2)) if "blocks" not in order else make_prior(**ORDERS[order])
    priming = random_codes(2, model, 2)
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
    assert SamplingRule().sample(logits, numbers).tolist() == [0, 0, 1, 1, 3, 3, 3]


def test_a_number_equal_to_a_cumulative_probability_draws_the_next_code() -> None:
    numbers = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert SamplingRule().sample(torch.zeros(3, 4), numbers).tolist() == [1, 2, 3]  # four equal probabilities are exact


def test_temperature_sharpens() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]]).expand(3, 3)
    numbers = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)
    assert SamplingRule(temperature=0.01).sample(logits, numbers).tolist() == [1, 1, 1]
    assert SamplingRule(temperature=100).sample(logits, numbers).tolist() == [0, 1, 2]


def test_priming_frames_come_back_unchanged_and_codes_are_in_range() -> None:
    model = make_prior()
    priming = random_codes(3, model, 2)
    codes = model.sample(priming.numpy().astype(np.uint16), frames=4)
    assert codes.shape == (3, 4, 4, 4, 3)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[:, :2], priming)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 11
    assert codes[:, 2:].unique().numel() > 3


def test_codes_of_a_clip_do_not_depend_on_batch_size_or_order() -> None:
    model = make_prior()
    priming = random_codes(11, model, 1)
    names = [f"clip{number}" for number in range(11)]
    together = model.sample(priming, clip_ids=names)
    backwards = model.sample(priming.flip(0), clip_ids=names[::-1]).flip(0)
    alone = torch.cat([model.sample(priming[i : i + 1], clip_ids=names[i : i + 1]) for i in range(11)])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)


def test_seed_clip_and_sample_number_each_give_other_codes() -> None:
    model = make_prior()
    priming = random_codes(1, model, 1)
    base: dict[str, Any] = {"seed": 0, "clip_ids": ["a"], "sample_ids": [0]}
    first = model.sample(priming, **base)
    assert torch.equal(first, model.sample(priming, **base))
    for change in ({"seed": 1}, {"clip_ids": ["b"]}, {"sample_ids": [1]}):
        assert not torch.equal(first, model.sample(priming, **(base | change)))


def test_global_random_state_plays_no_part() -> None:
    model = make_prior()
    priming = random_codes(1, model, 1)
    torch.manual_seed(1)
    first = model.sample(priming)
    state = torch.get_rng_state()
    assert torch.equal(first, model.sample(priming))
    assert torch.equal(state, torch.get_rng_state())


def test_sampled_codes_can_be_trained_on() -> None:
    model = make_prior()
    codes = model.sample(random_codes(1, model, 1))
    loss = model.slice_loss(codes, torch.tensor([1])).loss
    assert loss is not None
    loss.backward()


def test_a_wholly_primed_video_and_an_empty_batch_come_back_as_they_are() -> None:
    model = make_prior()
    whole = random_codes(2, model, 4)
    assert torch.equal(model.sample(whole, frames=4), whole)
    assert model.sample(whole[:0, :1]).shape == (0, 4, 4, 4, 3)


def test_spatial_prior_samples_longer_clips_than_it_was_made_for() -> None:
    model = make_prior(**ORDERS["spatial-blocks"])
    priming = random_codes(2, model, 1)
    assert torch.equal(model.sample(priming, frames=6), sample_by_recomputing(model, priming, frames=6))


def test_single_frame_prior_cannot_start_from_nothing() -> None:
    model = make_prior()
    with pytest.raises(ShapeError, match="needs at least 1 priming frames, found 0"):
        model.sample(torch.zeros(1, 0, 4, 4, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="needs at least 3 priming frames, found 2"):
        make_prior(priming_frames=3).sample(random_codes(1, model, 2))


def test_spatiotemporal_prior_can_start_from_nothing() -> None:
    model = make_prior(**ORDERS["spatiotemporal"])
    assert model.sample(torch.zeros(1, 0, 4, 4, 3, dtype=torch.int64)).shape == (1, 4, 4, 4, 3)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_end_sampling_and_name_clip_and_pixel(broken: float) -> None:
    model = make_prior(num_codebooks=1, codebook_size=64)
    priming = random_codes(3, model, 1)
    found = model.sample(priming, clip_ids=list("abc"), temperature=100.0).flatten(2)
    others = found[[0, 2], 1].flatten().tolist()
    # A code that only clip b has in frame 1: after it, the convolution of the next pixel reads its embedding.
    place = next(p for p, code in enumerate(found[1, 1].tolist()) if code not in others and p % 4 < 3)
    assert found[1, 1, place] not in found[1, 1, :place]
    with torch.no_grad():
        model.decoder.embeddings[0].weight[found[1, 1, place]] = broken
    row, column = divmod(place + 1, 4)
    with pytest.raises(LVTError) as error:
        model.sample(priming, clip_ids=list("abc"), temperature=100.0)
    where = f"the prior's logits of clip b are not finite at frame 1, row {row}, column {column} (counted from 0)"
    assert where in str(error.value)
    with pytest.raises(LVTError, match="logits of clip b are not finite at frame 1, "):
        model.sample(priming, clip_ids=list("abc"), temperature=100.0, lookahead=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": float("nan")}, "guidance=nan must be a finite number"),
        ({"guidance": float("inf")}, "guidance=inf must be a finite number"),
        ({"guidance": "strong"}, "guidance='strong' must be a number"),
        ({"guidance": 1e300}, "guidance=1e+300 must be between -1e+06 and 1e+06"),
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
        ({"temperature": float("inf")}, "temperature=inf must be a finite number"),
        ({"temperature": 1e-320}, "temperature=1e-320 must be between 1e-06 and 1e+06"),
        ({"temperature": [1.0, float("nan"), 1.0]}, "temperature=nan must be a finite number"),
        ({"temperature": []}, "temperature has no value"),
        ({"temperature": True}, "temperature=True must be a number"),
        ({"temperature": 10**400}, "temperature=(a number of 1329 bits) must be a finite number"),
        ({"top_k": 2.5}, "top_k=2.5 must be a whole number"),
        ({"top_k": -1}, "top_k=-1 must be at least 1"),
        ({"top_p": float("nan")}, "top_p=nan must be a finite number"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"seed": 2**63}, "seed=9223372036854775808 must be at most 9223372036854775807"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"sample_ids": [0.5, 1]}, "sample_ids=0.5 must be a whole number"),
        ({"lookahead": 0}, "lookahead=0 must be at least 1"),
        ({"lookahead": float("nan")}, "lookahead=nan must be a whole number"),
        ({"frames": 4.0}, "frames=4.0 must be a whole number"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = make_prior(num_classes=2, class_dropout=0.5)
    with pytest.raises(ConfigError) as error:
        model.sample(random_codes(2, model, 2), **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("priming", "message"),
    [
        (torch.zeros(1, 1, 4, 4, 3), "codes are integers (B, T0, h, w, n_c), found torch.float32 (1, 1, 4, 4, 3)"),
        (np.zeros((1, 1, 4, 4, 3), bool), "codes are integers (B, T0, h, w, n_c), found bool"),
        (np.zeros((1, 1, 4, 4, 3), object), "codes are integers (B, T0, h, w, n_c), found object"),
        (np.full((1, 1, 4, 4, 3), 2**64 - 1, np.uint64), "codes must be in [0, 11)"),
        (np.full((1, 1, 4, 4, 3), 11, np.uint8), "codes must be in [0, 11), found values from 11 to 11"),
        ([[0, 1]], "codes are an array of integers (B, T0, h, w, n_c), found list"),
    ],
)
def test_priming_that_is_not_codes_is_refused(priming: Any, message: str) -> None:
    with pytest.raises(ShapeError) as error:
        make_prior().sample(priming)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0], "labels are integers (2,), found torch.float32 (2,)"),
        ([True, False], "labels are integers (2,), found torch.bool (2,)"),
        (["cat", "dog"], "this prior does not know the label 'cat'"),
        ([0, None], "labels are integers (2,), found [0, None]"),
        ([0, 2**70], "labels are integers (2,), found [0, 1180591620717411303424]"),
        ([0, -1], "labels must be in [0, 2), found -1 to 0"),
        ([[0, 1]], "labels are integers (2,), found torch.int64 (1, 2)"),
    ],
)
def test_labels_that_are_not_classes_are_refused(labels: Any, message: str) -> None:
    model = make_prior(num_classes=2)
    with pytest.raises(ShapeError) as error:
        model.sample(random_codes(2, model, 2), labels=labels)
    assert message in str(error.value)


def test_numbers_of_numpy_mean_what_pythons_numbers_mean() -> None:
    model = make_prior()
    priming = random_codes(2, model, 2)
    plain = model.sample(priming, seed=2**62, temperature=0.5, top_k=4, top_p=0.5)
    rule: dict[str, Any] = {"temperature": np.float32(0.5), "top_k": np.uint8(4), "top_p": np.float64(0.5)}
    assert torch.equal(model.sample(priming, seed=np.int64(2**62), **rule), plain)
    each = {**rule, "temperature": np.array([0.5, 0.5, 0.5])}
    assert torch.equal(model.sample(priming, seed=2**62, **each), plain)
    assert torch.equal(model.sample(priming, top_k=2**70), model.sample(priming))
    assert torch.equal(model.sample(priming, lookahead=10**12), model.sample(priming))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uniforms": torch.full((32, 3, 2), float("nan"))}, "uniforms are in [0, 1), found values from nan to nan"),
        ({"uniforms": [[0.5]]}, "uniforms are float (pixels, n_c, B) = (32, 3, 2), found list"),
        ({"uniforms": torch.zeros(32, 3, 2, dtype=torch.int64)}, "found torch.int64"),
        ({"uniforms": torch.full((32, 3, 2), -0.1)}, "uniforms are in [0, 1)"),
        ({"frames": 1}, "2 priming frames are more than the 1 frames asked for"),
        ({"uniforms": torch.rand(31, 3, 2)}, "uniforms are float (pixels, n_c, B) = (32, 3, 2)"),
        ({"uniforms": torch.ones(32, 3, 2)}, "uniforms are in [0, 1), found values from 1.0 to 1.0"),
        ({"clip_ids": ["a"]}, "clip_ids has 1 entries for 2 clips"),
        ({"sample_ids": [1, 2, 3]}, "sample_ids has 3 entries for 2 clips"),
        ({"labels": [0, 1]}, "not conditioned on classes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = make_prior()
    with pytest.raises(ShapeError) as error:
        model.sample(random_codes(2, model, 2), **arguments)
    assert message in str(error.value)


def test_priming_of_another_model_is_refused() -> None:
    model = make_prior()
    with pytest.raises(ShapeError, match=r"this prior has a \(4, 4\) grid"):
        model.sample(torch.zeros(1, 1, 8, 8, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"codes must be in \[0, 11\)"):
        model.sample(torch.full((1, 1, 4, 4, 3), 11))


def test_temperature_must_be_positive() -> None:
    model = make_prior()
    with pytest.raises(ConfigError, match=r"temperature=0\.0 must be above 0"):
        model.sample(random_codes(1, model, 1), temperature=0.0)
