"""The size of a prior that is only planned (paper, table 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvt_pipeline import config
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.models.prior.adaptive import cutoffs_by_mass
from lvt_pipeline.models.prior.config import uses_clusters
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import DOWNSAMPLING
from lvt_pipeline.reproduce.experiments import PriorRecipe
from lvt_pipeline.training.dry_run import count_by_part
from lvt_pipeline.training.prior_settings import resolve_settings
from lvt_pipeline.training.settings import PriorRunSettings


def count_parameters(recipe: PriorRecipe, frame_size: int = 64, codes: Path | None = None) -> int:
    """Parameters of a prior, without making its weights.

    Args:
        frame_size: pixels; decides the grid where there are no codes to look at.
        codes: store that the prior would learn from. While there is none, the cut-offs of adaptive layers are those of
            codes that are all equally frequent.
    """
    settings = recipe.settings
    if codes is not None and codes.exists():
        model = resolve_settings(settings, open_codes(codes)).model
    else:
        tables = config.merge(config.to_plain(settings), {"model": _unseen(recipe, frame_size)})
        model = resolve_settings(config.build(PriorRunSettings, tables)).model
    with torch.device("meta"):
        return sum(count_by_part(Prior(model)).values())


def _unseen(recipe: PriorRecipe, frame_size: int) -> dict[str, Any]:
    """What codes would decide that do not exist yet."""
    books, asked = recipe.tokenizer.settings.model, recipe.settings.model
    side = frame_size // DOWNSAMPLING
    stated: dict[str, Any] = {
        "num_codebooks": books.num_codebooks,
        "codebook_size": books.codebook_size,
        "grid": [side, side],
    }
    if uses_clusters(asked.decoder_input, asked.head) and asked.cutoffs is None:
        counts = np.zeros((books.num_codebooks, books.codebook_size), np.int64)
        stated["cutoffs"] = list(cutoffs_by_mass(counts))
    return stated
