"""Checkpoints of a run: weights as safetensors, the rest as one file that torch opens with `weights_only=True`.

    run/checkpoints/step-00000400/model.safetensors   the weights being trained
                                  ema.safetensors     their moving average, when the run keeps one
                                  state.pt            optimizer, position, partial averages
                                  files.json          size and digest of each of these
    run/checkpoints/best.json                         which step had the best validation score
    run/checkpoints/latest.json                       which step to resume from; written last

A checkpoint directory appears whole or not at all, and the pointer moves only once it is on the device. The JSON files
are sealed, see `runs.layout`.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lvt_pipeline import lineage
from lvt_pipeline.errors import CheckpointError, NotFiniteError
from lvt_pipeline.provenance import digest_file
from lvt_pipeline.runs.layout import CHECKPOINTS_NAME, read_sealed, write_sealed
from lvt_pipeline.storage import atomic_directory, describe_os_error

LATEST_NAME = "latest.json"
BEST_NAME = "best.json"
FILES_NAME = "files.json"
MODEL_NAME = "model.safetensors"
EMA_NAME = "ema.safetensors"
STATE_NAME = "state.pt"
STEP_PATTERN = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One saved step of a run.

    Attributes:
        path: its directory, `run/checkpoints/step-00000400`.
        step: how many steps had been taken.
    """

    path: Path
    step: int


def save_checkpoint(
    run: Path,
    step: int,
    weights: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    best: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write a checkpoint, make it the latest, then remove those no longer kept.

    Args:
        weights: tensors by name, for each file (`model.safetensors`, ...).
        state: plain data and tensors that `torch.load(weights_only=True)` can read back.
        keep: how many of the newest checkpoints stay; the best one stays as well.
        best: facts about the best step so far, with its number under "step"; None when there is no validation.

    Raises:
        LVTError: it cannot be written (disk full, ...); earlier checkpoints are untouched.
    """
    folder = run / CHECKPOINTS_NAME
    checkpoint = Checkpoint(folder / f"step-{step:08d}", step)
    if checkpoint.path.exists():  # left by a run that was killed before the pointer moved
        shutil.rmtree(checkpoint.path)
    contents = {name: _safetensors(tensors) for name, tensors in weights.items()}
    contents[STATE_NAME] = _saved(state)
    receipts = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    with atomic_directory(checkpoint.path) as temporary:
        for name, data in contents.items():
            (temporary / name).write_bytes(data)
        write_sealed(temporary / FILES_NAME, {"step": step, "files": receipts})
    if best is not None:
        write_sealed(folder / BEST_NAME, best)
    pointer = {"step": step, "path": checkpoint.path.name, "digest": receipts[MODEL_NAME]["sha256"]}
    write_sealed(folder / LATEST_NAME, pointer)
    _keep_only(run, {found.step for found in list_checkpoints(run)[-keep:]} | ({best["step"]} if best else set()))
    return checkpoint


def _saved(state: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    return stream.getvalue()


def _keep_only(run: Path, steps: Collection[int]) -> None:
    for found in list_checkpoints(run):
        if found.step not in steps:
            shutil.rmtree(found.path, ignore_errors=True)


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """Checkpoints on disk, oldest first. Their contents are not looked at."""
    folder = run / CHECKPOINTS_NAME
    if not folder.is_dir():
        return []
    matches = [(STEP_PATTERN.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((Checkpoint(path, int(match[1])) for match, path in matches if match), key=lambda found: found.step)


def find_checkpoint(run: Path, which: str | int = "latest") -> Checkpoint:
    """Choose a checkpoint of a run; it is not opened.

    Args:
        which: "latest", "best" (by the validation score) or a step. When the latest one was removed by hand, the newest
            that is left is the latest.

    Raises:
        CheckpointError: there is none, or not that one (the existing ones are named), or the pointer to it is damaged.
    """
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(f"{run} has no checkpoint yet; let its training reach one, by running the same command")
    by_step = {checkpoint.step: checkpoint for checkpoint in found}
    if which == "latest":
        step = _pointed_step(run / CHECKPOINTS_NAME / LATEST_NAME)
        return by_step.get(step if step is not None else -1, found[-1])
    if which == "best":
        step = _pointed_step(run / CHECKPOINTS_NAME / BEST_NAME)
        if step is None:
            raise CheckpointError(
                f"{run} has no best checkpoint: it had nothing to validate on; ask for the latest one"
            )
        which = step
    if isinstance(which, int) and which in by_step:
        return by_step[which]
    known = ", ".join(str(step) for step in by_step)
    raise CheckpointError(f"{run} has no checkpoint {which!r}; known: latest, best, and the steps {known}")


def drop_checkpoints_after(run: Path, step: int) -> None:
    """Remove checkpoints of a killed run that its pointer never reached. Call it only while holding the run's lock."""
    for checkpoint in list_checkpoints(run):
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.path)


def verify_checkpoint(checkpoint: Checkpoint) -> None:
    """Compare every file of a checkpoint with the digest in its `files.json`.

    Raises:
        CheckpointError: a file is missing, cut short or changed; named with the checkpoint to use instead.
    """
    problem = _first_problem(checkpoint)
    if problem:
        raise CheckpointError(f"{problem}; {_alternative(checkpoint)}")


def files_of(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Size and digest of each file of a checkpoint, by name.

    Raises:
        CheckpointError: `files.json` is missing, damaged or was changed by hand.
    """
    files: dict[str, dict[str, Any]] = read_sealed(checkpoint.path / FILES_NAME)["files"]
    return files


def load_weights(checkpoint: Checkpoint, name: str = MODEL_NAME, device: str = "cpu") -> dict[str, Tensor]:
    """Tensors of one weights file of a verified checkpoint.

    Raises:
        CheckpointError: it cannot be read.
        NotFiniteError: a weight is NaN or infinite.
    """
    path = checkpoint.path / name
    try:
        weights = safetensors.torch.load_file(path, device=device)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise describe_os_error(error, f"reading {path}") from error
        raise CheckpointError(f"{path} is missing; {_alternative(checkpoint)}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a weights file; {_alternative(checkpoint)}") from error
    for key, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NotFiniteError(
                f"{path} cannot be used: its weights {key} are not finite; use another checkpoint of the run, or train "
                "with a lower training.learning_rate"
            )
    return weights


def load_all_weights(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Every weights file of a verified checkpoint, by file name."""
    names = [name for name in (MODEL_NAME, EMA_NAME) if (checkpoint.path / name).exists()]
    return {name: load_weights(checkpoint, name) for name in names}


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Optimizer state, position and partial averages of a verified checkpoint, on the CPU.

    Raises:
        CheckpointError: it cannot be read, or holds more than plain data and tensors (nothing in it is executed).
    """
    path = checkpoint.path / STATE_NAME
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive of pickled data can fail in any way
        found = "holds objects that are refused as unsafe" if "weights_only" in str(error).lower() else "is damaged"
        raise CheckpointError(f"{path} {found}; {_alternative(checkpoint)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not the state of a training; {_alternative(checkpoint)}")
    return state


def weights_digest(weights: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Hash of names, types, shapes and values, whatever order the tensors come in."""
    return lineage.run_fingerprint(
        {
            file: {name: [str(value.dtype), list(value.shape), _digest(value)] for name, value in tensors.items()}
            for file, tensors in weights.items()
        }
    )


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    return safetensors.torch.save(
        {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    )


def _digest(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def _pointed_step(pointer: Path) -> int | None:
    """The step that a pointer names, None when there is no pointer."""
    if not pointer.exists():
        return None
    try:
        step: int = read_sealed(pointer)["step"]
    except CheckpointError as error:
        effect = (
            "makes the newest checkpoint the latest" if pointer.name == LATEST_NAME else "leaves no best checkpoint"
        )
        raise CheckpointError(f"{error}; deleting this file {effect}") from error
    return step


def _first_problem(checkpoint: Checkpoint) -> str:
    """The problem of a checkpoint, "" when there is none."""
    receipt = checkpoint.path / FILES_NAME
    try:
        files = files_of(checkpoint)
    except CheckpointError:
        return f"{receipt} is missing or damaged"
    for name, entry in files.items():
        path = checkpoint.path / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{path} is damaged: it has {path.stat().st_size} bytes, {entry['bytes']} were written"
        if digest_file(path) != entry["sha256"]:
            return f"{path} is damaged: its bytes are not those that were written"
    return ""


def _alternative(checkpoint: Checkpoint) -> str:
    run = checkpoint.path.parent.parent
    others = [other for other in list_checkpoints(run) if other.step != checkpoint.step and not _first_problem(other)]
    older = [other for other in others if other.step < checkpoint.step]
    if not others:
        return "this run has no other good checkpoint; train it again with --overwrite"
    other = (older or others)[-1]
    return f"step {other.step} in {other.path} is good: delete {checkpoint.path} to resume from there"
