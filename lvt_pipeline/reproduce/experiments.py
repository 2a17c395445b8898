"""What each table and figure needs: tokenizers, priors and measurements, at the paper's scale or a smaller one.

A row of the paper is named by the preset that trains it. At a smaller scale the same row has another size and another
training, but keeps the properties compared: number of codebooks, order of generation, attention, adaptive layers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvt_pipeline import config
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.prior.adaptive import cutoffs_by_mass
from lvt_pipeline.models.prior.config import uses_clusters
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import DOWNSAMPLING
from lvt_pipeline.reproduce.published import COPY, DATASETS, TABLES, Dataset, read_table
from lvt_pipeline.reproduce.settings import ReproduceSettings
from lvt_pipeline.training.dry_run import count_by_part
from lvt_pipeline.training.prior_settings import resolve_settings
from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings

# What makes a prior the one of its row. At a smaller scale everything else comes from the scale.
OF_THE_ROW = (
    *("frames", "subscale", "kernel", "kernel_reach", "encoder_position", "attention", "decoder_input", "head"),
    *("cluster_ratio", "priming_frames"),
)


@dataclass(frozen=True)
class TokenizerRecipe:
    """A tokenizer that a table needs."""

    name: str
    settings: VQVAERunSettings


@dataclass(frozen=True)
class PriorRecipe:
    """A prior that a table needs, and the tokenizer whose codes it learns."""

    name: str
    tokenizer: TokenizerRecipe
    settings: PriorRunSettings


@dataclass(frozen=True)
class _Prior:
    """Number of codebooks, preset at the paper's scale, and what differs from that preset."""

    num_codebooks: int
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)


_PRIORS = {name: _Prior(**prior) for name, prior in read_table("priors.toml").items()}


@dataclass(frozen=True)
class Target:
    """A table or figure: its title, its dataset, and the experiments it needs.

    Attributes:
        num_codebooks: of the tokenizers that are measured or shown themselves.
        priors: keys of the priors that are measured or shown.
        is_timed: sampling one clip is timed too.
    """

    name: str
    title: str
    dataset: Dataset
    num_codebooks: Sequence[int] = ()
    priors: Sequence[str] = ()
    is_timed: bool = False

    @property
    def is_table(self) -> bool:
        """Whether it has rows, or is a picture."""
        return self.name in TABLES


def _of_table(name: str) -> Target:
    table = TABLES[name]
    keys = list(dict.fromkeys(row.ours for row in table.rows if row.ours not in (None, COPY)))
    priors = tuple(key for key in keys if key in _PRIORS)
    books = tuple(int(key.removeprefix("nc")) for key in keys if key is not None and key not in _PRIORS)
    return Target(name, table.title, table.dataset, books, priors, is_timed="seconds" in table.columns)


BEST = "nc4-single-frame"  # the best prior of the paper, on both datasets
TARGETS: Mapping[str, Target] = {name: _of_table(name) for name in TABLES} | {
    "figure3": Target("figure3", "Samples", "bair", (), (BEST,)),
    "figure4": Target("figure4", "Samples", "kinetics", (), (BEST,)),
    "figure5": Target("figure5", "Sorted codes frequencies", "bair", (1,)),
    "figure6": Target("figure6", "Sample with its codes", "bair", (), (BEST,)),
    "figure7": Target("figure7", "Good sample with its codes", "kinetics", (), (BEST,)),
    "figure8": Target("figure8", "Bad sample with its codes", "kinetics", (), (BEST,)),
}


def find_targets(names: Sequence[str]) -> list[Target]:
    """The targets of these names, each once; "all" is every one.

    Raises:
        ConfigError: a name is unknown.
    """
    found: dict[str, Target] = {}
    for name in names:
        if name != "all" and name not in TARGETS:
            known = ("all", *TARGETS)
            plain = name.lower().replace(" ", "").replace("_", "").replace("-", "")
            close = [plain] if plain in known else difflib.get_close_matches(plain, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"there is no target {name!r}; {hint}known: {', '.join(known)}")
        found |= TARGETS if name == "all" else {name: TARGETS[name]}
    return list(found.values())


def row_variants(key: str, settings: ReproduceSettings) -> list[str]:
    """The priors that correspond to a row of the paper: one, or both readings of "spatial"."""
    if not key.endswith("-spatial") or settings.spatial == "reference":
        return [key]
    return [f"{key}-full"] if settings.spatial == "full" else [key, f"{key}-full"]


def tokenizer_recipe(dataset: Dataset, num_codebooks: int, settings: ReproduceSettings) -> TokenizerRecipe:
    """The tokenizer of a dataset's tables with a number of codebooks.

    Where the scale makes no difference between the datasets, their tables share it.

    Raises:
        ConfigError: a setting is unknown or does not fit.
    """

    def made(of: Dataset) -> VQVAERunSettings:
        changes = dict(settings.vqvae)
        preset = changes.pop("preset", f"{of}-vqvae-nc{num_codebooks}")
        books = {"model": {"num_codebooks": num_codebooks}}
        tables = config.merge(config.read_preset("vqvae", preset), books, changes)
        return config.build(VQVAERunSettings, tables, where=f"settings of the tokenizer nc{num_codebooks} (vqvae)")

    found = made(dataset)
    shares = found == made("bair")
    return TokenizerRecipe(f"nc{num_codebooks}" if shares else f"{dataset}-nc{num_codebooks}", found)


def prior_recipe(dataset: Dataset, key: str, settings: ReproduceSettings) -> PriorRecipe:
    """The prior of a row, and its tokenizer.

    Raises:
        ConfigError: a setting is unknown or does not fit.
    """
    row = _PRIORS[key]
    tokenizer = tokenizer_recipe(dataset, row.num_codebooks, settings)
    changes = dict(settings.prior)
    base = changes.pop("preset", None)
    tables = config.read_preset("prior", row.preset)
    if base is not None:
        kept = {name: value for name, value in tables["model"].items() if name in OF_THE_ROW}
        tables = config.read_preset("prior", base)
        scaled = {name: value for name, value in tables["model"].items() if name not in OF_THE_ROW}
        tables = {**tables, "model": {**scaled, **kept}}  # the paper's values for all others
    tables = config.merge(tables, {"model": row.changes}, changes)
    found = config.build(PriorRunSettings, tables, where=f"settings of the prior {key} (prior)")
    prefix = "" if tokenizer.name == f"nc{row.num_codebooks}" else f"{dataset}-"
    return PriorRecipe(f"{prefix}{key}", tokenizer, found)


def target_priors(target: Target, settings: ReproduceSettings) -> list[PriorRecipe]:
    """Every prior that a target needs, in the order of its rows."""
    keys = [variant for key in target.priors for variant in row_variants(key, settings)]
    return [prior_recipe(target.dataset, key, settings) for key in keys]


def target_tokenizers(target: Target, settings: ReproduceSettings) -> list[TokenizerRecipe]:
    """The tokenizers that a target measures or shows, without those that only its priors need."""
    return [tokenizer_recipe(target.dataset, books, settings) for books in target.num_codebooks]


def spoken_targets() -> str:
    """A line for each target: name, title, dataset of the paper."""
    width = max(map(len, TARGETS))
    return "\n".join(f"{name:{width}}  {DATASETS[it.dataset]:18}  {it.title}" for name, it in TARGETS.items())


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
