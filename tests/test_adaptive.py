"""Adaptive input and adaptive softmax."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.models.prior.adaptive import (
    AdaptiveEmbedding,
    AdaptiveSoftmax,
    cutoffs_by_mass,
    frequency_ranks,
    set_frequencies,
)
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior

TOY = PriorConfig(
    frames=4,
    grid=(4, 4),
    num_codebooks=2,
    codebook_size=12,
    subscale=(4, 1, 1),
    width=24,
    head_width=8,
    num_heads=2,
    embedding_width=16,
    encoder_layers=1,
    decoder_layers=1,
    qkv_init="standard",
)
TABLE_8: list[dict[str, Any]] = [
    {"decoder_input": "adaptive"},
    {"head": "adaptive"},
    {"decoder_input": "adaptive", "head": "adaptive"},
    {"decoder_input": "adaptive", "head": "adaptive-tied"},
    {"decoder_input": "adaptive", "head": "adaptive-tied-projections"},
]


def make_prior(**settings: Any) -> Prior:
    """A toy prior with clusters of 3, 4 and 5 codes, in shuffled frequency order."""
    torch.manual_seed(0)
    model = Prior(dataclasses.replace(TOY, cutoffs=(3, 7), **settings))
    set_frequencies(model, np.random.default_rng(0).integers(0, 1000, (2, 12)))
    return model.eval()


def test_ranks_count_from_the_most_frequent_code_and_ties_keep_their_order() -> None:
    counts = np.array([[5, 9, 5, 0], [1, 2, 3, 4]])
    assert frequency_ranks(counts).tolist() == [[1, 0, 2, 3], [3, 2, 1, 0]]


def test_cutoffs_are_the_fewest_codes_that_hold_the_mass() -> None:
    assert cutoffs_by_mass(np.array([[60, 20, 10, 5, 5]])) == (2, 4)
    assert cutoffs_by_mass(np.array([[5, 60, 5, 20, 10]])) == (2, 4)
    assert cutoffs_by_mass(np.array([[997, 1, 1, 1]])) == (1,)  # both shares end in the first code
    assert cutoffs_by_mass(np.zeros((2, 100), np.int64)) == (80, 95)
    # Averaged over codebooks: one puts everything on a single code, the other spreads it over ten.
    assert cutoffs_by_mass(np.array([[100] + [0] * 9, [10] * 10]), shares=(0.75,)) == (5,)


def test_adaptive_embedding_is_the_narrow_row_of_the_code_s_cluster_made_wide() -> None:
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(6, 8, (2, 3), ratio=4)
    embedding.ranks.copy_(torch.tensor([5, 0, 2, 1, 3, 4]))
    assert [cluster.weight.shape for cluster in embedding.clusters] == [(2, 8), (1, 2), (3, 1)]
    table = embedding.table()
    # Code 0 has rank 5: third row of the last cluster. Code 3 has rank 1: second row of the first.
    assert torch.allclose(table[0], embedding.maps[2].weight @ embedding.clusters[2].weight[2])
    assert torch.allclose(table[3], embedding.maps[0].weight @ embedding.clusters[0].weight[1])


def test_adaptive_softmax_agrees_with_torch_s() -> None:
    torch.manual_seed(0)
    ours = AdaptiveSoftmax(16, 12, (3, 7), ratio=4)
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(16, 12, [3, 7], div_value=4.0)
    theirs.head.weight.data.copy_(ours.head.weight)
    for number, tail in enumerate(theirs.tail):
        tail[0].weight.data.copy_(ours.tails[number].weight)
        tail[1].weight.data.copy_(ours.scores[number].weight)
    x = torch.randn(5, 16)
    assert torch.allclose(ours(x, torch.nn.Identity()), theirs.log_prob(x), atol=1e-6)


@pytest.mark.parametrize("settings", TABLE_8)
def test_probabilities_sum_to_one_for_every_variant_of_table_8(settings: dict[str, Any]) -> None:
    model = make_prior(**settings)
    codes = torch.randint(0, 12, (2, 4, 4, 4, 2))
    logits = model.logits(codes).detach().double()
    if "head" in settings:  # the logits are log-probabilities already
        assert torch.allclose(logits.exp().sum(-1), torch.ones(codes.shape, dtype=torch.float64), atol=1e-5)
    nats = -logits.log_softmax(-1).gather(-1, codes[..., None]).squeeze(-1)[:, 1:]
    assert model.bits_per_dim(codes) == pytest.approx(float(nats.mean()) / np.log(2), rel=1e-5)


@pytest.mark.parametrize("settings", TABLE_8)
def test_renaming_codes_with_their_counts_renames_the_result(settings: dict[str, Any]) -> None:
    """The clusters follow frequency, not the numbers codes happen to have: the permutation round-trips."""
    model = make_prior(**settings, num_classes=0)
    renamed = make_prior(**settings)
    rename = torch.randperm(12)
    state = model.state_dict()
    for name in [name for name in state if name.endswith("ranks")]:
        state[name] = torch.empty_like(state[name]).scatter_(0, rename, state[name])
    # What is indexed by code outside the clusters: one-hot channels, plain embeddings, plain outputs.
    embeddings = {f"decoder.embeddings.{j}.weight" for j in range(2)}
    outputs = {f"predictor.outputs.{j}.{kind}" for j in range(2) for kind in ("weight", "bias")}
    plain_by_code = outputs if "decoder_input" in settings else embeddings
    for name, value in state.items():
        if name == "encoder.context.weight":
            parts = value.reshape(16, 2, 12, 7, 1, 1)
            state[name] = torch.empty_like(parts).index_copy_(2, rename, parts).reshape(value.shape)
        elif name == "predictor.mixers.1.weight":
            state[name] = torch.cat([value[:, :24], torch.empty(24, 12).index_copy_(1, rename, value[:, 24:])], dim=1)
        elif name in plain_by_code:
            state[name] = torch.empty_like(value).index_copy_(0, rename, value)
    renamed.load_state_dict(state)
    codes = torch.randint(0, 12, (2, 4, 4, 4, 2))
    found = renamed.logits(rename[codes])
    assert torch.allclose(found.index_select(-1, rename), model.logits(codes), atol=1e-5)


def test_tied_variants_share_their_weights() -> None:
    tied, all_tied = (num_parameters(make_prior(**settings)) for settings in TABLE_8[3:])
    assert tied - all_tied == 2 * (24 * 4 + 24 * 1)  # the projections to the tails, one set per codebook
    model = make_prior(**TABLE_8[4])
    before = model.logits(torch.zeros(1, 4, 4, 4, 2, dtype=torch.int64))
    with torch.no_grad():
        model.decoder.embeddings[1].clusters[2].weight.mul_(2)  # type: ignore[union-attr, operator, index]
    after = model.logits(torch.zeros(1, 4, 4, 4, 2, dtype=torch.int64))
    assert not torch.allclose(before[:, 0, 0, 0, 1], after[:, 0, 0, 0, 1])  # an output of the very first pixel


@pytest.mark.parametrize("settings", TABLE_8)
def test_every_variant_of_table_8_learns(settings: dict[str, Any]) -> None:
    model = make_prior(**settings).train()
    codes = torch.randint(0, 12, (1, 1, 4, 4, 2)).repeat(2, 4, 1, 1, 1)  # a still picture
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model.slice_loss(codes, torch.tensor([2, 3])).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "adaptive"}, "needs cutoffs"),
        ({"cutoffs": (3, 7)}, "needs an adaptive input or head"),
        ({"head": "adaptive", "cutoffs": (7, 3)}, "must rise between 1 and codebook_size=12"),
        ({"head": "adaptive", "cutoffs": (3, 12)}, "must rise between 1 and codebook_size=12"),
        ({"head": "adaptive-tied", "cutoffs": (3,)}, 'shares the embeddings of decoder_input="adaptive"'),
        ({"head": "adaptive", "cutoffs": (3,), "cluster_ratio": 0}, "cluster_ratio=0 must be at least 1"),
    ],
)
def test_settings_that_make_no_clusters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TOY, **settings)


def test_counts_of_another_codebook_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="counts of 11 codes do not fit a codebook of 12"):
        set_frequencies(make_prior(head="adaptive"), np.ones((2, 11), np.int64))
