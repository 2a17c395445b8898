"""Run directories, read: what a run is, and the model it holds.

Importing this module is cheap; torch loads when a model does. The writing side is `runs.directory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvt_pipeline import lineage
from lvt_pipeline.config import build, without_none
from lvt_pipeline.errors import CheckpointError, ConfigError, MismatchError
from lvt_pipeline.provenance import RECORD_NAME, Provenance, read_record
from lvt_pipeline.runs.layout import CONFIG_NAME, RUN_NAME, digest_of, read_sealed
from lvt_pipeline.storage import read_toml

if TYPE_CHECKING:
    from torch import nn

    from lvt_pipeline.models.prior.model import Prior
    from lvt_pipeline.models.vqvae.model import VQVAE

VQVAE_KIND = "vqvae-run"
PRIOR_KIND = "prior-run"
PRECISIONS = ("float32", "bfloat16")  # of a tokenizer's encoder
SPOKEN_KINDS = {VQVAE_KIND: "VQ-VAE", PRIOR_KIND: "prior"}


def read_run(run: Path | str) -> dict[str, Any]:
    """The description of a run directory of either kind, without opening a weight.

    Returns:
        "kind" ("vqvae-run" or "prior-run"), "status" ("running" - or killed -, "stopped", "failed", "finished"), "step"
        (the last saved one), "max_steps", "started", "updated", "settings", "inputs" (fingerprints by role), "facts"
        (what loading needs in addition to the settings) and "digests" (of files that guarantees depend on).

    Raises:
        CheckpointError: there is none at this path, or its description is damaged or was changed by hand.
    """
    path = Path(run)
    if path.is_file():
        owner = next((parent for parent in path.absolute().parents if (parent / RUN_NAME).is_file()), None)
        raise CheckpointError(f"{path} is a file; give the run directory{'' if owner is None else f' {owner}'}")
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; give the run directory that a train command made")
    if not (path / RUN_NAME).is_file():
        owner = next((parent for parent in path.absolute().parents if (parent / RUN_NAME).is_file()), None)
        hint = "the one that a train command made" if owner is None else f"the whole run {owner}"
        raise CheckpointError(f"{path} is not a run directory (no {RUN_NAME}); give {hint}")
    try:
        return read_sealed(path / RUN_NAME)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is a damaged run directory: {error}; train again with --overwrite") from error


def read_run_record(run: Path | str) -> Provenance | None:
    """The record of a run, None while it is unfinished.

    Raises:
        CheckpointError: the record is damaged or was changed by hand.
    """
    path = Path(run)
    if not (path / RECORD_NAME).exists():
        return None
    record = read_record(path)
    if read_run(path).get("record") != digest_of(record.to_json()):
        raise CheckpointError(
            f"{path / RECORD_NAME} was changed by hand, or belongs to another training; put the one of this run back, "
            "or train again with --overwrite"
        )
    return record


def read_run_config(run: Path | str) -> dict[str, Any]:
    """The resolved settings of a run as nested tables; values that are not set are absent.

    Raises:
        CheckpointError: the run has no config, or one with other settings than the run was made with.
    """
    path = Path(run) / CONFIG_NAME
    settings: dict[str, Any] = without_none(read_run(run)["settings"])
    found = read_toml(path, error=CheckpointError)
    if found != settings:
        raise CheckpointError(
            f"{path} was changed by hand ({_first_change(settings, found)}); undo this, or run the training command "
            "again, which restores the file"
        )
    return settings


def _first_change(settings: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    ours, theirs = _flat(settings), _flat(found)
    name = min(name for name in {*ours, *theirs} if name not in ours or ours[name] != theirs.get(name))
    states = (f"{values[name]!r:.40}" if name in values else "unset" for values in (theirs, ours))
    return f"{name} is {next(states)} but the run has {next(states)}"


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_tokenizer(run: Path | str) -> str | None:
    """Tokenizer fingerprint of a finished VQ-VAE run, without loading a weight; None while it is unfinished.

    Raises:
        CheckpointError: there is no run at this path.
        MismatchError: the run is not a VQ-VAE.
    """
    require_kind(Path(run), VQVAE_KIND)
    record = read_run_record(run)
    return None if record is None else str(record.counts["tokenizer"])


def in_precision(tokenizer: str, precision: str | None) -> str:
    """Fingerprint of a tokenizer whose encoder runs in this precision (None: float32), which changes some codes."""
    if precision in (None, PRECISIONS[0]):
        return tokenizer
    return lineage.precise_tokenizer_fingerprint(tokenizer, str(precision))


def precision_of(made_by: str, tokenizer: str) -> str | None:
    """The precision in which this tokenizer made the codes of a store that names `made_by`; None: it did not."""
    return next((name for name in PRECISIONS if in_precision(tokenizer, name) == made_by), None)


def run_fingerprint(run: Path | str) -> str:
    """Fingerprint of the weights that `load_vqvae` or `load_prior` would load now, finished or not.

    Raises:
        CheckpointError: there is no run at this path, or nothing saved in it.
    """
    read_run(run)
    record = read_run_record(run)
    if record is not None:
        return record.fingerprint
    from lvt_pipeline.runs.checkpoints import find_checkpoint, load_all_weights, verify_checkpoint, weights_digest

    checkpoint = find_checkpoint(Path(run))
    verify_checkpoint(checkpoint)
    return weights_digest(load_all_weights(checkpoint))


def load_vqvae(run: Path | str, checkpoint: str | int = "latest", device: str = "auto") -> VQVAE:
    """The VQ-VAE of a run, in evaluation mode.

    Args:
        checkpoint: "latest", "best" (lowest validation error) or a step.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Returns:
        a model with `.encode(uint8 (N, H, W, 3)) -> int64 (N, h, w, n_c)` and `.decode(codes) -> uint8`. When the run
        keeps a moving average of its weights, that average.

    Raises:
        CheckpointError: no run directory, nothing saved yet, or damaged files.
        MismatchError: the run holds a prior.
    """
    from lvt_pipeline.models.vqvae.config import VQVAEConfig
    from lvt_pipeline.models.vqvae.model import VQVAE

    path = Path(run)
    require_kind(path, VQVAE_KIND)
    model = VQVAE(_model_config(path, VQVAEConfig))
    _fill(model, path, checkpoint, device)
    return model


def load_prior(run: Path | str, checkpoint: str | int = "latest", device: str = "auto") -> Prior:
    """The prior of a run, in evaluation mode, with its class names. Arguments and errors as in `load_vqvae`."""
    from lvt_pipeline.models.prior.config import PriorConfig
    from lvt_pipeline.models.prior.model import Prior

    path = Path(run)
    require_kind(path, PRIOR_KIND)
    model = Prior(_model_config(path, PriorConfig))
    model.class_names = tuple(read_run(path)["facts"].get("class_names", []))
    _fill(model, path, checkpoint, device)
    return model


def require_kind(run: Path, kind: str) -> None:
    """Refuse a run of another kind.

    Raises:
        CheckpointError: there is no run at this path.
        MismatchError: it is of another kind.
    """
    found = read_run(run)["kind"]
    if found != kind:
        raise MismatchError(
            f"{run} is a {SPOKEN_KINDS.get(found, found)} run; a {SPOKEN_KINDS[kind]} run is needed here"
        )


def _model_config(run: Path, cls: Any) -> Any:
    try:
        return build(cls, read_run_config(run)["model"], where=str(run / CONFIG_NAME))
    except ConfigError as error:
        raise CheckpointError(f"{run} was made by another version of lvt: {error}") from error


def _fill(model: nn.Module, run: Path, which: str | int, device: str) -> None:
    """Put the weights of a checkpoint into a model, and the model on a device."""
    from lvt_pipeline.models.device import choose_device
    from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME, find_checkpoint, load_weights, verify_checkpoint

    checkpoint = find_checkpoint(run, which)
    record = read_run_record(run)
    if record is not None and which == "latest" and checkpoint.step != record.counts["steps"]:
        raise CheckpointError(
            f"{run} is finished at step {record.counts['steps']} but that checkpoint is missing; put it back, ask for "
            f"step {checkpoint.step}, or run its training again to resume from there"
        )
    verify_checkpoint(checkpoint)
    name = EMA_NAME if (checkpoint.path / EMA_NAME).exists() else MODEL_NAME
    try:
        model.load_state_dict(load_weights(checkpoint, name))
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path / name} does not fit the settings in {run / RUN_NAME}: one is from another run"
        ) from error
    model.to(choose_device(device))
    model.eval()
