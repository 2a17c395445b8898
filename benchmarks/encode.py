"""`encode-dataset` against the bare loop: frames in memory, encoder, nearest code."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import table, time_in_turn
from lvt_pipeline.data.frames import FrameSample, FrameShards, write_frames
from lvt_pipeline.engine.encoding import encode_dataset
from lvt_pipeline.engine.run_directory import save_model_run
from lvt_pipeline.engine.vqvae_training import VQVAERunSettings
from lvt_pipeline.models.vqvae import VQVAE, VQVAEConfig, tokenizer_fingerprint
from lvt_pipeline.runs import VQVAE_KIND

CLIPS, FRAMES, BATCH, REPETITIONS = 16, 32, 64, 3


def run() -> str:
    """512 frames of 64x64 pixels through the paper's BAIR tokenizer on the CPU."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = generator.integers(0, 256, (CLIPS, FRAMES, 64, 64, 3), dtype=np.uint8)
        samples = (FrameSample.from_array(str(i), clip) for i, clip in enumerate(pixels))
        write_frames(folder / "frames", samples, stage="benchmark", settings={}, inputs={})
        torch.manual_seed(0)
        settings = VQVAERunSettings(model=VQVAEConfig())
        model = VQVAE(settings.model).eval()
        counts = {"tokenizer": tokenizer_fingerprint(model)}
        save_model_run(folder / "vqvae", VQVAE_KIND, model, settings, stage="benchmark", version=1, counts=counts)
        frames = FrameShards(folder / "frames")
        everything = np.concatenate([frames.read(clip) for clip in frames.clips])
        limits = []

        def encode_store() -> None:
            report = encode_dataset(folder / "frames", folder / "vqvae", folder / "data.zarr", overwrite=True)
            limits.append(report.limited_by)

        seconds = time_in_turn(
            {"bare loop": lambda: model.encode(everything, batch_size=BATCH), "encode-dataset": encode_store},
            REPETITIONS,
        )
    note = (
        f"{CLIPS * FRAMES} frames, float32, batch {BATCH}, {torch.get_num_threads()} threads, "
        f"{REPETITIONS} repetitions; limited by: {limits[-1]}."
    )
    return table("Encoding", seconds, "bare loop", note)
