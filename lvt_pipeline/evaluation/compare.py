"""Several evaluations side by side, with intervals, so that nobody mistakes noise for progress.

Values of single clips are resampled; Fréchet distances, which single clips do not have, are taken over the runs of a
protocol. Two evaluations of the same clips are compared clip by clip. A difference whose interval contains 0 is within
noise, whatever its sign. Numbers that were not measured in the same way are not subtracted at all.

Intervals are percentile bootstrap intervals of the mean (Efron 1979): how much a mean would move if other clips were
evaluated. They assume that the clips are independent samples of what one cares about, and know nothing of another
training seed. With fewer than about twenty values they are somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ArtefactError, ConfigError, ShapeError
from lvt_pipeline.evaluation.results import is_number, read_results

RESULT_NAME = "eval.json"
FEWEST = 2  # values that an interval needs
LEVEL = 0.95  # of intervals
RESAMPLES = 4000
VALUES_AT_ONCE = 4_000_000  # bounds the memory that large test sets take

Verdict = Literal["better", "worse", "within noise", "not comparable"]


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    key: str
    title: str
    part: Literal["evaluated", "samples", "runs"]  # where its values are: of clips, of sampled clips, of runs
    lower_is_better: bool
    same: tuple[str, ...] = ()  # what two results must share for this to be the same measurement


SAME_FVD = (
    "per_clip.samples.clip",
    "per_clip.samples.frames",
    *(f"fvd.card.{key}" for key in ("network.sha256", "resize", "frames", "priming_frames", "samples")),
)
METRICS = (
    Metric("bits", "bits per code", "evaluated", True, ("frames", "priming_frames", "codes.tokenizer")),
    Metric("reconstruction_mse", "reconstruction MSE", "evaluated", True, ("frames",)),
    Metric("reconstruction_ssim", "reconstruction SSIM", "evaluated", False, ("frames",)),
    Metric("reconstruction_lpips", "reconstruction LPIPS", "evaluated", True, ("frames", "inputs.lpips")),
    Metric("sample_mse", "sample MSE", "samples", True, ("samples.frames", "samples.priming_frames")),
    Metric("sample_ssim", "sample SSIM", "samples", False, ("samples.frames", "samples.priming_frames")),
    Metric(
        "sample_lpips", "sample LPIPS", "samples", True, ("samples.frames", "samples.priming_frames", "inputs.lpips")
    ),
    Metric("fvd_real_priming", "FVD, real priming", "runs", True, SAME_FVD),
    Metric("fvd_reconstructed_priming", "FVD, reconstructed priming", "runs", True, SAME_FVD),
    Metric("kvd_real_priming", "KVD, real priming", "runs", True, SAME_FVD),
    Metric("kvd_reconstructed_priming", "KVD, reconstructed priming", "runs", True, SAME_FVD),
)


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside."""
        return self.low > 0 or self.high < 0


def mean_interval(values: NDArray[Any], *, level: float = LEVEL) -> Interval:
    """Mean of the values and its interval; always the same for the same values.

    Args:
        values: finite numbers (N,), N at least 2.
        level: how often such intervals contain the true mean, between 0 and 1.

    Raises:
        ShapeError: fewer than two values.
        ConfigError: the level is not between 0 and 1.
    """
    return _interval(_resampled_means(values, 0), float(np.mean(values)), level)


def difference_interval(values: NDArray[Any], against: NDArray[Any], *, level: float = LEVEL) -> Interval:
    """Difference of the means of two unrelated sets of values, each resampled separately; arguments as above.

    For values of the same clips, give their differences to `mean_interval`: what makes a clip hard then cancels, and
    the interval is usually much narrower.
    """
    means = _resampled_means(values, 0) - _resampled_means(against, 1)
    return _interval(means, float(np.mean(values) - np.mean(against)), level)


def _resampled_means(values: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Means of `RESAMPLES` sets sampled with replacement, each as large as the set of values."""
    if values.ndim != 1 or len(values) < 2:
        raise ShapeError(f"an interval needs at least two values, found {values.shape}")
    generator = np.random.default_rng(seed)
    at_once = max(VALUES_AT_ONCE // len(values), 1)
    parts = []
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        parts.append(values[generator.integers(0, len(values), (count, len(values)))].mean(1))
    return np.concatenate(parts)


def _interval(means: NDArray[np.float64], mean: float, level: float) -> Interval:
    if not 0 < level < 1:
        raise ConfigError(f"level={level} must be between 0 and 1, such as {LEVEL}")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


@dataclass(frozen=True)
class Measured:
    """A metric of one result: its mean, the interval when there are values to resample, and of how many values."""

    mean: float
    low: float | None
    high: float | None
    values: int

    @property
    def interval(self) -> str:
        """Such as "[0.1, 0.3]"; empty without values to resample."""
        return "" if self.low is None or self.high is None else f"[{self.low:.4g}, {self.high:.4g}]"

    @property
    def text(self) -> str:
        """The mean and its interval."""
        return f"{self.mean:.4g} {self.interval}".rstrip()


@dataclass(frozen=True)
class Difference:
    """One result minus the first one, in one metric."""

    of: str
    against: str
    metric: str
    verdict: Verdict
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    is_paired: bool = False
    values: int = 0
    reason: str = ""

    @property
    def text(self) -> str:
        """The difference and its interval; empty where there is none."""
        if self.mean is None or self.low is None or self.high is None:
            return ""
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


@dataclass(frozen=True)
class Evaluation:
    """A result file under the name it has in the table."""

    name: str
    path: Path
    results: Mapping[str, Any]

    def values(self, metric: Metric) -> dict[Any, float]:
        """Finite values by clip, or by number of the run."""
        if metric.part == "runs":
            runs = self.results.get("protocol", {}).get("runs", [])
            return {number: run[metric.key] for number, run in enumerate(runs) if is_number(run.get(metric.key))}
        part = self.results["per_clip"][metric.part]
        found = zip(part.get("clip", []), part.get(metric.key, []), strict=False)
        return {clip: value for clip, value in found if is_number(value)}

    def sources(self, metric: Metric) -> dict[str, str]:
        """Fingerprint of the frames of each clip, where they were given."""
        part = self.results["per_clip"][metric.part]
        return dict(zip(part.get("clip", []), part.get("frames", []), strict=False))

    def fact(self, place: str) -> Any:
        """The value at a dotted place of the result; None if it has none."""
        found: Any = self.results
        for key in place.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def measured(self, metric: Metric, level: float) -> Measured | None:
        """The metric of this result, None if it was not measured."""
        values = np.array(list(self.values(metric).values()), np.float64)
        if metric.part == "runs" and not len(values):
            kind, _, videos = metric.key.partition("_")
            single = self.fact(f"fvd.kvd.{videos}.value" if kind == "kvd" else f"fvd.{videos}")  # samples of one seed
            return Measured(single, None, None, 1) if is_number(single) else None
        if not len(values):
            return None
        if len(values) < FEWEST:
            return Measured(float(values[0]), None, None, 1)
        found = mean_interval(values, level=level)
        return Measured(found.mean, found.low, found.high, len(values))


def values_of_clips(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Finite values of single clips, by key of the metric and id of the clip; metrics without any are left out."""
    evaluation = Evaluation("", Path(), results)
    found = {metric.key: evaluation.values(metric) for metric in METRICS if metric.part != "runs"}
    return {key: values for key, values in found.items() if values}


@dataclass(frozen=True)
class Comparison:
    """Everything `lvt compare` shows."""

    level: float
    evaluations: Sequence[Evaluation]
    table: Mapping[str, Sequence[Measured | None]]  # by metric, one per evaluation
    differences: Sequence[Difference]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "level": self.level,
            "results": [
                {
                    "name": evaluation.name,
                    "path": str(evaluation.path),
                    "clips": evaluation.results["clips"],
                    "split": evaluation.results["split"],
                    "metrics": {
                        key: asdict(measured)
                        for key, row in self.table.items()
                        if (measured := row[number]) is not None
                    },
                }
                for number, evaluation in enumerate(self.evaluations)
            ],
            "differences": [asdict(difference) for difference in self.differences],
        }


def compare(paths: Sequence[Path], *, level: float = LEVEL) -> Comparison:
    """Read evaluations and compare each with the first.

    Args:
        paths: result files of `lvt evaluate`, or work directories that hold an `eval.json`.
        level: of the intervals.

    Raises:
        ConfigError: fewer than two, or a level that is none.
        ArtefactError: one holds no evaluation, or one of a version without values of single clips.
    """
    if len(paths) < 2:
        raise ConfigError(f"comparing needs at least two evaluations, found {len(paths)}")
    return compare_evaluations(
        [read_evaluation(name, path) for name, path in zip(names_of(paths), paths, strict=True)], level
    )


def read_evaluation(name: str, path: Path) -> Evaluation:
    """The evaluation of a result file or a work directory.

    Raises:
        ArtefactError: there is none, or one of a version without values of single clips.
    """
    path = _result_file(path)
    return Evaluation(name, path, _read(path))


def compare_evaluations(evaluations: Sequence[Evaluation], level: float = LEVEL) -> Comparison:
    """Each evaluation against the first, metric by metric; there may be a single one."""
    table: dict[str, Sequence[Measured | None]] = {}
    differences = []
    for metric in METRICS:
        row = [evaluation.measured(metric, level) for evaluation in evaluations]
        if not any(row):
            continue
        table[metric.key] = row
        first = evaluations[0]
        for other, measured in zip(evaluations[1:], row[1:], strict=True):
            if row[0] is not None and measured is not None:
                differences.append(_difference(metric, other, first, level))
    return Comparison(level, evaluations, table, differences)


def _difference(metric: Metric, other: Evaluation, first: Evaluation, level: float) -> Difference:
    """`other` minus `first`, paired where the clips are the same."""
    unknown = Difference(other.name, first.name, metric.key, "not comparable")
    unequal = [place for place in metric.same if other.fact(place) != first.fact(place)]
    if unequal:
        reason = ", ".join(f"{place.rpartition('.')[2]} differ" for place in unequal)
        return replace(unknown, reason=reason)
    ours, theirs = other.values(metric), first.values(metric)
    common = [] if metric.part == "runs" else _common_clips(metric, other, first)
    if len(common) >= FEWEST:
        interval = mean_interval(np.array([ours[clip] - theirs[clip] for clip in common]), level=level)
        count, is_paired = len(common), True
    elif min(len(ours), len(theirs)) >= FEWEST:
        interval = difference_interval(np.array(list(ours.values())), np.array(list(theirs.values())), level=level)
        count, is_paired = min(len(ours), len(theirs)), False
    else:
        needed = "runs are needed, see lvt evaluate --protocol" if metric.part == "runs" else "clips are needed"
        return replace(unknown, reason=f"one value does not measure noise; more {needed}")
    verdict: Verdict = "within noise"
    if interval.excludes_zero:
        verdict = "better" if (interval.mean < 0) == metric.lower_is_better else "worse"
    is_part = is_paired and not len(common) == len(ours) == len(theirs)
    return replace(
        unknown,
        verdict=verdict,
        **asdict(interval),
        is_paired=is_paired,
        values=count,
        reason="only clips that both have" if is_part else "",
    )


def _common_clips(metric: Metric, other: Evaluation, first: Evaluation) -> list[str]:
    """Clips that both measured: of one id and, where that is known, of the same frames."""
    ours, theirs = other.sources(metric), first.sources(metric)
    return [
        clip
        for clip in other.values(metric)
        if clip in first.values(metric) and (clip not in ours or clip not in theirs or ours[clip] == theirs[clip])
    ]


def _result_file(path: Path) -> Path:
    if path.is_dir():
        path = path / RESULT_NAME
        if not path.exists():
            raise ArtefactError(f"{path.parent} has no {RESULT_NAME}; run lvt evaluate -o {path} first")
    if not path.exists():
        raise ArtefactError(f"{path} does not exist; give a work directory or a result of lvt evaluate")
    return path


def _read(path: Path) -> Mapping[str, Any]:
    results = read_results(path)
    per_clip = results.get("per_clip")
    if not isinstance(per_clip, dict) or not {"evaluated", "samples"} <= per_clip.keys():
        raise ArtefactError(
            f"{path} holds no values of single clips: an older lvt evaluate wrote it; run lvt evaluate again"
        )
    return results


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names where they differ, otherwise the paths as given."""
    short = [path.stem if path.suffix == ".json" else path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]
