"""What a prior gains from its context: the paper's kernel against one that lies wholly in the past.

Priors of the `tiny` preset, trained on the codes of a demo with the same steps, seeds, batches and number of
parameters; only the place of the context kernel and the encoder's positions differ.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.config import build, read_preset
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.runs.read import load_prior
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.settings import PriorRunSettings

CODES = Path(os.environ.get("LVT_CODES", "demo/work/data.zarr"))
SEEDS = (0, 1)
VARIANTS = {
    "centred (`single-frame`)": {"kernel_reach": "centred", "encoder_position": False},
    "centred, encoder positions": {"kernel_reach": "centred", "encoder_position": True},
    "past": {"kernel_reach": "past", "encoder_position": False},
    "past, encoder positions (`single-frame-past`, `tiny`)": {"kernel_reach": "past", "encoder_position": True},
}


def run() -> str:
    """Bits per dimension on the test clips after training, per variant and seed."""
    if not CODES.exists():
        return f"## Context\n\nskipped: {CODES} does not exist; run `make demo`, or set LVT_CODES to a code store\n"
    preset = build(PriorRunSettings, read_preset("prior", "tiny"))
    steps = int(os.environ.get("LVT_STEPS", preset.training.max_steps))
    store = open_codes(CODES)
    clips = [clip for clip in store.split("test") if clip.length >= preset.model.frames]
    codes = np.stack([store.read(clip, 0, preset.model.frames) for clip in clips]).astype(np.int64)
    lines = []
    for name, changes in VARIANTS.items():
        bits = []
        for seed in SEEDS:
            settings = dataclasses.replace(
                preset,
                model=dataclasses.replace(preset.model, **changes),
                training=dataclasses.replace(
                    preset.training, seed=seed, max_steps=steps, picture_every=steps, eval_every=steps
                ),
            )
            with TemporaryDirectory() as folder:
                train_prior(CODES, Path(folder) / "run", settings, device="cpu")
                model = load_prior(Path(folder) / "run", device="cpu")
            bits.append(model.bits_per_dim(codes))
        parameters = num_parameters(model)
        lines.append(
            f"| {name} | {parameters:,} | {' / '.join(f'{value:.4f}' for value in bits)} | {np.mean(bits):.4f} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(
        [
            "## Context: `context`",
            "",
            f"Preset `tiny`, {steps} steps, seeds {SEEDS}, {len(codes)} test clips of {CODES}.",
            "",
            "| context kernel | parameters | bits/dim by seed | mean |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )
