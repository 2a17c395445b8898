"""Which action led from one frame to the next: a small network that reads both frames' codes (inverse dynamics).

It is trained on real codes of the training split. Its error on samples shows whether the motion that they show is that
of the actions they were sampled under; its error on real and reconstructed clips bounds this from below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.models.prior.conditions import ActionEmbedding
from lvt_pipeline.runs.actions import Rows, read_actions

TRAINING_CLIPS = 512  # at most, spread evenly over the split
STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 600, 64, 2e-3, 1e-3
EMBEDDING_WIDTH, WIDTH, POOLED = 8, 32, 4


class Probe(nn.Module):
    """Normalised actions (N, d) from the codes of frames before and after them, int64 (N, h, w, n_c) each."""

    def __init__(self, codebook_size: int, num_codebooks: int, dimension: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(codebook_size, EMBEDDING_WIDTH) for _ in range(num_codebooks))
        self.layers = nn.Sequential(
            nn.Conv2d(2 * num_codebooks * EMBEDDING_WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(POOLED),
            nn.Flatten(),
            nn.Linear(WIDTH * POOLED**2, 2 * WIDTH),
            nn.ReLU(),
            nn.Linear(2 * WIDTH, dimension),
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """See the class."""
        embedded = [table(codes[..., j]) for codes in (before, after) for j, table in enumerate(self.embeddings)]
        found: Tensor = self.layers(rearrange(torch.cat(embedded, dim=-1), "n h w c -> n c h w"))
        return found


class TrainedProbe:
    """A probe of the actions of a store, trained on its training clips; the same every time.

    Attributes:
        num_pairs: how many pairs of frames it was trained on.
    """

    def __init__(self, store: CodeStore, names: Sequence[str], scale: ActionEmbedding) -> None:
        """Train it. Actions are normalised as the prior normalises them."""
        self._mean, self._std = scale.mean.cpu().numpy(), scale.std.cpu().numpy()
        clips = store.split("train")
        chosen = [clips[i * len(clips) // TRAINING_CLIPS] for i in range(TRAINING_CLIPS)]
        pairs = [
            self._pairs(*self._of_clip(store, clip, names))
            for clip in (chosen if len(clips) > TRAINING_CLIPS else clips)
        ]
        before, after, actions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        self.num_pairs = len(actions)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._probe = Probe(store.codebook_size, store.num_codebooks, len(self._mean))
            optimizer = torch.optim.AdamW(self._probe.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            for _ in range(STEPS):
                rows = torch.randint(self.num_pairs, (BATCH_SIZE,))
                loss = (self._probe(before[rows].long(), after[rows].long()) - actions[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def error(self, codes: NDArray[Any], actions: Rows, first: int = 0) -> tuple[float, float]:
        """Mean squared error of the normalised actions of a clip, and that of guessing their mean.

        Args:
            codes: integers (T, h, w, n_c).
            actions: (T, d).
            first: the first frame whose action is guessed.
        """
        before, after, wanted = self._pairs(codes[first:], actions[first:])
        with torch.no_grad():
            guessed = self._probe(before.long(), after.long())
        return float((guessed - wanted).square().mean()), float(wanted.square().mean())

    def _pairs(self, codes: NDArray[Any], actions: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Codes before and after every known action, and the action, normalised."""
        known = np.isfinite(actions[:-1]).all(-1)
        wanted = ((actions[:-1] - self._mean) / self._std)[known]
        before, after = (torch.from_numpy(some[known].astype(np.int32)) for some in (codes[:-1], codes[1:]))
        return before, after, torch.from_numpy(wanted.astype(np.float32))

    @staticmethod
    def _of_clip(store: CodeStore, clip: CodeClip, names: Sequence[str]) -> tuple[NDArray[Any], Rows]:
        return store.read(clip), read_actions(store, clip, names)
