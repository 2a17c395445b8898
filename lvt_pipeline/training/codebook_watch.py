"""Notice when a codebook collapses, and say once what can be done about it.

A codebook has collapsed when validation frames use less than a tenth of the codes they could use. Usage decides, not
perplexity: pictures with much empty background have a low perplexity however healthy their codebook is, but no healthy
codebook leaves nine of ten codes to nobody. Codebooks are judged once they have settled: the reference start brings
most of its codes back only when the moving averages have forgotten it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.usage import perplexity
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.progress import SILENT, Progress

COLLAPSED_USAGE = 0.1


def collapsed_codebooks(occurrences: NDArray[np.int64]) -> list[int]:
    """Which codebooks use a single code, or less than a tenth of those they could use.

    Args:
        occurrences: int64 (n_c, K), how often each code occurs. A row of N positions can use min(K, N) codes.
    """
    result = []
    for book, row in enumerate(occurrences):
        usable = min(len(row), int(row.sum()))
        used = int((row > 0).sum())
        if usable > 1 and (used == 1 or used < COLLAPSED_USAGE * usable):
            result.append(book)
    return result


class CodebookWatch:
    """Says when the codebooks of one training collapse or come back: once per codebook and change."""

    def __init__(self, config: VQVAEConfig, progress: Progress = SILENT) -> None:
        self._config = config
        self._progress = progress
        self._collapsed: set[int] = set()

    def remember(self, collapsed: Iterable[int]) -> None:
        """Codebooks whose collapse was said before the training was interrupted."""
        self._collapsed = set(collapsed)

    def look(self, occurrences: NDArray[np.int64], is_settled: bool) -> list[int]:
        """Collapsed codebooks, in order; news about them is said.

        Args:
            occurrences: int64 (n_c, K), over the validation frames.
            is_settled: whether the codebooks have trained long enough to be judged.
        """
        found = collapsed_codebooks(occurrences) if is_settled else []
        perplexities = perplexity(occurrences)
        for book, row in enumerate(occurrences):
            state = f"{int((row > 0).sum())} of {len(row)} codes used, perplexity {perplexities[book]:.1f}"
            if book in found and book not in self._collapsed:
                self._progress.say(f"codebook {book} has collapsed ({state}); {_advice(self._config)}")
            elif book not in found and book in self._collapsed:
                self._progress.say(f"codebook {book} is in use again ({state})")
        self._collapsed = set(found)
        return found


def _advice(config: VQVAEConfig) -> str:
    """What is left to try, in words; names only settings that are not in use yet."""
    if config.quantizer == "fsq":
        return "these frames need fewer model.fsq_levels, or the training a lower training.learning_rate"
    choices = []
    if config.codebook_init != "kmeans":
        choices.append('model.codebook_init="kmeans"')
        if config.ema_init != "consistent":
            choices.append('model.ema_init="consistent"')
    if config.dead_code != "resample":
        choices.append('model.dead_code="resample"')
    choices.append('model.quantizer="fsq"')
    return f"train a new run with {' or '.join(choices)}, or with a smaller model.codebook_size"
