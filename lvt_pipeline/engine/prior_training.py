"""Train the video transformer on codes (paper, sections 3.2 and 4.2): a code store in, a run directory out.

No video, no pixels and no tokenizer is opened. A batch is one window of each of `batch_size` random training clips,
every clip once an epoch at a random place, and one slice of each window, drawn uniformly from those that are trained.
Validation is the bits per code of fixed windows of the val split; the test split is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.config import LATER, build, to_plain
from lvt_pipeline.data.batches import Drawn, check_mix, make_batches, shares
from lvt_pipeline.data.code_usage import count_codes
from lvt_pipeline.data.codes import CodeClip, CodeStore, open_codes
from lvt_pipeline.data.pictures import colour_codes
from lvt_pipeline.data.window_cache import Cache, Tier, cache_file, choose_tier
from lvt_pipeline.data.windows import CodeWindows
from lvt_pipeline.engine.devices import Workers, choose_device, joined_workers
from lvt_pipeline.engine.dry_run import count_by_part, measure_step
from lvt_pipeline.engine.pictures import picture_grid
from lvt_pipeline.engine.run_directory import RunDirectory, RunPlan, open_run
from lvt_pipeline.engine.training import StepLoss, seeded, step_seed, train
from lvt_pipeline.engine.training_settings import HARMLESS_SETTINGS, TrainingSettings
from lvt_pipeline.errors import ConfigError, MismatchError
from lvt_pipeline.models.adaptive import cutoffs_by_mass, set_frequencies
from lvt_pipeline.models.prior import Prior, PriorConfig
from lvt_pipeline.models.prior_config import uses_clusters
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs import PRIOR_KIND, RUN_NAME, read_run, read_run_record

STAGE = "train-prior"
VERSION = 1

FROM_STORE = {"codebook_size": 512, "num_codebooks": 4, "grid": (16, 16)}  # defaults where there is no store: the paper
SHOWN_PRIMING_FRAMES = 5  # given to the sample in a picture, as in the paper
SHOWN_LOOKAHEAD = 16  # a picture samples one clip, which goes faster with guesses
EVALUATED_SLICES = 16  # slices per pass of an evaluation


@dataclass(frozen=True, kw_only=True)
class PriorModelSettings:
    """`PriorConfig`, with what the codes decide left open.

    Unless stated, K, n_c and the grid are those of the store, and the cut-offs of adaptive layers come from how often
    its training codes occur.
    """

    frames: int = 16
    grid: tuple[int, int] | None = None
    num_codebooks: int | None = None
    codebook_size: int | None = None
    subscale: tuple[int, int, int] = (16, 1, 1)
    kernel: tuple[int, int, int] = (7, 1, 1)
    kernel_reach: Literal["centred", "past"] = field(default="centred", metadata=LATER)
    block: tuple[int, int, int] | None = None
    width: int = 512
    head_width: int = 128
    num_heads: int = 8
    embedding_width: int = 128
    encoder_layers: int = 8
    decoder_layers: int = 8
    attention: Literal["query-key", "key-only", "distance-only"] = "query-key"
    decoder_input: Literal["embedding", "adaptive"] = field(default="embedding", metadata=LATER)
    head: Literal["separate", "shared", "tied", "adaptive", "adaptive-tied", "adaptive-tied-projections"] = "separate"
    cutoffs: tuple[int, ...] | None = field(default=None, metadata=LATER)
    cluster_ratio: int = field(default=4, metadata=LATER)
    num_classes: int = 0
    class_dropout: float = field(default=0.0, metadata=LATER)
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
    # A loss of ten times its best is far above that of guessing: whatever was learnt is gone.
    explosion_factor: float | None = field(default=10.0, metadata=LATER)
    # Which windows a step sees. Unset: clips, unless the codes are streamed; see `data.batches`.
    shuffle: Literal["clips", "shards"] | None = field(default=None, metadata=LATER)
    windows_per_clip: int = field(default=1, metadata=LATER)  # in an epoch of shards
    mix: tuple[float, ...] | None = field(default=None, metadata=LATER)  # shares of several code stores

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows_per_clip < 1:
            raise ConfigError(f"training.windows_per_clip={self.windows_per_clip} must be at least 1")


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
    codes: Path | Sequence[Path],
    out: Path,
    settings: PriorRunSettings | None = None,
    *,
    generation: int | None = None,
    cache: Cache = "auto",
    device: str = "auto",
    max_seconds: float | None = None,
    overwrite: bool = False,
    allow_config_change: bool = False,
    track: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Provenance:
    """Train a prior, or go on with an interrupted training. Calling it again for a finished run does nothing.

    An unfinished run goes on with the generation of the store that it was started on, even if the store has grown.

    Args:
        codes: code store from `lvt encode-dataset`; several are mixed by `settings.training.mix`.
        out: run directory.
        generation: which generation of the store a new run learns from; the current one by default.
        cache: where the training codes are kept: "ram", "mmap", "stream" or "auto", see `CodeWindows`. Streaming needs
            the order `settings.training.shuffle="shards"`, which a new run takes on when it streams and keeps.
        device: "auto", "cpu", "cuda" or "cuda:N". Under `torchrun` every process takes its own part of each batch.
        max_seconds: save and stop after this time.
        overwrite: train from nothing, whatever is in `out`.
        allow_config_change: go on although settings of the training have changed; the run says so ever after.
        track: "tensorboard", "wandb": where the metrics are shown as well.

    Raises:
        LVTError: there is no training clip, or none is as long as a window.
        Stopped: a signal or the time limit asked; the step is saved.
        ChangedRunError: the run was started with other settings or codes.
        ConfigError: the settings do not fit each other.
        MismatchError: the settings state another K, n_c or grid than the store has, or the stores differ.
        TrainingError: the loss is not finite any more, or has exploded.
    """
    settings = settings or PriorRunSettings()
    paths = [codes] if isinstance(codes, Path) else list(codes)
    if generation is not None and len(paths) > 1:
        raise ConfigError("one generation is asked for but several code stores are given; leave --at out")
    check_mix(settings.training.mix, len(paths))
    stores = [
        open_codes(path, generation)
        if generation is not None or overwrite
        else _store_of_run(path, out, _role(number), progress)
        for number, path in enumerate(paths)
    ]
    check_alike(stores)
    store = stores[0]
    resolved = resolve_settings(settings, store, stores[1:])
    names = class_names(stores, resolved.model.num_classes)
    with joined_workers(device) as workers:
        recorded = None if overwrite else _shuffle_of_run(out)
        training, tiers = _choose_tiers(stores, resolved, cache, recorded, workers)
        resolved = replace(resolved, training=training)
        plan = RunPlan(
            kind=PRIOR_KIND,
            stage=STAGE,
            version=VERSION,
            settings=settings,
            resolved=resolved,
            inputs={_role(number): one.fingerprint for number, one in enumerate(stores)},
            harmless=HARMLESS_SETTINGS,
            facts={"tokenizer": store.tokenizer, "class_names": names, "generation": store.generation},
        )

        def opening(is_writer: bool) -> AbstractContextManager[RunDirectory]:
            return open_run(
                out,
                plan,
                max_steps=training.max_steps,
                overwrite=overwrite,
                is_writer=is_writer,
                allow_config_change=allow_config_change,
                progress=progress,
            )

        with workers.in_turn(opening) as run:
            if run.record is not None:
                return run.record
            windows = [
                CodeWindows(one, frames=resolved.model.frames, split="train", cache=tier, progress=progress)
                for one, tier in zip(stores, tiers, strict=True)
            ]
            with seeded(training.seed, workers.device):
                model = Prior(resolved.model)
                if resolved.model.is_adaptive:
                    set_frequencies(model, _count_train_codes(stores, training.mix))
                model.to(workers.device)
            task = PriorTask(model, windows, training, class_names=names, progress=progress)
            result = train(task, training, run, workers, max_seconds=max_seconds, track=track, progress=progress)
            counts: dict[str, Any] = {
                "parameters": sum(count_by_part(model).values()),
                **result.counts(),
                "tokenizer": store.tokenizer,
                "generation": store.generation,
                "train_clips": sum(one.num_clips for one in windows),
                "short_clips": sum(one.num_short_clips for one in windows),
                **{f"val_{name}": value for name, value in result.evaluation.items()},
            }
            return run.finish(
                result.weights, counts, steps=result.steps, max_steps=training.max_steps, seconds=result.seconds
            )


def check_alike(stores: Sequence[CodeStore]) -> None:
    """Codes that are learnt together must mean the same.

    Raises:
        MismatchError: the stores differ in K, n_c, grid or tokenizer.
    """
    first = stores[0]
    for other in stores[1:]:
        for name in ("codebook_size", "num_codebooks", "grid", "tokenizer"):
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                short = (_spoken(value)[:12] if name == "tokenizer" else _spoken(value) for value in (ours, theirs))
                raise MismatchError(
                    f"{first.path} and {other.path} cannot be learnt together: {name} is {next(short)} in the first "
                    f"and {next(short)} in the second; encode both with the same VQ-VAE"
                )


def resolve_settings(
    settings: PriorRunSettings, store: CodeStore | None = None, others: Sequence[CodeStore] = ()
) -> ResolvedPriorSettings:
    """Fill in what the codes decide.

    Args:
        others: further stores of a mixture, whose codes are alike.
        store: None gives the paper's values to what the settings leave open, and cut-offs for codes that are all
            equally frequent.

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
    if uses_clusters(settings.model.decoder_input, settings.model.head) and settings.model.cutoffs is None:
        shape = (found["num_codebooks"], found["codebook_size"])
        counts = (
            np.zeros(shape, np.int64) if store is None else _count_train_codes([store, *others], settings.training.mix)
        )
        found["cutoffs"] = cutoffs_by_mass(counts)
    where = "settings" if store is None else f"settings for {store.path}"
    try:
        model = build(PriorConfig, {**found, **values}, where=where)
    except ConfigError as error:
        raise ConfigError(f"{error} (table [model])") from error
    return ResolvedPriorSettings(model=model, training=settings.training)


def class_names(stores: Sequence[CodeStore], num_classes: int) -> list[str]:
    """Labels of the stores in the order of their class numbers, [] for an unconditional prior.

    Raises:
        MismatchError: there are more labels than classes, or clips without a label.
    """
    if not num_classes:
        return []
    found: set[str] = set()
    for store in stores:
        labels = {clip.label for clip in store.clips}
        if None in labels:
            raise MismatchError(f"model.num_classes={num_classes} but {store.path} has clips without a label")
        found |= {label for label in labels if label is not None}
        if len(found) > num_classes:
            raise MismatchError(f"model.num_classes={num_classes} but {store.path} has {len(found)} labels")
    return sorted(found)


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
        for source, count in zip(sources, shares(settings.mix, len(sources), settings.eval_items), strict=True):
            self._add_validation(source, count, progress)
        self._shown_codes = self._val_codes[0] if self._val_codes else self._batches.read(0, range(1))[0].numpy()
        self._shown_label = (
            self._val_labels[0] if self._val_labels else self._classes.get(self._draw(1).clips[0].label or "", 0)
        )

    def _add_validation(self, windows: CodeWindows, num_items: int, progress: Progress) -> None:
        store = windows.store
        if windows.num_short_clips:
            progress.say(
                f"{windows.num_short_clips} clips of {store.path} are shorter than {windows.frames} frames and "
                "are not trained on"
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
        self._val_labels += [self._classes.get(clip.label or "", 0) for clip in chosen]

    def batch(self, step: int, rows: range) -> dict[str, Tensor]:
        """Windows, slices and labels of some rows of a step's batch."""
        generator = np.random.default_rng(step_seed(self._settings.seed, step))
        slices = self._slices[generator.integers(0, len(self._slices), self._settings.batch_size)]
        part = slice(rows.start, rows.stop)
        batch = {"codes": self._batches.read(step - 1, rows), "slices": torch.from_numpy(slices[part])}
        if self._classes:
            labels = np.array([self._classes[clip.label or ""] for clip in self._draw(step).clips])
            labels[generator.random(len(labels)) < self._config.class_dropout] = self._config.num_classes
            batch["labels"] = torch.from_numpy(labels[part])
        return batch

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
        for codes, label in zip(self._val_codes, self._val_labels, strict=True):
            labels = torch.tensor([label]) if self._classes else None
            by_code, some = model.nats_by_code(codes[None], 1, labels, EVALUATED_SLICES)
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
        sampled = model.sample(
            self._shown_codes[None, :given], frames=len(self._shown_codes), labels=labels, lookahead=SHOWN_LOOKAHEAD
        )[0]
        kinds = np.stack([self._shown_codes, likeliest, sampled.cpu().numpy()])
        maps = rearrange(kinds, "kind t h w j -> (j kind) t h w")
        return picture_grid(colour_codes(maps, self._config.codebook_size), scale=3)

    def _draw(self, step: int) -> Drawn:
        return self._batches.draw(step - 1)


def _role(number: int) -> str:
    """What a store is called among the inputs of a run."""
    return "codes" if number == 0 else f"codes_{number + 1}"


def _shuffle_of_run(out: Path) -> Literal["clips", "shards"] | None:
    """The order that a run was started with, None when there is no run yet."""
    if not (out / RUN_NAME).exists():
        return None
    found: Literal["clips", "shards"] = read_run(out)["settings"]["training"].get("shuffle", "clips")
    return found


def _choose_tiers(
    stores: Sequence[CodeStore],
    resolved: ResolvedPriorSettings,
    cache: Cache,
    recorded: Literal["clips", "shards"] | None,
    workers: Workers,
) -> tuple[PriorTraining, list[Tier]]:
    """Where the training codes are kept, and the order that follows from it when the settings leave it open.

    Raises:
        ConfigError: the order and the tier do not go together.
    """
    training = resolved.training
    tiers = [choose_tier(cache, _train_bytes(store), cache_file(store, "train")) for store in stores]
    # Workers look at the memory of different hosts, or at different times; their order has to be one.
    streams = workers.agree(["stream" in tiers])[0]
    shuffle = training.shuffle or recorded or ("shards" if streams else "clips")
    if shuffle == "clips":
        if cache == "stream":
            raise ConfigError(
                "--cache stream goes through the codes shard by shard, but "
                + (
                    "training.shuffle=clips asks for clips from anywhere; leave one of them out"
                    if training.shuffle
                    else "this run was started on clips from anywhere; give --cache ram or mmap, or train into a new "
                    "directory"
                )
            )
        tiers = ["mmap" if tier == "stream" else tier for tier in tiers]
        if training.windows_per_clip != 1:
            raise ConfigError(
                f"training.windows_per_clip={training.windows_per_clip} needs training.shuffle=shards; with clips from "
                "anywhere a clip comes once an epoch"
            )
    # Clips from anywhere is what was always done, and is left unsaid.
    return replace(training, shuffle="shards" if shuffle == "shards" else None), tiers


def _train_bytes(store: CodeStore) -> int:
    frames = sum(clip.length for clip in store.split("train"))
    return frames * math.prod(store.schema.frame_shape) * store.dtype.itemsize


def _count_train_codes(stores: Sequence[CodeStore], mix: Sequence[float] | None) -> NDArray[np.int64]:
    """How often each code is learnt, int64 (n_c, K): counted in one store, in proportion in a mixture."""
    counts = [count_codes(store, "train") for store in stores]
    if len(stores) == 1:
        return counts[0]
    weights = np.asarray(mix or [1.0] * len(stores))
    total = sum(one.sum() for one in counts)
    mixed = np.zeros(counts[0].shape)
    for one, weight in zip(counts, weights, strict=True):
        mixed += one * (total * weight / weights.sum() / max(1, one.sum()))
    result: NDArray[np.int64] = np.ceil(mixed).astype(np.int64)
    return result


def _store_of_run(codes: Path, out: Path, role: str, progress: Progress) -> CodeStore:
    """The generation that an unfinished run was started on, the current one for any other."""
    store = open_codes(codes)
    if not (out / RUN_NAME).exists() or read_run_record(out) is not None:
        return store
    started_on = read_run(out)["inputs"].get(role)
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
