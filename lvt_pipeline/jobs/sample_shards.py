"""The worker of `sample`: from priming codes to shards of sampled codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.checks import ShardWriter
from lvt_pipeline.codes.plan import ShardPlan
from lvt_pipeline.codes.schema import CodeClip, PlannedClip, shard_name
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.jobs.runner import Plan
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.progress import SILENT, Bar, Progress
from lvt_pipeline.runs.actions import Rows, split_actions
from lvt_pipeline.runs.read import load_prior
from lvt_pipeline.storage import Place

if TYPE_CHECKING:
    from lvt_pipeline.models.prior.model import Prior

SAMPLE_SECONDS = 3600.0  # for one sample, on a slow processor too


@dataclass(frozen=True)
class Sample:
    """One sample to draw: of which clip and class, with which actions, the how manyth, and the clip it becomes."""

    clip: CodeClip
    label: int | None
    actions: Rows | None
    number: int
    planned: PlannedClip


@dataclass(frozen=True)
class SamplePlan:
    """Shards that are sampled in one pass, and the samples that they hold."""

    shards: Sequence[ShardPlan]
    samples: Sequence[Sample]


def sample_plans(writer: CodeStoreWriter, samples: Sequence[Sample], batch_size: int) -> list[Plan[SamplePlan]]:
    """The shards that are missing, in groups of at least `batch_size` samples.

    A shard holds one sample. Only in a store that was made with another length of samples, and keeps its shard size, it
    may hold parts of several.
    """
    by_id = {sample.planned.id: sample for sample in samples}
    plans: list[Plan[SamplePlan]] = []
    missing, repairs = writer.pending_shards(), writer.plan.repairs
    for stays_here in (True, False):
        group: list[ShardPlan] = []
        shards = [shard for shard in missing if (shard in repairs) == stays_here]
        for shard in shards:
            group.append(shard)
            ids = dict.fromkeys(part.clip_id for one in group for part in one.parts)
            if len(ids) >= batch_size or shard is shards[-1]:
                work = SamplePlan(group, [by_id[name] for name in ids])
                seconds = SAMPLE_SECONDS * len(ids)
                plans.append(Plan(shard_name(group[0].index), work, seconds, stays_here))
                group = []
    return plans


def start_sampler(
    prior: Path,
    codes: Place,
    generation: int,
    settings: SampleSettings,
    writer: ShardWriter,
    lookahead: int | None,
    device: str,
) -> SampleWorker:
    """The worker in another process."""
    store, model = open_codes(codes, generation), load_prior(prior, device=device)
    return SampleWorker(model, store, settings, writer.create, lookahead)


class SampleWorker:
    """Samples shards one after another.

    Args:
        write: puts the codes of a shard, (num_frames, h, w, n_c), on disk and returns the file's SHA-256.
    """

    def __init__(
        self,
        model: Prior,
        store: CodeStore,
        settings: SampleSettings,
        write: Callable[[int, NDArray[Any], Mapping[str, NDArray[Any]]], str],
        lookahead: int | None,
        progress: Progress = SILENT,
    ) -> None:
        self._model, self._store, self._settings, self._write = model, store, settings, write
        self._lookahead, self._progress = lookahead, progress

    def __call__(
        self, plans: Sequence[SamplePlan], bar: Bar, should_stop: Callable[[], object]
    ) -> Iterator[dict[int, str]]:
        """SHA-256 of the shards of each plan, by index."""
        for plan in plans:
            how = self._settings, self._lookahead, self._progress
            sampled = sample_batch(self._model, self._store, plan.samples, *how)
            drawn = {sample.planned.id: arrays for sample, arrays in zip(plan.samples, sampled, strict=True)}
            receipt = {}
            for shard in plan.shards:
                parts = [(drawn[part.clip_id], slice(part.start, part.stop)) for part in shard.parts]
                arrays = {name: np.concatenate([values[name][rows] for values, rows in parts]) for name in parts[0][0]}
                receipt[shard.index] = self._write(shard.index, arrays.pop("codes"), arrays)
            bar.advance(len(plan.samples))
            yield receipt
            if should_stop():
                return


def sample_batch(
    model: Prior,
    store: CodeStore,
    batch: Sequence[Sample],
    settings: SampleSettings,
    lookahead: int | None,
    progress: Progress,
) -> list[dict[str, NDArray[Any]]]:
    """ "codes" (frames, h, w, n_c) of each sample of a batch, and the rows of its side arrays (frames, d_i)."""
    first, after = settings.start, settings.start + settings.priming_frames
    priming = np.stack([store.read(sample.clip, first, after) for sample in batch])
    actions = [sample.actions for sample in batch if sample.actions is not None]
    sampled = model.sample(
        priming.astype(np.int64),
        frames=settings.frames,
        seed=settings.seed,
        **settings.sampling,
        lookahead=lookahead,
        labels=[sample.label for sample in batch if sample.label is not None] or None,
        actions=np.stack(actions) if actions else None,
        clip_ids=[sample.clip.id for sample in batch],
        sample_ids=[sample.number for sample in batch],
        progress=progress,
    )
    return [
        {"codes": codes, **split_actions(sample.actions, model.config)}
        for codes, sample in zip(sampled.numpy(), batch, strict=True)
    ]
