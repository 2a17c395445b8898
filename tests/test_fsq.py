"""Finite scalar quantisation: the numbers of the paper, the quantizer's interface, and a whole pipeline with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lvt_pipeline.cli import run
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import CheckpointError, ConfigError, ShapeError
from lvt_pipeline.models.official import vqvae_to_official
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.fsq import SETTLED_STEPS, FSQCodebook, FSQuantizer
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.provenance import read_record
from lvt_pipeline.runs.read import load_vqvae
from tests.conftest import TINY_SETTINGS, tiny_options

LEVELS = [(8, 8, 8), (8, 5, 5, 5), (8, 8, 4), (3, 4), (5,)]


def identity_book(levels: tuple[int, ...]) -> FSQCodebook:
    """A codebook whose projections change nothing, so that latents are the numbers to round."""
    book = FSQCodebook(levels, len(levels))
    with torch.no_grad():
        for projection in (book.project_in, book.project_out):
            projection.weight.copy_(torch.eye(len(levels)))
    return book


def paper_quantize(z: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Appendix A.1 of the paper, number by number: normalised values and index of z (N, levels)."""
    values, indices = [], []
    for row in z.tolist():
        index, basis, quantized = 0, 1, []
        for number, count in zip(row, levels, strict=True):
            half = (count - 1) * (1 - 1e-3) / 2
            offset = 0.0 if count % 2 else 0.5
            step = round(math.tanh(number + math.tan(offset / half)) * half - offset)
            quantized.append(step / (count // 2))
            index += basis * (step + count // 2)
            basis *= count
        values.append(quantized)
        indices.append(index)
    return torch.tensor(values), torch.tensor(indices)


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_vectors_are_those_of_the_papers_listing(levels: tuple[int, ...]) -> None:
    z = torch.randn(200, len(levels)) * 2
    values, indices = paper_quantize(z, levels)
    book = identity_book(levels)
    codes = book.codes(z.T.reshape(1, len(levels), 20, 10))
    assert torch.equal(codes.flatten(), indices)
    torch.testing.assert_close(book.lookup(codes).reshape(len(levels), -1).T, values)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_reached_and_comes_back_from_its_vector(levels: tuple[int, ...]) -> None:
    book = identity_book(levels)
    size = math.prod(levels)
    assert book.codebook_size == size
    steps = book.steps(torch.arange(size).reshape(1, 1, size))
    assert torch.equal(book.index(steps).flatten(), torch.arange(size))
    # What is bounded to these steps; the outermost ones are met only at infinity, and rounded to long before.
    latents = torch.atanh(((steps + book.offset) / book.half_range).clamp(-0.99, 0.99)) - book.shift
    assert torch.equal(book.codes(latents.movedim(-1, 1)).flatten(), torch.arange(size))
    assert len(steps.reshape(size, -1).unique(dim=0)) == size
    # Even level counts reach one step further down than up.
    for number, count in enumerate(levels):
        assert steps[..., number].unique().tolist() == list(range(-(count // 2), count - count // 2))


@pytest.mark.parametrize("levels", LEVELS)
def test_zero_is_a_level_for_odd_and_even_counts(levels: tuple[int, ...]) -> None:
    bounded = identity_book(levels).bound(torch.zeros(1, len(levels), 1, 1))
    torch.testing.assert_close(bounded, torch.zeros_like(bounded), atol=1e-3, rtol=0)


def test_interface_is_that_of_the_sliced_quantizer() -> None:
    quantizer = FSQuantizer(2, (4, 3), 6)
    latents = torch.randn(2, 6, 3, 5, requires_grad=True)
    result = quantizer(latents)
    assert (result.codes.shape, result.codes.dtype) == ((2, 3, 5, 2), torch.int64)
    assert (result.vectors.shape, result.vectors.dtype) == ((2, 6, 3, 5), torch.float32)
    assert float(result.commitment_loss) == 0
    assert torch.equal(result.codes, quantizer.codes(latents))
    assert torch.equal(result.vectors, quantizer.lookup(result.codes))
    groups = [book.codes(part) for book, part in zip(quantizer.codebooks, latents.chunk(2, 1), strict=True)]
    assert torch.equal(result.codes, torch.stack(groups, -1))


def test_gradient_passes_the_rounding_and_no_more() -> None:
    book = identity_book((5, 5))
    quantizer = FSQuantizer(1, (5, 5), 2)
    quantizer.books[0] = book
    latents = (torch.randn(1, 2, 4, 4) * 0.5).requires_grad_()
    weights = torch.randn(1, 2, 4, 4)
    (quantizer(latents).vectors * weights).sum().backward()
    # d/dz of tanh(z) * half_range / half_width, with no rounding in between
    expected = weights * (1 - latents.detach().tanh().square()) * 1.998 / 2
    torch.testing.assert_close(latents.grad, expected)


def test_projections_learn_and_codes_are_float32_under_autocast() -> None:
    quantizer = FSQuantizer(2, (8, 5), 12)
    latents = torch.randn(2, 12, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = quantizer(latents)
    assert result.vectors.dtype == torch.float32
    assert torch.equal(result.codes, quantizer.codes(latents))
    result.vectors.square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in quantizer.parameters())


def test_forwards_move_nothing_and_training_ones_are_counted_until_the_codebooks_can_be_judged() -> None:
    quantizer = FSQuantizer(2, (4, 3), 6).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 6, 3, 3))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    quantizer.train()(torch.randn(2, 6, 3, 3))
    changed = {name for name, value in quantizer.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"updates"}
    quantizer.updates.fill_(SETTLED_STEPS - 2)
    settled = []
    for _ in range(3):
        quantizer(torch.randn(2, 6, 3, 3))
        settled.append(quantizer.is_settled)
    assert settled == [False, True, True]


def test_latents_that_are_not_numbers_still_make_codes_so_that_the_loss_can_be_refused() -> None:
    latents = torch.full((1, 6, 1, 3), float("nan"))
    latents[..., 1], latents[..., 2] = float("inf"), -float("inf")
    codes = FSQuantizer(2, (4, 3), 6)(latents).codes
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 12


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ShapeError, match="latents have D=8 but the codebooks were made for D=6"):
        FSQuantizer(2, (4, 3), 6)(torch.zeros(1, 8, 2, 2))
    with pytest.raises(ConfigError, match="code_width=7 does not divide into 2 codebooks"):
        FSQuantizer(2, (4, 3), 7)
    for levels in ((), (8, 2)):
        with pytest.raises(ConfigError, match="must be one or more numbers of at least 3"):
            FSQuantizer(1, levels, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": "fsq"}, r"needs fsq_levels whose product is codebook_size, such as \[8, 8, 4\] for 256"),
        ({"quantizer": "fsq", "fsq_levels": (8, 8, 4)}, r"make 256 codes but codebook_size=512; set codebook_size=256"),
        ({"quantizer": "fsq", "fsq_levels": (256, 2)}, "at least 3"),
        ({"fsq_levels": (8, 8, 8)}, r"fsq_levels=\[8, 8, 8\] needs quantizer='fsq'"),
        ({"quantizer": "pq"}, "quantizer='pq' is not one of vq, fsq"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VQVAEConfig(**settings)  # type: ignore[arg-type]


def tiny_model(levels: tuple[int, ...] = (4, 4)) -> VQVAE:
    torch.manual_seed(0)
    sizes = {"code_width": 8, "stem_width": 4, "residual_width": 4, "num_residual_blocks": 1}
    return VQVAE(VQVAEConfig(num_codebooks=2, codebook_size=16, quantizer="fsq", fsq_levels=levels, **sizes)).eval()


def test_tokenizer_fingerprint_covers_projections_in_and_levels_but_not_projections_out() -> None:
    model = tiny_model()
    before = tokenizer_fingerprint(model)
    with torch.no_grad():
        model.quantizer.books[1].project_out.weight.add_(1)
        model.decoder.up2.weight.add_(1)
    assert tokenizer_fingerprint(model) == before
    seen = {before}
    for name in ("weight", "bias"):
        with torch.no_grad():
            getattr(model.quantizer.books[1].project_in, name).flatten()[0] += 1e-3
        seen.add(tokenizer_fingerprint(model))
    swapped = tiny_model((4, 4))
    object.__setattr__(swapped.config, "fsq_levels", (2, 8))  # same shapes, other meaning
    seen.add(tokenizer_fingerprint(swapped))
    assert len(seen) == 4


def test_released_code_has_no_such_model() -> None:
    model = tiny_model()
    with pytest.raises(CheckpointError, match="one with quantizer='fsq' cannot be exported"):
        vqvae_to_official(model.config, model.state_dict())


def test_whole_pipeline_runs_with_fsq(toy_videos: Path, tmp_path: Path) -> None:
    settings = tuple(text.replace("codebook_size=16", 'codebook_size=16, quantizer="fsq", fsq_levels=[4, 4]')
                     for text in TINY_SETTINGS)  # fmt: skip
    work = tmp_path / "work"
    command = ["run", "--videos", str(toy_videos), "--work-dir", str(work), "--workers", "1", *tiny_options(settings)]
    assert run(command) == 0
    assert "fsq" in (work / "runs" / "vqvae" / "config.toml").read_text()
    model = load_vqvae(work / "runs" / "vqvae", device="cpu")
    record, store = read_record(work / "runs" / "vqvae"), open_codes(work / "data.zarr")
    assert isinstance(model.quantizer, FSQuantizer)
    assert record.counts["tokenizer"] == tokenizer_fingerprint(model) == store.tokenizer
    assert store.codebook_size == 16
    assert len(record.counts["usage"]) == len(record.counts["perplexity"]) == 2
    clip = store[store.clips[0].id]
    assert 0 < int(clip.max()) < 16
    assert model.decode(clip).shape == (len(clip), 32, 32, 3)
    results = json.loads((work / "eval.json").read_text())
    assert results["reconstruction"]["psnr"] > 0
    assert results["prior"]["bits_per_dim"] > 0
