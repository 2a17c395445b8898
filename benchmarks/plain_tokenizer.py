"""The tokenizer and its training step written down plainly: what the fast one is measured against.

As `one_hot_prior.py` for the prior: it works on the tensors of a `VQVAE` and shares no code with the package. Distances
to all code vectors are written out, codes are one-hot tensors, and the moving averages are products with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainTokenizer(nn.Module):
    """Encoder, codebooks with moving averages, decoder; residual blocks whose skip carries ReLU(x).

    Args:
        state: the state dict of a `VQVAE` without options.
        decay, epsilon, commitment: of its configuration.
    """

    def __init__(self, state: Mapping[str, Tensor], decay: float, epsilon: float, commitment: float) -> None:
        super().__init__()
        self.decay, self.epsilon, self.commitment = decay, epsilon, commitment
        self.names = {name: name.replace(".", "/") for name in state}
        for name, value in state.items():
            if name.startswith("quantizer."):
                self.register_buffer(self.names[name], value.clone())
            else:
                self.register_parameter(self.names[name], nn.Parameter(value.clone()))
        self.num_blocks = len([name for name in state if name.startswith("encoder.blocks.") and "spatial.w" in name])
        self.num_codebooks = len([name for name in state if name.endswith(".table")])

    def tensor(self, name: str) -> Tensor:
        """A parameter or a buffer by its name in the `VQVAE`."""
        value = getattr(self, self.names[name])
        assert isinstance(value, Tensor)
        return value

    def loss(self, frames: Tensor) -> Tensor:
        """Loss of frames uint8 (B, H, W, 3); the codebooks then move by one step."""
        images = ((frames.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        latents = self._encode(images)
        vectors, updated = [], []
        for j, group in enumerate(latents.chunk(self.num_codebooks, dim=1)):
            flat = group.permute(0, 2, 3, 1).flatten(0, 2)
            found = self._quantize(flat.detach(), f"quantizer.books.{j}.")
            for kept, rows in ((vectors, found.before), (updated, found.after)):
                kept.append(rows.view(len(frames), *latents.shape[2:], -1).permute(0, 3, 1, 2))
        quantized = latents + (torch.cat(vectors, 1) - latents).detach()
        commitment = F.mse_loss(latents, torch.cat(updated, 1))
        return F.mse_loss(self._decode(quantized), images) + self.commitment * commitment

    def _quantize(self, flat: Tensor, book: str) -> Vectors:
        table, total, size = (self.tensor(book + name) for name in ("table", "total", "size"))
        distances = flat.pow(2).sum(1, keepdim=True) + table.pow(2).sum(1) - 2 * flat @ table.T
        one_hot = F.one_hot(distances.argmin(1), len(table)).float()
        before = one_hot @ table
        size.copy_(self.decay * size + (1 - self.decay) * one_hot.sum(0))
        total.copy_(self.decay * total + (1 - self.decay) * (one_hot.T @ flat))
        number = size.sum()
        smoothed = (size + self.epsilon) / (number + len(table) * self.epsilon) * number
        table.copy_(total / smoothed[:, None])
        return Vectors(before, one_hot @ table)

    def _encode(self, x: Tensor) -> Tensor:
        for name in ("encoder.down1", "encoder.down2"):
            x = F.relu(F.conv2d(x, *self._layer(name), stride=2, padding=1))
        return self._blocks("encoder", F.conv2d(x, *self._layer("encoder.mix"), padding=1))

    def _decode(self, x: Tensor) -> Tensor:
        x = F.relu(self._blocks("decoder", F.conv2d(x, *self._layer("decoder.mix"), padding=1)))
        x = F.relu(F.conv_transpose2d(x, *self._layer("decoder.up1"), stride=2, padding=1))
        return torch.tanh(F.conv_transpose2d(x, *self._layer("decoder.up2"), stride=2, padding=1))

    def _blocks(self, part: str, x: Tensor) -> Tensor:
        for number in range(self.num_blocks):
            name = f"{part}.blocks.{number}"
            x = F.relu(x)
            inner = F.relu(F.conv2d(x, *self._layer(f"{name}.spatial"), padding=1))
            x = x + F.conv2d(inner, *self._layer(f"{name}.pointwise"))
        return x

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")


class Vectors(NamedTuple):
    """Code vectors (N, D / n_c) of the chosen codes, before and after the table has moved."""

    before: Tensor
    after: Tensor
