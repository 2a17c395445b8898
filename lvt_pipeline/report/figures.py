"""Stage `figures`: every figure that a work directory can give, after those of the paper. See `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.errors import ArtefactError, LVTError, MismatchError
from lvt_pipeline.evaluation.bits import count_training_codes
from lvt_pipeline.evaluation.pixels import real_frames
from lvt_pipeline.evaluation.samples import (
    first_frame_of,
    original_of,
    priming_frames_of,
    require_same_codes,
    siblings_of,
)
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import fingerprint, write_record
from lvt_pipeline.report.clips import METRIC_OF, SAMPLE_METRICS, clip_values
from lvt_pipeline.report.evaluation import HORIZON, horizon_series
from lvt_pipeline.report.numbers import format_number
from lvt_pipeline.report.plots.codes import plot_code_frequencies, plot_code_usage
from lvt_pipeline.report.plots.engine import FigureFiles
from lvt_pipeline.report.plots.lines import plot_horizon, plot_loss_curves
from lvt_pipeline.report.plots.videos import SampledVideo, plot_code_rows, plot_samples
from lvt_pipeline.report.sections import baseline_references
from lvt_pipeline.report.settings import FigureName, FigureSettings
from lvt_pipeline.report.work import MissingPart, WorkDir
from lvt_pipeline.runs.read import read_run_config

JOB = Job(stage="figures", version=2, kind="figures")  # 2: priming and sampled frames under these names
ROLLOUT_COLUMNS = 16  # frames of a long sample that are shown
LOSSES = {"vqvae": ("tokenizer", "reconstruction MSE in [0, 1]"), "prior": ("prior", "bits per code")}


@dataclass(frozen=True)
class WorkFigures:
    """The files of each figure that was plotted, by name, and why each other one was not."""

    drawn: Mapping[str, FigureFiles]
    missing: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"drawn": {name: files._asdict() for name, files in self.drawn.items()}, "missing": dict(self.missing)}


def plot_work_figures(
    work_dir: Path, out: Path, settings: FigureSettings = FigureSettings(), *, progress: Progress = SILENT
) -> WorkFigures:
    """Plot what a work directory can give into the folder `out`; older files of the same names are replaced.

    Raises:
        ArtefactError: no stage has made anything in `work_dir`, or `out` is another command's output.
        LVTError: a figure that was asked for by name cannot be plotted, or none can.
    """
    clock, work = Clock(), WorkDir(work_dir)
    work.require_artefacts()
    require_output_folder(out, JOB.stage, work.artefacts)
    source = Source(work, settings)
    drawn: dict[str, FigureFiles] = {}
    missing: dict[str, str] = {}
    chosen = settings.only or tuple(FIGURES)
    with progress.bar("figures", len(chosen), "figures") as bar:
        for name in chosen:
            try:
                drawn[name] = FIGURES[name](source, out / name)
            except LVTError as error:
                advice = f" Run: {error.command}" if isinstance(error, MissingPart) else ""
                missing[name] = f"{error}{advice}"
                if settings.only:
                    raise LVTError(f"figure {name} cannot be plotted: {missing[name]}") from error
            bar.advance()
    if not drawn:
        raise LVTError(f"{work_dir} gives no figure yet: {missing['samples']}")
    numbers = {name: files.csv.read_text() for name, files in drawn.items()}
    outputs = {path.name: path.stat().st_size for files in drawn.values() for path in files}
    counts = {"figures": len(drawn), "drawn": list(drawn), "missing": list(missing)}
    write_record(
        out, JOB.recorder(settings, work.fingerprints, clock).new_record(fingerprint(numbers), outputs, counts)
    )
    return WorkFigures(drawn, missing)


@dataclass(frozen=True)
class ShownSample:
    """One sample: its first frames, and what really happened as far as that still exists."""

    name: str
    frames: NDArray[np.uint8]
    codes: NDArray[np.unsignedinteger[Any]]
    real: NDArray[np.uint8] | None
    real_codes: NDArray[np.unsignedinteger[Any]] | None


@dataclass(frozen=True)
class Source:
    """A work directory as the figures read it.

    Attributes:
        title: what the titles of figures of samples begin with.
    """

    work: WorkDir
    settings: FigureSettings
    title: str = ""

    @property
    def priming_frames(self) -> int:
        """How many priming frames the samples start from."""
        return priming_frames_of(self.work.samples)

    @cached_property
    def code_counts(self) -> NDArray[np.int64]:
        """How often each code occurs in the training split, or in all clips where there is none; int64 (n_c, K)."""
        return count_training_codes(self.work.codes)[2].occurrences

    def samples(self) -> list[CodeClip]:
        """The samples that are shown: those asked for, or the first one of each clip."""
        siblings = siblings_of(self.work.samples, self.work.codes)
        if not self.settings.clips:
            return [clips[0] for clips in siblings.values()][: self.settings.num_clips]
        return [siblings[name][0] if name in siblings else self.work.samples.clip(name) for name in self.settings.clips]

    def read(self, clip: CodeClip, num_frames: int | None = None) -> ShownSample:
        """The first frames of a sample as pixels, as many as the settings say unless given.

        Its priming frames are the real ones where these still exist, else decoded codes.

        Raises:
            MismatchError: tokenizer, codes and samples do not belong together.
        """
        sampled, store = self.work.samples, self.work.codes
        tokenizer = self.work.require_tokenizer_of(sampled)
        require_same_codes(store, sampled)
        codes = sampled.read(clip, 0, min(clip.length, num_frames or self.settings.num_frames))
        pixels = tokenizer.decode(codes).numpy().copy()
        real = real_codes = None
        origin = original_of(clip, store)
        if origin is not None:
            start = first_frame_of(sampled)
            real_codes = store.read(origin, start, min(origin.length, start + len(codes)))
            with suppress(LVTError):  # frames may be missing: codes are enough for most of a figure
                real = real_frames(store, origin, self.work.frames, len(codes), start)
                num_priming = min(self.priming_frames, len(real))
                pixels[:num_priming] = real[:num_priming]
        return ShownSample(clip.id, pixels, codes, real, real_codes)

    def titled(self, text: str) -> str:
        """A title that begins as all do."""
        return f"{self.title}: {text}" if self.title else text


def _samples(source: Source, out: Path) -> FigureFiles:
    return plot_samples(_videos(source, source.settings.num_frames), source.priming_frames, out, title=source.title)


def _long_rollout(source: Source, out: Path) -> FigureFiles:
    """Samples that are longer than the windows in which the prior was trained, from their first to their last frame."""
    longest = max(clip.length for clip in source.samples())
    trained_on = int(read_run_config(source.work.require("prior"))["model"]["frames"])
    if longest <= trained_on:
        raise ArtefactError(
            f"the samples are not longer than the {trained_on} frames that the prior was trained on; "
            f"run lvt sample with --num-frames {4 * trained_on}"
        )
    return plot_samples(_videos(source, longest), source.priming_frames, out, most_columns=ROLLOUT_COLUMNS)


def _videos(source: Source, num_frames: int) -> list[SampledVideo]:
    shown = [source.read(clip, num_frames) for clip in source.samples()]
    return [SampledVideo(one.name, one.frames, one.real if source.settings.with_real else None) for one in shown]


def _codes(source: Source, out: Path) -> FigureFiles:
    one = source.read(source.samples()[0])
    size = source.work.codes.codebook_size
    return plot_code_rows(one.frames, one.codes, size, source.priming_frames, out, title=source.titled(one.name))


def _extreme_sample(source: Source, out: Path, *, is_good: bool) -> FigureFiles:
    """The sample closest to what really happened, or farthest from it, with the real codes."""
    key, values = _sample_values(source)
    metric = METRIC_OF[key]
    pick = min if is_good == metric.lower_is_better else max
    name = pick(values, key=lambda clip: values[clip])
    store = source.work.codes
    one = source.read(siblings_of(source.work.samples, store)[name][0])
    rank = f"the {'best' if is_good else 'worst'} of {len(values)}"
    return plot_code_rows(
        one.frames,
        one.codes,
        store.codebook_size,
        source.priming_frames,
        out,
        real_codes=one.real_codes,
        title=source.titled(f"{one.name}: {metric.title} {format_number(values[name])}, {rank}"),
    )


def _sample_values(source: Source) -> tuple[str, dict[str, float]]:
    """The metric by which samples are good or bad, and its value for each clip, from `eval.json`."""
    sampled, store = source.work.samples, source.work.codes
    inputs = source.work.results.get("inputs")
    if not isinstance(inputs, Mapping) or inputs.get("samples") != sampled.fingerprint:
        raise MismatchError("eval.json holds no errors of the samples in samples.zarr; run lvt evaluate on them")
    values = clip_values(source.work)
    key = next((key for key in SAMPLE_METRICS if key in values), None)
    if key is None:
        raise ArtefactError(
            "eval.json holds no errors of single samples; run lvt evaluate again, with --frames and --vqvae"
        )
    siblings = siblings_of(sampled, store)
    known = {name: value for name, value in values[key].items() if name in siblings and name in store}
    if not known:
        raise MismatchError("eval.json, samples.zarr and data.zarr have no clip in common; run lvt evaluate again")
    # A sample whose real video ends early has no errors in its late frames, which are the hard ones.
    whole = {name: value for name, value in known.items() if store.clip(name).length >= siblings[name][0].length}
    return key, whole or known


def _loss(source: Source, out: Path, *, role: str) -> FigureFiles:
    """The curves of one training; those of the prior with its baselines."""
    source.work.require(role)
    name, y_label = LOSSES[role]
    runs = {name: source.work.metrics(role).main_curves(role)}
    references = baseline_references(source.work) if role == "prior" else []
    return plot_loss_curves(runs, out, y_label=y_label, references=references)


def _horizon(source: Source, out: Path, *, metric: str) -> FigureFiles:
    """Errors of each frame, averaged over clips, as `lvt evaluate` measured them."""
    samples = source.work.results.get("samples", {})
    try:
        series = horizon_series(samples, metric)
        priming = int(samples.get("priming_frames", 0))
    except (TypeError, ValueError, AttributeError) as error:
        raise ArtefactError("the samples of eval.json are damaged; run lvt evaluate again") from error
    if not series:
        option = " and --lpips" if metric == "lpips" else ""
        raise ArtefactError(f"eval.json has no {metric.upper()} of samples; run lvt evaluate with --samples{option}")
    return plot_horizon(series, priming, out, y_label=HORIZON[metric])


# Name -> how it is plotted into `<name>.png`, `.svg` and `.csv`.
FIGURES: Mapping[FigureName, Callable[[Source, Path], FigureFiles]] = {
    "samples": _samples,  # figures 3 and 4
    "long-rollout": _long_rollout,
    "code-frequencies": lambda source, out: plot_code_frequencies(source.code_counts, out),  # figure 5
    "codes": _codes,  # figure 6
    "good-sample": partial(_extreme_sample, is_good=True),  # figure 7
    "bad-sample": partial(_extreme_sample, is_good=False),  # figure 8
    "tokenizer-loss": partial(_loss, role="vqvae"),
    "prior-loss": partial(_loss, role="prior"),
    "code-usage": lambda source, out: plot_code_usage(source.code_counts, out),
    "horizon-psnr": partial(_horizon, metric="psnr"),
    "horizon-ssim": partial(_horizon, metric="ssim"),
    "horizon-lpips": partial(_horizon, metric="lpips"),
}
