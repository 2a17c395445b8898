"""`encode-dataset` against the bare loop: frames in memory, encoder, nearest code."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.measuring import table, time_in_turn
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.encode_shards import use_precision
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.read import VQVAE_KIND, load_vqvae
from lvt_pipeline.training.settings import VQVAERunSettings

CLIPS, FRAMES, BATCH, REPETITIONS = 16, 32, 64, 3


def run() -> str:
    """512 frames of 64x64 pixels through the paper's BAIR tokenizer, on the GPU if there is one."""
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

        def encode_store(precision: Literal["float32", "bfloat16"] = "float32") -> None:
            settings = EncodeSettings(batch_size=BATCH, precision=precision)
            out = folder / f"{precision}.zarr"
            report = encode_dataset(folder / "frames", folder / "vqvae", out, settings, overwrite=True)
            limits.append(report.limited_by)

        half = load_vqvae(folder / "vqvae")
        use_precision(half, "bfloat16")
        model = load_vqvae(folder / "vqvae")
        seconds = time_in_turn(
            {
                "bare loop": lambda: model.encode(everything, batch_size=BATCH),
                "encode-dataset": encode_store,
                "bare loop, bfloat16": lambda: half.encode(everything, batch_size=BATCH),
                "encode-dataset, bfloat16": lambda: encode_store("bfloat16"),
            },
            REPETITIONS,
        )
        flipped = (model.encode(everything, BATCH) != half.encode(everything, BATCH)).float().mean().item()
    note = (
        f"{CLIPS * FRAMES} frames, batch {BATCH}, {torch.get_num_threads()} threads, device {model.device}, "
        f"{REPETITIONS} repetitions; limited by: {limits[-1]}. bfloat16 gives {100 * flipped:.2f} % of the codes "
        "another value (the tokenizer is not trained)."
    )
    return table("Encoding", seconds, "bare loop", note)
