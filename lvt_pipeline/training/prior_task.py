"""What a training of the video transformer learns from, is measured by and shows (paper, sections 3.2 and 4.2).

A batch is one window of each of `batch_size` random training clips, and one slice of each window, drawn uniformly from
those that are trained. Validation is the bits per code of fixed windows of the val split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.codes.loading.batches import Drawn, make_batches, shares
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.progress import SILENT, Progress, count_of
from lvt_pipeline.runs.actions import Rows, join_arrays, read_actions
from lvt_pipeline.training.settings import PriorTraining
from lvt_pipeline.training.task import StepLoss, step_seed
from lvt_pipeline.video.pictures import colour_codes
from lvt_pipeline.video.tiles import picture_grid

SHOWN_PRIMING_FRAMES = 5  # given to the sample in a picture, as in the paper
EVALUATED_SLICES = 16  # slices per pass of an evaluation


def prior_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
    """Loss of a slice of every window: "codes" (B, T, h, w, n_c), "slices" int64 (B,), perhaps "labels" (B,) and
    "actions" (B, T, d)."""
    # The call, because that is what puts sharded weights together.
    result = model(batch["codes"], batch["slices"], batch.get("labels"), batch.get("actions"))
    if result.loss is None:
        return StepLoss(None, 0, {})
    return StepLoss(result.loss, result.num_targets, {"bits_per_dim": result.loss / math.log(2)})


class PriorTask:
    """A prior and the codes it learns from. See `training.Task`."""

    metric_names: tuple[str, ...] = ("bits_per_dim",)
    unit = "codes"
    row_unit = "windows"
    score = "bits_per_dim"

    def __init__(
        self,
        model: Prior,
        windows: CodeWindows | Sequence[CodeWindows],
        settings: PriorTraining,
        *,
        class_names: list[str] | None = None,
        progress: Progress = SILENT,
    ) -> None:
        """Choose the validation windows: the first window of clips spread evenly over the val split.

        Args:
            windows: of the train split; several are mixed by `settings.mix`, and validated by it.
        """
        self.model: nn.Module = model
        self._slices = np.array(model.trainable_slices, np.int64)
        config = model.config
        self._config = config
        slice_codes = config.frames * math.prod(config.grid) * config.num_codebooks // math.prod(config.subscale)
        self.units_per_step = settings.batch_size * slice_codes
        sources = [windows] if isinstance(windows, CodeWindows) else list(windows)
        self._sources = sources
        self._settings = settings
        self._batches = make_batches(
            sources,
            settings.batch_size,
            settings.seed,
            shuffle=settings.shuffle or "clips",
            mix=settings.mix,
            windows_per_clip=settings.windows_per_clip,
        )
        self._classes = {name: number for number, name in enumerate(class_names or [])}
        self._val_codes: list[NDArray[np.int64]] = []
        self._val_labels: list[int] = []
        self._val_actions: list[Rows | None] = []
        for source, count in zip(sources, shares(settings.mix, len(sources), settings.eval_items), strict=True):
            self._add_validation(source, count, progress)
        self._shown = self._shown_clip()

    def _shown_clip(self) -> tuple[NDArray[np.int64], int, Rows | None]:
        """Codes, class and actions of the clip in the pictures: the first of validation, else of training."""
        if self._val_codes:
            return self._val_codes[0], self._val_labels[0], self._val_actions[0]
        codes, actions = self._read(1, range(1))
        label = self._class_of(self._draw(1).clips[0])
        return codes[0].long().numpy(), label, None if actions is None else actions[0]

    def _add_validation(self, windows: CodeWindows, num_items: int, progress: Progress) -> None:
        store = windows.store
        if windows.num_short_clips:
            progress.say(
                f"{count_of(windows.num_short_clips, 'clip')} of {store.path} shorter than {windows.frames} frames: "
                "not trained on"
            )
        clips = [clip for clip in store.split("val") if clip.length >= windows.frames]
        if not clips:
            progress.say(
                f"{store.path} has no val clip of {windows.frames} frames: nothing is validated, and no checkpoint is "
                "called best"
            )
        count = min(num_items, len(clips))
        chosen: list[CodeClip] = [clips[i * len(clips) // count] for i in range(count)]
        self._val_codes += [store.read(clip, 0, windows.frames).astype(np.int64) for clip in chosen]
        self._val_labels += [self._class_of(clip) for clip in chosen]
        names = self._config.actions
        self._val_actions += [read_actions(store, clip, names, 0, windows.frames) if names else None for clip in chosen]

    def _class_of(self, clip: CodeClip) -> int:
        """The class of a clip; of one without a label the number of "no class", which class dropout trains."""
        return self._classes.get(clip.label or "", self._config.num_classes if self._config.class_dropout else 0)

    def batch(self, step: int, rows: range) -> dict[str, Tensor]:
        """Windows, slices, labels and actions of some rows of a step's batch."""
        generator = np.random.default_rng(step_seed(self._settings.seed, step))
        slices = self._slices[generator.integers(0, len(self._slices), self._settings.batch_size)]
        part = slice(rows.start, rows.stop)
        codes, actions = self._read(step, rows)
        batch = {"codes": codes, "slices": torch.from_numpy(slices[part])}
        if self._classes:
            labels = np.array([self._class_of(clip) for clip in self._draw(step).clips])
            labels[generator.random(len(labels)) < self._config.class_dropout] = self._config.num_classes
            batch["labels"] = torch.from_numpy(labels[part])
        if actions is not None:
            actions[(generator.random(len(slices)) < self._config.drops_actions)[part]] = np.nan
            batch["actions"] = torch.from_numpy(actions)
        return batch

    def _read(self, step: int, rows: range) -> tuple[Tensor, Rows | None]:
        """Windows of some rows of a step's batch, and their actions (B, T, d)."""
        windows, names = self._batches.read(step - 1, rows), self._config.actions
        if not names:
            return windows, None
        store = self._sources[0].store
        return windows["codes"], join_arrays({name: windows[name].numpy() for name in names}, store, names)

    def batch_clips(self, step: int) -> list[str]:
        """Clip and first frame of every row of a step's batch."""
        return [f"{clip.id} (frame {start})" for clip, start in zip(*self._draw(step), strict=True)]

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
        """See `prior_loss`."""
        return prior_loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Bits per code of the validation windows, teacher-forced over every slice.

        Returns:
            "bits_per_dim" over all codes after the first frame, "bits_per_codebook", and "bits_per_slice" by position
            of the slice in generation order (null where a slice has nothing to predict).
        """
        if not self._val_codes:
            return {}
        assert isinstance(model, Prior)
        geometry = model.geometry(self._config.frames)
        by_slice = torch.zeros(geometry.num_slices, self._config.num_codebooks, dtype=torch.float64)
        nats = torch.zeros(self._config.num_codebooks, dtype=torch.float64)
        count = 0
        for codes, label, actions in zip(self._val_codes, self._val_labels, self._val_actions, strict=True):
            labels = torch.tensor([label]) if self._classes else None
            acting = None if actions is None else actions[None]
            by_code, some = model.nats_by_code(codes[None], 1, labels, EVALUATED_SLICES, acting)
            nats += by_code.sum((0, 1, 2, 3))
            by_slice += by_code.flatten(0, 3)[geometry.positions].sum(1)
            count += some
        bits = nats / math.log(2)
        num_targets = (geometry.num_pixels - geometry.num_primed(1)) * self._config.num_codebooks * len(self._val_codes)
        slice_bits = zip((by_slice.sum(1) / math.log(2)).tolist(), num_targets.tolist(), strict=True)
        return {
            "bits_per_dim": float(bits.sum()) / count,
            "bits_per_codebook": [float(value) * self._config.num_codebooks / count for value in bits],
            "bits_per_slice": [total / targets if targets else None for total, targets in slice_bits],
        }

    def facts(self, weights: Mapping[str, Mapping[str, Tensor]], evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """Counts for the record: what the codes are, clips, and the last evaluation."""
        store = self._sources[0].store
        return {
            "tokenizer": store.tokenizer,
            "generation": store.generation,
            "train_clips": sum(one.num_clips for one in self._sources),
            "short_clips": sum(one.num_short_clips for one in self._sources),
            **{f"val_{name}": value for name, value in evaluation.items()},
        }

    def remember(self, evaluation: Mapping[str, Any]) -> None:
        """Nothing to remember: every evaluation stands alone."""

    def picture(self, model: nn.Module) -> NDArray[np.uint8]:
        """Code maps of one window, a column per frame: real codes, the likeliest given all real ones before, a sample.

        Returns:
            uint8 (H, W, 3), three rows per codebook.
        """
        assert isinstance(model, Prior)
        codes, label, actions = self._shown
        conditions: dict[str, Any] = {
            "labels": torch.tensor([label]) if self._classes else None,
            "actions": None if actions is None else actions[None],
        }
        likeliest = model.logits(codes[None], **conditions)[0].argmax(-1).cpu().numpy()
        # Frames that are given are never predicted; they are shown as they are.
        likeliest[: self._config.priming_frames] = codes[: self._config.priming_frames]
        given = min(max(SHOWN_PRIMING_FRAMES, self._config.priming_frames), len(codes) - 1)
        sampled = model.sample(codes[None, :given], frames=len(codes), **conditions)[0]
        kinds = np.stack([codes, likeliest, sampled.cpu().numpy()])
        maps = rearrange(kinds, "kind t h w j -> (j kind) t h w")
        return picture_grid(colour_codes(maps, self._config.codebook_size), scale=3)

    def _draw(self, step: int) -> Drawn:
        return self._batches.draw(step - 1)
