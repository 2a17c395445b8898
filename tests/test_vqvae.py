"""The frame autoencoder: shapes, counts, exact block semantics, encode and decode."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.vqvae import model as vqvae_module
from lvt_pipeline.models.vqvae.config import DOWNSAMPLING, VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE, ResidualBlock, full_float32, to_images, tokenizer_fingerprint
from lvt_pipeline.video.settings import SIZE_STEP

TINY = VQVAEConfig(num_codebooks=2, codebook_size=32, code_width=16, stem_width=8, residual_width=8)


@pytest.fixture
def model() -> VQVAE:
    """A tiny autoencoder whose codebooks have moved to where the latents are, so that all codes are in use."""
    torch.manual_seed(0)
    model = VQVAE(dataclasses.replace(TINY, dead_code="resample"))
    frames = torch.rand(4, 3, 32, 32) * 2 - 1
    for _ in range(5):
        model(frames)
    return model.eval()


def random_frames(count: int, size: int = 32) -> Tensor:
    """Smooth random pictures, uint8 (N, size, size, 3)."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return (F.interpolate(noise, size=(size, size)) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def num_parameters(module: nn.Module) -> int:
    """Numbers in the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("blocks", "encoder", "decoder"), [(2, 1_777_024, 1_776_771), (4, 2_433_152, 2_432_899)])
def test_parameter_counts_are_those_of_the_paper(blocks: int, encoder: int, decoder: int) -> None:
    with torch.device("meta"):
        model = VQVAE(VQVAEConfig(num_residual_blocks=blocks))
    assert num_parameters(model.encoder) == encoder
    assert num_parameters(model.decoder) == decoder


@pytest.mark.parametrize("num_codebooks", [1, 2, 4])
def test_tables_hold_131072_numbers_for_any_number_of_codebooks(num_codebooks: int) -> None:
    model = VQVAE(VQVAEConfig(num_codebooks=num_codebooks))
    assert sum(book.table.numel() for book in model.quantizer.codebooks) == 131_072
    assert num_parameters(model.quantizer) == 0


def test_shapes_and_ranges_of_a_forward(model: VQVAE) -> None:
    images = torch.rand(3, 3, 32, 24) * 2 - 1
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert float(output.reconstruction.detach().abs().max()) <= 1
    assert output.codes.shape == (3, 8, 6, 2)
    assert output.codes.dtype == torch.int64
    torch.testing.assert_close(output.reconstruction_loss, (output.reconstruction - images).pow(2).mean())


def test_loss_weighs_the_commitment() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    for weight in (0.25, 1.0):
        output = VQVAE(dataclasses.replace(TINY, commitment_weight=weight))(images)
        torch.testing.assert_close(output.loss, output.reconstruction_loss + weight * output.commitment_loss)


def test_reference_residual_skip_carries_the_rectified_input() -> None:
    block = ResidualBlock(6, 4, "reference")
    x = torch.randn(2, 6, 5, 5)
    r = x.clamp(min=0)
    inner = F.conv2d(r, block.spatial.weight, block.spatial.bias, padding=1).clamp(min=0)
    change = F.conv2d(inner, block.pointwise.weight, block.pointwise.bias)
    torch.testing.assert_close(block(x), r + change)
    block.residual = "textbook"
    torch.testing.assert_close(block(x), x + change)


def test_a_block_leaves_its_input_alone() -> None:
    x = torch.randn(1, 6, 5, 5)
    before = x.clone()
    ResidualBlock(6, 4, "reference")(x)
    assert torch.equal(x, before)


def test_weights_start_xavier_uniform_with_zero_biases() -> None:
    model = VQVAE(VQVAEConfig())
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            fans = nn.init._calculate_fan_in_and_fan_out(module.weight)
            assert float(module.weight.detach().std()) == pytest.approx((2 / sum(fans)) ** 0.5, rel=0.05)
            assert not module.bias.any()


def test_training_with_the_reference_start_stays_finite() -> None:
    torch.manual_seed(0)
    model = VQVAE(TINY)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.9))
    images = random_frames(8, 16).permute(0, 3, 1, 2).float() / 127.5 - 1
    losses = []
    for _ in range(150):
        output = model(images)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.reconstruction_loss.detach()))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert losses[-1] < 0.8 * losses[0]


def test_encode_leaves_the_state_unchanged_even_while_training(model: VQVAE) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.encode(random_frames(5))
    model.decode(model.encode(random_frames(5)))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_codes_do_not_depend_on_neighbours_place_or_count(model: VQVAE) -> None:
    frames = random_frames(11)
    together = model.encode(frames, batch_size=4)
    assert together.unique().numel() > 8
    alone = torch.cat([model.encode(frame[None], batch_size=4) for frame in frames])
    backwards = model.encode(frames.flip(0), batch_size=4).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)


def test_encode_agrees_with_forward(model: VQVAE) -> None:
    frames = random_frames(4)
    images = (frames.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    output = model(images)
    codes = model.encode(frames, batch_size=4)
    assert torch.equal(codes, output.codes)
    pixels = ((output.reconstruction * 0.5 + 0.5).clamp(0, 1) * 255).round()
    decoded = model.decode(codes, batch_size=4)
    assert decoded.dtype == torch.uint8
    assert int((decoded.permute(0, 3, 1, 2).int() - pixels.int()).abs().max()) <= 1


def test_arrays_and_tensors_of_any_integer_dtype_decode_alike(model: VQVAE) -> None:
    codes = model.encode(random_frames(3).numpy())
    expected = model.decode(codes)
    assert torch.equal(model.decode(codes.numpy().astype(np.uint16)), expected)
    assert torch.equal(model.decode(codes.to(torch.uint8)), expected)


def test_decode_rounds_unless_asked_to_truncate(model: VQVAE) -> None:
    codes = model.encode(random_frames(3))
    rounded, truncated = model.decode(codes).int(), model.decode(codes, truncate=True).int()
    assert set((rounded - truncated).unique().tolist()) == {0, 1}


def test_no_frames_give_no_codes(model: VQVAE) -> None:
    codes = model.encode(torch.zeros(0, 32, 32, 3, dtype=torch.uint8))
    assert codes.shape == (0, 8, 8, 2)
    assert model.decode(codes).shape == (0, 32, 32, 3)


def test_codes_can_be_trained_on_after_encode(model: VQVAE) -> None:
    embedding = nn.Embedding(32, 4)
    embedding(model.encode(random_frames(1))).sum().backward()
    assert embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 32, 32, 3), "frames are uint8 (N, H, W, 3), found torch.float32 (1, 32, 32, 3)"),
        (np.zeros((1, 3, 32, 32), np.uint8), "frames are uint8 (N, H, W, 3), found uint8 (1, 3, 32, 32)"),
        (np.zeros((1, 32, 30, 3), np.uint8), "frames are 32x30 pixels; both sides must be multiples of 4"),
    ],
)
def test_unusable_frames_are_refused(model: VQVAE, frames: object, message: str) -> None:
    with pytest.raises(ShapeError) as error:
        model.encode(frames)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_images_of_another_layout_are_refused(model: VQVAE) -> None:
    with pytest.raises(ShapeError, match=r"images are float \(B, 3, H, W\)"):
        model(torch.zeros(1, 32, 32, 3))


def test_codes_out_of_range_are_refused(model: VQVAE) -> None:
    with pytest.raises(ShapeError, match=r"codes must be in \[0, 32\)"):
        model.decode(torch.full((1, 8, 8, 2), 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code_width": 255}, "code_width=255 does not divide into 4 codebooks"),
        ({"codebook_size": 0}, "codebook_size=0 must be at least 1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"residual": "pre"}, "residual='pre' is not one of"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VQVAEConfig(**settings)  # type: ignore[arg-type]


def test_tokenizer_fingerprint_follows_what_decides_codes_and_nothing_else(model: VQVAE) -> None:
    before = tokenizer_fingerprint(model)
    with torch.no_grad():
        model.decoder.up2.weight.add_(1)
        model.quantizer.codebooks[0].size.add_(1)
    assert tokenizer_fingerprint(model) == before
    with torch.no_grad():
        model.quantizer.codebooks[1].table[3, 2] += 1e-3
    after_table = tokenizer_fingerprint(model)
    with torch.no_grad():
        model.encoder.mix.bias[0] += 1e-3
    assert len({before, after_table, tokenizer_fingerprint(model)}) == 3
    textbook = VQVAE(dataclasses.replace(model.config, residual="textbook"))
    textbook.load_state_dict(model.state_dict())
    assert tokenizer_fingerprint(textbook) != tokenizer_fingerprint(model)


def test_tokenizer_fingerprint_of_given_weights_never_changes() -> None:
    with torch.device("meta"):
        model = VQVAE(TINY)
    model = model.to_empty(device="cpu")
    for number, value in enumerate(model.state_dict().values()):
        value.copy_((torch.arange(value.numel()) % 7 + number).reshape(value.shape))
    assert tokenizer_fingerprint(model) == "f5c4a3feb6cc90b020faf59e9a0d1bc5d37e777ff5c8c2f808412407d07d68a1"
    named = dataclasses.replace(TINY, quantizer="vq", codebook_init="kmeans")
    same = VQVAE(named)
    same.load_state_dict(model.state_dict())
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(model)


def tf32_switches() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def test_full_float32_switches_tf32_off_for_the_block_only() -> None:
    before = tf32_switches()
    try:
        for asked in ("tf32", "ieee"):
            torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = asked
            with full_float32(torch.device("cuda")):
                assert tf32_switches() == ("ieee", "ieee")
            assert tf32_switches() == (asked, asked)
            with pytest.raises(KeyError), full_float32(torch.device("cuda")):
                raise KeyError
            assert tf32_switches() == (asked, asked)
            with full_float32(torch.device("cpu")):
                assert tf32_switches() == (asked, asked)
    finally:
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_encode_computes_latents_and_codes_in_full_float32(model: VQVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = False
    seen: list[bool] = []

    @contextmanager
    def watched(device: torch.device) -> Iterator[None]:
        nonlocal inside
        inside = True
        with full_float32(device):
            yield
        inside = False

    monkeypatch.setattr(vqvae_module, "full_float32", watched)
    monkeypatch.setattr(model, "encode_latents", lambda images: (seen.append(inside), model.encoder(images))[1])
    codes = model.quantizer.codes
    monkeypatch.setattr(model.quantizer, "codes", lambda latents: (seen.append(inside), codes(latents))[1])
    model.encode(random_frames(2))
    assert seen == [True, True]


def test_encode_does_not_follow_the_callers_autocast(model: VQVAE) -> None:
    frames = random_frames(4)
    latents: list[Tensor] = []
    model.encoder.register_forward_hook(lambda module, inputs, output: latents.append(output))
    expected = model.encode(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode(frames), expected)
    assert torch.equal(latents[0], latents[1])


@pytest.mark.gpu
def test_codes_on_a_gpu_are_those_of_the_cpu_but_for_the_last_bits(model: VQVAE) -> None:
    frames = random_frames(64)
    expected = model.encode(frames)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    found = model.to("cuda").encode(frames)
    assert float((found != expected).float().mean()) < 1e-3


def test_frame_sizes_that_ingest_allows_are_those_that_the_tokenizer_takes() -> None:
    assert SIZE_STEP == DOWNSAMPLING


def test_bytes_become_numbers_between_minus_one_and_one() -> None:
    images = to_images(torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3))
    assert images.shape == (1, 3, 16, 16)
    assert torch.equal(images[0, 0].flatten(), torch.arange(256) / 127.5 - 1)
