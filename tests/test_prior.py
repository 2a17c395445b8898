"""The prior: parameter counts, causality, context, loss and bits per code."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.context import ContextConvolution
from lvt_pipeline.models.prior.decoder import CausalConvolution
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.prior.subscale import Subscale
from tests.toy_prior import ORDERS, TOY, make_prior, random_codes


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 49_872_384),
        ({"attention": "key-only"}, 41_500_160),
        ({"attention": "distance-only"}, 33_095_168),
        ({"codebook_size": 2048}, 64_034_304),
        ({"subscale": (4, 2, 2), "kernel": (5, 3, 3)}, 59_830_528),
        ({"subscale": (1, 2, 2), "kernel": (1, 3, 3), "block": (4, 8, 8)}, 50_391_808),
        ({"num_classes": 600}, 49_872_384 + 142_336),
        ({"num_codebooks": 1}, 45_150_720),
        ({"num_codebooks": 1, "head": "tied"}, 44_953_728),
    ],
)
def test_parameter_counts_are_those_of_the_paper(settings: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert num_parameters(Prior(PriorConfig(**settings))) == count


def test_parameters_by_part_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        model = Prior(PriorConfig())
    encoder, decoder, predictor = model.encoder, model.decoder, model.predictor
    assert num_parameters(encoder.context) == 1_835_136
    assert num_parameters(encoder.slice_embedding) == 2_048
    assert num_parameters(encoder.project) == 65_536
    assert num_parameters(encoder.blocks) == 21_000_128
    assert num_parameters(decoder.embeddings) == 262_144
    assert num_parameters(decoder.causal_convolution) == 1_769_984
    assert num_parameters(decoder.project) == 262_144
    assert num_parameters(decoder.blocks) == 21_000_128
    assert num_parameters(predictor.norm) == 1_024
    assert num_parameters(predictor.mixers) == 2_623_488
    assert num_parameters(predictor.outputs) == 1_050_624


@pytest.mark.parametrize("order", ORDERS)
def test_context_convolution_equals_a_convolution_of_one_hot_codes(order: str) -> None:
    config = dataclasses.replace(TOY, **ORDERS[order])
    geometry = Subscale((config.frames, *config.grid), config.subscale, config.kernel)
    layer = ContextConvolution(config.num_codebooks, config.codebook_size, 5, config.kernel)
    torch.nn.init.normal_(layer.bias)
    codes = torch.randint(0, config.codebook_size, (geometry.num_slices, 4, 4, 4, config.num_codebooks))
    table = layer.table(geometry.taps)
    found = layer(layer.rows(codes.flatten(1, 3), geometry.context), table)

    flat_slice = torch.empty(64, dtype=torch.int64)
    for index, positions in enumerate(geometry.positions):
        flat_slice[positions] = index
    for index, offset in enumerate(geometry.offsets):
        visible = (flat_slice < index).reshape(4, 4, 4)
        one_hot = F.one_hot(codes[index], config.codebook_size) * visible[..., None, None]
        channels = one_hot.flatten(3).permute(3, 0, 1, 2).float()
        # Pad generously, then cut the window that puts output j on element o + j*s.
        pad = [size // 2 for size in config.kernel]
        padded = F.pad(channels, (pad[2], pad[2], pad[1], pad[1], pad[0], pad[0]))
        window = padded[:, offset[0] :, offset[1] :, offset[2] :]
        expected = F.conv3d(window[None], layer.weight, layer.bias, stride=config.subscale)[0]
        t, h, w = geometry.slice_shape
        expected = expected[:, :t, :h, :w].flatten(1).T
        torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 5), (4, 3, 5)])
def test_causal_convolution_sees_earlier_pixels_of_its_window_only(shape: tuple[int, int, int]) -> None:
    layer = CausalConvolution(2, 3)
    pixels = shape[0] * shape[1] * shape[2]
    x = torch.zeros(1, pixels, 2)
    places = [(t, r, c) for t in range(shape[0]) for r in range(shape[1]) for c in range(shape[2])]
    with torch.no_grad():
        silent = layer(x, shape)
        for source, (t, r, c) in enumerate(places):
            changed = x.clone()
            changed[0, source] = 1
            moved = (layer(changed, shape) - silent)[0].abs().amax(-1) > 0
            for target, (tt, rr, cc) in enumerate(places):
                inside = 0 <= tt - t <= 2 and 0 <= rr - r <= 2 and abs(cc - c) <= 1
                assert bool(moved[target]) == (inside and source < target)


def generation_order(model: Prior) -> list[int]:
    """Flat video positions in the order in which they are generated."""
    order: list[int] = model.geometry(model.config.frames).positions.flatten().tolist()
    return order


@pytest.mark.parametrize("kind", ["query-key", "key-only", "distance-only"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_code_changes_no_logit_at_or_before_it_in_generation_order(order: str, kind: str) -> None:
    model = make_prior(**ORDERS[order], attention=kind)
    codes = random_codes(1, model)
    sequence = generation_order(model)
    rank = torch.empty(64, dtype=torch.int64)
    rank[sequence] = torch.arange(64)
    num_codebooks = model.config.num_codebooks
    with torch.no_grad():
        before = model.logits(codes)
        for place in (0, 1, 17, 38, 62, 63):
            position = sequence[place]
            for channel in range(num_codebooks):
                changed = codes.clone()
                changed.view(-1, num_codebooks)[position, channel] += 1
                changed %= model.config.codebook_size
                moved = (model.logits(changed) != before).any(-1).reshape(64, num_codebooks)
                code_rank = rank[:, None] * num_codebooks + torch.arange(num_codebooks)
                assert not moved[code_rank <= place * num_codebooks + channel].any()
                if channel + 1 < num_codebooks:
                    assert bool(moved[position, channel + 1 :].all())


def test_single_frame_prior_sees_three_frames_back() -> None:
    model = make_prior(frames=6, subscale=(6, 1, 1))
    codes = random_codes(1, model)
    with torch.no_grad():
        before = model.logits(codes)
        changed = codes.clone()
        changed[:, 1] = (changed[:, 1] + 1) % 11
        moved = (model.logits(changed) != before).flatten(2).any(-1)[0]
    assert moved.tolist() == [False, True, True, True, True, False]


def test_spatiotemporal_prior_sees_later_frames_of_earlier_slices() -> None:
    model = make_prior(**ORDERS["spatiotemporal"])
    codes = random_codes(1, model)
    with torch.no_grad():
        before = model.logits(codes)
        changed = codes.clone()
        changed[:, 2, 0, 0] = (changed[:, 2, 0, 0] + 1) % 11
        moved = (model.logits(changed) != before).flatten(2).any(-1)[0]
    assert moved.tolist() == [True, True, True, True]  # frames 0 and 1 too: they have pixels in later slices


@pytest.mark.parametrize("head", ["separate", "shared", "tied"])
def test_channel_predictor_agrees_with_the_one_hot_definition(head: str) -> None:
    model = make_prior(head=head)
    predictor, size = model.predictor, model.config.codebook_size
    y, codes = torch.randn(5, 24), torch.randint(0, size, (5, 3))
    for j in range(3):
        one_hots = [F.one_hot(codes[:, k], size).float() for k in range(j)]
        u = F.relu(predictor.mixers[j](torch.cat([y, *one_hots], dim=1)))
        expected = predictor.outputs[j if head == "separate" else 0](u)
        if head == "tied":
            expected = expected @ model.decoder.embeddings[j].weight.T
        found = predictor.logits(y, codes, j, model.decoder.embeddings)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_slice_loss_of_mixed_slices_agrees_with_the_logits_of_the_whole_video(order: str) -> None:
    model = make_prior(**ORDERS[order])
    geometry = model.geometry(4)
    codes = random_codes(geometry.num_slices, model)
    slice_indices = torch.arange(geometry.num_slices).flip(0)
    result = model.slice_loss(codes, slice_indices)
    nats = F.cross_entropy(model.logits(codes).permute(0, 5, 1, 2, 3, 4), codes, reduction="none").flatten(1, 3)
    kept = []
    for clip, index in enumerate(slice_indices.tolist()):
        positions = geometry.positions[index]
        kept.append(nats[clip, positions[positions >= 16]])  # frame 0 is priming
    expected = torch.cat(kept)
    torch.testing.assert_close(result.per_codebook, expected.mean(0).detach(), rtol=1e-4, atol=1e-5)
    assert result.loss is not None
    torch.testing.assert_close(result.loss, expected.mean(), rtol=1e-4, atol=1e-5)
    assert result.num_targets == expected.numel()


def test_priming_frames_keep_their_place_as_input_and_lose_their_target() -> None:
    model = make_prior(**ORDERS["spatiotemporal"])
    codes = random_codes(2, model)
    first = torch.tensor([0, 0])
    result = model.slice_loss(codes, first)
    assert result.num_targets == 2 * 4 * 3  # one frame of two is priming: 2 clips, 2x2 pixels, 3 codebooks
    assert result.loss is not None
    changed = codes.clone()
    changed[:, 0, 0, 0] = (changed[:, 0, 0, 0] + 1) % 11
    moved = model.slice_loss(changed, first).loss
    assert moved is not None
    assert float(moved.detach()) != float(result.loss.detach())


def test_batch_with_priming_frames_only_has_no_loss() -> None:
    model = make_prior()
    result = model.slice_loss(random_codes(2, model), torch.tensor([0, 0]))
    assert result == (None, 0, None)


def test_only_slices_with_targets_are_trainable() -> None:
    assert make_prior().trainable_slices == [1, 2, 3]
    assert make_prior(priming_frames=3).trainable_slices == [3]
    assert make_prior(**ORDERS["spatiotemporal"]).trainable_slices == list(range(8))
    assert make_prior(**ORDERS["spatial"]).trainable_slices == list(range(4))


@pytest.mark.parametrize("order", ORDERS)
def test_uniform_logits_give_log2_k_bits(order: str) -> None:
    model = make_prior(**ORDERS[order])
    for output in model.predictor.outputs:
        torch.nn.init.zeros_(output.weight)
        torch.nn.init.zeros_(output.bias)
    assert model.bits_per_dim(random_codes(2, model)) == pytest.approx(math.log2(11), abs=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("priming_frames", [0, 1, 3])
def test_nats_are_the_sum_over_unprimed_codes(order: str, priming_frames: int) -> None:
    model = make_prior(**ORDERS[order])
    codes = random_codes(3, model)
    with torch.no_grad():
        nats = F.cross_entropy(model.logits(codes).permute(0, 5, 1, 2, 3, 4), codes, reduction="none")
    expected = nats[:, priming_frames:].double()
    found = model.nats_by_code(codes, priming_frames, batch_size=5)
    assert found.num_codes == expected.numel()
    assert found.total == pytest.approx(float(expected.sum()), rel=1e-5)
    torch.testing.assert_close(found.per_codebook, expected.sum((0, 1, 2, 3)), rtol=1e-5, atol=1e-4)
    assert found.bits_per_dim == pytest.approx(found.total / found.num_codes / math.log(2), rel=1e-6)
    assert model.bits_per_dim(codes, priming_frames) == pytest.approx(found.bits_per_dim, rel=1e-6)


def test_loss_starts_near_the_uniform_one() -> None:
    torch.manual_seed(0)
    model = Prior(PriorConfig(encoder_layers=1, decoder_layers=1, grid=(8, 8)))
    assert model.bits_per_dim(random_codes(1, model)[:, :, :8, :8]) == pytest.approx(9, abs=0.35)


def test_training_steps_repeat_bit_for_bit() -> None:
    def train(order: str) -> list[Tensor]:
        model = make_prior(**ORDERS[order], grid=(8, 8), codebook_size=40)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(3)
        slices = torch.tensor(model.trainable_slices)
        for step in range(3):
            chosen = slices[torch.randint(len(slices), (8,), generator=generator)]
            loss = model.slice_loss(random_codes(8, model, seed=step), chosen).loss
            assert loss is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        for order in ORDERS:
            assert all(torch.equal(a, b) for a, b in zip(train(order), train(order), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


def test_a_prior_learns_a_still_picture() -> None:
    torch.manual_seed(0)
    model = Prior(TOY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    still = random_codes(64, model)[:, :1].expand(-1, 4, -1, -1, -1)
    for step in range(150):
        part = still[torch.arange(16) + 16 * (step % 4)]
        loss = model.slice_loss(part, torch.randint(1, 4, (16,))).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.bits_per_dim(still[:16]) < 1.0 < math.log2(11)


def test_kernel_entries_that_only_meet_padding_get_no_gradient() -> None:
    model = make_prior()
    loss = model.slice_loss(random_codes(4, model), torch.tensor([3, 3, 3, 3])).loss
    assert loss is not None
    loss.backward()
    gradient = model.encoder.context.weight.grad
    assert gradient is not None
    assert gradient.flatten(2).abs().sum((0, 1)).gt(0).tolist() == [True, True, True, False, False, False, False]


def test_class_labels_change_the_logits_and_are_checked() -> None:
    model = make_prior(num_classes=3)
    codes = random_codes(2, model)
    with torch.no_grad():
        assert not torch.equal(model.logits(codes, [0, 1]), model.logits(codes, np.array([0, 2])))
    with pytest.raises(ShapeError, match="conditioned on 3 classes; give a label"):
        model.logits(codes)
    with pytest.raises(ShapeError, match=r"labels must be in \[0, 3\)"):
        model.logits(codes, torch.tensor([0, 3]))
    with pytest.raises(ShapeError, match=r"labels are integers \(2,\)"):
        model.logits(codes, [0])
    with pytest.raises(ShapeError, match="not conditioned on classes"):
        make_prior().logits(codes, [0, 1])


def test_encoder_position_is_optional_and_changes_the_logits() -> None:
    plain, positioned = make_prior(), make_prior(encoder_position=True)
    positioned.load_state_dict(plain.state_dict())
    codes = random_codes(1, plain)
    with torch.no_grad():
        assert not torch.equal(plain.logits(codes), positioned.logits(codes))


def test_one_codebook_and_arrays_work() -> None:
    model = make_prior(num_codebooks=1)
    codes = random_codes(2, model)
    with torch.no_grad():
        logits = model.logits(codes.numpy().astype(np.uint8))
        assert logits.shape == (2, 4, 4, 4, 1, 11)
        assert torch.equal(logits, model.logits(codes))


def test_spatial_prior_takes_other_lengths_that_its_blocks_tile() -> None:
    model = make_prior(**ORDERS["spatial-blocks"])
    codes = random_codes(1, model)
    assert model.logits(codes[:, :2]).shape[1] == 2
    with pytest.raises(ShapeError, match="multiple of 2 frames"):
        model.logits(codes[:, :3])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 4, 4, 3), "this prior takes clips of exactly 4 frames, found 5"),
        ((1, 4, 4, 8, 3), "this prior has a (4, 4) grid"),
        ((1, 4, 4, 4, 2), "codes are (B, T, h, w, n_c) with n_c=3"),
        ((4, 4, 4, 3), "codes are (B, T, h, w, n_c) with n_c=3"),
    ],
)
def test_codes_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError) as error:
        make_prior().logits(torch.zeros(shape, dtype=torch.int64))
    assert message in str(error.value)


def test_slice_numbers_are_checked() -> None:
    model = make_prior()
    codes = random_codes(2, model)
    with pytest.raises(ShapeError, match=r"slice_indices must be in \[0, 4\)"):
        model.slice_loss(codes, torch.tensor([0, 4]))
    with pytest.raises(ShapeError, match=r"slice_indices are integers \(2,\)"):
        model.slice_loss(codes, torch.tensor([1]))
    with pytest.raises(ShapeError, match=r"codes must be in \[0, 11\)"):
        model.slice_loss(codes + 11, torch.tensor([1, 1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subscale": (3, 1, 1)}, "the subscale factor 3 does not divide 4 frames"),
        ({"kernel": (6, 1, 1)}, "must have odd sizes"),
        ({"block": (1, 3, 4)}, "attention blocks (1, 3, 4) do not tile slices of shape (1, 4, 4)"),
        ({"attention": "dot"}, "attention='dot' is not one of query-key, key-only, distance-only"),
        ({"head": "none"}, "head='none' is not one of separate, shared, tied"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"priming_frames": 4}, "priming_frames=4 leaves nothing to learn in 4 frames"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Prior(dataclasses.replace(TOY, **settings))
    assert message in str(error.value)


def test_tables_made_on_the_meta_device_or_while_evaluating_still_serve_training() -> None:
    shape: dict[str, Any] = {"frames": 10, "subscale": (10, 1, 1)}  # a geometry that no other test uses
    with torch.device("meta"):
        planned = Prior(dataclasses.replace(TOY, **shape))
        assert planned.trainable_slices == list(range(1, 10))
    model = make_prior(**shape)
    codes = random_codes(1, model)
    with torch.inference_mode():
        model.bits_per_dim(codes)
    loss = model.slice_loss(codes, torch.tensor([4])).loss
    assert loss is not None
    loss.backward()
