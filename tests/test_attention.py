"""Transformer blocks: relative bias, blocks, masks, the three scores."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.cpu import cpu_attention
from lvt_pipeline.models.prior.attention import (
    MASKED_SCORE,
    Attention,
    Block,
    BlockStack,
    RelativeBias,
    join_blocks,
    sinusoidal_positions,
    split_blocks,
)
from lvt_pipeline.models.prior.config import PriorConfig, Triple

KINDS = ("query-key", "key-only", "distance-only")


def make_attention(kind: str, causal: bool, block: Triple = (2, 3, 2)) -> Attention:
    """A small attention with every parameter away from its start."""
    torch.manual_seed(0)
    attention = Attention(10, 3, 4, block, causal=causal, kind=kind)  # type: ignore[arg-type]
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def slow_attention(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """One clip (N, width), query by query, straight from the definition."""
    n = len(x)
    t, h, w = attention.block
    places = [(a, b, c) for a in range(t) for b in range(h) for c in range(w)]
    heads = []
    for m in range(attention.num_heads):
        value = x @ attention.w_v[m]
        rows = []
        for i in range(n):
            scores = []
            for j in range(n):
                bias = (
                    attention.bias.time[m, places[i][0] - places[j][0] + t - 1]
                    + attention.bias.row[m, places[i][1] - places[j][1] + h - 1]
                    + attention.bias.column[m, places[i][2] - places[j][2] + w - 1]
                )
                if attention.kind == "distance-only":
                    content = torch.zeros(())
                else:
                    query = attention.u[m] if attention.kind == "key-only" else x[i] @ attention.w_q[m]
                    content = query @ (x[j] @ attention.w_k[m]) / math.sqrt(attention.head_width)
                scores.append(content + bias if j <= i or not attention.causal else torch.tensor(-1e4))
            rows.append(torch.stack(scores).softmax(0) @ value)
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1) @ attention.out.weight.T


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_agrees_with_the_definition(kind: str, causal: bool) -> None:
    attention = make_attention(kind, causal)
    x = torch.randn(3, 12, 10)
    with torch.no_grad():
        expected = torch.stack([slow_attention(attention, clip) for clip in x])
        torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_the_cpu_attention_agree_with_torch(causal: bool) -> None:
    attention = make_attention("query-key", causal)
    x = torch.randn(2, 12, 10, requires_grad=True)
    direction = torch.randn(2, 12, 10)
    (attention(x) * direction).sum().backward()
    found = [x.grad, *(parameter.grad for parameter in attention.parameters())]

    x2 = x.detach().clone().requires_grad_()
    query, key, value = attention.split(attention.project(x2))
    bias = attention.scores_bias()
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(2, -1, -1, -1))
    output = attention.out(mixed.transpose(1, 2).flatten(2))
    expected = torch.autograd.grad((output * direction).sum(), [x2, *attention.parameters()])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_bfloat16_attention_on_a_cpu_is_that_of_float32_up_to_rounding(causal: bool) -> None:
    torch.manual_seed(0)
    exact = torch.randn(2, 12, 3 * 2 * 8)
    bias = torch.randn(2, 12, 12) + (torch.full((12, 12), MASKED_SCORE).triu(1) if causal else 0)
    direction = torch.randn(2, 12, 2 * 8)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        projected, table = exact.to(dtype, copy=True).requires_grad_(), bias.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            mixed = cpu_attention(projected, table, 2, 0.35)
        mixed.backward(direction.to(dtype))
        assert mixed.dtype == projected.grad.dtype == dtype
        assert table.grad.dtype == torch.float32
        found.append((mixed, projected.grad, table.grad))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.03)
    if causal:
        assert not found[1][2].triu(1).any()  # masked keys have no weight at all


@pytest.mark.parametrize("kind", KINDS)
def test_projections_in_bfloat16_are_those_of_float32_up_to_rounding(kind: str) -> None:
    attention = make_attention(kind, causal=False)
    x = torch.randn(2, 12, 10)
    found = []
    for is_narrow in (False, True):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_narrow):
            projected = attention.project(x)
        projected.sum().backward()
        gradients = [attention.get_parameter(name).grad for name in attention.projections]
        assert projected.dtype == (torch.bfloat16 if is_narrow else torch.float32)
        found.append([projected.float(), *gradients])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.1)


def test_relative_bias_starts_at_zero_and_reads_query_minus_key() -> None:
    bias = RelativeBias(2, (1, 3, 1))
    assert not bias().any()
    torch.nn.init.normal_(bias.row)
    matrix = bias()
    for query in range(3):
        for key in range(3):
            assert torch.equal(matrix[:, query, key], bias.row[:, query - key + 2])


def test_masked_keys_have_exactly_no_weight() -> None:
    attention = make_attention("query-key", causal=True)
    x = torch.randn(1, 12, 10)
    changed = x.clone()
    changed[:, 7:] += 5
    with torch.no_grad():
        assert torch.equal(attention(x)[:, :7], attention(changed)[:, :7])


def test_blocks_split_and_join_in_raster_order() -> None:
    shape, block = (2, 4, 6), (1, 2, 3)
    x = torch.arange(48.0).reshape(1, 48, 1)
    split = split_blocks(x, shape, block)
    assert split.shape == (8, 6, 1)
    video = x.reshape(shape)
    assert torch.equal(split[3].flatten(), video[0:1, 2:4, 3:6].flatten())
    assert torch.equal(join_blocks(split, shape, block, 1), x)


def test_block_attention_equals_full_attention_when_the_block_spans_the_slice() -> None:
    options = {"width": 10, "num_heads": 2, "head_width": 4, "causal": True}
    torch.manual_seed(1)
    whole = BlockStack(2, (2, 3, 2), **options)
    x = torch.randn(2, 12, 10)
    expected = x
    for layer in whole.layers:
        expected = layer(expected)
    torch.testing.assert_close(whole(x, (2, 3, 2)), expected)


def test_blocks_do_not_see_each_other() -> None:
    torch.manual_seed(1)
    stack = BlockStack(2, (1, 2, 2), width=10, num_heads=2, head_width=4, causal=False)
    x = torch.randn(1, 16, 10)  # slice (1, 4, 4): four blocks
    changed = x.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        difference = (stack(x, (1, 4, 4)) - stack(changed, (1, 4, 4))).abs().amax(-1).reshape(4, 4)
    assert bool(difference[:2, :2].all())
    assert not difference[2:].any()
    assert not difference[:, 2:].any()


def test_feed_forward_keeps_the_width_and_skips() -> None:
    block = Block(Attention(10, 2, 4, (1, 2, 2), causal=False))
    assert block.linear1.weight.shape == block.linear2.weight.shape == (10, 10)
    x = torch.randn(2, 4, 10)
    torch.nn.init.zeros_(block.linear2.weight)
    assert torch.equal(block.feed_forward(x), x)


def test_sinusoidal_positions_follow_the_formula() -> None:
    shape, width = (2, 3, 4), 20
    encoding = sinusoidal_positions(shape, width).reshape(*shape, width)
    m = width // 6
    for t, y, x in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        for axis, place in enumerate((t, y, x)):
            for j in range(m):
                angle = place * 10000 ** (-j / m)
                assert float(encoding[t, y, x, 2 * m * axis + j]) == pytest.approx(math.sin(angle), abs=1e-6)
                assert float(encoding[t, y, x, 2 * m * axis + m + j]) == pytest.approx(math.cos(angle), abs=1e-6)
    assert not encoding[..., 6 * m :].any()
    assert sinusoidal_positions((1, 2, 2), 5).shape == (4, 5)


def test_query_key_start_has_the_released_spread_and_a_standard_option() -> None:
    torch.manual_seed(0)
    reference = Attention(512, 8, 128, (1, 2, 2), causal=True)
    assert float(reference.w_q.detach().std()) == pytest.approx(0.00548, rel=0.01)
    standard = Attention(512, 8, 128, (1, 2, 2), causal=True, qkv_init="standard")
    assert float(standard.w_q.detach().std()) == pytest.approx(math.sqrt(2 / (512 + 128)), rel=0.01)


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="attention='dot' is not one of query-key, key-only, distance-only"):
        PriorConfig(attention="dot")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="qkv_init='he' is not one of reference, standard"):
        PriorConfig(qkv_init="he")  # type: ignore[arg-type]
