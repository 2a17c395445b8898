"""Whether artefacts belong together: a run and the codes it is used on. Checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import MismatchError, ShapeError
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import short
from lvt_pipeline.runs.read import precision_of, read_run

if TYPE_CHECKING:
    from lvt_pipeline.models.prior.model import Prior
    from lvt_pipeline.models.vqvae.model import VQVAE

MOST_LISTED = 20  # labels in a message


def require_own_tokenizer(store: CodeStore, vqvae: Path, model: VQVAE) -> None:
    """Refuse to decode codes with a decoder that never saw them.

    Raises:
        MismatchError: the codes were made by another tokenizer; both are named.
    """
    from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint

    tokenizer = tokenizer_fingerprint(model)
    if precision_of(store.tokenizer, tokenizer) is None:
        raise MismatchError(
            f"{store.path} was made by tokenizer {short(store.tokenizer)} but {vqvae} is {short(tokenizer)}; "
            "give the VQ-VAE run that made the codes, or encode again with this one"
        )


def require_matching_runs(vqvae: Path, tokenizer: VQVAE, prior: Path, model: Prior) -> str | None:
    """Refuse a prior that was not trained on codes of a tokenizer.

    Returns:
        The precision in which the tokenizer made these codes; None where the prior does not name its tokenizer.

    Raises:
        MismatchError: K or n_c differ, or the prior was trained on codes of another tokenizer; both are named.
    """
    from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint

    config = model.config
    sizes = (tokenizer.codebook_size, tokenizer.num_codebooks)
    if sizes != (config.codebook_size, config.num_codebooks):
        raise MismatchError(
            f"{vqvae} makes codes with K={sizes[0]}, n_c={sizes[1]}, but the prior {prior} models "
            f"K={config.codebook_size}, n_c={config.num_codebooks}; give the runs of one work directory"
        )
    trained_on = read_run(prior)["facts"].get("tokenizer")
    if trained_on is None:
        return None
    ours = tokenizer_fingerprint(tokenizer)
    precision = precision_of(trained_on, ours)
    if precision is None:
        raise MismatchError(
            f"{prior} was trained on codes of tokenizer {short(trained_on)} but {vqvae} is {short(ours)}; give the "
            "VQ-VAE run that made its codes"
        )
    return precision


def require_fitting_codes(store: CodeStore, prior: Path, model: Prior) -> None:
    """Refuse codes that a prior was not made for.

    Raises:
        MismatchError: K, n_c or the grid differ, or the prior was trained on codes of another tokenizer.
    """
    config = model.config
    found = {"K": store.codebook_size, "n_c": store.num_codebooks, "grid": tuple(store.grid)}
    needed = {"K": config.codebook_size, "n_c": config.num_codebooks, "grid": tuple(config.grid)}
    if found != needed:
        theirs, ours = (", ".join(f"{key}={value}" for key, value in facts.items()) for facts in (found, needed))
        raise MismatchError(f"{store.path} has codes with {theirs}, but the prior {prior} models {ours}")
    tokenizer = read_run(prior)["facts"].get("tokenizer")
    if tokenizer is not None and tokenizer != store.tokenizer:
        raise MismatchError(
            f"{prior} was trained on codes of tokenizer {short(tokenizer)} but {store.path} was made by "
            f"{short(store.tokenizer)}; give the code store that it was trained on, or train a prior on this one"
        )


def require_fitting_length(prior: Path, model: Prior, frames: int) -> None:
    """Refuse clips of a length that a prior cannot take.

    Raises:
        MismatchError: it takes clips of another length.
    """
    try:
        model.geometry(frames)
    except ShapeError as error:
        raise MismatchError(
            f"{prior} does not fit frames={frames}: {error}; use frames={model.config.frames}"
        ) from error


def class_names_of(prior: Path) -> list[str]:
    """Labels that a prior was trained with, in the order of its class numbers; empty without classes."""
    return list(read_run(prior)["facts"].get("class_names", []))


def clips_with_class(
    clips: Sequence[CodeClip], prior: Path, model: Prior, progress: Progress = SILENT, *, remedy: str = ""
) -> list[CodeClip]:
    """The clips that a prior can be used on: all of them without classes, else those whose label it knows.

    A clip without a label has the class "no class", which priors trained with `class_dropout` know. Clips that are left
    out are reported in one line.

    Args:
        remedy: what else may be done, for the line.

    Raises:
        MismatchError: no clip is left.
    """
    if not model.config.num_classes:
        return list(clips)
    names = class_names_of(prior)
    unknown = [clip for clip in clips if not _has_class(clip.label, names, model)]
    if unknown:
        problem = _unknown_label(unknown, prior, names)
        if len(unknown) == len(clips):
            raise MismatchError(f"{problem}; choose clips with one of these labels{remedy}")
        progress.say(f"left out: {problem}{remedy}")
    return [clip for clip in clips if _has_class(clip.label, names, model)]


def require_label(label: str, prior: Path, model: Prior) -> None:
    """Refuse a label that a prior does not know.

    Raises:
        MismatchError: listing the labels that it knows.
    """
    if not model.config.num_classes:
        raise MismatchError(f"the prior {prior} was trained without classes; leave out the label {label!r}")
    names = class_names_of(prior)
    if label not in names:
        raise MismatchError(f"the prior {prior} does not know the label {label!r}; it knows {_listed(names)}")


def _has_class(label: str | None, names: Sequence[str], model: Prior) -> bool:
    return label in names or (not label and bool(model.config.class_dropout))


def _unknown_label(clips: Sequence[CodeClip], prior: Path, names: Sequence[str]) -> str:
    first = clips[0]
    named = f"has the label {first.label!r}" if first.label else "has no label"
    others = f", and {len(clips) - 1} more like it" if len(clips) > 1 else ""
    return f"clip {first.id} {named}{others}: the prior {prior} knows {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_LISTED]) or "no labels"
    return f"{shown} and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else shown


def label_numbers(clips: Sequence[CodeClip], prior: Path, model: Prior) -> list[int] | None:
    """The class of each clip as the prior counts classes; None for a prior without classes. See `clips_with_class`.

    Raises:
        MismatchError: a clip has a label that the prior does not know.
    """
    if not model.config.num_classes:
        return None
    names = class_names_of(prior)
    unknown = [clip for clip in clips if not _has_class(clip.label, names, model)]
    if unknown:
        raise MismatchError(_unknown_label(unknown, prior, names))
    return [names.index(clip.label) if clip.label in names else model.config.num_classes for clip in clips]
