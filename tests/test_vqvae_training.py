"""Training the frame VQ-VAE on small synthetic clips."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvt_pipeline.config import build, load, preset_names
from lvt_pipeline.errors import ChangedRunError, LVTError, Stopped
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.provenance import read_record
from lvt_pipeline.runs.checkpoints import find_checkpoint, load_weights
from lvt_pipeline.runs.read import load_vqvae
from lvt_pipeline.training import vqvae as vqvae_training
from lvt_pipeline.training import vqvae_task
from lvt_pipeline.training.settings import VQVAERunSettings
from lvt_pipeline.training.task import StepLoss
from lvt_pipeline.training.vqvae import dry_run_vqvae, train_vqvae
from lvt_pipeline.training.vqvae_task import VQVAETask, start_codebooks, vqvae_loss
from tests.listener import Listener
from tests.run_files import metrics_of

MODEL = {
    "num_codebooks": 2,
    "codebook_size": 16,
    "code_width": 8,
    "stem_width": 8,
    "residual_width": 8,
    "num_residual_blocks": 1,
    "ema_init": "consistent",
    "dead_code": "resample",
}
TRAINING = {
    "max_steps": 8,
    "batch_size": 6,
    "learning_rate": 0.005,
    "log_every": 3,
    "eval_every": 4,
    "eval_items": 10,
    "picture_every": 4,
    "checkpoint_every": 4,
}


def tiny(**training: Any) -> VQVAERunSettings:
    return build(VQVAERunSettings, {"model": MODEL, "training": {**TRAINING, **training}})


def make_frames(root: Path, splits: tuple[str, ...] = ("train", "train", "train", "val"), size: int = 16) -> Path:
    """Clips of a bright square on a coloured floor; of 5, 6, 7, ... frames."""
    samples = []
    for number, split in enumerate(splits):
        frames = np.full((5 + number, size, size, 3), (40 * number, 90, 160), np.uint8)
        for t in range(len(frames)):
            frames[t, t : t + 5, 2 * number : 2 * number + 5] = 250
        samples.append(FrameSample.from_array(f"clip{number}", frames, split=split))
    write_frames(root, samples, stage="test", settings={}, inputs={})
    return root


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_frames(tmp_path_factory.mktemp("frames") / "frames")


@pytest.fixture(scope="module")
def finished(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vqvae") / "run"
    train_vqvae(frames, out, tiny(), device="cpu")
    return out


def test_resumed_vqvae_matches_uninterrupted_one_down_to_its_codebooks(
    frames: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = VQVAETask.loss
    calls = 0

    def stopping_loss(self: VQVAETask, model: Any, batch: Any) -> StepLoss:
        nonlocal calls
        calls += 1
        if calls in (3, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch)

    monkeypatch.setattr(VQVAETask, "loss", stopping_loss)
    for step in (3, 5):
        with pytest.raises(Stopped, match=f"step {step} is saved"):
            train_vqvae(frames, tmp_path / "run", tiny(), device="cpu")
    record = train_vqvae(frames, tmp_path / "run", tiny(), device="cpu")
    whole, parts = (load_weights(find_checkpoint(run)) for run in (finished, tmp_path / "run"))
    assert {"quantizer.books.0.table", "quantizer.books.0.total", "quantizer.books.0.size"} <= set(whole)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    assert metrics_of(tmp_path / "run") == metrics_of(finished)
    assert record.fingerprint == read_record(finished).fingerprint


def test_kmeans_start_is_the_same_whether_or_not_the_run_was_stopped(
    frames: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(tiny(), model=replace(tiny().model, codebook_init="kmeans"))
    train_vqvae(frames, tmp_path / "whole", settings, device="cpu")
    loss, steps = VQVAETask.loss, 0

    def broken_loss(self: VQVAETask, model: Any, batch: Any) -> StepLoss:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise KeyError("killed")  # before anything is saved
        if steps == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch)

    monkeypatch.setattr(VQVAETask, "loss", broken_loss)
    for error in (KeyError, Stopped):
        with pytest.raises(error):
            train_vqvae(frames, tmp_path / "parts", settings, device="cpu")
    monkeypatch.setattr(vqvae_training, "start_codebooks", None)  # starting again would fail
    record = train_vqvae(frames, tmp_path / "parts", settings, device="cpu")
    whole, parts = (load_weights(find_checkpoint(tmp_path / name)) for name in ("whole", "parts"))
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    table = "quantizer.books.0.table"
    assert not torch.equal(whole[table], load_weights(find_checkpoint(finished))[table])
    assert record.fingerprint == read_record(tmp_path / "whole").fingerprint


def test_kmeans_start_puts_the_tables_on_the_training_latents(frames: Path) -> None:
    settings = replace(tiny(), model=replace(tiny().model, codebook_init="kmeans"))
    torch.manual_seed(0)
    task = VQVAETask(VQVAE(settings.model), FrameShards(frames), settings.training)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    start_codebooks(task)
    after = task.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed == {f"quantizer.books.{j}.{name}" for j in (0, 1) for name in ("table", "total", "size")}
    images = task.batch(1, range(6))["frames"].permute(0, 3, 1, 2) / 127.5 - 1
    error = {}
    for name in ("kmeans", "uniform"):
        error[name] = float(task.model.eval()(images).commitment_loss.detach())
        task.model.load_state_dict(before)
    assert error["kmeans"] < error["uniform"] / 4


def test_seed_decides_the_kmeans_start(frames: Path) -> None:
    settings = replace(tiny(), model=replace(tiny().model, codebook_init="kmeans"))
    model = VQVAE(settings.model)
    tables = []
    for seed in (0, 0, 1):
        start_codebooks(VQVAETask(model, FrameShards(frames), replace(settings.training, seed=seed)))
        tables.append(model.quantizer.books[0].table.clone())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_lines_of_the_log_tell_how_each_codebook_is_used(frames: Path, finished: Path) -> None:
    line = metrics_of(finished)[0]
    books = [line[f"batch_perplexity_{j}"] for j in (0, 1)]
    assert line["batch_perplexity"] == pytest.approx(sum(books) / 2)
    assert all(1 <= value <= 16 for value in books)
    model, batch = VQVAE(tiny().model), torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    codes = model(batch.permute(0, 3, 1, 2) / 127.5 - 1).codes
    metrics = vqvae_loss(VQVAE(tiny().model), {"frames": batch}).metrics
    assert set(metrics) == set(VQVAETask(model, FrameShards(frames), tiny().training).metric_names)
    with torch.no_grad():
        for j in (0, 1):
            model.quantizer.books[j].table.copy_(torch.randn(16, 4))
    codes = model.eval()(batch.permute(0, 3, 1, 2) / 127.5 - 1).codes
    metrics = vqvae_loss(model, {"frames": batch}).metrics
    for j in (0, 1):
        assert float(metrics[f"batch_usage_{j}"]) == len(codes[..., j].unique()) / 16


def test_collapse_is_said_once_and_recorded(frames: Path, tmp_path: Path) -> None:
    lines = Listener()
    # With a decay of 0, a code that one step does not use falls to zero, where many others lie already.
    model = replace(tiny().model, ema_decay=0.0, dead_code="none", ema_init="reference", codebook_size=64)
    settings = replace(tiny(eval_every=2), model=model)
    record = train_vqvae(frames, tmp_path / "run", settings, device="cpu", progress=lines)
    said = [line for line in lines.said if "collapsed" in line]
    assert [line.split(" (")[0] for line in said] == ["codebook 0 has collapsed", "codebook 1 has collapsed"]
    assert all('model.dead_code="resample"' in line and "of 64 codes used" in line for line in said)
    assert record.counts["collapsed"] == [0, 1]
    evaluations = [line for line in metrics_of(tmp_path / "run") if line["split"] == "val"]
    assert [line["collapsed"] for line in evaluations] == [[0], [0], [0, 1], [0, 1]]


def test_collapse_is_not_said_again_when_a_run_is_resumed(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Listener()
    model = replace(tiny().model, ema_decay=0.0, dead_code="none", ema_init="reference", codebook_size=64)
    settings = replace(tiny(eval_every=2), model=model)
    loss, calls = VQVAETask.loss, 0

    def stopping_loss(self: VQVAETask, model: Any, batch: Any) -> StepLoss:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch)

    monkeypatch.setattr(VQVAETask, "loss", stopping_loss)
    with pytest.raises(Stopped, match="step 3 is saved"):
        train_vqvae(frames, tmp_path / "run", settings, device="cpu", progress=lines)
    assert [line.split(" (")[0] for line in lines.said] == ["codebook 0 has collapsed"]
    train_vqvae(frames, tmp_path / "run", settings, device="cpu", progress=lines)
    said = [line.split(" (")[0] for line in lines.said if "collapsed" in line]
    assert said == ["codebook 0 has collapsed", "codebook 1 has collapsed"]


def test_healthy_codebooks_are_not_called_collapsed(finished: Path) -> None:
    assert read_record(finished).counts["collapsed"] == []


def test_record_says_what_was_trained_on_what(frames: Path, finished: Path) -> None:
    record = read_record(finished)
    assert (record.kind, record.stage) == ("vqvae-run", "train-vqvae")
    assert record.inputs == {"frames": FrameShards(frames).fingerprint}
    assert record.counts["steps"] == 8
    assert record.counts["train_clips"] == 3
    assert record.counts["tokenizer"] == tokenizer_fingerprint(load_vqvae(finished, device="cpu"))
    assert len(record.counts["perplexity"]) == 2
    assert all(record.outputs[name] == (finished / name).stat().st_size for name in record.outputs)


def test_validation_error_is_that_of_the_reconstructions(frames: Path, finished: Path) -> None:
    model = load_vqvae(finished, device="cpu")
    shards = FrameShards(frames)
    real = shards.read("clip3")  # 8 frames, fewer than eval_items: all of them are used
    rebuilt = model.decode(model.encode(real)).numpy()
    mse = float(np.mean(((real.astype(float) - rebuilt.astype(float)) / 255) ** 2))
    record = read_record(finished)
    assert record.counts["val_mse"] == pytest.approx(mse, rel=0.02)  # bytes are rounded, the metric is not
    assert record.counts["val_psnr"] == pytest.approx(-10 * np.log10(record.counts["val_mse"]))


def test_training_lowers_the_reconstruction_error(frames: Path, tmp_path: Path) -> None:
    train_vqvae(frames, tmp_path, tiny(max_steps=100), device="cpu")
    errors = [line["reconstruction_loss"] for line in metrics_of(tmp_path) if line["split"] == "train"]
    assert errors[-1] < errors[0] / 2


def test_finished_vqvae_is_not_trained_again(frames: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqvae_training, "VQVAETask", None)  # building a task would fail
    assert train_vqvae(frames, finished, tiny(), device="cpu") == read_record(finished)


def test_every_clip_is_seen_once_an_epoch_and_only_training_clips(frames: Path) -> None:
    settings = tiny().training
    task = VQVAETask(VQVAE(tiny().model), FrameShards(frames), settings)
    seen = [clip.split(" ")[0] for step in range(1, 5) for clip in task.batch_clips(step)]
    assert {seen.count(clip) for clip in ("clip0", "clip1", "clip2")} == {8}
    assert "clip3" not in seen


def test_batches_are_the_named_frames_from_memory_and_from_disk(frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = FrameShards(frames)
    in_memory = VQVAETask(VQVAE(tiny().model), shards, tiny().training)
    monkeypatch.setattr(vqvae_task, "available_memory", lambda: 0)
    on_disk = VQVAETask(VQVAE(tiny().model), shards, tiny().training)
    for step in (1, 2, 50):
        batch = in_memory.batch(step, range(6))["frames"]
        assert torch.equal(batch, on_disk.batch(step, range(6))["frames"])
        for row, name in enumerate(in_memory.batch_clips(step)):
            clip, frame = name.removesuffix(")").split(" (frame ")
            np.testing.assert_array_equal(batch[row].numpy(), shards.read(clip, int(frame), int(frame) + 1)[0])
        halves = [in_memory.batch(step, rows)["frames"] for rows in (range(3), range(3, 6))]
        assert torch.equal(batch, torch.cat(halves))


def test_evaluation_and_pictures_leave_the_model_unchanged(frames: Path) -> None:
    task = VQVAETask(VQVAE(tiny().model), FrameShards(frames), tiny().training)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    task.model.eval()
    with torch.no_grad():
        facts = task.evaluate(task.model)
        picture = task.picture(task.model)
    torch.testing.assert_close(dict(task.model.state_dict()), before, rtol=0, atol=0)
    assert set(facts) == {"mse", "psnr", "perplexity", "usage", "collapsed"}
    assert picture.dtype == np.uint8


def test_picture_shows_frames_above_reconstructions(finished: Path) -> None:
    with Image.open(finished / "pictures" / "step-00000008.png") as picture:
        assert picture.size == (8 * 32 + 7 * 2, 2 * 32 + 2)
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels[0, 0] != pixels[34, 0]).any()


def test_frames_without_val_clips_train_and_say_so(tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames", ("train", "train"))
    lines = Listener()
    record = train_vqvae(frames, tmp_path / "run", tiny(), device="cpu", progress=lines)
    assert any("no val clips" in line for line in lines.said)
    assert "val_mse" not in record.counts
    assert (tmp_path / "run" / "pictures" / "step-00000008.png").exists()


def test_frames_without_training_clips_are_refused(tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames", ("val", "test"))
    with pytest.raises(LVTError, match="no clips in split train"):
        train_vqvae(frames, tmp_path / "run", tiny(), device="cpu")


def test_other_frames_or_another_model_are_refused(frames: Path, finished: Path, tmp_path: Path) -> None:
    others = make_frames(tmp_path / "frames", ("train", "val"))
    with pytest.raises(ChangedRunError, match="was started on frames"):
        train_vqvae(others, finished, tiny(), device="cpu")
    wider = replace(tiny(), model=replace(tiny().model, stem_width=16))
    with pytest.raises(ChangedRunError, match=r"model.stem_width: 8 -> 16"):
        train_vqvae(frames, finished, wider, device="cpu")


def test_dry_run_measures_without_writing(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    facts = dry_run_vqvae(tiny(), device="cpu")
    assert facts["parameters"] == sum(facts["parameters_by_part"].values())
    assert facts["parameters_by_part"]["codebook"] == 16 * 8
    assert facts["grid"] == [16, 16]
    assert facts["codes_per_step"] == 6 * 16 * 16 * 2
    assert facts["step_seconds"] > 0
    assert facts["memory_bytes"] == sum(facts["memory_bytes_by_part"].values()) > 4 * 4 * facts["parameters"] // 2
    assert dry_run_vqvae(tiny(), frames=frames, device="cpu")["grid"] == [4, 4]
    assert not list(tmp_path.iterdir())


def test_paper_model_has_the_papers_parameters() -> None:
    settings = replace(
        load(VQVAERunSettings, "vqvae", preset="bair-vqvae-nc4"),
        training=replace(tiny().training, batch_size=1),
    )
    parts = dry_run_vqvae(settings, device="cpu")["parameters_by_part"]
    assert parts == {"encoder": 1_777_024, "decoder": 1_776_771, "codebook": 131_072}


def test_presets_build() -> None:
    names = preset_names("vqvae")
    assert set(names) >= {"tiny", "small", "bair-vqvae-nc1", "bair-vqvae-nc4", "kinetics-vqvae-nc4"}
    for name in names:
        load(VQVAERunSettings, "vqvae", preset=name)
    paper = load(VQVAERunSettings, "vqvae", preset="kinetics-vqvae-nc4")
    assert (paper.model.num_residual_blocks, paper.training.max_steps) == (4, 1_000_000)
    assert (paper.training.optimizer, paper.training.learning_rate, paper.training.betas) == ("adam", 3e-4, (0.9, 0.9))
    assert load(VQVAERunSettings, "vqvae", preset="bair-vqvae-nc1").model.num_codebooks == 1
    small, fsq = (load(VQVAERunSettings, "vqvae", preset=name) for name in ("small", "small-fsq"))
    same = {"quantizer": None, "fsq_levels": None, "ema_init": "consistent", "dead_code": "resample"}
    assert replace(fsq, model=replace(fsq.model, **same, commitment_weight=0.25)) == small
