"""The cached sampler against one that runs the whole decoder again for every pixel; same codes."""

from __future__ import annotations

import torch

from benchmarks.measuring import table, time_in_turn
from lvt_pipeline.models.prior import Prior, PriorConfig
from lvt_pipeline.models.sampler import sample_by_recomputing

REPETITIONS = 3


def run() -> str:
    """One sampled frame of 16x16 pixels after one given frame, a model of a quarter of the paper's width."""
    config = PriorConfig(
        frames=2,
        subscale=(2, 1, 1),
        codebook_size=256,
        num_codebooks=2,
        width=128,
        head_width=32,
        num_heads=4,
        embedding_width=64,
        encoder_layers=2,
        decoder_layers=2,
    )
    torch.manual_seed(0)
    model = Prior(config).eval()
    parts = []
    for batch in (1, 8):
        priming = torch.randint(0, 256, (batch, 1, 16, 16, 2))
        uniforms = torch.rand(256, 2, batch, dtype=torch.float64)
        cached = model.sample(priming, uniforms=uniforms)
        assert torch.equal(cached, sample_by_recomputing(model, priming, uniforms=uniforms)), "the codes differ"
        seconds = time_in_turn(
            {
                "recomputing": lambda p=priming, u=uniforms: sample_by_recomputing(model, p, uniforms=u),
                "cached": lambda p=priming, u=uniforms: model.sample(p, uniforms=u),
            },
            REPETITIONS,
        )
        note = f"d=128, 2+2 layers, n_c=2, K=256, float32, batch {batch}, 256 pixels, {REPETITIONS} repetitions."
        parts.append(table(f"Sampling, batch {batch}", seconds, "recomputing", note))
    return "\n".join(parts)
