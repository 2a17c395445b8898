"""The paper's figures from the runs of a work directory (Rakhimov et al. 2020, figures 3 to 8)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.usage import codes_holding, count_codes
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.evaluation.protocols.results import runs_folder
from lvt_pipeline.evaluation.samples import original_of, priming_frames_of
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.report.clips import METRIC_OF, SAMPLE_METRICS
from lvt_pipeline.report.figures import ShownSample, read_sample
from lvt_pipeline.report.numbers import format_number
from lvt_pipeline.report.plots import FigureFiles, SampledVideo, plot_code_frequencies, plot_code_rows, plot_samples
from lvt_pipeline.runs.read import load_vqvae
from lvt_pipeline.storage import read_json

NUM_SAMPLES = 6  # rows of figures 3 and 4
PAPER_HOLDING = "218 of 512"  # section 4.5


def plot_frequencies(codes: Path, out: Path, title: str) -> tuple[FigureFiles, str]:
    """Figure 5: how often each code occurs in the training clips, sorted; and its main number next to the paper's."""
    counts = count_codes(open_codes(codes), "train")
    held = " and ".join(map(str, codes_holding(counts)))
    remark = f"{held} of {counts.shape[1]} codes hold 80 % of all positions; the paper's on BAIR: {PAPER_HOLDING}"
    return plot_code_frequencies(counts, out, title=title), remark


def plot_figure(name: str, samples: MeasuredSamples, out: Path, title: str) -> FigureFiles:
    """Figures 3 and 4: samples. Figures 6, 7 and 8: a sample with its codes; the first, the best and the worst one.

    Best and worst are by LPIPS, SSIM or MSE against what really happened, the first that was measured, as in `lvt
    figures`. A sample is one possible future, so this finds samples that go wrong, and is not a score.
    """
    priming = samples.priming_frames
    if name in ("figure3", "figure4"):
        shown = map(samples.read, samples.clips[:NUM_SAMPLES])
        return plot_samples([SampledVideo(one.name, one.frames) for one in shown], priming, out, title=title)
    is_first = name == "figure6"
    clip, why = (samples.clips[0], "") if is_first else samples.extreme(is_good=name == "figure7")
    one = samples.read(clip)
    return plot_code_rows(
        one.frames,
        one.codes,
        samples.samples.codebook_size,
        priming,
        out,
        real_codes=None if is_first else one.real_codes,
        title=", ".join(filter(None, (f"{title}: {clip.id}", why))),
    )


class MeasuredSamples:
    """The samples of an evaluation's first run, and what is needed to show them.

    Args:
        codes, frames, vqvae: what the samples were made of.
        result: the evaluation.

    Raises:
        ArtefactError: the samples of the evaluation are not there any more.
    """

    def __init__(self, *, codes: Path, frames: Path, vqvae: Path, result: Path, device: str = "auto") -> None:
        place = runs_folder(result) / "run-00"
        if not (place / "samples.zarr").exists():
            raise ArtefactError(f"{place} holds no samples; delete {result} and run this again")
        self.samples = open_codes(place / "samples.zarr")
        self.store = open_codes(codes)
        self.priming_frames = priming_frames_of(self.samples)
        self._shards = FrameShards(frames)
        self._tokenizer = load_vqvae(vqvae, device=device)
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

    def read(self, clip: CodeClip) -> ShownSample:
        """A whole sample as pixels."""
        return read_sample(
            self.samples, clip, clip.length, store=self.store, tokenizer=self._tokenizer, frames=lambda: self._shards
        )

    def _origin(self, clip: CodeClip) -> CodeClip:
        origin = original_of(clip, self.store)
        assert origin is not None, "the samples were drawn from this store"
        return origin
