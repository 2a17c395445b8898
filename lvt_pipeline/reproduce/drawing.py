"""The paper's figures from the runs of a work directory (Rakhimov et al. 2020, figures 3 to 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.usage import codes_holding, count_codes
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.evaluation.pixels import real_frames
from lvt_pipeline.evaluation.protocol_results import runs_folder
from lvt_pipeline.evaluation.samples import original_of, priming_frames_of
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.report.clips import METRIC_OF, SAMPLE_METRICS
from lvt_pipeline.report.numbers import format_number
from lvt_pipeline.report.plots import FigureFiles, SampledVideo, plot_code_frequencies, plot_code_rows, plot_samples
from lvt_pipeline.runs.read import load_vqvae
from lvt_pipeline.storage import read_json

NUM_SAMPLES = 6  # rows of figures 3 and 4
PAPER_HOLDING = "218 of 512"  # section 4.5


@dataclass(frozen=True)
class Sampled:
    """What a figure of samples is drawn from: the first run of an evaluation.

    Attributes:
        codes, frames, vqvae: what the samples were made of.
        result: the evaluation.
    """

    codes: Path
    frames: Path
    vqvae: Path
    result: Path
    device: str = "auto"


def draw_frequencies(codes: Path, out: Path, title: str) -> tuple[FigureFiles, str]:
    """Figure 5: how often each code occurs in the training clips, sorted; and its main number beside the paper's."""
    counts = count_codes(open_codes(codes), "train")
    held = " and ".join(map(str, codes_holding(counts)))
    remark = f"{held} of {counts.shape[1]} codes hold 80 % of all positions; the paper's on BAIR: {PAPER_HOLDING}"
    return plot_code_frequencies(counts, out, title=title), remark


def draw_figure(name: str, sampled: Sampled, out: Path, title: str) -> FigureFiles:
    """Figures 3 and 4: samples. Figures 6, 7 and 8: a sample with its codes; the first, the best and the worst one.

    Best and worst are by LPIPS, SSIM or MSE against what really happened, the first that was measured, as in `lvt
    figures`. A sample is one possible future, so this finds samples that go wrong, and is not a score.

    Raises:
        ArtefactError: the samples of the evaluation are not there any more.
    """
    return _FIGURES[name](_Opened(sampled), out, title)


class _Opened:
    """The samples of an evaluation's first run, and what is needed to show them."""

    def __init__(self, sampled: Sampled) -> None:
        place = runs_folder(sampled.result) / "run-00"
        if not (place / "samples.zarr").exists():
            raise ArtefactError(f"{place} holds no samples; delete {sampled.result} and run this again")
        self.samples = open_codes(place / "samples.zarr")
        self.store = open_codes(sampled.codes)
        self.priming_frames = priming_frames_of(self.samples)
        self._shards = FrameShards(sampled.frames)
        self._tokenizer = load_vqvae(sampled.vqvae, device=sampled.device)
        per_clip: Mapping[str, Any] = read_json(place / "run.json")["per_clip"]
        key = next(key for key in SAMPLE_METRICS if key in per_clip)
        self._metric = METRIC_OF[key]
        self._values = dict(zip(per_clip["clip"], per_clip[key], strict=True))
        # Sampling also takes clips that are too short to be evaluated.
        self.clips = [clip for clip in self.samples.clips if self._origin(clip).id in self._values]

    def extreme(self, *, is_good: bool) -> tuple[CodeClip, str]:
        """The best or the worst sample, and what makes it that."""
        choose = min if is_good == self._metric.lower_is_better else max
        clip = choose(self.clips, key=lambda clip: (self._values[self._origin(clip).id], clip.id))
        value = format_number(self._values[self._origin(clip).id])
        return clip, f"{self._metric.title} {value}, the {'best' if is_good else 'worst'} of {len(self.clips)}"

    def video(self, clip: CodeClip) -> NDArray[np.uint8]:
        """A sample in pixels, its given frames real: uint8 (T, H, W, 3)."""
        frames: NDArray[np.uint8] = self._tokenizer.decode(self.samples.read(clip)).numpy()
        given = self.priming_frames
        frames[:given] = real_frames(self.store, self._origin(clip), self._shards, clip.length)[:given]
        return frames

    def real_codes(self, clip: CodeClip) -> NDArray[np.unsignedinteger[Any]]:
        """The codes of what really happened, as long as the sample."""
        return self.store.read(self._origin(clip), 0, clip.length)

    def _origin(self, clip: CodeClip) -> CodeClip:
        origin = original_of(clip, self.store)
        assert origin is not None, "the samples were drawn from this store"
        return origin


def _draw_samples(opened: _Opened, out: Path, title: str) -> FigureFiles:
    videos = [SampledVideo(clip.id, opened.video(clip)) for clip in opened.clips[:NUM_SAMPLES]]
    return plot_samples(videos, opened.priming_frames, out, title=title)


def _draw_first(opened: _Opened, out: Path, title: str) -> FigureFiles:
    return _draw_codes(opened, opened.clips[0], out, f"{title}: {opened.clips[0].id}", with_real=False)


def _draw_extreme(opened: _Opened, out: Path, title: str, *, is_good: bool) -> FigureFiles:
    clip, why = opened.extreme(is_good=is_good)
    return _draw_codes(opened, clip, out, f"{title}: {clip.id}, {why}", with_real=True)


def _draw_codes(opened: _Opened, clip: CodeClip, out: Path, title: str, *, with_real: bool) -> FigureFiles:
    return plot_code_rows(
        opened.video(clip),
        opened.samples.read(clip),
        opened.samples.codebook_size,
        opened.priming_frames,
        out,
        real_codes=opened.real_codes(clip) if with_real else None,
        title=title,
    )


_FIGURES: Mapping[str, Callable[[_Opened, Path, str], FigureFiles]] = {
    "figure3": _draw_samples,
    "figure4": _draw_samples,
    "figure6": _draw_first,
    "figure7": partial(_draw_extreme, is_good=True),
    "figure8": partial(_draw_extreme, is_good=False),
}
