"""Stage `sample`: continue clips in code space and store the result like any other codes (paper, section 3.2).

Each sample starts with the codes of a real clip's first frames, then codes are sampled from the prior. No pixel
and no tokenizer is opened. A sample depends on the prior, the priming codes, the seed, the clip's id and the number of
the sample, and on nothing else: not on the batch it was drawn in, nor on the run that drew it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvt_pipeline import lineage
from lvt_pipeline.codes.schema import CodeClip, CodeSchema, PlannedClip, SideArray
from lvt_pipeline.codes.store import HELD_OUT_FIRST, CodeStore, clips_of_split, open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import ArtefactError, LVTError, MismatchError
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.job import Clock, Job, report_replaced
from lvt_pipeline.jobs.runner import LOCAL, Elsewhere, Runner, Workers
from lvt_pipeline.jobs.sample_shards import Sample, SamplePlan, SampleWorker, sample_plans, start_sampler
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.models.sampling.rule import SamplingRule
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.actions import Rows, digest_of, given_actions, own_actions
from lvt_pipeline.runs.checkpoints import find_checkpoint
from lvt_pipeline.runs.compatibility import clips_with_class, label_numbers, require_fitting_codes, require_label
from lvt_pipeline.runs.read import load_prior, read_run_record, run_fingerprint
from lvt_pipeline.storage import Place

if TYPE_CHECKING:
    from lvt_pipeline.models.prior.model import Prior

STAGE = "sample"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind="codes")


def sample_clips(
    prior: Path,
    codes: Place,
    out: Place,
    settings: SampleSettings = SampleSettings(),
    *,
    generation: int | None = None,
    batch_size: int = 8,
    lookahead: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    runner: Runner = LOCAL,
    progress: Progress = SILENT,
) -> Provenance:
    """Sample continuations of clips into a code store. Finished samples of an interrupted run are kept.

    A sample of clip `a` has the id `a`, or `a#0`, `a#1`, ... when there are several of each; split, label, frame rate
    and source are those of the clip.

    Args:
        prior: run directory.
        codes: code store that gives the priming frames.
        out: code store to create, resume or extend; its tokenizer is that of `codes`.
        generation: which generation of `codes` is read; the current one by default.
        batch_size: samples drawn between two saves; it does not change them.
        lookahead: pixels of a clip per pass; unset: by the number of clips. See `sampler.sample`.

    Raises:
        MismatchError: the prior was trained on other codes.
        LVTError: no clip has enough frames.
        Stopped: a signal came; finished samples are kept.
    """
    clock = Clock()
    require_output_folder(out, STAGE, (prior, codes))
    store = open_codes(codes, generation)
    model = load_prior(prior, device=device if runner.is_local else "cpu")
    task = _SampleTask(prior, model, store, settings, progress)
    _report_replaced(out, task.samples, progress)
    with (
        stop_requested() as stop,
        CodeStoreWriter.open(
            out,
            _schema(store, model, settings),
            [sample.planned for sample in task.samples],
            settings={"stage": STAGE, "version": VERSION},
            reencode=True,  # samples name their tokenizer in their fingerprint, so none is kept by mistake
            overwrite=overwrite,
        ) as writer,
    ):
        workers = task.workers(writer, lookahead, device)
        plans, total = sample_plans(writer, task.samples, batch_size), len(task.samples)
        done = total - len({sample.planned.id for plan in plans for sample in plan.work.samples})
        with progress.bar("sample", total, "clips", done=done) as bar:
            for digests in runner.make(workers, plans, bar, stop, partial(_saved, writer)):
                writer.accept(digests)
        return writer.publish(JOB.recorder(settings, task.inputs, clock).new_record(counts=task.counts()))


class _SampleTask:
    """What a sampling is about: the prior, the clips that it continues, and the samples that the store will hold.

    Raises:
        MismatchError, LVTError: as `sample_clips`.
    """

    def __init__(
        self, prior: Path, model: Prior, store: CodeStore, settings: SampleSettings, progress: Progress
    ) -> None:
        self.prior, self.model, self.store, self.settings, self.progress = prior, model, store, settings, progress
        require_fitting_codes(store, prior, model)
        given = check_settings(prior, model, settings)
        report_unfinished(prior, progress)
        self.inputs = {"codes": store.fingerprint, "prior": run_fingerprint(prior)}
        self.clips, self.num_short = choose_clips(store, prior, model, settings, progress)
        conditions = _conditions(self.clips, store, prior, model, settings, given)
        self.samples = _plan(self.clips, conditions, settings, self.inputs["prior"], _windows(model, settings))

    def workers(
        self, writer: CodeStoreWriter, lookahead: int | None, device: str
    ) -> Workers[SamplePlan, dict[int, str]]:
        """What samples shards in this process, and how it is started in others."""
        here = SampleWorker(self.model, self.store, self.settings, writer.write_shard, lookahead, self.progress)
        places, helper = (self.prior.absolute(), self.store.path), writer.helper()
        start = partial(start_sampler, *places, self.store.generation, self.settings, helper, lookahead)
        return here, Elsewhere(start, [*places, helper.path], device)

    def counts(self) -> dict[str, Any]:
        """Facts about the samples for the record."""
        return {
            "clips": len(self.samples),
            "frames": len(self.samples) * self.settings.frames,
            "priming_frames": self.settings.priming_frames,
            "split": self.clips[0].split,
            "short_clips": self.num_short,
            **_start(self.settings),
        }


def _saved(writer: CodeStoreWriter, _: int) -> str:
    total = len(writer.plan.table)
    return f"{total - len(writer.pending_shards())} of {total} samples are in {writer.path}"


def report_unfinished(prior: Path, progress: Progress) -> None:
    """Report with which weights an unfinished prior is sampled from."""
    if read_run_record(prior) is None:
        progress.say(f"{prior} is unfinished: sampling with the weights saved at step {find_checkpoint(prior).step}")


def choose_clips(
    store: CodeStore, prior: Path, model: Prior, settings: SampleSettings, progress: Progress
) -> tuple[list[CodeClip], int]:
    """The clips to sample from, with their labels, and how many of their split are too short.

    Where the split has fewer than were asked for, clips of test, val and train follow, in this order.
    """

    def labelled(clips: Sequence[CodeClip]) -> list[CodeClip]:
        return _labelled(clips, settings.label, prior, model, progress)

    min_frames = settings.start + max(settings.priming_frames, 1)
    if settings.clips:
        return labelled([_clip_named(store, name, min_frames) for name in dict.fromkeys(settings.clips)]), 0
    clips, num_short = clips_of_split(store, settings.split, min_frames, progress=progress)
    clips = labelled(clips)[: settings.num_clips]
    for split in HELD_OUT_FIRST:
        missing = (settings.num_clips or 0) - len(clips)
        if missing > 0 and split != clips[0].split:
            added = [clip for clip in store.split(split) if clip.length >= min_frames]
            try:
                added = labelled(added)[:missing] if added else []
            except MismatchError:  # no clip of this split has a known label
                added = []
            if added:
                progress.say(f"found {len(clips)} of {settings.num_clips} clips; {split} gives {len(added)} more")
            clips += added
    return clips, num_short


def _clip_named(store: CodeStore, name: str, min_frames: int) -> CodeClip:
    clip = store.clip(name)
    if clip.length < min_frames:
        raise LVTError(
            f"clip {name} of {store.path} has {clip.length} frames; start and priming frames need {min_frames}"
        )
    return clip


def _labelled(
    clips: Sequence[CodeClip], label: str | None, prior: Path, model: Prior, progress: Progress
) -> list[CodeClip]:
    """The clips with the label that is asked for, or else those whose own label the prior knows."""
    if label is None:
        return clips_with_class(clips, prior, model, progress, remedy="; --label NAME gives clips a label")
    require_label(label, prior, model)
    return [replace(clip, label=label) for clip in clips]


def _start(settings: SampleSettings) -> dict[str, int]:
    """The first frame of the samples in their clips, where it is not that of the clips."""
    return {"start": settings.start} if settings.start else {}


def check_settings(prior: Path, model: Prior, settings: SampleSettings) -> Rows | None:
    """The actions that were given for all samples, after refusing settings that do not fit this prior."""
    # torch loads only when there is something to sample
    from lvt_pipeline.models.sampling.sampler import require_rule
    from lvt_pipeline.models.sampling.windows import plan_rollout

    plan_rollout(model, settings.priming_frames, settings.frames)
    require_rule(model, SamplingRule(**settings.drawing))
    return given_actions(settings.actions, prior, model.config, settings.frames)


def _conditions(
    clips: Sequence[CodeClip], store: CodeStore, prior: Path, model: Prior, settings: SampleSettings, given: Rows | None
) -> list[tuple[int | None, Rows | None]]:
    """Class and actions (frames, d) of the samples of each clip; None where the prior takes none."""

    def actions_of(clip: CodeClip) -> Rows | None:
        if given is not None or not model.config.actions:
            return given
        return own_actions(store, clip, prior, model.config, settings.start, settings.frames)

    labels = label_numbers(clips, prior, model) or repeat(None, len(clips))
    return list(zip(labels, map(actions_of, clips), strict=True))


def _schema(store: CodeStore, model: Prior, settings: SampleSettings) -> CodeSchema:
    return CodeSchema(
        codebook_size=store.codebook_size,
        num_codebooks=store.num_codebooks,
        grid=store.grid,
        tokenizer=store.tokenizer,
        shard_frames=settings.frames,  # one sample, one shard: a killed run loses the batch in flight
        geometry=store.schema.geometry,
        arrays=tuple(
            SideArray(name=name, dtype=np.dtype(np.float32), dimension=width)
            for name, width in zip(model.config.actions or (), model.config.action_widths or (), strict=True)
        ),
    )


def _windows(model: Prior, settings: SampleSettings) -> dict[str, int]:
    """The length of the windows of samples that need several, for their fingerprints."""
    from lvt_pipeline.models.sampling.windows import window_frames

    length = window_frames(model.config, settings.frames)
    return {"window": length} if settings.frames > length else {}


def _plan(
    clips: Sequence[CodeClip],
    conditions: Sequence[tuple[int | None, Rows | None]],
    settings: SampleSettings,
    prior_fingerprint: str,
    windows: dict[str, int],
) -> list[Sample]:
    result = []
    for clip, (label, rows) in zip(clips, conditions, strict=True):
        for number in range(settings.samples_per_clip):
            made_of = {
                "prior": prior_fingerprint,
                "clip": clip.id,
                "label": label,
                "codes": clip.codes or clip.fingerprint,
                "sample": number,
                "frames": settings.frames,
                "priming_frames": settings.priming_frames,
                "seed": settings.seed,
                **settings.sampling,
                **windows,
                **_start(settings),
                **digest_of(rows),
            }
            planned = PlannedClip(
                id=f"{clip.id}#{number}" if settings.samples_per_clip > 1 else clip.id,
                split=clip.split,
                label=clip.label,
                length=settings.frames,
                fingerprint=lineage.sample_fingerprint(VERSION, made_of),
                fps=clip.fps,
                source=clip.source,
            )
            result.append(Sample(clip, label, rows, number, planned))
    return result


def _report_replaced(out: Place, samples: Sequence[Sample], progress: Progress) -> None:
    """Report the samples of an existing store that will not be the same afterwards."""
    try:
        old = open_codes(out).clips
    except ArtefactError:
        return
    wanted = {sample.planned.id: sample.planned.fingerprint for sample in samples}
    replaced = sum(clip.id in wanted and wanted[clip.id] != clip.fingerprint for clip in old)
    removed = sum(clip.id not in wanted for clip in old)
    report_replaced(out, "samples", replaced, removed, progress)
