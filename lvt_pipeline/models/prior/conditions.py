"""What a prior knows next to the codes: the class of a clip, and the actions that act between its frames.

The action recorded with frame t acts on the step from t to t + 1: codes of frame f depend on actions 0 to f - 1 and on
no later one, whatever the order of the slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.arguments import shown
from lvt_pipeline.models.prior.config import PriorConfig

Labels = Tensor | np.ndarray[Any, Any] | Sequence[int] | Sequence[str] | None
Actions = Tensor | np.ndarray[Any, Any] | None


class Conditions(NamedTuple):
    """The conditions of some clips, checked.

    Attributes:
        labels: int64 (B,); None for a prior without classes.
        actions: float32 (B, T, d) in the units of the code store, NaN where there is none; None for a prior without
            actions, or when no clip has any.
    """

    labels: Tensor | None = None
    actions: Tensor | None = None

    def of(self, clips: Tensor | Sequence[int] | slice) -> Conditions:
        """Those of some of the clips, by their numbers."""
        return Conditions(*(None if values is None else values[clips] for values in self))

    def window(self, first: int, frames: int) -> Conditions:
        """Those of a window that begins at frame `first`."""
        return self._replace(actions=None if self.actions is None else self.actions[:, first : first + frames])

    def with_dropped(self, config: PriorConfig) -> Conditions:
        """Those of the clips, then again without what training dropped: the two streams of guidance."""
        labels, actions = self
        if labels is not None:
            no_class = torch.full_like(labels, config.num_classes) if config.class_dropout else labels
            labels = torch.cat([labels, no_class])
        if actions is not None:
            none = torch.full_like(actions, torch.nan) if config.drops_actions else actions
            actions = torch.cat([actions, none])
        return Conditions(labels, actions)


class ActionEmbedding(nn.Module):
    """A vector per frame from the actions before it: linear in the last `steps` of them, normalised.

    Each action comes with a 1; an action that is not known, or is left out for guidance, gives zeros in place of both.
    So a frame without actions gets the zero vector, and since `weight` starts at 0, so does every frame of a new model.

    Args:
        dimension: numbers of an action (d).
        steps: how many actions before a frame are read.
        width: of the result.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dimension: int, steps: int, width: int) -> None:
        super().__init__()
        self.steps = steps
        self.weight = nn.Parameter(torch.zeros(width, steps * (dimension + 1)))
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("std", torch.ones(dimension))

    def normalise_by(self, mean: np.ndarray[Any, Any], std: np.ndarray[Any, Any]) -> None:
        """Take the mean and standard deviation (d,) of the training actions; a constant number is only shifted."""
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.where(std > 0, std, 1.0)))

    def forward(self, actions: Tensor) -> Tensor:
        """(B, T, width) from actions (B, T, d); row f is made of actions f - steps to f - 1."""
        is_known = actions.isfinite().all(-1, keepdim=True)
        normal = torch.where(is_known, (actions - self.mean) / self.std, 0.0)
        rows = torch.cat([normal, is_known.to(normal.dtype)], dim=-1)
        before = F.pad(rows[:, :-1], (0, 0, self.steps, 0)).unfold(1, self.steps, 1)
        return F.linear(before.flatten(2), self.weight)


def checked_actions(actions: Actions, dimension: int, batch: int, frames: int) -> Tensor:
    """Actions as float32 (B, T, d), rows behind the last frame cut off and a missing one of the last frame NaN.

    Raises:
        ShapeError: they are not wanted (`dimension` is 0), or not numbers (B, at least T - 1, d).
    """
    if not dimension:
        raise ShapeError("this prior is not conditioned on actions; leave the actions out")
    layout = f"actions are numbers (B, T, d) = ({batch}, {frames}, {dimension}), the last row may be left out"
    if not isinstance(actions, (Tensor, np.ndarray)) or "complex" in str(actions.dtype):
        raise ShapeError(f"{layout}; found {shown(actions)}")
    if actions.ndim != 3 or (len(actions), actions.shape[2]) != (batch, dimension) or actions.shape[1] < frames - 1:
        raise ShapeError(f"{layout}; found {tuple(actions.shape)}")
    tensor = torch.as_tensor(actions).float()[:, :frames]
    return F.pad(tensor, (0, 0, 0, frames - tensor.shape[1]), value=torch.nan)
