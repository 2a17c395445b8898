"""How long sampling one clip takes (paper, section 4.1 and table 7: 16 frames, 5 of them priming frames)."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvt_pipeline import lineage
from lvt_pipeline.codes.store import clips_of_split, open_codes
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.compatibility import label_numbers, require_fitting_codes
from lvt_pipeline.runs.read import load_prior, run_fingerprint
from lvt_pipeline.storage import write_json

STAGE = "time-sampling"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind="evaluation")


@dataclass(frozen=True, kw_only=True)
class TimingSettings:
    """The settings of a timing. Defaults are the paper's: one clip of 16 frames, 5 of them priming frames."""

    frames: int = 16
    priming_frames: int = 5
    repetitions: int = 3  # the fastest counts, slower ones waited for other programs; one more comes first
    device: str = "cpu"  # cpu or cuda


def time_sampling(
    prior: Path, codes: Path, out: Path, settings: TimingSettings, *, device: str = "auto", progress: Progress = SILENT
) -> Provenance:
    """Sample one test clip several times and write the seconds, and the conditions of the measurement, to a JSON file.

    Raises:
        MismatchError: the prior was trained on other codes.
        ArtefactError: another command or program wrote `out`.
        LVTError: no clip has enough frames.
    """
    clock = Clock()
    require_output_file(out, STAGE, (prior, codes), mark=b'"all_seconds"')
    store = open_codes(codes)
    model = load_prior(prior, device=device)
    require_fitting_codes(store, prior, model)
    clip = clips_of_split(store, "test", settings.priming_frames)[0][0]
    priming = store.read(clip, 0, settings.priming_frames).astype(np.int64)[None]
    labels = label_numbers([clip], prior, model)
    sample = partial(model.sample, priming, frames=settings.frames, labels=labels, lookahead=1)
    first, *seconds = _time(sample, settings, progress)
    results: dict[str, Any] = {
        "seconds": min(seconds),
        "all_seconds": seconds,
        "first_seconds": first,
        "clip": clip.id,
        "batch": 1,
        "lookahead": 1,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **_machine(model.device),
        "frames": settings.frames,
        "priming_frames": settings.priming_frames,
    }
    inputs = {"codes": store.fingerprint, "prior": run_fingerprint(prior)}
    with JOB.open_file(out, settings, inputs, clock=clock) as work:
        write_json(out, results)
        return work.finish(lineage.results_fingerprint(results), counts={"seconds_per_clip": results["seconds"]})


def _time(sample: Callable[[], object], settings: TimingSettings, progress: Progress) -> list[float]:
    """Seconds of every repetition, after those of one that does not count."""
    seconds = []
    with progress.bar("timing", settings.repetitions + 1, "samples") as bar:
        for _ in range(settings.repetitions + 1):
            begun = time.perf_counter()
            sample()  # ends on the CPU, so nothing is pending
            seconds.append(time.perf_counter() - begun)
            bar.advance()
    return seconds


def _machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "threads": None if on_gpu else torch.get_num_threads(),
        "torch": torch.__version__,
    }
