"""What each rule for codebooks is worth: usage, perplexity and reconstruction after equal training on demo frames.

Everything but the rule is the preset `tiny`, cut short: the same network, batches, seeds and schedule.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lvt_pipeline.config import build, merge, read_preset
from lvt_pipeline.demo.videos import DemoSettings, demo_clip
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.provenance import read_record
from lvt_pipeline.training.settings import VQVAERunSettings
from lvt_pipeline.training.vqvae import train_vqvae
from lvt_pipeline.video.geometry import lanczos_square

STEPS, SEEDS = 1000, (0, 1)  # the preset takes 3500 steps
CLIPS, VALIDATION_CLIPS, FRAMES, SIZE = 72, 6, 40, 64

UNRULED = {"codebook_init": None}  # what the preset says about codebooks and a rule may leave out
CONSISTENT = {"ema_init": "consistent", "dead_code": "none"}
RESAMPLED = {"ema_init": "consistent", "dead_code": "resample"}
RULES: Mapping[str, Mapping[str, Any]] = {
    "reference (the paper's code)": {"ema_init": "reference", "dead_code": "none"},
    "consistent": CONSISTENT,
    "consistent, resample": RESAMPLED,
    "k-means": {**CONSISTENT, "codebook_init": "kmeans"},
    "k-means, resample": {**RESAMPLED, "codebook_init": "kmeans"},
    "FSQ, levels 8, 8, 4": {"quantizer": "fsq", "fsq_levels": [8, 8, 4]},
}


def run() -> str:
    """Every rule with every seed, one after the other: seeds outside, so that a slower machine is slower for all."""
    results: dict[str, list[Mapping[str, Any]]] = {name: [] for name in RULES}
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "frames"
        write_demo_frames(frames)
        for seed in SEEDS:
            for number, (name, rule) in enumerate(RULES.items()):
                out = Path(folder) / f"run-{number}-{seed}"
                train_vqvae(frames, out, _settings(rule, seed), device="cpu")
                results[name].append(read_record(out).counts)
    lines = [
        "### Codebooks",
        "",
        f"{STEPS} steps of the preset `tiny` on {CLIPS - VALIDATION_CLIPS} demo clips of {FRAMES} frames; seeds "
        f"{', '.join(map(str, SEEDS))} side by side; measured on frames of {VALIDATION_CLIPS} other clips.",
        "",
        "| rule | usage per codebook | perplexity per codebook | MSE x 1000 | PSNR, mean |",
        "|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        usages = "; ".join(", ".join(f"{share:.0%}" for share in counts["usage"]) for counts in runs)
        perplexities = "; ".join(", ".join(f"{value:.0f}" for value in counts["perplexity"]) for counts in runs)
        errors = "; ".join(f"{1000 * counts['val_mse']:.2f}" for counts in runs)
        psnr = statistics.mean(counts["val_psnr"] for counts in runs)
        lines.append(f"| {name} | {usages} | {perplexities} | {errors} | {psnr:.2f} dB |")
    return "\n".join(lines) + "\n"


def _settings(rule: Mapping[str, Any], seed: int) -> VQVAERunSettings:
    """The preset with another rule for its codebooks."""
    settings = build(VQVAERunSettings, merge(read_preset("vqvae", "tiny"), {"model": {**UNRULED, **rule}}))
    training = replace(settings.training, max_steps=STEPS, seed=seed, eval_every=STEPS, picture_every=STEPS)
    return replace(settings, training=replace(training, checkpoint_every=STEPS))


def write_demo_frames(root: Path) -> None:
    """Pictures of the demo, cut and scaled as `lvt ingest` does, without the detour over video files."""
    settings = DemoSettings(num_clips=CLIPS, num_frames=FRAMES)

    def sample(index: int) -> FrameSample:
        pictures = [lanczos_square(picture, SIZE) for picture in demo_clip(settings, index)]
        split = "train" if index < CLIPS - VALIDATION_CLIPS else "val"
        return FrameSample.from_array(f"clip{index:03d}", np.stack(pictures), split=split)

    write_frames(root, map(sample, range(CLIPS)), stage="benchmark", settings={}, inputs={})
