"""What a second `lvt run` on a finished work directory costs, against `lvt --help`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import table, time_in_turn

REPETITIONS = 5
SETTINGS = (
    "ingest.geometry.size=32",
    "vqvae.model={stem_width=8, code_width=16, residual_width=8, codebook_size=16}",
    "vqvae.training={max_steps=2, batch_size=4}",
    "prior.model={frames=4, subscale=[4, 1, 1], width=16, head_width=8, num_heads=2, embedding_width=8}",
    "prior.training={max_steps=2, batch_size=2}",
    "sample={frames=4, priming_frames=2, num_clips=2}",
    "evaluate.frames=4",
)


def run() -> str:
    """Whole processes, 56 demo videos."""
    lvt = [sys.executable, "-c", "from lvt_pipeline.cli import main; main()"]
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        subprocess.run(
            [*lvt, "demo", "-o", demo, "--num-clips", "56", "--videos-only"], check=True, capture_output=True
        )
        options = [part for setting in SETTINGS for part in ("--set", setting)]
        again = [*lvt, "run", "--videos", demo / "videos", "--work-dir", demo / "work", *options]
        subprocess.run(again, check=True, capture_output=True)
        seconds = time_in_turn(
            {
                "lvt --help": lambda: subprocess.run([*lvt, "--help"], check=True, capture_output=True),
                "lvt run, nothing to do": lambda: subprocess.run(again, check=True, capture_output=True),
            },
            REPETITIONS,
        )
    return table("A second run", seconds, "lvt --help", f"56 clips, nine stages, {REPETITIONS} repetitions.")
