"""The prior written down plainly, with one-hot tensors: what the fast one is checked and measured against.

It works on the tensors and names of the paper's released checkpoints (see docs/model.md) and shares no code with the
package: contexts are cut out of one-hot videos and go through an ordinary 3d convolution, attention is a softmax over
all scores, and the channel predictor multiplies one-hot codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]


class OneHotPrior(nn.Module):
    """A released prior whose attention block is the whole slice.

    Args:
        state: its state dict.
        subscale: (s_t, s_h, s_w).
    """

    def __init__(self, state: Mapping[str, Tensor], subscale: Triple) -> None:
        super().__init__()
        self.subscale = subscale
        self.names = {name: name.replace(".", "/") for name in state}
        for name, value in state.items():
            self.register_parameter(self.names[name], nn.Parameter(value.clone()))
        self.codebook_size = state["decoder.ch_embedder.0.weight"].shape[0]
        self.num_codebooks = len([name for name in state if name.startswith("decoder.ch_embedder.")])
        self.kernel = tuple(state["encoder.conv.weight"].shape[2:])

    def weight(self, name: str) -> Tensor:
        """A parameter by its released name."""
        return self.get_parameter(self.names[name])

    def has(self, name: str) -> bool:
        """Whether the checkpoint has this parameter."""
        return name in self.names

    def offset(self, index: int) -> Triple:
        """Offset (a, b, c) of the slice that comes `index`-th."""
        _, s_h, s_w = self.subscale
        return index // (s_h * s_w), index // s_w % s_h, index % s_w

    def slice_logits(self, codes: Tensor, index: int, labels: Tensor | None = None) -> Tensor:
        """Logits (B, t, h', w', n_c, K) of one slice of videos int64 (B, T, h, w, n_c), teacher-forced."""
        (a, b, c), (s_t, s_h, s_w) = self.offset(index), self.subscale
        own = codes[:, a::s_t, b::s_h, c::s_w]
        return self._channels(self._decode(own, self._encode(codes, index, labels)), own)

    def loss(self, codes: Tensor, index: int) -> Tensor:
        """Mean cross-entropy in nats of one slice."""
        (a, b, c), (s_t, s_h, s_w) = self.offset(index), self.subscale
        logits = self.slice_logits(codes, index)
        return F.cross_entropy(logits.flatten(0, -2), codes[:, a::s_t, b::s_h, c::s_w].flatten())

    def sample(self, priming: Tensor, frames: int, uniforms: Tensor, labels: Tensor | None = None) -> Tensor:
        """Continue videos int64 (B, T0, h, w, n_c), everything computed again for every code."""
        batch, given, h, w, count = priming.shape
        video = torch.zeros(batch, frames, h, w, count, dtype=torch.int64)
        video[:, :given] = priming
        rows = iter(uniforms)
        s_t, s_h, s_w = self.subscale
        for index in range(s_t * s_h * s_w):
            a, b, c = self.offset(index)
            for t in range(a, frames, s_t):
                for y in range(b, h, s_h):
                    for x in range(c, w, s_w):
                        if t < given:
                            continue
                        numbers = next(rows)
                        for j in range(count):
                            logits = self.slice_logits(video, index, labels)
                            place = ((t - a) // s_t, (y - b) // s_h, (x - c) // s_w)
                            cumulative = logits[:, *place, j].softmax(-1).cumsum(-1)
                            video[:, t, y, x, j] = (cumulative > numbers[j][:, None]).int().argmax(-1)
        return video

    def _encode(self, codes: Tensor, index: int, labels: Tensor | None) -> Tensor:
        window = self._window(codes, index)
        # Markers of hidden codes are -1; their one-hot vector is zero.
        one_hot = F.one_hot(window + 1, self.codebook_size + 1)[..., 1:].float()
        channels = one_hot.permute(0, 4, 5, 1, 2, 3).flatten(1, 2)  # (B, n_c*K, time, rows, columns)
        x = F.conv3d(channels, self.weight("encoder.conv.weight"), self.weight("encoder.conv.bias"), self.subscale)
        x = x + self.weight("encoder.slice_embedding.weight")[index][:, None, None, None]
        if self.has("encoder.class_embedding.weight"):
            assert labels is not None
            known = self.weight("encoder.class_embedding.weight")[labels][:, :, None, None, None]
            x = torch.cat([x, known.expand(-1, -1, *x.shape[2:])], dim=1)
        x = F.conv3d(x, self.weight("encoder.linear_projector.weight"))
        return self._blocks("encoder", x)

    def _window(self, codes: Tensor, index: int) -> Tensor:
        """Codes under the strided convolution of a slice, -1 where hidden or outside the video."""
        hidden = torch.full_like(codes, -1)
        s_t, s_h, s_w = self.subscale
        for earlier in range(index):
            a, b, c = self.offset(earlier)
            hidden[:, a::s_t, b::s_h, c::s_w] = codes[:, a::s_t, b::s_h, c::s_w]
        for axis, (offset, stride, size) in enumerate(
            zip(self.offset(index), self.subscale, self.kernel, strict=True), start=1
        ):
            length = hidden.shape[axis]
            reach = size // 2
            padding = [0, 0] * (hidden.ndim - 1 - axis) + [reach, reach]
            padded = F.pad(hidden, padding, value=-1)
            hidden = padded.narrow(axis, offset, (length // stride - 1) * stride + size)
        return hidden

    def _decode(self, own: Tensor, encoded: Tensor) -> Tensor:
        tables = [self.weight(f"decoder.ch_embedder.{j}.weight") for j in range(self.num_codebooks)]
        embedded = sum(table[own[..., j]] for j, table in enumerate(tables))
        assert isinstance(embedded, Tensor)
        weight = self.weight("decoder.conv.conv.weight")
        mask = torch.ones_like(weight)
        mask[:, :, -1, -1, 1:] = 0
        padded = F.pad(embedded.permute(0, 4, 1, 2, 3), (1, 1, 2, 0, 2, 0))
        x = F.conv3d(padded, weight * mask, self.weight("decoder.conv.conv.bias"))
        x = x + _positions(x.shape) + F.conv3d(encoded, self.weight("decoder.linear_projector.weight"))
        return self._blocks("decoder", x)

    def _blocks(self, part: str, x: Tensor) -> Tensor:
        number = 0
        shape = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        while self.has(f"{part}.block_local_attention.{number}.mha.w_q"):
            name = f"{part}.block_local_attention.{number}"
            x = x + self._attention(name, self._norm(f"{name}.mha.layer_norm", x), shape, part == "decoder")
            inner = F.relu(self._linear(f"{name}.ffn.1", self._norm(f"{name}.ffn.0", x)))
            x = x + self._linear(f"{name}.ffn.3", inner)
            number += 1
        return x.transpose(1, 2).unflatten(2, shape)

    def _attention(self, name: str, x: Tensor, shape: torch.Size, causal: bool) -> Tensor:
        queries, keys, values = (
            torch.einsum("bnd,mda->bmna", x, self.weight(f"{name}.mha.w_{kind}")) for kind in "qkv"
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        coordinates = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), -1).flatten(0, 2)
        for axis, bank in enumerate(("dt_bank", "dh_bank", "dw_bank")):
            distance = coordinates[:, None, axis] - coordinates[None, :, axis] + shape[axis] - 1
            scores = scores + self.weight(f"{name}.{bank}")[:, distance]
        if causal:
            later = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -1e4)
        mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        return F.linear(mixed, self.weight(f"{name}.mha.proj.weight"))

    def _channels(self, x: Tensor, own: Tensor) -> Tensor:
        y = self._norm("ch_predictor.layer_norm", x.permute(0, 2, 3, 4, 1))
        one_hot = F.one_hot(own, self.codebook_size).float()
        result = []
        for j in range(self.num_codebooks):
            seen = torch.cat([y, one_hot[..., :j, :].flatten(-2)], dim=-1)
            u = F.relu(self._linear(f"ch_predictor.U.{j}", seen))
            if self.has(f"ch_predictor.P.{j}.weight"):
                result.append(self._linear(f"ch_predictor.P.{j}", u))
                continue
            logits = self._linear("ch_predictor.P", u)
            tied = logits.shape[-1] != self.codebook_size
            result.append(logits @ self.weight(f"decoder.ch_embedder.{j}.weight").T if tied else logits)
        return torch.stack(result, dim=-2)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))


def _positions(shape: torch.Size) -> Tensor:
    """Sines and cosines of time, row and column, (d, t, h, w)."""
    width, *lengths = shape[1:]
    waves = width // 6
    result = torch.zeros(width, *lengths)
    for axis, length in enumerate(lengths):
        for j in range(waves):
            angle = torch.arange(length) * 10000.0 ** (-j / waves)
            view = [1, 1, 1]
            view[axis] = length
            result[2 * waves * axis + j] = angle.sin().reshape(view)
            result[2 * waves * axis + waves + j] = angle.cos().reshape(view)
    return result
