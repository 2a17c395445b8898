"""The paper's figures from the runs of a work directory (Rakhimov et al. 2020, figures 3 to 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.usage import codes_holding, count_codes
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.evaluation.protocols.results import runs_folder
from lvt_pipeline.report.figures import FIGURES, Source
from lvt_pipeline.report.plots.codes import plot_code_frequencies
from lvt_pipeline.report.plots.engine import FigureFiles
from lvt_pipeline.report.settings import FigureName, FigureSettings
from lvt_pipeline.report.work import WorkDir
from lvt_pipeline.reproduce.experiments import PriorRecipe
from lvt_pipeline.reproduce.filling import PROTOCOL
from lvt_pipeline.reproduce.places import Places
from lvt_pipeline.storage import read_json
from lvt_pipeline.workspace.layout import Layout

NUM_SAMPLES = 6  # rows of figures 3 and 4
PAPER_HOLDING = "218 of 512"  # section 4.5
# The figures of `lvt figures` that they are. Best and worst are by LPIPS, SSIM or MSE against what really happened, the
# first that was measured. A sample is one possible future, so this finds samples that go wrong, and is not a score.
SAME: Mapping[str, FigureName] = {
    "figure3": "samples",
    "figure4": "samples",
    "figure6": "codes",
    "figure7": "good-sample",
    "figure8": "bad-sample",
}


def plot_frequencies(codes: Path, out: Path, title: str) -> tuple[FigureFiles, str]:
    """Figure 5: how often each code occurs in the training clips, sorted; and its main number next to the paper's."""
    counts = count_codes(open_codes(codes), "train")
    held = " and ".join(map(str, codes_holding(counts)))
    remark = f"{held} of {counts.shape[1]} codes hold 80 % of all positions; the paper's on BAIR: {PAPER_HOLDING}"
    return plot_code_frequencies(counts, out, title=title), remark


def plot_figure(
    name: str, places: Places, prior: PriorRecipe, out: Path, title: str, *, device: str = "auto"
) -> FigureFiles:
    """Figures 3 and 4: samples. Figures 6, 7 and 8: a sample with its codes; the first, the best and the worst one.

    Raises:
        ArtefactError: the samples of the evaluation are not there any more.
    """
    folder = runs_folder(places.result(prior)) / "run-00"
    run = FirstRun(folder, device, places=places, prior=prior)
    # Sampling also takes clips that are too short to be evaluated.
    clips = tuple(run.results["per_clip"]["samples"]["clip"][:NUM_SAMPLES])
    source = Source(run, FigureSettings(clips=clips, num_frames=PROTOCOL.frames), title)
    return FIGURES[SAME[name]](source, out)


@dataclass(frozen=True, kw_only=True)
class FirstRun(WorkDir):
    """The first run of the evaluation of a prior: its samples, what they were made of, and its numbers."""

    places: Places
    prior: PriorRecipe

    @cached_property
    def layout(self) -> Layout:
        """The paths of its artefacts."""
        places, tokenizer = self.places, self.prior.tokenizer
        others = {"frames": places.frames, "vqvae": places.run(tokenizer), "codes": places.codes(tokenizer)}
        return Layout(self.path, others | {"samples": self.path / "samples.zarr"})

    @cached_property
    def results(self) -> dict[str, Any]:
        """Its numbers, in the form of an `eval.json`.

        Raises:
            ArtefactError: its samples are not there any more.
        """
        if not self.layout["samples"].exists():
            result = self.places.result(self.prior)
            raise ArtefactError(f"{self.path} holds no samples; delete {result} and run this again")
        run = read_json(self.path / "run.json")
        return {"inputs": run["inputs"], "per_clip": {"evaluated": {}, "samples": run["per_clip"]}}
