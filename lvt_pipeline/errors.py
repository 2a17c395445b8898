"""Errors a user can meet: each becomes one line on stderr and an exit code. Anything else is a bug, with its traceback.

A message states the finding, the requirement and the remedy.
"""

from __future__ import annotations


class LVTError(Exception):
    """Base of every expected failure. `exit_code` is what a command ends with."""

    exit_code = 1


class ConfigError(LVTError):
    """A setting is unknown, of the wrong type, or does not fit another setting."""


class ShapeError(LVTError):
    """An array has a shape, dtype or range that the callee cannot use."""


class ManifestError(LVTError):
    """A manifest, or a line of it, cannot be used."""


class DecodeError(LVTError):
    """One clip cannot be decoded. Recorded as a failure; it never ends a run by itself.

    Attributes:
        reason: one of `video.decode.FAILURE_REASONS`, for counting.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ArtefactError(LVTError):
    """A file or directory is not the artefact it was given as, is incomplete, or is damaged."""


class StoreError(ArtefactError):
    """A code store cannot be opened, extended or trusted."""


class CheckpointError(ArtefactError):
    """A run directory or checkpoint is missing, cut short, or belongs to another configuration."""


class ChangedRunError(CheckpointError):
    """A run was started with other settings or inputs than it is asked to resume with."""


class MismatchError(LVTError):
    """Two artefacts do not belong together (codes of another tokenizer, a prior of another grid)."""


class NotFiniteError(LVTError):
    """Weights or predictions of a network are not finite (NaN or infinite), so nothing can be made with it."""


class BusyError(LVTError):
    """Another process is writing the same output."""


class TrainingError(LVTError):
    """Training cannot continue (the loss is not finite, there is nothing to train on)."""


class OverBudget(LVTError):
    """The work is finished and usable, but more clips failed than `--max-failures` allows."""

    exit_code = 3


class Stopped(LVTError):
    """A signal asked to stop; everything finished is saved. Run the same command again to resume."""

    exit_code = 75
