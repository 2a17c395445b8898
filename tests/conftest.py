"""Fixtures that several test files share: small, deterministic, made on the spot."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

# Results that must repeat bit for bit need one number of threads, here and in processes that tests start. One, because
# torch's threads wait for each other in busy loops, which is slow where tests share their cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"

import numpy as np
import pytest

from lvt_pipeline.cli import run
from tests.forked_commands import fork_server
from tests.object_stores import azurite as azurite
from tests.object_stores import bucket as bucket
from tests.object_stores import google as google
from tests.object_stores import moto as moto
from tests.object_stores import proxy as proxy
from tests.object_stores import weed as weed

# A shell ignores Ctrl-C in what it starts in the background, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

fork_server()  # with what it imports, for every test that uses it

# Every stage of `lvt run` in seconds: 32x32 frames, 8x8 grids of two codebooks, windows of four frames.
TINY_SETTINGS = (
    "ingest.geometry.size=32",
    "ingest.clips_per_shard=4",
    "vqvae.model={stem_width=8, code_width=16, residual_width=8, num_residual_blocks=1, num_codebooks=2,"
    " codebook_size=16}",
    "vqvae.training={max_steps=12, batch_size=8, log_every=4, eval_every=6, picture_every=6, checkpoint_every=6}",
    "prior.model={frames=4, subscale=[4, 1, 1], width=16, head_width=8, num_heads=2, embedding_width=8,"
    " encoder_layers=1, decoder_layers=1}",
    "prior.training={max_steps=10, batch_size=4, log_every=5, eval_every=5, picture_every=5, checkpoint_every=5,"
    " warmup_steps=2}",
    "sample.frames=4",
    "sample.priming_frames=2",
    "sample.num_clips=2",
    "evaluate.frames=4",
)


def tiny_options(settings: tuple[str, ...] = TINY_SETTINGS) -> list[str]:
    """The settings as options of `lvt run`."""
    return [part for setting in settings for part in ("--set", setting)]


def moving_square(seed: int, num_frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A bright square that wanders over a shaded background; uint8 (T, height, width, 3)."""
    generator = np.random.default_rng(seed)
    background = np.linspace(40, 120, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    frames = background[None].repeat(num_frames, 0).copy()
    y, x = generator.integers(0, height - 12), generator.integers(0, width - 12)
    colour = generator.integers(128, 255, 3)
    for frame in frames:
        frame[y : y + 12, x : x + 12] = colour
        y = int(np.clip(y + generator.integers(-3, 4), 0, height - 12))
        x = int(np.clip(x + generator.integers(-3, 4), 0, width - 12))
    return frames


@pytest.fixture(scope="session")
def toy_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten short mp4 clips in train, val and test, and a text file that calls itself mp4."""
    from lvt_pipeline.video.write import write_mp4

    folder = tmp_path_factory.mktemp("toy") / "videos"
    for number, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2):
        write_mp4(folder / split / f"clip{number}.mp4", moving_square(number), fps=10)
    (folder / "train" / "not_a_video.mp4").write_text("these are words\n" * 100)
    return folder


@pytest.fixture(scope="session")
def finished_work_dir(toy_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything `lvt run` makes of the toy videos. Shared: copy it before you change it."""
    work_dir = tmp_path_factory.mktemp("finished") / "work"
    command = ["run", "--videos", str(toy_videos), "--work-dir", str(work_dir), "--workers", "1", *tiny_options()]
    assert run(command) == 0
    return work_dir


@pytest.fixture
def work_dir(finished_work_dir: Path, tmp_path: Path) -> Path:
    """A copy of the finished work directory that the test may change."""
    return Path(shutil.copytree(finished_work_dir, tmp_path / "work"))


@pytest.fixture
def lvt(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
