"""What an encode costs when little or nothing is new: a second run, 1 % more clips, a million clips to compare."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import time_in_turn
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, codes_fingerprint
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.frames.records import (
    FORMAT_VERSION,
    FrameClip,
    FrameSample,
    content_fingerprint,
    receipt_name,
    shard_name,
)
from lvt_pipeline.frames.writer import output_sizes, write_failures, write_frames
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.provenance import Provenance, write_record
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.read import VQVAE_KIND
from lvt_pipeline.storage import write_json
from lvt_pipeline.training.settings import VQVAERunSettings

CLIPS, FRAMES, SIZE = 10_000, 16, 16
MANY_CLIPS, MANY_FRAMES, CLIPS_PER_SHARD = 1_000_000, 30, 64
REPETITIONS = 5
MODEL = VQVAEConfig(
    num_codebooks=1, codebook_size=16, code_width=16, stem_width=32, residual_width=16, num_residual_blocks=1
)
LVT = [sys.executable, "-c", "from lvt_pipeline.cli import main; main()"]
MEASURED = """
import sys
from lvt_pipeline.cli import run
assert run(sys.argv[1:]) == 0
sys.stderr.write(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def run() -> str:
    """Whole processes. Frames are small, so that what is not encoding shows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = _make_run(folder / "vqvae")
        _make_frames(folder / "frames", CLIPS)
        _make_frames(folder / "more", CLIPS + CLIPS // 100)
        full = _seconds(_encode(folder, "frames"))
        seconds = time_in_turn(
            {
                "lvt --help": lambda: subprocess.run([*LVT, "--help"], check=True, capture_output=True),
                "nothing to do": lambda: subprocess.run(_encode(folder, "frames"), check=True, capture_output=True),
            },
            REPETITIONS,
        )
        more = _seconds(_encode(folder, "more"))
        lines = [
            "### Encoding again",
            "",
            f"{CLIPS:,} clips of {FRAMES} frames, {SIZE}x{SIZE} pixels, {torch.get_num_threads()} threads; whole "
            f"processes, the median of {REPETITIONS} for the first two.",
            "",
            "| what | seconds |",
            "|---|---|",
            *(f"| {what} | {value:.3f} |" for what, value in seconds.items()),
            f"| encoding all clips | {full:.2f} |",
            f"| 1 % more clips | {more:.2f} = {100 * (more - seconds['nothing to do']) / full:.1f} % of all + "
            f"{seconds['nothing to do']:.2f} |",
            "",
        ]
        print("\n".join(lines), flush=True)  # what follows takes minutes to prepare
        with _quick_to_disk():
            clips = _pretend_frames(folder / "many")
            _pretend_store(folder / "many.zarr", clips, tokenizer)
        lines = [f"A million clips of {MANY_FRAMES} frames, `--dry-run`, whole processes:", ""]
        lines += ["| what | seconds | peak memory |", "|---|---|---|"]
        # Against a store that has them all: a plan with clips to encode would read some, and these tars are holes.
        spent, peak = _measured([*_encode(folder, "many", "many.zarr")[len(LVT) :], "--dry-run"])
        lines.append(f"| against a store of all of them | {spent:.1f} | {peak / 2**30:.2f} GiB |")
    return "\n".join(lines) + "\n"


def _encode(folder: Path, frames: str, out: str = "data.zarr") -> list[str]:
    options = ["--frames", folder / frames, "--vqvae", folder / "vqvae", "-o", folder / out, "--device", "cpu"]
    return [*LVT, "encode-dataset", *map(str, options)]


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def _measured(command: list[str]) -> tuple[float, int]:
    """Seconds and largest resident size of a command. It looks itself up: what `wait4` says includes its parent's."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, capture_output=True, text=True)
    return time.perf_counter() - began, int(done.stderr.split()[-2]) * 1024


def _make_run(path: Path) -> str:
    torch.manual_seed(0)
    model = VQVAE(MODEL)
    tokenizer = tokenizer_fingerprint(model)
    settings = VQVAERunSettings(model=MODEL)
    save_model_run(path, VQVAE_KIND, model, settings, stage="benchmark", version=1, counts={"tokenizer": tokenizer})
    return tokenizer


def _make_frames(root: Path, num_clips: int) -> None:
    """Clips whose content follows from their number."""

    def samples() -> Iterator[FrameSample]:
        for number in range(num_clips):
            pixels = np.random.default_rng(number).integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
            yield FrameSample.from_array(f"clip-{number:07d}", pixels)

    write_frames(root, samples(), stage="benchmark", settings={}, inputs={}, clips_per_shard=1024)


def _pretend_frames(root: Path) -> list[FrameClip]:
    """Receipts of a million clips beside tars that are holes of the right size."""
    root.mkdir()
    nbytes = MANY_FRAMES * SIZE * SIZE * 3
    size = CLIPS_PER_SHARD * (nbytes + 2048)
    clips: list[FrameClip] = []
    shards = []
    for first in range(0, MANY_CLIPS, CLIPS_PER_SHARD):
        name = shard_name("train", first // CLIPS_PER_SHARD)
        members = []
        for number in range(first, min(first + CLIPS_PER_SHARD, MANY_CLIPS)):
            clip_id = f"class_{number % 600}/clip-{number:07d}"
            members.append(
                FrameClip(
                    id=clip_id,
                    key=clip_id,
                    split="train",
                    label=f"class_{number % 600}",
                    fps=10.0,
                    source=f"../videos/{clip_id}.mp4",
                    digest=f"{number:064x}",
                    fingerprint=f"{7 * number:064x}",
                    num_frames=MANY_FRAMES,
                    height=SIZE,
                    width=SIZE,
                    decoder="decord 0.6.0",
                    codec="raw",
                    offset=2048 + (number - first) * (nbytes + 2048),
                    nbytes=nbytes,
                    shard=name,
                )
            )
        with open(root / name, "wb") as stream:
            stream.truncate(size)
        unsaid = ("shard", "arrays", "part")  # what receipts leave out for such clips
        entries = [{key: value for key, value in asdict(clip).items() if key not in unsaid} for clip in members]
        about = {"format": FORMAT_VERSION, "shard": name, "digest": "", "size": size}
        write_json(root / receipt_name(name), {**about, "clips": entries, "failures": []})
        clips += members
        shards.append(name)
    write_failures(root, [])
    record = Provenance(
        kind="frames",
        stage="benchmark",
        version=1,
        settings={},
        inputs={},
        fingerprint=content_fingerprint(clips),
        outputs=output_sizes(root, shards),
    )
    write_record(root, record)
    return clips


def _pretend_store(path: Path, clips: list[FrameClip], tokenizer: str) -> None:
    """A store of a million clips whose codes are all 0."""
    schema = CodeSchema(codebook_size=16, num_codebooks=1, grid=(SIZE // 4, SIZE // 4), tokenizer=tokenizer)
    planned = [
        PlannedClip(
            id=clip.id,
            split=clip.split,
            label=clip.label,
            length=clip.num_frames,
            fingerprint=codes_fingerprint(clip.fingerprint, tokenizer),
            fps=clip.fps,
            source=clip.source,
            source_digest=clip.digest[:16],
            decoder=clip.decoder,
        )
        for clip in clips
    ]
    with CodeStoreWriter.open(path, schema, planned) as writer:
        for shard in writer.pending_shards():
            writer.write_shard(shard.index, np.zeros((shard.num_frames, *schema.frame_shape), np.uint8))
        writer.publish(Provenance(kind="codes", stage="benchmark", version=1, settings={}, inputs={}, fingerprint=""))


@contextmanager
def _quick_to_disk() -> Iterator[None]:
    """No waiting for the device while things are prepared that nobody will miss."""
    real = os.fsync
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = real
