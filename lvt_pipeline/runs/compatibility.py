"""Whether artefacts belong together: a run and the codes it is used on. Checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import MismatchError, ShapeError
from lvt_pipeline.provenance import short
from lvt_pipeline.runs.read import precision_of, read_run

if TYPE_CHECKING:
    from lvt_pipeline.models.prior.model import Prior
    from lvt_pipeline.models.vqvae.model import VQVAE


def check_tokenizer(store: CodeStore, vqvae: Path, model: VQVAE) -> None:
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


def check_prior(store: CodeStore, prior: Path, model: Prior) -> None:
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


def check_frames_count(prior: Path, model: Prior, frames: int) -> None:
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


def label_numbers(clips: Sequence[CodeClip], prior: Path, model: Prior) -> list[int] | None:
    """The class of each clip as the prior counts classes; None for a prior without classes.

    Raises:
        MismatchError: a clip has a label that the prior does not know.
    """
    if not model.config.num_classes:
        return None
    names = list(read_run(prior)["facts"].get("class_names", []))
    for clip in clips:
        if clip.label not in names:
            raise MismatchError(f"clip {clip.id} has the label {clip.label!r}, which the prior {prior} does not know")
    return [names.index(clip.label) for clip in clips]
