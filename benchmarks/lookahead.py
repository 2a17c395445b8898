"""Drawing several pixels per pass where guesses come true, on the codes and the prior of a finished work directory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import time_in_turn
from lvt_pipeline.data.codes import open_codes
from lvt_pipeline.models.sampler import sample
from lvt_pipeline.runs import load_prior

WORK = Path(os.environ.get("LVT_WORK", "demo/work"))
REPETITIONS = 3
LOOKAHEADS = (1, 4, 8, 16, 32)
GIVEN, FRAMES = 5, 16


def run() -> str:
    """Seconds to continue one clip and eight, per lookahead."""
    if not (WORK / "runs" / "prior").exists():
        return f"### Looking ahead\n\nskipped: {WORK} is no finished work directory; run `make demo`, or set LVT_WORK\n"
    store = open_codes(WORK / "data.zarr")
    model = load_prior(WORK / "runs" / "prior", device="cpu")
    clips = [clip for clip in [*store.split("test"), *store.clips] if clip.length >= FRAMES][:8]
    codes = np.stack([store.read(clip, 0, GIVEN) for clip in clips]).astype(np.int64)
    lines = []
    for batch in (1, len(codes)):
        found = {ahead: sample(model, codes[:batch], frames=FRAMES, lookahead=ahead) for ahead in LOOKAHEADS}
        assert all(torch.equal(found[1], other) for other in found.values()), "the codes differ"
        seconds = time_in_turn(
            {
                str(ahead): lambda ahead=ahead, batch=batch: sample(
                    model, codes[:batch], frames=FRAMES, lookahead=ahead, clips_per_pass=batch
                )
                for ahead in LOOKAHEADS
            },
            REPETITIONS,
        )
        cells = [f"{value:.2f} s ({seconds['1'] / value:.2f})" for value in seconds.values()]
        lines.append(f"| {batch} | {' | '.join(cells)} |")
    heads = [f"lookahead {ahead}" for ahead in LOOKAHEADS]
    return "\n".join(
        [
            "### Looking ahead",
            "",
            f"{FRAMES} frames from {GIVEN} with the prior of {WORK}, float32, {torch.get_num_threads()} threads, "
            f"{REPETITIONS} repetitions; in brackets, times as fast as one pixel per pass. Same codes.",
            "",
            f"| clips at a time | {' | '.join(heads)} |",
            f"|---|{'---|' * len(heads)}",
            *lines,
            "",
        ]
    )
