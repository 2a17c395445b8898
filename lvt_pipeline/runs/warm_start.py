"""Warm starts: a new model takes the weights of an earlier run where names and shapes fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lvt_pipeline.errors import MismatchError
from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME, find_checkpoint, load_weights, verify_checkpoint
from lvt_pipeline.runs.read import require_kind, run_fingerprint


@dataclass(frozen=True)
class WarmStart:
    """The run whose weights a training starts from.

    Attributes:
        run: its directory. The moving average is taken where it has one, as `load_prior` does.
        fingerprint: of its weights.
        fresh: beginnings of the names of weights that start fresh although their shapes fit, because they mean
            something else in the new model.
        required: beginnings of the names of weights that must come from the run.
    """

    run: Path
    fingerprint: str
    fresh: Sequence[str] = ()
    required: Sequence[str] = ()

    @classmethod
    def of(cls, run: Path, kind: str, *, fresh: Sequence[str] = (), required: Sequence[str] = ()) -> WarmStart:
        """A warm start from a run of this kind.

        Raises:
            CheckpointError: no run directory, nothing saved yet, or damaged files.
            MismatchError: a run of another kind.
        """
        require_kind(run, kind)
        return cls(run, run_fingerprint(run), tuple(fresh), tuple(required))

    def fill(self, model: nn.Module) -> list[str]:
        """Give a model the weights that fit.

        Returns:
            names of the weights and buffers that keep their own values.

        Raises:
            MismatchError: no weight fits, or a required one does not.
        """
        own = model.state_dict()
        taken = self._fitting(own)
        if not taken:
            raise MismatchError(f"no weight of {self.run} fits this model; give a run of a model like it")
        left = sorted(own.keys() - taken.keys())
        lacking = [name for name in left if name.startswith(tuple(self.required))]
        if lacking:
            raise MismatchError(
                f"{lacking[0]} of {self.run} does not fit this model, and it must stay as it is; use the model "
                "settings of that run"
            )
        model.load_state_dict({**own, **taken})
        return left

    def _fitting(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        checkpoint = find_checkpoint(self.run)
        verify_checkpoint(checkpoint)
        found = load_weights(checkpoint, EMA_NAME if (checkpoint.path / EMA_NAME).exists() else MODEL_NAME)
        return {
            name: value
            for name, value in found.items()
            if name in own and own[name].shape == value.shape and not name.startswith(tuple(self.fresh))
        }
