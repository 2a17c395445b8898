"""The caching sampler against one that runs the whole decoder again for every pixel, at the paper's size."""

from __future__ import annotations

import time

import torch

from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.sampling.numbers import RandomNumbers
from lvt_pipeline.models.sampling.sampler import sample, sample_by_recomputing

REPETITIONS = 3
GIVEN, FRAMES = 5, 16  # frames given and in all, as in the paper


def run() -> str:
    """11 sampled frames of 16x16 pixels, the paper's single-frame prior with random weights."""
    config = PriorConfig(frames=FRAMES)
    torch.manual_seed(0)
    model = Prior(config).eval()
    lines = []
    for batch in (1, 8):
        priming = torch.randint(0, config.codebook_size, (batch, GIVEN, 16, 16, config.num_codebooks))
        times = []
        for _ in range(REPETITIONS):
            started = time.perf_counter()
            fast = sample(model, priming)
            times.append(time.perf_counter() - started)
        cached = sorted(times)[REPETITIONS // 2]
        # Recomputing takes minutes, and every frame takes as long as any other: one is measured, the last one.
        numbers = RandomNumbers(uniforms=torch.rand(256, config.num_codebooks, batch, dtype=torch.float64))
        started = time.perf_counter()
        slow = sample_by_recomputing(model, fast[:, :-1], numbers=numbers)
        recomputing = (FRAMES - GIVEN) * (time.perf_counter() - started)
        assert torch.equal(sample(model, fast[:, :-1], numbers=numbers), slow), "the codes differ"
        lines.append(f"| {batch} | {recomputing:.0f} s | {cached:.1f} s | {recomputing / cached:.1f} |")
    return "\n".join(
        [
            "### Sampling",
            "",
            f"{FRAMES} frames from {GIVEN}, the paper's single-frame prior (49,872,384 parameters, K=512, n_c=4), "
            f"float32, {torch.get_num_threads()} threads. Cached: median of {REPETITIONS}; recomputing: one frame, "
            f"times {FRAMES - GIVEN}.",
            "",
            "| batch | recomputing | cached | times as fast |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )
