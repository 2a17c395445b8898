"""The codes of one pixel, codebook after codebook: the prior's channel predictor (paper, sections 3.2 and 4.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt_pipeline.models.prior.adaptive import AdaptiveSoftmax, Tie, code_table
from lvt_pipeline.models.prior.attention import linear
from lvt_pipeline.models.prior.config import PriorConfig

# What each adaptive head shares with the decoder's adaptive input.
_TIES: dict[str, Tie] = {
    "adaptive": "nothing",
    "adaptive-tied": "embeddings",
    "adaptive-tied-projections": "projections",
}


class ChannelPredictor(nn.Module):
    """The codes of one pixel, codebook after codebook: u_j = ReLU(U_j [y; onehot codes before j] + b_j), then P_j u_j.

    `head` decides P: "separate" per codebook, "shared" by all, "tied" to the decoder's embeddings, or one of the
    adaptive softmaxes, whose logits are log-probabilities.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        d, size, count = config.width, config.codebook_size, config.num_codebooks
        self.codebook_size = size
        self.head = config.head
        self.norm = nn.LayerNorm(d)
        self.mixers = nn.ModuleList(linear(d + j * size, d) for j in range(count))
        self.outputs = nn.ModuleList()
        for _ in range(1 if config.head in ("shared", "tied") else count):
            self.outputs.append(self._output(config))

    def logits(self, y: Tensor, codes: Tensor, j: int, embeddings: nn.ModuleList) -> Tensor:
        """Logits of codebook j, (N, K).

        Args:
            y: decoder output after `norm`, (N, d).
            codes: int64 (N, n_c); only those of codebooks before j are read.
            embeddings: the decoder's, for heads that are tied to them.
        """
        width = y.shape[-1]
        mixer = self.mixers[j]
        assert isinstance(mixer, nn.Linear)
        mixed = F.linear(y, mixer.weight[:, :width], mixer.bias)
        if j:
            columns = mixer.weight[:, width:].T
            offsets = torch.arange(j, device=codes.device) * self.codebook_size
            mixed = mixed + F.embedding_bag(codes[:, :j] + offsets, columns, mode="sum")
        return self.outputs_of(F.relu(mixed), j, embeddings)

    def outputs_of(self, u: Tensor, j: int, embeddings: nn.ModuleList) -> Tensor:
        """Logits of codebook j, (N, K), from u_j (N, d)."""
        output = self.outputs[j if len(self.outputs) > 1 else 0]
        if isinstance(output, AdaptiveSoftmax):
            log_probabilities: Tensor = output(u, embeddings[j])
            return log_probabilities
        logits: Tensor = output(u)
        return F.linear(logits, code_table(embeddings[j])) if self.head == "tied" else logits

    @staticmethod
    def _output(config: PriorConfig) -> nn.Module:
        if config.head in _TIES:
            assert config.cutoffs is not None
            return AdaptiveSoftmax(
                config.width,
                config.codebook_size,
                config.cutoffs,
                config.cluster_ratio,
                tie=_TIES[config.head],
                embedding_width=config.embedding_width,
            )
        return linear(config.width, config.embedding_width if config.head == "tied" else config.codebook_size)
