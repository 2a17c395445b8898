"""The frame autoencoder: pixels of one frame <-> a small grid of codes (paper, sections 3.1 and 4.2).

Frames are tokenized one by one, without any temporal mixing: (3, H, W) -> (h, w, n_c) with h = H/4, w = W/4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline import lineage
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.models.vqvae.config import DOWNSAMPLING, VQVAEConfig
from lvt_pipeline.models.vqvae.fsq import FSQuantizer
from lvt_pipeline.models.vqvae.quantize import Quantized, SlicedQuantizer, integer_codes


class VQVAEOutput(NamedTuple):
    """One forward of the autoencoder.

    Attributes:
        loss: scalar to minimise, reconstruction_loss + commitment_weight * commitment_loss.
        reconstruction_loss: scalar, mean squared error in the [-1, 1] domain.
        commitment_loss: scalar, unweighted.
        reconstruction: float (B, 3, H, W) in [-1, 1].
        codes: int64 (B, h, w, n_c).
    """

    loss: Tensor
    reconstruction_loss: Tensor
    commitment_loss: Tensor
    reconstruction: Tensor
    codes: Tensor


class ResidualBlock(nn.Module):
    """A residual block of width D whose skip carries ReLU(x) ("reference", as the released model) or x ("textbook")."""

    def __init__(self, width: int, inner_width: int, residual: Literal["reference", "textbook"]) -> None:
        super().__init__()
        self.residual = residual
        self.spatial = nn.Conv2d(width, inner_width, 3, padding=1)
        self.pointwise = nn.Conv2d(inner_width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, h, w)."""
        rectified = F.relu(x)
        change: Tensor = self.pointwise(F.relu(self.spatial(rectified)))
        return (rectified if self.residual == "reference" else x) + change


class FrameEncoder(nn.Module):
    """Frames (B, 3, H, W) in [-1, 1] -> latents (B, D, H/4, W/4). No norm, activation or projection at the end."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, config.stem_width, 4, stride=2, padding=1)
        self.down2 = nn.Conv2d(config.stem_width, config.code_width, 4, stride=2, padding=1)
        self.mix = nn.Conv2d(config.code_width, config.code_width, 3, padding=1)
        self.blocks = _residual_blocks(config)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, H/4, W/4)."""
        x = F.relu(self.down1(frames))
        x = F.relu(self.down2(x))
        latents: Tensor = self.blocks(self.mix(x))
        return latents


class FrameDecoder(nn.Module):
    """Code vectors (B, D, h, w) -> frames (B, 3, 4h, 4w) in [-1, 1]."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.mix = nn.Conv2d(config.code_width, config.code_width, 3, padding=1)
        self.blocks = _residual_blocks(config)
        self.up1 = nn.ConvTranspose2d(config.code_width, config.stem_width, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(config.stem_width, 3, 4, stride=2, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, 4h, 4w)."""
        x = F.relu(self.blocks(self.mix(vectors)))
        x = F.relu(self.up1(x))
        return torch.tanh(self.up2(x))


class VQVAE(nn.Module):
    """Encoder, sliced codebooks and decoder.

    `forward` is a training step's worth of outputs; `encode` and `decode` turn uint8 frames into codes and back, in
    evaluation behaviour whatever the mode of the module.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = FrameEncoder(config)
        self.quantizer = _quantizer(config)
        self.decoder = FrameDecoder(config)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                assert module.bias is not None
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def __repr__(self) -> str:
        return f"VQVAE(K={self.codebook_size}, n_c={self.num_codebooks}, {num_parameters(self):,} parameters)"

    @property
    def codebook_size(self) -> int:
        """K, the number of codes in each codebook."""
        return self.config.codebook_size

    @property
    def num_codebooks(self) -> int:
        """n_c."""
        return self.config.num_codebooks

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.down1.weight.device

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Reconstruct images float (B, 3, H, W) in [-1, 1]; in training mode the codebooks then move by one step.

        Raises:
            ShapeError: not (B, 3, H, W) with H and W multiples of 4.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ShapeError(f"images are float (B, 3, H, W) in [-1, 1], found {images.dtype} {tuple(images.shape)}")
        _check_size(images.shape[2], images.shape[3])
        if torch.is_autocast_enabled(images.device.type):  # convolutions of bfloat16 want pixels side by side
            images = images.contiguous(memory_format=torch.channels_last)
        quantized = self.quantize(self.encode_latents(images))
        reconstruction: Tensor = self.decoder(quantized.vectors)
        reconstruction_loss = F.mse_loss(reconstruction.float(), images.float())
        loss = reconstruction_loss + self.config.commitment_weight * quantized.commitment_loss
        return VQVAEOutput(loss, reconstruction_loss, quantized.commitment_loss, reconstruction, quantized.codes)

    def encode_latents(self, images: Tensor) -> Tensor:
        """Continuous encoder output (B, D, h, w) of images float (B, 3, H, W) in [-1, 1]."""
        latents: Tensor = self.encoder(images)
        return latents

    def quantize(self, latents: Tensor) -> Quantized:
        """Quantise latents (B, D, h, w); in training mode the codebooks move."""
        quantized: Quantized = self.quantizer(latents)
        return quantized

    @torch.no_grad()
    def encode(self, frames: Tensor | np.ndarray[Any, Any], batch_size: int = 32) -> Tensor:
        """Codes of frames, with the state of the model untouched.

        Frames pass in batches of one fixed size (the last one padded), so that the codes of a frame do not depend on
        how many others were given.

        Args:
            frames: uint8 (N, H, W, 3) in RGB, H and W multiples of 4.
            batch_size: frames per pass.

        Returns:
            int64 (N, h, w, n_c) on the CPU.

        Raises:
            ShapeError: the frames have another dtype or shape.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or str(frames.dtype).removeprefix("torch.") != "uint8":
            raise ShapeError(f"frames are uint8 (N, H, W, 3), found {frames.dtype} {tuple(frames.shape)}")
        _check_size(frames.shape[1], frames.shape[2])
        _check_batch_size(batch_size)
        h, w = frames.shape[1] // DOWNSAMPLING, frames.shape[2] // DOWNSAMPLING
        codes = torch.empty(len(frames), h, w, self.num_codebooks, dtype=torch.int64)
        for start, batch in _fixed_batches(frames, batch_size):
            images = to_images(batch.to(self.device))
            with full_float32(self.device):
                latents = self.encode_latents(images.to(self.encoder.down1.weight.dtype)).float()
                part = self.quantizer.codes(latents)[: len(frames) - start].cpu()
            codes[start : start + len(part)] = part
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor | np.ndarray[Any, Any], batch_size: int = 32, truncate: bool = False) -> Tensor:
        """Frames of codes.

        Args:
            codes: integers (N, h, w, n_c) in [0, K), of any integer dtype.
            batch_size: frames per pass.
            truncate: turn [0, 1] into bytes by cutting decimals off, as the released code does, instead of rounding.

        Returns:
            uint8 (N, 4h, 4w, 3) on the CPU.

        Raises:
            ShapeError: the codes are not integers of that shape and range.
        """
        codes = integer_codes(codes, "(N, h, w, n_c)", 4, self.num_codebooks, self.codebook_size)
        _check_batch_size(batch_size)
        count, h, w, _ = codes.shape
        frames = torch.empty(count, h * DOWNSAMPLING, w * DOWNSAMPLING, 3, dtype=torch.uint8)
        for start, batch in _fixed_batches(codes, batch_size):
            vectors = self.quantizer.lookup(batch.to(self.device))
            decoded: Tensor = self.decoder(vectors)
            scaled = 255 * (decoded.float() * 0.5 + 0.5).clamp(0, 1)
            pixels = (scaled if truncate else scaled.round()).to(torch.uint8)
            part = rearrange(pixels, "n c h w -> n h w c")[: count - start].cpu()
            frames[start : start + len(part)] = part
        return frames


def to_images(frames: Tensor) -> Tensor:
    """Frames uint8 (B, H, W, 3) as the networks read them: float32 (B, 3, H, W) in [-1, 1]."""
    return rearrange((frames.float() / 255 - 0.5) / 0.5, "b h w c -> b c h w").contiguous()


def tokenizer_fingerprint(model: VQVAE) -> str:
    """Hash of everything that decides a frame's codes: encoder weights, codebook tables, their shape and precision.

    Without tables (FSQ), the levels and the projections to them take their place. The decoder, the EMA statistics and
    the projections that only the decoder sees do not enter: a fine-tuned decoder keeps every cached code valid.
    """
    weights = {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
    weights |= model.quantizer.deciding_weights()
    settings = to_plain(model.config)
    names = ["num_codebooks", "codebook_size", "code_width", "stem_width", "residual_width", "num_residual_blocks"]
    names += ["residual"]
    if model.config.quantizer == "fsq":
        names += ["quantizer", "fsq_levels"]
    return lineage.tokenizer_fingerprint(
        {name: settings[name] for name in names}, {name: _digest(value) for name, value in weights.items()}
    )


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Let convolutions and matrix products in the block keep all bits of float32, whatever the caller's autocast.

    On a CUDA device torch lets cuDNN round the inputs of convolutions to TF32 (10 bits of mantissa) by
    default; a latent near the border of two codes then gets another code than on a CPU. The switches belong to the
    process; after the block they are as before.
    """
    backends = torch.backends
    switches: list[tuple[Any, str, str | bool]] = []
    if device.type == "cuda" and hasattr(backends.cudnn, "conv"):  # torch 2.9 and later
        switches = [(backends.cudnn.conv, "fp32_precision", "ieee"), (backends.cuda.matmul, "fp32_precision", "ieee")]
    elif device.type == "cuda":
        switches = [(backends.cudnn, "allow_tf32", False), (backends.cuda.matmul, "allow_tf32", False)]
    before = [getattr(owner, name) for owner, name, _ in switches]
    try:
        for owner, name, value in switches:
            setattr(owner, name, value)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (owner, name, _), value in zip(switches, before, strict=True):
            setattr(owner, name, value)


def _quantizer(config: VQVAEConfig) -> SlicedQuantizer | FSQuantizer:
    if config.quantizer == "fsq":
        assert config.fsq_levels is not None
        return FSQuantizer(config.num_codebooks, config.fsq_levels, config.code_width)
    return SlicedQuantizer(
        config.num_codebooks,
        config.codebook_size,
        config.code_width,
        decay=config.ema_decay,
        epsilon=config.ema_epsilon,
        ema_init=config.ema_init,
        dead_code=config.dead_code,
        dead_code_threshold=config.dead_code_threshold,
    )


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()


def _residual_blocks(config: VQVAEConfig) -> nn.Sequential:
    return nn.Sequential(
        *(
            ResidualBlock(config.code_width, config.residual_width, config.residual)
            for _ in range(config.num_residual_blocks)
        )
    )


def _fixed_batches(items: Tensor | np.ndarray[Any, Any], batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """(start, batch) over the first axis; every batch has `batch_size` items, the last one filled up with zeros."""
    for start in range(0, len(items), batch_size):
        part = items[start : start + batch_size]
        batch = part if isinstance(part, Tensor) else torch.tensor(part)
        if len(batch) < batch_size:
            batch = torch.cat([batch, batch.new_zeros(batch_size - len(batch), *batch.shape[1:])])
        yield start, batch


def _check_size(height: int, width: int) -> None:
    if height % DOWNSAMPLING or width % DOWNSAMPLING or not height or not width:
        raise ShapeError(f"frames are {height}x{width} pixels; both sides must be multiples of {DOWNSAMPLING}")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ShapeError(f"batch_size={batch_size} must be at least 1")
