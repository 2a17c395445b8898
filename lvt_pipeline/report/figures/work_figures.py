"""Stage `figures`: every figure that a work directory can give, after those of the paper. See `FIGURES`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.usage import count_codes
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError, MismatchError
from lvt_pipeline.evaluation.pixels import real_frames
from lvt_pipeline.evaluation.samples import original_of, priming_frames_of, require_same_codes, siblings_of
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, fingerprint, read_record, record_path, write_record
from lvt_pipeline.report.charts import Reference, Series, spoken_number
from lvt_pipeline.report.clips import METRIC_OF, clip_values
from lvt_pipeline.report.figures.canvas import FigureFiles, require_matplotlib
from lvt_pipeline.report.figures.code_rows import draw_code_rows
from lvt_pipeline.report.figures.curves import TrainingCurves, draw_horizon, draw_loss_curves
from lvt_pipeline.report.figures.frequencies import draw_code_frequencies, draw_code_usage
from lvt_pipeline.report.figures.samples import SampledVideo, draw_samples
from lvt_pipeline.report.parts import series_of
from lvt_pipeline.report.work_dir import MissingPart, WorkDir, read_metrics, record_of
from lvt_pipeline.runs.compatibility import check_tokenizer
from lvt_pipeline.runs.layout import METRICS_NAME

STAGE = "figures"
VERSION = 1
KIND = "figures"
CHOSEN_BY = ("sample_lpips", "sample_ssim", "sample_mse")  # good and bad: by the first of these that was measured
HORIZON_LABELS = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}
HORIZON_KINDS = {"reconstruction_": "reconstructed", "": "sampled", "copy_": "last given frame repeated"}


@dataclass(frozen=True, kw_only=True)
class FigureSettings:
    """What is drawn.

    Attributes:
        only: names of `FIGURES`; all of them when empty.
        clips: ids of samples, or of the clips they continue; the first ones when empty.
        num_clips: rows of the figure of samples.
        num_frames: first frames of each sample; the paper has 16.
        with_real: draw what really happened above each sample.
    """

    only: tuple[str, ...] = ()
    clips: tuple[str, ...] = ()
    num_clips: int = 8
    num_frames: int = 16
    with_real: bool = False

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in FIGURES:
                raise ConfigError(f"there is no figure {name!r}; there are {', '.join(FIGURES)}")
        if self.num_clips < 1 or self.num_frames < 1:
            raise ConfigError(f"num_clips={self.num_clips} and num_frames={self.num_frames} must be at least 1")


@dataclass(frozen=True)
class WorkFigures:
    """The files of each figure that was drawn, by name, and why each other one was not."""

    drawn: Mapping[str, FigureFiles]
    missing: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "drawn": {name: files._asdict() for name, files in self.drawn.items()},
            "missing": dict(self.missing),
        }


def draw_work_figures(
    work_dir: Path, out: Path, settings: FigureSettings = FigureSettings(), *, progress: Progress = SILENT
) -> WorkFigures:
    """Draw what a work directory can give into the folder `out`; older files of the same names are replaced.

    Raises:
        ArtefactError: `work_dir` holds nothing that a stage makes, or `out` is another stage's output.
        LVTError: matplotlib is not installed, a figure that was asked for by name cannot be drawn, or none can.
    """
    started = time.monotonic()
    require_matplotlib()
    work = WorkDir(work_dir)
    if not any(path.exists() for path in work.artefacts.values()):
        names = ", ".join(path.name for path in work.artefacts.values())
        raise ArtefactError(f"{work_dir} is not a work directory: it has none of {names}")
    if record_path(out).exists() and read_record(out).kind != KIND:
        raise ArtefactError(f"{out} holds the {read_record(out).kind} of another stage; give figures their own folder")
    source = _Source(work, settings)
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
                    raise LVTError(f"figure {name} cannot be drawn: {missing[name]}") from error
            bar.advance()
    if not drawn:
        raise LVTError(f"{work_dir} gives no figure yet: {missing['samples']}")
    _write_record(work, out, settings, drawn, missing, time.monotonic() - started)
    return WorkFigures(drawn, missing)


def _write_record(
    work: WorkDir,
    out: Path,
    settings: FigureSettings,
    drawn: Mapping[str, FigureFiles],
    missing: Mapping[str, str],
    seconds: float,
) -> None:
    inputs = {role: record.fingerprint for role, path in work.artefacts.items() if (record := record_of(path))}
    files = [path for paths in drawn.values() for path in paths]
    numbers = {name: paths.csv.read_text() for name, paths in drawn.items()}
    record = Provenance(
        kind=KIND,
        stage=STAGE,
        version=VERSION,
        settings=to_plain(settings),
        inputs=inputs,
        fingerprint=fingerprint(numbers),
        outputs={path.name: path.stat().st_size for path in files},
        counts={"figures": len(drawn), "drawn": list(drawn), "missing": list(missing)},
        seconds=round(seconds, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_record(out, record)


@dataclass(frozen=True)
class _Sample:
    """One sample: its first frames, and what really happened as far as that is still there."""

    name: str
    frames: NDArray[np.uint8]
    codes: NDArray[np.unsignedinteger[Any]]
    real: NDArray[np.uint8] | None
    real_codes: NDArray[np.unsignedinteger[Any]] | None


@dataclass(frozen=True)
class _Source:
    """A work directory as the figures read it."""

    work: WorkDir
    settings: FigureSettings

    @property
    def priming_frames(self) -> int:
        return priming_frames_of(self.work.store("samples"))

    @cached_property
    def code_counts(self) -> NDArray[np.int64]:
        """How often each code occurs in the training split, or in all clips where there is none; int64 (n_c, K)."""
        store = self.work.store()
        splits = ["train"] if store.split("train") else ["val", "test"]
        counts: NDArray[np.int64] = np.sum([count_codes(store, split) for split in splits], axis=0)
        return counts

    def samples(self) -> list[CodeClip]:
        """The samples that are shown: those asked for, or the first one of each clip."""
        sampled = self.work.store("samples")
        siblings = siblings_of(sampled, self.work.store())
        if not self.settings.clips:
            return [clips[0] for clips in siblings.values()][: self.settings.num_clips]
        return [siblings[name][0] if name in siblings else sampled.clip(name) for name in self.settings.clips]

    def read(self, clip: CodeClip) -> _Sample:
        """A sample as pixels. Its given frames are the real ones where these are still there, else decoded.

        Raises:
            MismatchError: tokenizer, codes and samples do not belong together.
        """
        sampled, store, tokenizer = self.work.store("samples"), self.work.store(), self.work.tokenizer()
        check_tokenizer(sampled, self.work.artefacts["vqvae"], tokenizer)
        require_same_codes(store, sampled)
        codes = sampled.read(clip, 0, min(clip.length, self.settings.num_frames))
        frames = tokenizer.decode(codes).numpy().copy()
        real = real_codes = None
        origin = original_of(clip, store)
        if origin is not None:
            real_codes = store.read(origin, 0, min(origin.length, len(codes)))
            with suppress(LVTError):  # frames may be gone: codes are enough for most of a figure
                real = real_frames(store, origin, self.work.frames(), len(codes))
                num_given = min(self.priming_frames, len(real))
                frames[:num_given] = real[:num_given]
        return _Sample(clip.id, frames, codes, real, real_codes)


def _samples(source: _Source, out: Path) -> FigureFiles:
    shown = [source.read(clip) for clip in source.samples()]
    videos = [SampledVideo(one.name, one.frames, one.real if source.settings.with_real else None) for one in shown]
    return draw_samples(videos, source.priming_frames, out)


def _code_frequencies(source: _Source, out: Path) -> FigureFiles:
    return draw_code_frequencies(source.code_counts, out)


def _code_usage(source: _Source, out: Path) -> FigureFiles:
    return draw_code_usage(source.code_counts, out)


def _codes(source: _Source, out: Path) -> FigureFiles:
    one = source.read(source.samples()[0])
    size = source.work.store().codebook_size
    return draw_code_rows(one.frames, one.codes, size, source.priming_frames, out, title=one.name)


def _extreme_sample(source: _Source, out: Path, *, is_good: bool) -> FigureFiles:
    """The sample closest to what really happened, or farthest from it, beside the real codes."""
    key, values = _sample_values(source)
    metric = METRIC_OF[key]
    choose = min if is_good == metric.lower_is_better else max
    name = choose(values, key=lambda clip: values[clip])
    store = source.work.store()
    one = source.read(siblings_of(source.work.store("samples"), store)[name][0])
    rank = f"the {'best' if is_good else 'worst'} of {len(values)}"
    return draw_code_rows(
        one.frames,
        one.codes,
        store.codebook_size,
        source.priming_frames,
        out,
        real_codes=one.real_codes,
        title=f"{one.name}: {metric.title} {spoken_number(values[name])}, {rank}",
    )


def _sample_values(source: _Source) -> tuple[str, dict[str, float]]:
    """The metric by which samples are good or bad, and its value for each clip, from `eval.json`.

    Raises:
        MismatchError: `eval.json` measured other samples.
        ArtefactError: it holds no errors of single samples.
    """
    sampled, store = source.work.store("samples"), source.work.store()
    if source.work.results().get("inputs", {}).get("samples") != sampled.fingerprint:
        raise MismatchError("eval.json holds no errors of the samples in samples.zarr; run lvt evaluate on them")
    values = clip_values(source.work)
    key = next((key for key in CHOSEN_BY if key in values), None)
    if key is None:
        raise ArtefactError(
            "eval.json holds no errors of single samples; run lvt evaluate again, with --frames and --vqvae"
        )
    siblings = siblings_of(sampled, store)
    known = {name: value for name, value in values[key].items() if name in siblings and name in store}
    if not known:
        raise MismatchError("eval.json, samples.zarr and data.zarr have no clip in common; run lvt evaluate again")
    # A real video that ends early spares its sample the late frames, which are the hard ones.
    whole = {name: value for name, value in known.items() if store.clip(name).length >= siblings[name][0].length}
    return key, whole or known


def _tokenizer_loss(source: _Source, out: Path) -> FigureFiles:
    training, validation = read_metrics(source.work.require("vqvae") / METRICS_NAME)
    # The training loss is in [-1, 1], where a squared difference is four times as large.
    curves = TrainingCurves(
        "tokenizer", series_of("", training, "reconstruction_loss", 1 / 4), series_of("", validation, "mse")
    )
    return draw_loss_curves([curves], out, y_label="reconstruction MSE in [0, 1]")


def _prior_loss(source: _Source, out: Path) -> FigureFiles:
    training, validation = read_metrics(source.work.require("prior") / METRICS_NAME)
    curves = TrainingCurves("prior", series_of("", training, "bits_per_dim"), series_of("", validation, "bits_per_dim"))
    references = []
    with suppress(LVTError, KeyError, TypeError, ValueError):  # the curve is worth drawing without them
        baselines = source.work.results()["baselines"]
        references = [
            Reference("unigram", float(baselines["unigram_bits"])),
            Reference("previous frame", float(baselines["previous_frame_bits"])),
        ]
    return draw_loss_curves([curves], out, y_label="bits per code", references=references)


def _horizon(source: _Source, out: Path, *, metric: str) -> FigureFiles:
    """Errors of each frame, averaged over clips, as `lvt evaluate` measured them.

    Raises:
        ArtefactError: it did not.
    """
    samples = source.work.results().get("samples", {})
    priming = int(samples.get("priming_frames", 0))
    series = []
    for prefix, name in HORIZON_KINDS.items():
        values = [
            math.nan if value is None else float(value) for value in samples.get(f"{prefix}{metric}_by_frame", [])
        ]
        if prefix == "copy_":  # equal to the real frames by construction until then
            values[:priming] = [math.nan] * len(values[:priming])
        if values:
            series.append(Series(name, list(range(1, len(values) + 1)), values))
    if not series:
        option = " and --lpips" if metric == "lpips" else ""
        raise ArtefactError(f"eval.json has no {metric.upper()} of samples; run lvt evaluate with --samples{option}")
    return draw_horizon(series, priming, out, y_label=HORIZON_LABELS[metric])


# Name -> how it is drawn into `<name>.png`, `.svg` and `.csv`.
FIGURES: Mapping[str, Callable[[_Source, Path], FigureFiles]] = {
    "samples": _samples,  # figures 3 and 4
    "code-frequencies": _code_frequencies,  # figure 5
    "codes": _codes,  # figure 6
    "good-sample": partial(_extreme_sample, is_good=True),  # figure 7
    "bad-sample": partial(_extreme_sample, is_good=False),  # figure 8
    "tokenizer-loss": _tokenizer_loss,
    "prior-loss": _prior_loss,
    "code-usage": _code_usage,
    **{f"horizon-{metric}": partial(_horizon, metric=metric) for metric in HORIZON_LABELS},
}
