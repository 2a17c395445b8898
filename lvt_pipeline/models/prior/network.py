"""The networks of the prior and what both training and sampling need of them: encoder, decoder, channel predictor.

For one slice of the video (see `subscale.py`): an encoder reads the slices before it, a causal decoder reads the pixels
of the slice itself, and the channel predictor gives the n_c codes of a pixel one after another. No one-hot tensor is
ever made: a convolution of one-hot codes is a sum of rows of its weight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.arguments import shown
from lvt_pipeline.models.prior.channels import ChannelPredictor
from lvt_pipeline.models.prior.conditions import Actions, Conditions, Labels, checked_actions
from lvt_pipeline.models.prior.config import PriorConfig, Triple
from lvt_pipeline.models.prior.context import ContextEncoder
from lvt_pipeline.models.prior.decoder import SliceDecoder
from lvt_pipeline.models.prior.subscale import Subscale, ordinary_tensors, subscale

Codes = Tensor | np.ndarray[Any, Any]


class PriorNetwork(nn.Module):
    """The parts of a prior, and the geometry of the clips it takes.

    Attributes:
        class_names: names of the classes in the order of their numbers, where they are known; a run records them.

    Raises:
        ConfigError: see `PriorConfig`.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.class_names: tuple[str, ...] = ()
        geometry = self.geometry(config.frames)
        self.encoder = ContextEncoder(config, geometry.num_slices)
        self.decoder = SliceDecoder(config)
        self.predictor = ChannelPredictor(config)
        self._tables: dict[tuple[Triple, str], tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.context.weight.device

    @property
    def trainable_slices(self) -> list[int]:
        """Slices with at least one pixel outside the priming frames; the others are never trained."""
        geometry = self.geometry(self.config.frames)
        primed = geometry.num_primed(self.config.priming_frames)
        return [index for index in range(geometry.num_slices) if int(primed[index]) < geometry.num_pixels]

    def geometry(self, frames: int) -> Subscale:
        """Slices and contexts of clips with `frames` frames.

        Raises:
            ShapeError: the model cannot take clips of that length.
        """
        config = self.config
        if config.subscale[0] > 1 and frames != config.frames:
            raise ShapeError(f"this prior takes clips of exactly {config.frames} frames, found {frames}")
        if frames < 1 or frames % config.block_shape[0]:
            raise ShapeError(
                f"this prior takes clips of a multiple of {config.block_shape[0]} frames (its attention block), "
                f"found {frames}"
            )
        return subscale((frames, *config.grid), config.subscale, config.kernel, config.kernel_reach)

    def checked_conditions(self, labels: Labels, actions: Actions, batch: int, frames: int) -> Conditions:
        """Labels and actions of clips, checked and on the model's device.

        A model trained with `class_dropout` also knows "no class": the number `num_classes`, or no labels at all.
        Without actions, every action of a model that takes some is unknown.

        Args:
            labels: int (B,), or names of `class_names`; None for a model without classes.
            actions: numbers (B, T, d) in the units of the code store, NaN where unknown. Row t acts on the step from
                frame t to t + 1, so the last one may be left out.

        Raises:
            ShapeError: they are missing, not wanted, or of other shapes or ranges.
        """
        some_labels = self._checked_labels(labels, batch)
        if actions is None:
            return Conditions(some_labels)
        checked = checked_actions(actions, self.config.action_width, batch, frames)
        return Conditions(some_labels, checked.to(self.device))

    def _checked_labels(self, labels: Labels, batch: int) -> Tensor | None:
        num_classes, num_rows = self.config.num_classes, self.config.label_rows
        if labels is None:
            if num_rows > num_classes:
                return torch.full((batch,), num_classes, device=self.device)
            if num_classes:
                raise ShapeError(f"this prior is conditioned on {num_classes} classes; give a label for every clip")
            return None
        if not num_classes:
            raise ShapeError("this prior is not conditioned on classes; leave the labels out")
        tensor = _integers("labels", self._numbers_of(labels), (batch,))
        if batch and not 0 <= int(tensor.min()) <= int(tensor.max()) < num_rows:
            raise ShapeError(f"labels must be in [0, {num_rows}), found {int(tensor.min())} to {int(tensor.max())}")
        return tensor.to(self.device, torch.int64)

    def _numbers_of(self, labels: Any) -> Any:
        """Labels with names replaced by numbers."""
        if isinstance(labels, (Tensor, np.ndarray)) or not any(isinstance(label, str) for label in labels):
            return labels
        unknown = [label for label in labels if label not in self.class_names]
        if unknown:
            known = ", ".join(self.class_names) or "no names"
            raise ShapeError(f"this prior does not know the label {shown(unknown[0])}; it knows {known}")
        return [self.class_names.index(label) for label in labels]

    def context_table(self, geometry: Subscale) -> Tensor:
        """The rows that contexts of this geometry sum; the same for every slice."""
        return self.encoder.context.table(self.device_tables(geometry)[2])

    def encode_context(
        self, codes: Tensor, slice_indices: Tensor, conditions: Conditions, geometry: Subscale, table: Tensor
    ) -> Tensor:
        """Encoder output (B, P, d) for one slice of each video.

        Args:
            codes: int64 (B, T*h*w, n_c) on the model's device; only slices before the given ones are read.
            slice_indices: int64 (B,).
            conditions: of these videos, with the actions of their T frames.
        """
        positions, context, _ = self.device_tables(geometry)
        rows = self.encoder.context.rows(codes, context[slice_indices])
        labels, actions = conditions
        acting = None
        if self.encoder.actions is not None and actions is not None:
            frame = positions[slice_indices] // math.prod(geometry.shape[1:])
            frame = frame[:, :1] if self.encoder.acts_inside else frame  # one frame per slice
            acting = self.encoder.actions(actions).take_along_dim(frame[..., None], dim=1)
        encoded: Tensor = self.encoder(rows, table, slice_indices, labels, geometry.slice_shape, acting)
        return encoded

    def device_tables(self, geometry: Subscale) -> tuple[Tensor, Tensor, Tensor]:
        """(positions, context, taps) of a geometry on the model's device."""
        key = (geometry.shape, str(self.device))
        if key not in self._tables:
            tables = (geometry.positions, geometry.context, geometry.taps)
            with ordinary_tensors():
                self._tables[key] = tuple(table.to(self.device) for table in tables)  # type: ignore[assignment]
        return self._tables[key]


def _integers(name: str, values: Any, shape: tuple[int, ...]) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ShapeError(f"{name} are integers {shape}, found {shown(values)}") from None
    if tensor.shape != shape or (tensor.numel() and "int" not in str(tensor.dtype)):
        raise ShapeError(f"{name} are integers {shape}, found {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.to(torch.int64)
