"""Drawing several pixels per pass where guesses come true, on the codes and the prior of a finished work directory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import time_in_turn
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.sampling.numbers import clip_generator
from lvt_pipeline.models.sampling.sampler import sample
from lvt_pipeline.runs.read import load_prior

WORK = Path(os.environ.get("LVT_WORK", "demo/work"))
REPETITIONS = 3
LOOKAHEADS = (1, 4, 8, 16, 32)
GIVEN, FRAMES = 5, 16
ROUNDING = 1e-6  # float32 logits of another product shape move a cumulative probability by less


def run() -> str:
    """Seconds to continue one clip and eight, per lookahead."""
    if not (WORK / "runs" / "prior").exists():
        return f"### Looking ahead\n\nskipped: {WORK} is no finished work directory; run `make demo`, or set LVT_WORK\n"
    store = open_codes(WORK / "data.zarr")
    model = load_prior(WORK / "runs" / "prior", device="cpu")
    clips = [clip for clip in [*store.split("test"), *store.clips] if clip.length >= FRAMES][:8]
    codes = np.stack([store.read(clip, 0, GIVEN) for clip in clips]).astype(np.int64)
    lines = []
    same = compared = 0
    for batch in (1, len(codes)):
        found = {ahead: sample(model, codes[:batch], frames=FRAMES, lookahead=ahead) for ahead in LOOKAHEADS}
        for other in list(found.values())[1:]:
            compared += batch
            same += sum(_is_same(model, *pair, number) for number, pair in enumerate(zip(found[1], other, strict=True)))
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
            f"{REPETITIONS} repetitions; in brackets, times as fast as one pixel per pass. {same} of {compared} "
            f"continuations are the same codes; the others met a random number within {ROUNDING} of a code's border.",
            "",
            f"| clips at a time | {' | '.join(heads)} |",
            f"|---|{'---|' * len(heads)}",
            *lines,
            "",
        ]
    )


def _is_same(model: Prior, first: Tensor, second: Tensor, number: int) -> bool:
    """Whether two continuations (T, h, w, n_c) of the same clip are equal; if not, rounding must explain it."""
    differ = (first != second).flatten().nonzero()
    if not len(differ):
        return True
    pixels = first.shape[1] * first.shape[2]
    place, codebook = divmod(int(differ[0]), first.shape[3])
    with torch.no_grad():
        logits = model.logits(first[None])[0].flatten(0, 2)[place, codebook]
    shape = ((FRAMES - GIVEN) * pixels, first.shape[3])
    drawn = torch.rand(shape, generator=clip_generator(0, str(number), 0), dtype=torch.float64)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    distance = float((cumulative - drawn[place - GIVEN * pixels, codebook]).abs().min())
    assert distance < ROUNDING, f"the codes differ where the random number is {distance} from a border"
    return False
