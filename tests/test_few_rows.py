"""Products, attention and the causal convolution for a few rows: right, and the same bits however many there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lvt_pipeline.models import cpu
from lvt_pipeline.models.cpu import RowProduct, few_row_attention
from lvt_pipeline.models.prior.decoder import CausalConvolution, embed
from lvt_pipeline.models.sampling import convolution
from lvt_pipeline.models.sampling.convolution import PixelConvolution

ALLOWED = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 4e-2}


@pytest.mark.parametrize("inputs", [512, 96, 33, 5])
@pytest.mark.parametrize("outputs", [512, 33])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_row_product_is_a_linear_layer_whose_rows_do_not_depend_on_each_other(
    weights: Any, outputs: int, inputs: int
) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs), torch.randn(16, inputs)
    for relu in (False, True):
        product = RowProduct(weight, bias, 16, weights, relu)
        found = product(x)
        expected = F.linear(x, weight, bias)
        torch.testing.assert_close(
            found.float(), expected.relu() if relu else expected, atol=ALLOWED[weights] * 4, rtol=ALLOWED[weights]
        )
        for rows in range(1, 16):
            assert torch.equal(product(x[:rows]), found[:rows])


def test_weights_of_bfloat16_work_on_a_processor_without_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 48), torch.randn(3, 48)
    monkeypatch.setattr(cpu, "packs_bfloat16", lambda: False)
    found = RowProduct(weight, None, 3, "bfloat16")(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.linear(x, weight.bfloat16().float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("streams", [1, 3])
def test_attention_of_few_rows_is_a_softmax_whose_queries_do_not_depend_on_each_other(
    streams: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    heads, window, keys, width = 4, 5, 48, 32
    queries = torch.randn(streams, window, heads * width).to(dtype)
    cache = torch.randn(2, streams * heads, 64, width).to(dtype)[:, :, :keys]
    bias = torch.randn(streams, heads, window, keys)
    found = few_row_attention(queries.flatten(0, 1), cache, bias).view(queries.shape)
    query = queries.view(streams, window, heads, width).transpose(1, 2).float()
    key, value = cache.float().unflatten(1, (streams, heads))
    expected = (query @ key.transpose(2, 3) + bias).softmax(-1) @ value
    allowed = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(
        found.float(), expected.transpose(1, 2).reshape(queries.shape), atol=allowed, rtol=allowed
    )
    for stream in range(streams):
        for place in range(window):
            own = cache[:, stream * heads : (stream + 1) * heads]
            alone = few_row_attention(queries[stream, place, None], own, bias[stream, None, :, place, None])
            assert torch.equal(alone[0], found[stream, place])


@pytest.mark.parametrize("largest", [convolution.LARGEST_TABLE, 0])
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 2)])
def test_the_convolution_at_pixels_is_that_of_the_whole_slice(
    shape: tuple[int, int, int], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "LARGEST_TABLE", largest)
    pixels = shape[0] * shape[1] * shape[2]
    whole = CausalConvolution(6, 8)
    tables = [torch.randn(7, 6) for _ in range(3)]
    codes = torch.randint(0, 7, (2, pixels, 3))
    with torch.no_grad():
        expected = whole(embed(codes, tables), shape) - whole.bias
        at_pixels = PixelConvolution(whole, tables, shape, 2, 4, "float32")
        outside = torch.full((2, 2, 3), at_pixels.outside)
        place = torch.tensor([[0, 1, pixels - 1, pixels + 1], [5, 4, 3, 2]])
        found = at_pixels(torch.cat([codes, outside], dim=1), torch.arange(2)[:, None], place).view(2, 4, 8)
    clips = torch.arange(2)[:, None]
    expected = torch.cat([expected, torch.zeros(2, 2, 8)], dim=1)[clips, place]
    torch.testing.assert_close(found, expected)


def test_what_is_added_up_for_a_pixel_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    tables: list[Tensor] = [torch.randn(64, 32) for _ in range(4)]
    at_pixels = PixelConvolution(CausalConvolution(32, 96), tables, (1, 8, 8), 2, 16, "float32")
    codes = torch.randint(0, 64, (3, 66, 4))
    place, clips = torch.randint(0, 64, (3, 5)), torch.arange(3)[:, None]
    with torch.no_grad():
        found = at_pixels(codes, clips, place).view(3, 5, -1)
        for row in range(3):
            for column in range(5):
                alone = at_pixels(codes, clips[row, None], place[row, column, None, None])
                assert torch.equal(alone[0], found[row, column])
