"""Trainings of several processes under `torchrun`: the steps of one process, the same bits in every process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lvt_pipeline.models.vqvae.model import VQVAE
from lvt_pipeline.provenance import read_record
from lvt_pipeline.runs.checkpoints import MODEL_NAME, find_checkpoint, load_weights
from lvt_pipeline.training.settings import VQVAERunSettings
from lvt_pipeline.training.vqvae import train_vqvae
from tests.run_files import metrics_of
from tests.test_vqvae_training import (
    make_frames,
    tiny,
)
from tests.torchrun import run_together

BOOKS = [f"quantizer.books.{book}.{name}" for book in (0, 1) for name in ("table", "total", "size", "updates")]


def settings(codebook_init: str) -> VQVAERunSettings:
    """Codebooks that forget quickly, so that some codes die and are resampled."""
    training = tiny(max_steps=6, batch_size=8, ema_decay=0.8, grad_clip=1.0, learning_rate=0.001)
    model = replace(training.model, ema_decay=0.7, dead_code_threshold=0.2, codebook_init=codebook_init)
    return replace(training, model=model)


def train_in_this_process(frames: str, folder: str) -> None:
    """What each process does; `rank-N.pt` holds the weights that it ended with."""
    models: list[VQVAE] = []
    make = VQVAE.__init__

    def remembered(self: VQVAE, *arguments: object) -> None:
        make(self, *arguments)  # type: ignore[arg-type]
        models.append(self)

    VQVAE.__init__ = remembered  # type: ignore[assignment, method-assign]
    for init in ("uniform", "kmeans"):
        record = train_vqvae(Path(frames), Path(folder) / init, settings(init), device="cpu")
        assert record == read_record(Path(folder) / init)  # the same in every process
    torch.save([dict(model.state_dict()) for model in models], Path(folder) / f"rank-{_rank()}.pt")


def _rank() -> int:
    import os

    return int(os.environ["RANK"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs of two processes, and of one with batches as large as theirs together."""
    folder = tmp_path_factory.mktemp("runs")
    frames = make_frames(folder / "frames", ("train",) * 5 + ("val",))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_together("tests.test_torchrun", "train_in_this_process", frames, folder)
    for init in ("uniform", "kmeans"):
        train_vqvae(frames, folder / f"one-{init}", settings(init), device="cpu")
    yield folder
    torch.set_num_threads(threads)


def test_processes_end_with_the_same_bits_down_to_their_codebooks(folder: Path) -> None:
    ranks = [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 2
    for ours, theirs in zip(*ranks, strict=True):
        assert set(BOOKS) <= set(ours)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("init", ["uniform", "kmeans"])
def test_two_processes_train_the_tokenizer_that_one_would(folder: Path, init: str) -> None:
    one, two = (load_weights(find_checkpoint(folder / name), MODEL_NAME) for name in (f"one-{init}", init))
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    lines = [[line for line in metrics_of(folder / name) if "loss" in line] for name in (f"one-{init}", init)]
    for ours, theirs in zip(*lines, strict=True):
        for name in ("loss", "reconstruction_loss", "commitment_loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_some_codes_were_resampled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would not see whether resampling depends on the number of processes."""
    from lvt_pipeline.models.vqvae.quantize import EMACodebook

    resample, counts = EMACodebook._resample_dead_codes, []

    def counted(self: EMACodebook, flat: torch.Tensor) -> None:
        counts.append(int((self.size < self.dead_code_threshold * self.size.mean()).sum()))
        resample(self, flat)

    monkeypatch.setattr(EMACodebook, "_resample_dead_codes", counted)
    train_vqvae(folder / "frames", folder / "again", settings("uniform"), device="cpu")
    assert sum(counts) > 10
