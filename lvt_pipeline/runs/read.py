"""Run directories, read: what a run is, and the model it holds.

Importing this module is cheap; torch loads when a model does. The writing side is `runs.directory`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvt_pipeline import lineage
from lvt_pipeline.config import build, read_toml
from lvt_pipeline.errors import ArtefactError, CheckpointError, ConfigError, MismatchError
from lvt_pipeline.provenance import RECORD_NAME, Provenance, read_record
from lvt_pipeline.storage import read_json

if TYPE_CHECKING:
    from torch import nn

    from lvt_pipeline.models.prior.model import Prior
    from lvt_pipeline.models.vqvae.model import VQVAE

RUN_NAME = "run.json"
CONFIG_NAME = "config.toml"
METRICS_NAME = "metrics.jsonl"
PICTURES_NAME = "pictures"
RUN_KEYS = ("kind", "status", "step", "max_steps", "started", "updated", "version", "settings", "inputs", "facts")

VQVAE_KIND = "vqvae-run"
PRIOR_KIND = "prior-run"
PRECISIONS = ("float32", "bfloat16")  # of a tokenizer's encoder
SPOKEN_KINDS = {VQVAE_KIND: "VQ-VAE", PRIOR_KIND: "prior"}


def read_run(run: Path | str) -> dict[str, Any]:
    """What a run directory of either kind says about itself, without opening a weight.

    Returns:
        "kind" ("vqvae-run" or "prior-run"), "status" ("running" - or killed -, "stopped", "failed", "finished"), "step"
        (the last saved one), "max_steps", "started", "updated", "settings", "inputs" (fingerprints by role) and "facts"
        (what loading needs beside the settings).

    Raises:
        CheckpointError: there is none at this path, or its description is damaged.
    """
    path = Path(run)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; give the run directory that a train command made")
    if not (path / RUN_NAME).is_file():
        raise CheckpointError(f"{path} is not a run directory (no {RUN_NAME}); give the one that a train command made")
    try:
        state = read_json(path / RUN_NAME)
    except ArtefactError as error:
        raise CheckpointError(f"{path} is a damaged run directory: {error}") from error
    missing = [key for key in RUN_KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(f"{path} is a damaged run directory: {RUN_NAME} does not say its {missing[0]}")
    assert isinstance(state, dict)
    return state


def read_run_record(run: Path | str) -> Provenance | None:
    """The record of a run, None while it is unfinished.

    Raises:
        ArtefactError: the record is damaged.
    """
    path = Path(run)
    return read_record(path) if (path / RECORD_NAME).exists() else None


def read_run_config(run: Path | str) -> dict[str, Any]:
    """The resolved settings of a run as nested tables; values that are not set are absent.

    Raises:
        CheckpointError: the run has no config, or one that is not TOML.
    """
    path = Path(run) / CONFIG_NAME
    try:
        return read_toml(path)
    except ConfigError as error:
        raise CheckpointError(f"{run} cannot be used: {error}") from error


def read_tokenizer(run: Path | str) -> str | None:
    """Tokenizer fingerprint of a finished VQ-VAE run, without loading a weight; None while it is unfinished.

    Raises:
        CheckpointError: there is no run at this path.
        MismatchError: the run is not a VQ-VAE.
    """
    _expect(Path(run), VQVAE_KIND)
    record = read_run_record(run)
    return None if record is None else str(record.counts["tokenizer"])


def in_precision(tokenizer: str, precision: str | None) -> str:
    """Fingerprint of a tokenizer whose encoder runs in this precision (None: float32): some codes are others."""
    if precision in (None, PRECISIONS[0]):
        return tokenizer
    return lineage.precise_tokenizer_fingerprint(tokenizer, str(precision))


def precision_of(made_by: str, tokenizer: str) -> str | None:
    """The precision in which this tokenizer made codes whose store names `made_by`; None: it did not make them."""
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
        checkpoint: "latest", "best" (lowest validation MSE) or a step.
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
    _expect(path, VQVAE_KIND)
    model = VQVAE(_model_config(path, VQVAEConfig))
    _fill(model, path, checkpoint, device)
    return model


def load_prior(run: Path | str, checkpoint: str | int = "latest", device: str = "auto") -> Prior:
    """The prior of a run, in evaluation mode. Arguments and errors as in `load_vqvae`."""
    from lvt_pipeline.models.prior.config import PriorConfig
    from lvt_pipeline.models.prior.model import Prior

    path = Path(run)
    _expect(path, PRIOR_KIND)
    model = Prior(_model_config(path, PriorConfig))
    _fill(model, path, checkpoint, device)
    return model


def _expect(run: Path, kind: str) -> None:
    found = read_run(run)["kind"]
    if found != kind:
        raise MismatchError(
            f"{run} is a {SPOKEN_KINDS.get(found, found)} run; a {SPOKEN_KINDS[kind]} run is needed here"
        )


def _model_config(run: Path, cls: Any) -> Any:
    config = read_run_config(run)
    try:
        return build(cls, config["model"], where=str(run / CONFIG_NAME))
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{run} cannot be used: its {CONFIG_NAME} was changed ({error})") from error


def _fill(model: nn.Module, run: Path, which: str | int, device: str) -> None:
    """Put the weights of a checkpoint into a model, and the model on a device."""
    from lvt_pipeline.models.device import choose_device
    from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME, find_checkpoint, load_weights, verify_checkpoint

    checkpoint = find_checkpoint(run, which)
    record = read_run_record(run)
    if record is not None and which == "latest" and checkpoint.step != record.counts["steps"]:
        raise CheckpointError(
            f"{run} is finished at step {record.counts['steps']} but that checkpoint is missing; put it back, ask for "
            f"step {checkpoint.step}, or run its training again to go on from there"
        )
    verify_checkpoint(checkpoint)
    name = EMA_NAME if (checkpoint.path / EMA_NAME).exists() else MODEL_NAME
    try:
        model.load_state_dict(load_weights(checkpoint, name))
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path / name} does not fit {run / CONFIG_NAME}, which was changed by hand: "
            f"{str(error).splitlines()[0]}"
        ) from error
    model.to(choose_device(device))
    model.eval()
