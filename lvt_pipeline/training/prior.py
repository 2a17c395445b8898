"""Train the video transformer on codes (paper, sections 3.2 and 4.2): a code store in, a run directory out.

No video, no pixels and no tokenizer is opened, and the test split never is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Literal

import torch
from torch import Tensor

from lvt_pipeline.codes.loading.batches import require_mix
from lvt_pipeline.codes.loading.cache import Cache, Tier, cache_file, choose_tier, split_bytes
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ChangedRunError, ConfigError, MismatchError
from lvt_pipeline.job import Job
from lvt_pipeline.models.device import choose_device
from lvt_pipeline.models.prior.adaptive import set_frequencies
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, short
from lvt_pipeline.runs.actions import action_statistics
from lvt_pipeline.runs.directory import RunDirectory, RunPlan
from lvt_pipeline.runs.layout import RUN_NAME, TRAINED_CLIPS_NAME
from lvt_pipeline.runs.read import PRIOR_KIND, read_run, read_run_record, require_kind
from lvt_pipeline.runs.trained_clips import list_trained_clips
from lvt_pipeline.runs.warm_start import WarmStart
from lvt_pipeline.storage import Place
from lvt_pipeline.training.distributed import Ranks, joined_ranks
from lvt_pipeline.training.dry_run import measure_step, size_of
from lvt_pipeline.training.prior_settings import (
    ResolvedPriorSettings,
    class_names,
    count_train_codes,
    require_alike,
    resolve_settings,
)
from lvt_pipeline.training.prior_task import PriorTask, prior_loss
from lvt_pipeline.training.session import SessionOptions, run_training
from lvt_pipeline.training.settings import HARMLESS_SETTINGS, PriorRunSettings
from lvt_pipeline.training.task import seeded

STAGE = "train-prior"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind=PRIOR_KIND)


def train_prior(
    codes: Place | Sequence[Place],
    out: Path,
    settings: PriorRunSettings = PriorRunSettings(),
    *,
    generation: int | None = None,
    init_from: Path | None = None,
    cache: Cache = "auto",
    device: str = "auto",
    max_seconds: float | None = None,
    overwrite: bool = False,
    allow_config_change: bool = False,
    track: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Provenance:
    """Train a prior, or resume an interrupted training. Calling it again for a finished run does nothing.

    An unfinished run is resumed on the generation of the store that it was started on, even if the store has grown.

    Args:
        codes: code store from `lvt encode-dataset`; several are mixed by `settings.training.mix`.
        out: run directory.
        generation: the generation of the store that a new run is trained on; the current one by default.
        init_from: as in `train_vqvae`; the codes of that run must be of the same tokenizer.
        cache: where the training codes are kept: "ram", "mmap", "stream" or "auto", see `CodeWindows`. Streaming needs
            the order `settings.training.shuffle="shards"`, which a new run takes on when it streams and keeps.
        device, max_seconds, overwrite, allow_config_change, track: as in `train_vqvae`.

    Raises:
        LVTError: there is no training clip, or none is as long as a window.
        MismatchError: the settings state another K, n_c or grid than the store has, or the stores differ.
        Stopped, ChangedRunError, ConfigError, TrainingError: as `train_vqvae`.
    """
    paths = [codes] if isinstance(codes, PurePath) else list(codes)
    require_output_folder(out, STAGE, [*paths, init_from])
    require_mix(settings.training.mix, len(paths))
    stores = _open_stores(paths, out, generation, overwrite, progress)
    resolved = resolve_settings(settings, stores[0], stores[1:])
    names = class_names(stores, resolved.model)
    options = SessionOptions(
        start=_warm_start(init_from, resolved, stores[0], names) if init_from is not None else None,
        max_seconds=max_seconds,
        overwrite=overwrite,
        allow_config_change=allow_config_change,
        track=track,
        progress=progress,
    )
    with joined_ranks(device) as ranks:
        resolved, tiers = _choose_tiers(stores, resolved, cache, None if overwrite else _shuffle_of_run(out), ranks)

        def make_task(run: RunDirectory) -> PriorTask:
            windows = _open_windows(stores, resolved, tiers, progress)
            _write_clips(run, windows, init_from)
            model = _make_model(resolved, stores, ranks)
            return PriorTask(model, windows, resolved.training, class_names=names, progress=progress)

        return run_training(out, _plan(settings, resolved, stores, names), ranks, options, make_task)


def dry_run_prior(
    settings: PriorRunSettings = PriorRunSettings(),
    *,
    codes: Place | Sequence[Place] | None = None,
    generation: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Size, memory and speed of a training, writing nothing.

    Args:
        codes: training data; random codes of the paper's shape, or the settings', when not given.
        generation: of the code store.

    Returns:
        "parameters", "parameters_by_part", "batch_size", "frames", "grid", "num_slices", "codes_per_step" (those that
        are predicted), and the memory and times of `dry_run.measure_step`.
    """
    chosen = choose_device(device)
    paths = [] if codes is None else [codes] if isinstance(codes, PurePath) else list(codes)
    stores = [open_codes(path, generation) for path in paths]
    config = resolve_settings(settings, stores[0] if stores else None, stores[1:]).model
    windows: list[CodeWindows] = []
    if stores:
        require_mix(settings.training.mix, len(stores))
        require_alike(stores)
        class_names(stores, config)
        windows = [CodeWindows(store, frames=config.frames, split="train", cache="stream") for store in stores]
    with seeded(settings.training.seed, chosen):
        model = Prior(config).to(chosen)
        slices = model.trainable_slices

        def make_batch(count: int) -> dict[str, Tensor]:
            shape = (count, config.frames, *config.grid, config.num_codebooks)
            random = torch.randint(0, config.codebook_size, shape)
            batch = {
                "codes": torch.stack([windows[0][row % len(windows[0])] for row in range(count)])
                if windows
                else random,
                # The last slice has the longest context.
                "slices": torch.full((count,), slices[-1]),
            }
            if config.action_width:
                batch["actions"] = torch.zeros(count, config.frames, config.action_width)
            return {**batch, "labels": torch.zeros(count, dtype=torch.int64)} if config.num_classes else batch

        facts = measure_step(model, settings.training, make_batch, prior_loss, chosen)
    num_slices = math.prod(config.subscale)
    slice_codes = config.frames * math.prod(config.grid) * config.num_codebooks // num_slices
    return {
        **size_of(model, settings.training),
        "frames": config.frames,
        "grid": list(config.grid),
        "num_slices": num_slices,
        "codes_per_step": settings.training.batch_size * slice_codes,
        **facts,
    }


def _plan(
    settings: PriorRunSettings, resolved: ResolvedPriorSettings, stores: Sequence[CodeStore], names: list[str]
) -> RunPlan:
    return RunPlan(
        job=JOB,
        settings=settings,
        resolved=resolved,
        inputs={_role(number): one.fingerprint for number, one in enumerate(stores)},
        max_steps=resolved.training.max_steps,
        harmless=HARMLESS_SETTINGS,
        facts={"tokenizer": stores[0].tokenizer, "class_names": names, "generation": stores[0].generation},
    )


def _write_clips(run: RunDirectory, windows: Sequence[CodeWindows], init_from: Path | None) -> None:
    clips = [clip for one in windows for clip in one.clips]
    resumed = run.path if "start" in run.plan.inputs else None  # its own list has the clips of its start
    run.write_guarded(TRAINED_CLIPS_NAME, list_trained_clips(clips, started_from=init_from or resumed))


def _warm_start(run: Path, resolved: ResolvedPriorSettings, store: CodeStore, names: list[str]) -> WarmStart:
    """The weights of a prior for codes of the same tokenizer; positions and classes with another meaning start fresh.

    Raises:
        MismatchError: it was trained on codes of another tokenizer.
    """
    require_kind(run, PRIOR_KIND)
    state = read_run(run)
    tokenizer = state["facts"].get("tokenizer", store.tokenizer)
    if tokenizer != store.tokenizer:
        raise MismatchError(
            f"{run} was trained on codes of tokenizer {short(tokenizer)} but {store.path} was made by "
            f"{short(store.tokenizer)}: the same numbers mean other pictures"
        )
    fresh = []
    if tuple(state["settings"]["model"]["subscale"]) != resolved.model.subscale:
        fresh.append("encoder.slice_embedding.")
    if state["facts"].get("class_names", []) != names:
        fresh.append("encoder.class_embedding.")
    if tuple(state["settings"]["model"].get("actions") or ()) != resolved.model.actions:
        fresh.append("encoder.actions.")
    return WarmStart.of(run, PRIOR_KIND, fresh=fresh)


def _open_windows(
    stores: Sequence[CodeStore], resolved: ResolvedPriorSettings, tiers: Sequence[Tier], progress: Progress
) -> list[CodeWindows]:
    frames, arrays = resolved.model.frames, resolved.model.actions or ()
    return [
        CodeWindows(store, frames=frames, split="train", cache=tier, arrays=arrays, progress=progress)
        for store, tier in zip(stores, tiers, strict=True)
    ]


def _make_model(resolved: ResolvedPriorSettings, stores: Sequence[CodeStore], ranks: Ranks) -> Prior:
    training = resolved.training
    with seeded(training.seed, ranks.device):
        model = Prior(resolved.model)
        if resolved.model.is_adaptive:
            set_frequencies(model, count_train_codes(stores, training.mix))
        if model.encoder.actions is not None:
            model.encoder.actions.normalise_by(*action_statistics(stores, resolved.model.actions or ()))
        if training.parallel == "ddp" or ranks.size == 1:
            model.to(ranks.device)  # a sharded one may be too large
    return model


def _open_stores(
    paths: Sequence[Place], out: Path, generation: int | None, overwrite: bool, progress: Progress
) -> list[CodeStore]:
    if generation is not None and len(paths) > 1:
        raise ConfigError("one generation is asked for but several code stores are given; leave --at out")
    if generation is not None or overwrite:
        stores = [open_codes(path, generation) for path in paths]
    else:
        stores = [_store_of_run(path, out, _role(number), progress) for number, path in enumerate(paths)]
    require_alike(stores)
    return stores


def _role(number: int) -> str:
    """The name of a store among the inputs of a run."""
    return "codes" if number == 0 else f"codes_{number + 1}"


def _shuffle_of_run(out: Path) -> Literal["clips", "shards"] | None:
    """The order that a run was started with, None when there is no run yet."""
    if not (out / RUN_NAME).exists():
        return None
    # A run on clips from anywhere records null, the default, so that its settings stay equal to those that were given.
    return read_run(out)["settings"]["training"].get("shuffle") or "clips"


def _choose_tiers(
    stores: Sequence[CodeStore],
    resolved: ResolvedPriorSettings,
    cache: Cache,
    recorded: Literal["clips", "shards"] | None,
    ranks: Ranks,
) -> tuple[ResolvedPriorSettings, list[Tier]]:
    """Choose where the training codes are kept, and the order that follows from it when the settings leave it open.

    Raises:
        ConfigError: the order and the tier do not go together.
    """
    training = resolved.training
    actions = resolved.model.actions or ()
    tiers = [choose_tier(cache, split_bytes(store, "train", actions), cache_file(store, "train")) for store in stores]
    # Ranks look at the memory of different hosts, or at different times; their order has to be one.
    streams = ranks.agree(["stream" in tiers])[0]
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
    training = replace(training, shuffle="shards" if shuffle == "shards" else None)
    return replace(resolved, training=training), tiers


def _store_of_run(codes: Place, out: Path, role: str, progress: Progress) -> CodeStore:
    """The generation that an unfinished run was started on, the current one for any other."""
    store = open_codes(codes)
    if not (out / RUN_NAME).exists() or read_run_record(out) is not None:
        return store
    started_on = read_run(out)["inputs"].get(role)
    for generation in reversed(store.generations[:-1] if started_on != store.fingerprint else []):
        earlier = open_codes(codes, generation)
        if earlier.fingerprint == started_on:
            progress.say(
                f"{codes} has grown since {out} was started; resuming on its generation {generation} "
                "(--overwrite trains on all of it)"
            )
            return earlier
    facts = read_run(out)["facts"]
    number = facts.get("generation") if role == "codes" and started_on != store.fingerprint else None
    if number is not None and number not in store.generations:
        raise ChangedRunError(
            f"{out} was started on generation {number} of its code store, which {codes} does not have any more: lvt gc "
            "has removed it; restore it from a copy, train into a new directory, or start again with --overwrite"
        )
    return store
