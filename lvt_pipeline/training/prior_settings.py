"""Settings of a prior and its training, and what the codes decide of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.codes.usage import count_codes
from lvt_pipeline.config import build, to_plain
from lvt_pipeline.errors import ConfigError, MismatchError
from lvt_pipeline.models.prior.adaptive import cutoffs_by_mass
from lvt_pipeline.models.prior.config import PriorConfig, PriorModelSettings, uses_clusters
from lvt_pipeline.progress import count_of
from lvt_pipeline.runs.actions import action_widths
from lvt_pipeline.training.settings import PriorRunSettings, PriorTraining

FROM_STORE = {"codebook_size": 512, "num_codebooks": 4, "grid": (16, 16)}  # defaults where there is no store: the paper
BAIR_ACTION_WIDTH = 4


@dataclass(frozen=True, kw_only=True)
class ResolvedPriorSettings:
    """Run settings with nothing left open, as they are saved in the run."""

    model: PriorConfig
    training: PriorTraining


def require_alike(stores: Sequence[CodeStore]) -> None:
    """Refuse stores whose codes mean different things, which cannot be used in one training.

    Raises:
        MismatchError: the stores differ in K, n_c, grid or tokenizer.
    """
    first = stores[0]
    for other in stores[1:]:
        for name in ("codebook_size", "num_codebooks", "grid", "tokenizer"):
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                short = (_as_text(value)[:12] if name == "tokenizer" else _as_text(value) for value in (ours, theirs))
                raise MismatchError(
                    f"{first.path} and {other.path} cannot be used in one training: {name} is {next(short)} in the "
                    f"first and {next(short)} in the second; encode both with the same VQ-VAE"
                )


def resolve_settings(
    settings: PriorRunSettings, store: CodeStore | None = None, others: Sequence[CodeStore] = ()
) -> ResolvedPriorSettings:
    """Fill in what the codes decide.

    Args:
        others: further stores of a mixture, whose codes are alike.
        store: None gives the paper's values to what the settings leave open, and cut-offs for codes that are all
            equally frequent.

    Raises:
        MismatchError: the settings state something else than the store has.
        ConfigError: the model cannot be built.
    """
    actions = settings.model.actions or ()
    found: dict[str, Any] = FROM_STORE | ({"action_widths": (BAIR_ACTION_WIDTH,) * len(actions)} if actions else {})
    if store is not None:
        found = _found_in(store, settings.model)
    values = {name: value for name, value in to_plain(settings.model).items() if value is not None}
    if settings.model.num_classes == "auto":
        values["num_classes"] = len(_labels_of([] if store is None else [store, *others]))
    if uses_clusters(settings.model.decoder_input, settings.model.head) and settings.model.cutoffs is None:
        shape = (found["num_codebooks"], found["codebook_size"])
        counts = (
            np.zeros(shape, np.int64) if store is None else count_train_codes([store, *others], settings.training.mix)
        )
        found["cutoffs"] = cutoffs_by_mass(counts)
    where = "settings" if store is None else f"settings for {store.path}"
    try:
        model = build(PriorConfig, {**found, **values}, where=where)
    except ConfigError as error:
        raise ConfigError(f"{error} (table [model])") from error
    return ResolvedPriorSettings(model=model, training=settings.training)


def _found_in(store: CodeStore, model: PriorModelSettings) -> dict[str, Any]:
    """The settings that a store decides."""
    found = {"codebook_size": store.codebook_size, "num_codebooks": store.num_codebooks, "grid": tuple(store.grid)}
    if model.actions:
        found["action_widths"] = action_widths(store, model.actions)
    stated = {name: getattr(model, name) for name in found}
    wrong = [name for name, value in stated.items() if value is not None and value != found[name]]
    if wrong:
        ours = ", ".join(f"{name}={_as_text(stated[name])}" for name in wrong)
        theirs = ", ".join(f"{name}={_as_text(found[name])}" for name in wrong)
        raise MismatchError(
            f"the settings say model.{ours} but the codes in {store.path} have {theirs}; "
            "leave them out of the settings, or give the codes they were written for"
        )
    return found


def class_names(stores: Sequence[CodeStore], config: PriorConfig) -> list[str]:
    """Labels of the stores in the order of their class numbers, [] for an unconditional prior.

    Raises:
        MismatchError: there are more labels than classes, or clips without a label and no class for them.
    """
    if not config.num_classes:
        return []
    names = _labels_of(stores)
    if len(names) > config.num_classes:
        where = " and ".join(str(store.path) for store in stores)
        raise MismatchError(
            f"model.num_classes={config.num_classes} but {where} has {len(names)} labels; set model.num_classes=auto"
        )
    for store in stores:
        unlabelled = [clip.id for clip in store.clips if not clip.label]
        if unlabelled and not config.class_dropout:
            raise MismatchError(
                f"model.num_classes={config.num_classes} but {store.path} has {count_of(len(unlabelled), 'clip')} "
                f"without a label, such as {unlabelled[0]}; known labels are "
                f"{', '.join(names) or 'none'}. Give these clips one, or set model.class_dropout=0.1, "
                "which also trains without a class"
            )
    return names


def _labels_of(stores: Sequence[CodeStore]) -> list[str]:
    return sorted({clip.label for store in stores for clip in store.clips if clip.label})


def count_train_codes(stores: Sequence[CodeStore], mix: Sequence[float] | None) -> NDArray[np.int64]:
    """How often each code occurs in training, int64 (n_c, K): counted in one store, in proportion in a mixture."""
    counts = [count_codes(store, "train") for store in stores]
    if len(stores) == 1:
        return counts[0]
    weights = np.asarray(mix or [1.0] * len(stores))
    total = sum(one.sum() for one in counts)
    mixed = np.zeros(counts[0].shape)
    for one, weight in zip(counts, weights, strict=True):
        mixed += one * (total * weight / weights.sum() / max(1, one.sum()))
    result: NDArray[np.int64] = np.ceil(mixed).astype(np.int64)
    return result


def _as_text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
