"""Released state dicts: import, export, round trip, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.one_hot_prior import OneHotPrior
from lvt_pipeline.errors import CheckpointError
from lvt_pipeline.models.official import (
    prior_from_official,
    prior_to_official,
    vqvae_from_official,
    vqvae_to_official,
)
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE
from tests.toy_prior import ORDERS, TOY


def prior_state(**settings: Any) -> tuple[PriorConfig, dict[str, Tensor]]:
    """A toy prior's config and state, masked taps at 0."""
    config = dataclasses.replace(TOY, **settings)
    torch.manual_seed(0)
    state = {name: torch.randn_like(value) for name, value in Prior(config).state_dict().items()}
    state["decoder.causal_convolution.weight"][:, :, -1, -1, 1:] = 0
    return config, state


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Same names, same numbers."""
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


PRIORS: list[dict[str, Any]] = [
    {},
    {"subscale": (2, 2, 2), "kernel": (5, 3, 3)},
    {"subscale": (1, 2, 2), "kernel": (1, 3, 3)},
    {"num_codebooks": 1},
    {"num_classes": 5},
    {"head": "shared"},
    {"head": "tied"},
]


@pytest.mark.parametrize("settings", PRIORS)
def test_prior_import_undoes_export(settings: dict[str, Any]) -> None:
    config, state = prior_state(**settings)
    official = prior_to_official(config, state)
    found_config, found = prior_from_official(official, grid=(4, 4))
    assert found_config == config
    assert_same(found, state)
    Prior(found_config).load_state_dict(found)
    assert_same(prior_to_official(found_config, found), official)


def test_blocks_that_cut_time_are_read_off_when_the_length_is_given() -> None:
    config, state = prior_state(subscale=(1, 2, 2), kernel=(1, 3, 3), block=(2, 2, 2))
    official = prior_to_official(config, state)
    assert prior_from_official(official, grid=(4, 4), frames=4)[0] == config
    assert prior_from_official(official, grid=(4, 4))[0] == dataclasses.replace(config, frames=2, block=None)


def test_released_shapes_of_the_paper_are_as_published() -> None:
    with torch.device("meta"):
        config = PriorConfig()
        official = prior_to_official(config, Prior(config).state_dict())
    shapes = {key: tuple(value.shape) for key, value in official.items()}
    assert sum(value.numel() for value in official.values()) == 49_872_384
    expected = {
        "encoder.conv.weight": (128, 2048, 7, 1, 1),
        "encoder.slice_embedding.weight": (16, 128),
        "encoder.linear_projector.weight": (512, 128, 1, 1, 1),
        "decoder.linear_projector.weight": (512, 512, 1, 1, 1),
        "encoder.block_local_attention.7.dt_bank": (8, 1),
        "decoder.block_local_attention.7.dw_bank": (8, 31),
        "decoder.block_local_attention.0.mha.w_q": (8, 512, 128),
        "decoder.block_local_attention.0.mha.layer_norm.weight": (512,),
        "decoder.block_local_attention.0.mha.proj.weight": (512, 1024),
        "decoder.block_local_attention.0.ffn.3.weight": (512, 512),
        "decoder.ch_embedder.3.weight": (512, 128),
        "decoder.conv.conv.weight": (512, 128, 3, 3, 3),
        "ch_predictor.U.3.weight": (512, 512 + 3 * 512),
        "ch_predictor.P.3.bias": (512,),
    }
    assert expected.items() <= shapes.items()
    # Left out: one table of time scales per stack, three distance indices per layer, one mask per decoder layer.
    assert len(official) + 2 + 3 * 16 + 8 == 327


def test_masked_taps_are_zeroed_and_buffers_ignored_on_import() -> None:
    config, state = prior_state()
    official = prior_to_official(config, state)
    official["decoder.conv.conv.weight"] += 1
    official["decoder.block_local_attention.1.mask"] = torch.ones(1, 1, 16, 16)
    official["encoder.block_local_attention.0.dt"] = torch.zeros(256, dtype=torch.int64)
    official["encoder.positional_encoder.inv_timescales"] = torch.ones(2)
    _, found = prior_from_official(official, grid=(4, 4))
    weight = found["decoder.causal_convolution.weight"]
    assert not weight[:, :, -1, -1, 1:].any()
    assert torch.equal(weight[:, :, -1, -1, 0], state["decoder.causal_convolution.weight"][:, :, -1, -1, 0] + 1)
    assert bool(official["decoder.conv.conv.weight"][:, :, -1, -1, 1:].all())  # the given tensor is left alone


@pytest.mark.parametrize(("count", "blocks"), [(1, 2), (4, 3), (2, 0)])
def test_vqvae_import_undoes_export(count: int, blocks: int) -> None:
    width = 8 if blocks else 128  # without a block the inner width cannot be read
    config = VQVAEConfig(
        num_codebooks=count,
        codebook_size=16,
        code_width=12,
        stem_width=6,
        residual_width=width,
        num_residual_blocks=blocks,
    )
    model = VQVAE(config)
    model(torch.rand(2, 3, 16, 16))
    state = {
        name: value if not name.endswith("updates") else torch.zeros_like(value)
        for name, value in model.state_dict().items()
    }
    official = vqvae_to_official(config, state)
    found_config, found = vqvae_from_official(*official)
    assert found_config == config
    assert_same(found, state)
    VQVAE(found_config).load_state_dict(found)


def test_released_vqvae_names_and_shapes_are_as_published() -> None:
    with torch.device("meta"):
        config = VQVAEConfig(num_residual_blocks=4)
        official = vqvae_to_official(config, VQVAE(config).state_dict())
    encoder = {key: tuple(value.shape) for key, value in official.encoder.items()}
    decoder = {key: tuple(value.shape) for key, value in official.decoder.items()}
    assert encoder["layers.0.weight"] == (128, 3, 4, 4)
    assert encoder["layers.4.weight"] == (256, 256, 3, 3)
    assert encoder["layers.8.block.3.weight"] == (256, 128, 1, 1)
    assert decoder["layers.0.weight"] == (256, 256, 3, 3)
    assert decoder["layers.4.block.1.weight"] == (128, 256, 3, 3)
    assert decoder["layers.6.weight"] == (256, 128, 4, 4)
    assert decoder["layers.8.weight"] == (128, 3, 4, 4)
    assert tuple(official.codebook["ve.3.running_sum"].shape) == (512, 64)
    one = VQVAEConfig(num_codebooks=1)
    with torch.device("meta"):
        assert set(vqvae_to_official(one, VQVAE(one).state_dict()).codebook) == {
            "embedding.weight",
            "running_sum",
            "running_size",
        }


def test_first_missing_unknown_or_misshapen_tensor_is_named() -> None:
    config, state = prior_state()
    official = prior_to_official(config, state)
    without = {key: value for key, value in official.items() if key != "ch_predictor.U.1.bias"}
    with pytest.raises(CheckpointError, match=r"the prior has no tensor ch_predictor\.U\.1\.bias"):
        prior_from_official(without, grid=(4, 4))
    with pytest.raises(CheckpointError, match="has a tensor 'extra' that the released model does not have"):
        prior_from_official({**official, "extra": torch.zeros(1)}, grid=(4, 4))
    with pytest.raises(
        CheckpointError, match=r"ch_predictor\.U\.1\.bias of the prior has shape \(3,\), needed \(24,\)"
    ):
        prior_from_official({**official, "ch_predictor.U.1.bias": torch.zeros(3)}, grid=(4, 4))
    with pytest.raises(CheckpointError, match=r"encoder has no tensor layers\.2\.weight"):
        vqvae_from_official({}, {}, {})
    with pytest.raises(CheckpointError, match=r"the prior has no tensor encoder\.conv\.weight"):
        prior_from_official({})


def test_a_grid_that_the_shapes_cannot_have_is_refused() -> None:
    config, state = prior_state(subscale=(2, 2, 2), kernel=(5, 3, 3))
    official = prior_to_official(config, state)
    with pytest.raises(CheckpointError, match="has 8 slices"):
        prior_from_official(official, grid=(4, 4), subscale=(4, 1, 1))
    with pytest.raises(CheckpointError, match="does not fit"):
        prior_from_official(official, grid=(5, 4))


def test_models_that_the_released_code_has_not_cannot_be_exported() -> None:
    config, state = prior_state(attention="key-only", kernel_reach="past")
    with pytest.raises(CheckpointError, match="no attention='key-only', kernel_reach='past'"):
        prior_to_official(config, state)
    textbook = VQVAEConfig(residual="textbook")
    with pytest.raises(CheckpointError, match="no residual='textbook' blocks"):
        vqvae_to_official(textbook, {})


VARIANTS: list[dict[str, Any]] = [{}, {"num_codebooks": 1}, {"num_classes": 5}, {"head": "shared"}, {"head": "tied"}]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order", ["single-frame", "spatiotemporal", "spatial"])
def test_imported_prior_has_the_logits_and_samples_of_the_plain_definition(order: str, variant: dict[str, Any]) -> None:
    config, state = prior_state(**ORDERS[order], **variant)
    official = {name: value / 4 for name, value in prior_to_official(config, state).items()}
    plain = OneHotPrior(official, config.subscale)
    model = Prior(config)
    model.load_state_dict(prior_from_official(official)[1])
    model.eval()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 11, (2, 4, 4, 4, config.num_codebooks), generator=generator)
    labels = torch.tensor([1, 3]) if config.num_classes else None
    a, b, c = config.subscale
    with torch.no_grad():
        logits = model.logits(codes, labels)
        for index in range(a * b * c):
            at, ay, ax = plain.offset(index)
            expected = plain.slice_logits(codes, index, labels)
            assert torch.allclose(logits[:, at::a, ay::b, ax::c], expected, rtol=0, atol=2e-5)
        uniforms = torch.rand(16, config.num_codebooks, 2, generator=generator, dtype=torch.float64)
        expected = plain.sample(codes[:, :3], 4, uniforms, labels)
    assert torch.equal(model.sample(codes[:, :3], frames=4, uniforms=uniforms, labels=labels), expected)
    assert not torch.equal(expected[:, 3], codes[:, 3])


@pytest.mark.parametrize("order", ["single-frame", "spatiotemporal", "spatial"])
def test_geometry_is_read_off_the_shapes_of_every_order(order: str) -> None:
    config, state = prior_state(grid=(8, 6), **ORDERS[order])
    assert prior_from_official(prior_to_official(config, state))[0] == config
