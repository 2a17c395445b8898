"""Train the video transformer on codes (paper, sections 3.2 and 4.2): a code store in, a run directory out.

No video, no pixels and no tokenizer is opened. A batch is one window of each of `batch_size` random training clips,
every clip once an epoch at a random place, and one slice of each window, drawn uniformly from those that are trained.
Validation is the bits per code of fixed windows of the val split; the test split is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.config import build, to_plain
from lvt_pipeline.data.codes import CodeStore, open_codes
from lvt_pipeline.data.order import clip_batch
from lvt_pipeline.data.pictures import colour_codes
from lvt_pipeline.data.windows import CodeWindows
from lvt_pipeline.engine.devices import choose_device, joined_workers
from lvt_pipeline.engine.dry_run import count_by_part, measure_step
from lvt_pipeline.engine.pictures import picture_grid
from lvt_pipeline.engine.run_directory import RunDirectory, RunPlan, open_run
from lvt_pipeline.engine.training import HARMLESS_SETTINGS, StepLoss, TrainingSettings, seeded, step_seed, train
from lvt_pipeline.errors import ConfigError, MismatchError
from lvt_pipeline.models.prior import Prior, PriorConfig
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs import PRIOR_KIND, RUN_NAME, read_run, read_run_record

STAGE = "train-prior"
VERSION = 1

FROM_STORE = {"codebook_size": 512, "num_codebooks": 4, "grid": (16, 16)}  # defaults where there is no store: the paper
SHOWN_PRIMING_FRAMES = 5  # given to the sample in a picture, as in the paper
EVALUATED_SLICES = 16  # slices per pass of an evaluation


@dataclass(frozen=True, kw_only=True)
class PriorModelSettings:
    """`PriorConfig`, with what the codes decide left open: K, n_c and the grid are those of the store unless stated."""

    frames: int = 16
    grid: tuple[int, int] | None = None
    num_codebooks: int | None = None
    codebook_size: int | None = None
    subscale: tuple[int, int, int] = (16, 1, 1)
    kernel: tuple[int, int, int] = (7, 1, 1)
    block: tuple[int, int, int] | None = None
    width: int = 512
    head_width: int = 128
    num_heads: int = 8
    embedding_width: int = 128
    encoder_layers: int = 8
    decoder_layers: int = 8
    attention: Literal["query-key", "key-only", "distance-only"] = "query-key"
    head: Literal["separate", "shared", "tied"] = "separate"
    num_classes: int = 0
    encoder_position: bool = False
    qkv_init: Literal["reference", "standard"] = "reference"
    priming_frames: int = 1


@dataclass(frozen=True, kw_only=True)
class PriorTraining(TrainingSettings):
    """Training settings with the defaults of the paper's released priors."""

    max_steps: int = 600_000
    batch_size: int = 64
    optimizer: Literal["adamw", "adam", "rmsprop"] = "rmsprop"
    learning_rate: float = 2e-5
    log_every: int = 100
    eval_every: int = 5_000
    picture_every: int = 5_000
    checkpoint_every: int = 5_000


@dataclass(frozen=True, kw_only=True)
class PriorRunSettings:
    """What `lvt train-prior --config` reads."""

    model: PriorModelSettings = field(default_factory=PriorModelSettings)
    training: PriorTraining = field(default_factory=PriorTraining)


@dataclass(frozen=True, kw_only=True)
class ResolvedPriorSettings:
    """Run settings with nothing left open, as they are saved beside the run."""

    model: PriorConfig
    training: PriorTraining


def train_prior(
    codes: Path,
    out: Path,
    settings: PriorRunSettings | None = None,
    *,
    device: str = "auto",
    max_seconds: float | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Provenance:
    """Train a prior, or go on with an interrupted training. Calling it again for a finished run does nothing.

    An unfinished run goes on with the generation of the store that it was started on, even if the store has grown.

    Args:
        codes: code store from `lvt encode-dataset`.
        out: run directory.
        device: "auto", "cpu", "cuda" or "cuda:N". Under `torchrun` every process takes its own part of each batch.
        max_seconds: save and stop after this time.
        overwrite: train from nothing, whatever is in `out`.

    Raises:
        LVTError: there is no training clip, or none is as long as a window.
        Stopped: a signal or the time limit asked; the step is saved.
        ChangedRunError: the run was started with other settings or codes.
        ConfigError: the settings do not fit each other.
        MismatchError: the settings state another K, n_c or grid than the store has.
        TrainingError: the loss is not finite any more.
    """
    settings = settings or PriorRunSettings()
    store = _store_of_run(codes, out, progress) if not overwrite else open_codes(codes)
    resolved = resolve_settings(settings, store)
    names = class_names(store, resolved.model.num_classes)
    plan = RunPlan(
        kind=PRIOR_KIND,
        stage=STAGE,
        version=VERSION,
        settings=settings,
        resolved=resolved,
        inputs={"codes": store.fingerprint},
        harmless=HARMLESS_SETTINGS,
        facts={"tokenizer": store.tokenizer, "class_names": names},
    )
    training = settings.training
    with joined_workers(device) as workers:

        def opening(is_writer: bool) -> AbstractContextManager[RunDirectory]:
            return open_run(out, plan, max_steps=training.max_steps, overwrite=overwrite, is_writer=is_writer)

        with workers.in_turn(opening) as run:
            if run.record is not None:
                return run.record
            windows = CodeWindows(store, frames=resolved.model.frames, split="train", progress=progress)
            with seeded(training.seed, workers.device):
                model = Prior(resolved.model).to(workers.device)
            task = PriorTask(model, windows, training, class_names=names, progress=progress)
            result = train(task, training, run, workers, max_seconds=max_seconds, progress=progress)
            counts: dict[str, Any] = {
                "parameters": sum(count_by_part(model).values()),
                "steps": result.steps,
                "tokenizer": store.tokenizer,
                "train_clips": windows.num_clips,
                "short_clips": windows.num_short_clips,
                **{f"val_{name}": value for name, value in result.evaluation.items()},
            }
            return run.finish(
                result.weights, counts, steps=result.steps, max_steps=training.max_steps, seconds=result.seconds
            )


def resolve_settings(settings: PriorRunSettings, store: CodeStore | None = None) -> ResolvedPriorSettings:
    """Fill in what the codes decide.

    Args:
        store: None gives the paper's values to what the settings leave open.

    Raises:
        MismatchError: the settings state something else than the store has.
        ConfigError: the model cannot be built.
    """
    found: dict[str, Any] = dict(FROM_STORE)
    if store is not None:
        found = {
            "codebook_size": store.codebook_size,
            "num_codebooks": store.num_codebooks,
            "grid": tuple(store.grid),
        }
        stated = {name: getattr(settings.model, name) for name in found}
        wrong = [name for name, value in stated.items() if value is not None and value != found[name]]
        if wrong:
            ours = ", ".join(f"{name}={_spoken(stated[name])}" for name in wrong)
            theirs = ", ".join(f"{name}={_spoken(found[name])}" for name in wrong)
            raise MismatchError(
                f"the settings say model.{ours} but the codes in {store.path} have {theirs}; "
                "leave them out of the settings, or give the codes they were written for"
            )
    values = {name: value for name, value in to_plain(settings.model).items() if value is not None}
    where = "settings" if store is None else f"settings for {store.path}"
    try:
        model = build(PriorConfig, {**found, **values}, where=where)
    except ConfigError as error:
        raise ConfigError(f"{error} (table [model])") from error
    return ResolvedPriorSettings(model=model, training=settings.training)


def class_names(store: CodeStore, num_classes: int) -> list[str]:
    """Labels of the store in the order of their class numbers, [] for an unconditional prior.

    Raises:
        MismatchError: there are more labels than classes, or clips without a label.
    """
    if not num_classes:
        return []
    labels = {clip.label for clip in store.clips}
    names = sorted(label for label in labels if label is not None)
    if None in labels:
        raise MismatchError(f"model.num_classes={num_classes} but {store.path} has clips without a label")
    if len(names) > num_classes:
        raise MismatchError(f"model.num_classes={num_classes} but {store.path} has {len(names)} labels")
    return names


def dry_run_prior(
    settings: PriorRunSettings | None = None, *, codes: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Size, memory and speed of a training, writing nothing.

    Args:
        codes: where K, n_c and the grid come from; the paper's when neither this nor the settings say.

    Returns:
        "parameters", "parameters_by_part", "batch_size", "frames", "grid", "num_slices", "codes_per_step" (those that
        are predicted), and what `dry_run.measure_step` tells about memory and time.
    """
    settings = settings or PriorRunSettings()
    chosen = choose_device(device)
    config = resolve_settings(settings, open_codes(codes) if codes is not None else None).model
    with seeded(settings.training.seed, chosen):
        model = Prior(config).to(chosen)
        slices = model.trainable_slices

        def make_batch(count: int) -> dict[str, Tensor]:
            shape = (count, config.frames, *config.grid, config.num_codebooks)
            batch = {
                "codes": torch.randint(0, config.codebook_size, shape),
                # The last slice has the longest context.
                "slices": torch.full((count,), slices[-1]),
            }
            return {**batch, "labels": torch.zeros(count, dtype=torch.int64)} if config.num_classes else batch

        facts = measure_step(model, settings.training, make_batch, prior_loss, chosen)
    num_slices = math.prod(config.subscale)
    slice_codes = config.frames * math.prod(config.grid) * config.num_codebooks // num_slices
    return {
        "parameters": sum(count_by_part(model).values()),
        "parameters_by_part": count_by_part(model),
        "batch_size": settings.training.batch_size,
        "frames": config.frames,
        "grid": list(config.grid),
        "num_slices": num_slices,
        "codes_per_step": settings.training.batch_size * slice_codes,
        **facts,
    }


def prior_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
    """Loss of a slice of every window: "codes" int64 (B, T, h, w, n_c), "slices" int64 (B,), perhaps "labels" (B,)."""
    assert isinstance(model, Prior)
    result = model.slice_loss(batch["codes"], batch["slices"], batch.get("labels"))
    if result.loss is None:
        return StepLoss(None, 0, {})
    return StepLoss(result.loss, result.num_targets, {"bits_per_dim": result.loss / math.log(2)})


class PriorTask:
    """A prior and the codes it learns from. See `training.Task`."""

    metric_names: tuple[str, ...] = ("bits_per_dim",)
    unit = "codes"
    score = "bits_per_dim"

    def __init__(
        self,
        model: Prior,
        windows: CodeWindows,
        settings: TrainingSettings,
        *,
        class_names: list[str] | None = None,
        progress: Progress = SILENT,
    ) -> None:
        """Choose the validation windows: the first window of clips spread evenly over the val split."""
        self.model: nn.Module = model
        self._slices = np.array(model.trainable_slices, np.int64)
        config = model.config
        self._config = config
        slice_codes = config.frames * math.prod(config.grid) * config.num_codebooks // math.prod(config.subscale)
        self.units_per_step = settings.batch_size * slice_codes
        self._windows = windows
        self._settings = settings
        self._classes = {name: number for number, name in enumerate(class_names or [])}
        if windows.num_short_clips:
            progress.say(
                f"{windows.num_short_clips} clips of {windows.store.path} are shorter than {windows.frames} frames and "
                "are not trained on"
            )
        store = windows.store
        clips = [clip for clip in store.split("val") if clip.length >= windows.frames]
        if not clips:
            progress.say(
                f"{store.path} has no val clip of {windows.frames} frames: nothing is validated, and no checkpoint is "
                "called best"
            )
        count = min(settings.eval_items, len(clips))
        chosen = [clips[i * len(clips) // count] for i in range(count)]
        self._val_codes = [store.read(clip, 0, windows.frames).astype(np.int64) for clip in chosen]
        self._val_labels = [self._classes.get(clip.label or "", 0) for clip in chosen]
        first = (np.zeros(1, np.int64), np.zeros(1, np.int64))
        self._shown_codes = self._val_codes[0] if chosen else windows.at(*first)[0].numpy()
        self._shown_label = self._val_labels[0] if chosen else self._classes.get(windows.clips[0].label or "", 0)

    def batch(self, step: int, rows: range) -> dict[str, Tensor]:
        """Windows, slices and labels of some rows of a step's batch."""
        clips, starts = self._draw(step)
        generator = np.random.default_rng(step_seed(self._settings.seed, step))
        slices = self._slices[generator.integers(0, len(self._slices), self._settings.batch_size)]
        part = slice(rows.start, rows.stop)
        batch = {"codes": self._windows.at(clips[part], starts[part]), "slices": torch.from_numpy(slices[part])}
        if self._classes:
            labels = [self._classes[self._windows.clips[clip].label or ""] for clip in clips[part]]
            batch["labels"] = torch.tensor(labels)
        return batch

    def batch_clips(self, step: int) -> list[str]:
        """Clip and first frame of every row of a step's batch."""
        return [
            f"{self._windows.clips[clip].id} (frame {start})" for clip, start in zip(*self._draw(step), strict=True)
        ]

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
        """See `prior_loss`."""
        return prior_loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Bits per code of the validation windows, teacher-forced over every slice.

        Returns:
            "bits_per_dim" over all codes after the first frame, and "bits_per_codebook".
        """
        if not self._val_codes:
            return {}
        assert isinstance(model, Prior)
        nats = torch.zeros(self._config.num_codebooks, dtype=torch.float64)
        count = 0
        for codes, label in zip(self._val_codes, self._val_labels, strict=True):
            labels = torch.tensor([label]) if self._classes else None
            some_nats, some = model.nats_per_codebook(codes[None], 1, labels, EVALUATED_SLICES)
            nats += some_nats
            count += some
        bits = nats / math.log(2)
        return {
            "bits_per_dim": float(bits.sum()) / count,
            "bits_per_codebook": [float(value) * self._config.num_codebooks / count for value in bits],
        }

    def picture(self, model: nn.Module) -> NDArray[np.uint8]:
        """Code maps of one window, a column per frame: real codes, the likeliest given all real ones before, a sample.

        Returns:
            uint8 (H, W, 3), three rows per codebook.
        """
        assert isinstance(model, Prior)
        labels = torch.tensor([self._shown_label]) if self._classes else None
        likeliest = model.logits(self._shown_codes[None], labels)[0].argmax(-1).cpu().numpy()
        # Frames that are given are never predicted; they are shown as they are.
        likeliest[: self._config.priming_frames] = self._shown_codes[: self._config.priming_frames]
        given = min(max(SHOWN_PRIMING_FRAMES, self._config.priming_frames), len(self._shown_codes) - 1)
        sampled = model.sample(self._shown_codes[None, :given], frames=len(self._shown_codes), labels=labels)[0]
        kinds = np.stack([self._shown_codes, likeliest, sampled.cpu().numpy()])
        maps = rearrange(kinds, "kind t h w j -> (j kind) t h w")
        return picture_grid(colour_codes(maps, self._config.codebook_size), scale=3)

    def _draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return clip_batch(self._windows.num_starts, self._settings.batch_size, self._settings.seed, step - 1)


def _store_of_run(codes: Path, out: Path, progress: Progress) -> CodeStore:
    """The generation that an unfinished run was started on, the current one for any other."""
    store = open_codes(codes)
    if not (out / RUN_NAME).exists() or read_run_record(out) is not None:
        return store
    started_on = read_run(out)["inputs"].get("codes")
    for generation in reversed(store.generations[:-1] if started_on != store.fingerprint else []):
        earlier = open_codes(codes, generation)
        if earlier.fingerprint == started_on:
            progress.say(
                f"{codes} has grown since {out} was started; going on with its generation {generation} "
                "(--overwrite trains on all of it)"
            )
            return earlier
    return store


def _spoken(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
