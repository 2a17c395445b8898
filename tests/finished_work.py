"""A tiny work directory in which every stage has left something, with what a report shows of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from tests.toy_work import FRAMES, ToyWork, make_prior, make_toy_work

PRIMING = 2


def make_finished_work(root: Path) -> ToyWork:
    """Frames, tokenizer, codes and prior with curves; samples of two clips; an evaluation of three."""
    work = make_toy_work(root)
    write_curves(work)
    sample_and_evaluate(work)
    return work


def make_other_run(work: ToyWork, root: Path) -> ToyWork:
    """The same with another prior, and samples and numbers of its own."""
    other = ToyWork(
        Path(shutil.copytree(work.root, root, ignore=shutil.ignore_patterns("prior", "samples.zarr", "*.html")))
    )
    make_prior(other.prior, seed=1)
    write_curves(other)
    sample_and_evaluate(other)
    return other


def write_curves(work: ToyWork) -> None:
    """What a training would have logged."""
    for run, train, val in (
        (work.vqvae, {"reconstruction_loss": 0.4, "batch_perplexity": 5.0}, {"mse": 0.02, "perplexity": [5.0, 6.0]}),
        (work.prior, {"bits_per_dim": 3.0, "learning_rate": 0.001}, {"bits_per_dim": 3.1}),
    ):
        lines = [{"step": step, "split": "train", **train} for step in range(10, 110, 10)]
        lines += [{"step": 100, "split": "val", **val}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def sample_and_evaluate(work: ToyWork, samples_per_clip: int = 1) -> None:
    """Samples of two clips, and the evaluation of all test clips and of these samples."""
    settings = SampleSettings(
        frames=FRAMES, priming_frames=PRIMING, num_clips=2, samples_per_clip=samples_per_clip, temperature=1.0
    )
    sample_clips(work.prior, work.codes, work.samples, settings, device="cpu", overwrite=work.samples.exists())
    paths = {"prior": work.prior, "frames": work.frames, "vqvae": work.vqvae, "samples": work.samples}
    sources = Sources(codes=work.codes, **paths)
    evaluate(sources, work.root / "eval.json", EvaluateSettings(frames=FRAMES), device="cpu")
