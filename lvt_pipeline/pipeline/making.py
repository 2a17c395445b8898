"""How the output of each stage is made, for `lvt run` and `lvt reproduce`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lvt_pipeline.errors import StoreError
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.jobs.decode import decode_store
from lvt_pipeline.jobs.encode import EncodeReport, encode_dataset
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.pipeline.networks import train_network
from lvt_pipeline.pipeline.options import Making
from lvt_pipeline.provenance import Provenance, finished_record
from lvt_pipeline.report.page import write_report
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.vqvae import train_vqvae
from lvt_pipeline.workspace.stages import Stage, StageState

Maker = Callable[[Stage, Making, StageState], Provenance]


def make_frames(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Decode the clips of the manifest that are new or changed."""
    return ingest(
        stage.sources["manifest"],
        stage.output,
        stage.settings,
        num_workers=making.num_workers,
        max_failures=making.max_failures,
        runner=making.runner,
        progress=making.progress,
    )


def make_tokenizer(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Train a tokenizer, or resume its training."""
    options = making.training_options
    return train_network(
        stage, making, state, partial(train_vqvae, stage.sources["frames"], settings=stage.settings, **options)
    )


def make_codes(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Encode new and changed clips; repair a damaged store, or else make it again, and report it."""
    where = stage.sources["frames"], stage.sources["tokenizer"], stage.output, stage.settings
    options: dict[str, Any] = {"device": making.device, "runner": making.runner, "progress": making.progress}
    encode: Callable[..., EncodeReport] = partial(encode_dataset, *where, **options)
    try:
        report = encode(reencode=True)
    except StoreError as error:  # the frames are there, so a damaged store can be repaired, or else made again
        try:
            report = encode(reencode=True, repair=True)
            making.progress.say(f"{error}; repaired {', '.join(report.repaired)}")
        except StoreError:
            making.progress.say(f"{error}; encoding everything again")
            report = encode(overwrite=True)
    assert report.provenance is not None, "only a dry run has no record"
    return report.provenance


def make_prior(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Train a prior, or resume its training on the generation of the store that it began with."""
    options = {**making.training_options, "cache": making.cache}
    return train_network(
        stage, making, state, partial(train_prior, stage.sources["codes"], settings=stage.settings, **options)
    )


def make_samples(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Sample continuations of clips."""
    return sample_clips(
        stage.sources["prior"],
        stage.sources["codes"],
        stage.output,
        stage.settings,
        device=making.device,
        overwrite=state.state == "stale",
        runner=making.runner,
        progress=making.progress,
    )


def make_videos(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Decode the samples into files."""
    return decode_store(
        stage.sources["codes"],
        stage.sources["vqvae"],
        stage.output,
        stage.settings,
        device=making.device,
        runner=making.runner,
        progress=making.progress,
    )


def make_evaluation(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Measure the prior and the samples; errors in pixels too, while the frames are there."""
    paths = stage.sources
    has_frames = finished_record(paths["frames"]) is not None
    if not has_frames:
        making.progress.say(f"errors in pixels are not measured: {paths['frames']} is not there")
    sources = Sources(
        codes=paths["codes"],
        prior=paths["prior"],
        frames=paths["frames"] if has_frames else None,
        vqvae=paths["vqvae"],
        samples=paths["samples"],
    )
    return evaluate(
        sources,
        stage.output,
        stage.settings,
        # A handful of videos may have no clip to spare for testing; the result names the split it was measured on.
        allow_training_clips=True,
        device=making.device,
        progress=making.progress,
    )


def make_report(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Write the page about the work directory."""
    return write_report(stage.output.parent, stage.output, progress=making.progress)


MAKERS: Mapping[str, Maker] = {
    "frames": make_frames,
    "vqvae": make_tokenizer,
    "codes": make_codes,
    "prior": make_prior,
    "samples": make_samples,
    "videos": make_videos,
    "evaluation": make_evaluation,
    "report": make_report,
}
