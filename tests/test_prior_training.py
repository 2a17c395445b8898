"""Training the prior on small stores of codes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.config import build, load, preset_names
from lvt_pipeline.errors import ChangedRunError, ConfigError, LVTError, MismatchError, Stopped
from lvt_pipeline.models.prior.adaptive import cutoffs_by_mass, frequency_ranks
from lvt_pipeline.models.prior.config import PriorConfig, PriorModelSettings
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.provenance import Provenance, read_record
from lvt_pipeline.runs.checkpoints import find_checkpoint, load_weights
from lvt_pipeline.runs.read import load_prior, read_run
from lvt_pipeline.runs.trained_clips import find_trained_clips
from lvt_pipeline.training import prior as prior_training
from lvt_pipeline.training.prior import dry_run_prior, train_prior
from lvt_pipeline.training.prior_settings import FROM_STORE, class_names, resolve_settings
from lvt_pipeline.training.prior_task import PriorTask
from lvt_pipeline.training.settings import PriorRunSettings
from lvt_pipeline.training.task import StepLoss
from tests.listener import Listener
from tests.run_files import metrics_of

K, GRID, NUM_CODEBOOKS = 8, (4, 4), 2
MODEL = {
    "frames": 4,
    "subscale": [4, 1, 1],
    "width": 16,
    "head_width": 8,
    "num_heads": 2,
    "embedding_width": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "qkv_init": "standard",
}
SPATIOTEMPORAL = {"subscale": [2, 2, 2], "kernel": [5, 3, 3]}
TRAINING = {
    "max_steps": 8,
    "batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 0.005,
    "log_every": 3,
    "eval_every": 4,
    "picture_every": 4,
    "checkpoint_every": 4,
}
CLIPS = (("a", "train", 6), ("b", "train", 4), ("c", "train", 9), ("d", "train", 2), ("e", "val", 7), ("f", "test", 5))


def settings_of(model: dict[str, Any] | None = None, **training: Any) -> PriorRunSettings:
    return build(PriorRunSettings, {"model": {**MODEL, **(model or {})}, "training": {**TRAINING, **training}})


def make_store(path: Path, clips: tuple[tuple[str, str, int], ...] = CLIPS, label: str | None = None) -> Path:
    """Codes that move one column to the right from frame to frame."""
    schema = CodeSchema(codebook_size=K, num_codebooks=NUM_CODEBOOKS, grid=GRID, tokenizer="t" * 64, shard_frames=32)
    planned = [
        PlannedClip(id=name, split=split, label=label, length=length, fingerprint=f"codes of {name}", fps=10, source="")
        for name, split, length in clips
    ]
    codes = {}
    for name, _, length in clips:
        first = np.random.default_rng(ord(name[0])).integers(0, K, (*GRID, NUM_CODEBOOKS))
        codes[name] = np.stack([np.roll(first, t, axis=1) for t in range(length)])
    record = Provenance(kind="codes", stage="test", version=1, settings={}, inputs={}, fingerprint="")
    with CodeStoreWriter.open(path, schema, planned) as writer:
        for shard in writer.pending_shards():
            writer.write_shard(
                shard.index, np.concatenate([codes[part.clip_id][part.start : part.stop] for part in shard.parts])
            )
        writer.publish(record)
    return path


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("codes") / "data.zarr")


@pytest.fixture(scope="module")
def finished(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prior") / "run"
    train_prior(codes, out, settings_of(), device="cpu")
    return out


def task_of(codes: Path, settings: PriorRunSettings, frames: int = 4) -> PriorTask:
    store = open_codes(codes)
    config = resolve_settings(settings, store).model
    return PriorTask(Prior(config), CodeWindows(store, frames=frames), settings.training)


@pytest.mark.parametrize("model", [{}, SPATIOTEMPORAL], ids=["single-frame", "spatiotemporal"])
def test_resumed_prior_matches_uninterrupted_one(
    codes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    settings = settings_of(model, ema_decay=0.9)
    train_prior(codes, tmp_path / "whole", settings, device="cpu")
    loss = PriorTask.loss
    calls = 0

    def stopping_loss(self: PriorTask, model: Any, batch: Any) -> StepLoss:
        nonlocal calls
        calls += 1
        if calls in (3, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch)

    monkeypatch.setattr(PriorTask, "loss", stopping_loss)
    for step in (3, 5):
        with pytest.raises(Stopped, match=f"step {step} is saved"):
            train_prior(codes, tmp_path / "parts", settings, device="cpu")
    record = train_prior(codes, tmp_path / "parts", settings, device="cpu")
    whole, parts = (load_weights(find_checkpoint(tmp_path / name)) for name in ("whole", "parts"))
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    assert record.fingerprint == read_record(tmp_path / "whole").fingerprint


def test_prior_learns_how_codes_move(codes: Path, tmp_path: Path) -> None:
    train_prior(codes, tmp_path, settings_of(max_steps=200), device="cpu")
    bits = [line["bits_per_dim"] for line in metrics_of(tmp_path) if line["split"] == "train"]
    assert bits[0] == pytest.approx(math.log2(K), abs=0.7)
    assert bits[-1] < bits[0] / 2


def test_record_says_what_was_trained_on_what(codes: Path, finished: Path) -> None:
    record = read_record(finished)
    assert (record.kind, record.stage) == ("prior-run", "train-prior")
    assert record.inputs == {"codes": open_codes(codes).fingerprint}
    assert (record.counts["steps"], record.counts["train_clips"], record.counts["short_clips"]) == (8, 3, 1)
    assert read_run(finished)["facts"]["tokenizer"] == "t" * 64
    # The settings are those that were given, so that the same settings always lead to the same record.
    assert record.settings["model"]["codebook_size"] is None
    assert load_prior(finished, device="cpu").config.codebook_size == K


def test_run_knows_the_clips_it_has_learnt_from(codes: Path, finished: Path) -> None:
    clips = find_trained_clips([replace(clip, split="test") for clip in open_codes(codes).clips], finished)
    assert [clip.id for clip in clips] == ["a", "b", "c"]  # d is shorter than a window


def test_validation_bits_are_those_of_the_teacher_forced_logits(codes: Path, finished: Path) -> None:
    prior = load_prior(finished, device="cpu")
    window = torch.from_numpy(open_codes(codes)["e"][:4].astype(np.int64))[None]
    with torch.no_grad():
        logits = prior.logits(window)
    nats = F.cross_entropy(logits[:, 1:].flatten(0, -2), window[:, 1:].flatten(), reduction="none")
    counts = read_record(finished).counts
    assert counts["val_bits_per_dim"] == pytest.approx(float(nats.mean()) / math.log(2), rel=1e-5)
    per_codebook = nats.reshape(-1, NUM_CODEBOOKS).mean(0) / math.log(2)
    assert counts["val_bits_per_codebook"] == pytest.approx(per_codebook.tolist(), rel=1e-5)


def test_batches_are_windows_of_training_clips_each_once_an_epoch(codes: Path) -> None:
    task = task_of(codes, settings_of())
    store = open_codes(codes)
    seen = []
    for step in range(1, 4):  # 12 windows: four epochs of three clips
        batch = task.batch(step, range(4))
        for row, name in enumerate(task.batch_clips(step)):
            clip, start = name.removesuffix(")").split(" (frame ")
            np.testing.assert_array_equal(batch["codes"][row].numpy(), store[clip][int(start) : int(start) + 4])
            seen.append(clip)
        halves = [task.batch(step, rows) for rows in (range(2), range(2, 4))]
        for name in batch:
            assert torch.equal(batch[name], torch.cat([half[name] for half in halves]))
    assert {clip: seen.count(clip) for clip in "abcdef"} == {"a": 4, "b": 4, "c": 4, "d": 0, "e": 0, "f": 0}


def test_slices_are_drawn_evenly_from_those_that_can_be_trained(codes: Path) -> None:
    task = task_of(codes, settings_of())
    slices = np.concatenate([task.batch(step, range(4))["slices"].numpy() for step in range(1, 501)])
    counts = np.bincount(slices, minlength=4)
    assert counts[0] == 0  # the first frame is only ever given
    assert counts[1:] == pytest.approx([2000 / 3] * 3, rel=0.1)


def test_batch_may_be_larger_than_the_number_of_clips(codes: Path, tmp_path: Path) -> None:
    assert train_prior(codes, tmp_path, settings_of(batch_size=10, max_steps=2), device="cpu").counts["steps"] == 2


def test_finished_prior_is_not_trained_again(codes: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_training, "CodeWindows", None)  # reading the codes would fail
    assert train_prior(codes, finished, settings_of(), device="cpu") == read_record(finished)


def test_evaluation_and_pictures_leave_the_model_unchanged(codes: Path) -> None:
    task = task_of(codes, settings_of())
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    task.model.eval()
    with torch.no_grad():
        assert set(task.evaluate(task.model)) == {"bits_per_dim", "bits_per_codebook", "bits_per_slice"}
        task.picture(task.model)
    torch.testing.assert_close(dict(task.model.state_dict()), before, rtol=0, atol=0)


def test_picture_shows_real_predicted_and_sampled_code_maps(finished: Path) -> None:
    with Image.open(finished / "pictures" / "step-00000008.png") as picture:
        assert picture.size == (4 * 12 + 3 * 2, 6 * 12 + 5 * 2)  # frames across, three rows per codebook down
        pixels = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(pixels[:12, :12], pixels[14:26, :12])  # the priming frame is the same in both
    assert (pixels[:12, 14:26] != pixels[14:26, 14:26]).any()
    np.testing.assert_array_equal(pixels[:12, :40], pixels[28:40, :40])  # three of the four frames are given
    assert (pixels[:12, 42:] != pixels[28:40, 42:]).any()  # the last is sampled


def test_codes_of_another_shape_are_refused_with_both_named(codes: Path, tmp_path: Path) -> None:
    for model, message in (
        ({"codebook_size": 512}, r"model.codebook_size=512 but the codes in .* have codebook_size=8"),
        ({"num_codebooks": 4}, r"num_codebooks=4 but .* num_codebooks=2"),
        ({"grid": [16, 16]}, r"grid=16x16 but .* grid=4x4"),
    ):
        with pytest.raises(MismatchError, match=message):
            train_prior(codes, tmp_path / "run", settings_of(model), device="cpu")
    assert not (tmp_path / "run").exists()


def test_stated_shape_that_fits_is_the_same_run(codes: Path, finished: Path) -> None:
    stated = settings_of({"codebook_size": K, "num_codebooks": NUM_CODEBOOKS, "grid": list(GRID)})
    record = train_prior(codes, finished, stated, device="cpu")
    assert record.counts["steps"] == 8
    assert train_prior(codes, finished, settings_of(), device="cpu").settings["model"]["grid"] is None


def test_windows_longer_than_every_clip_are_refused(codes: Path, tmp_path: Path) -> None:
    with pytest.raises(LVTError, match="the longest has 9 frames and a window needs 16"):
        train_prior(codes, tmp_path, settings_of({"frames": 16, "subscale": [16, 1, 1]}), device="cpu")


def test_model_that_cannot_be_built_is_refused_before_anything_is_written(codes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="priming_frames=4 leaves nothing to learn in 4 frames"):
        train_prior(codes, tmp_path / "run", settings_of({"priming_frames": 4}), device="cpu")
    assert not (tmp_path / "run").exists()


def test_store_without_val_clips_trains_and_says_so(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data.zarr", CLIPS[:4])
    lines = Listener()
    record = train_prior(store, tmp_path / "run", settings_of(), device="cpu", progress=lines)
    assert any("no val clip" in line for line in lines.said)
    assert any("1 clip of" in line and "shorter than 4 frames" in line for line in lines.said)
    assert "val_bits_per_dim" not in record.counts


def test_interrupted_run_goes_on_with_its_generation_when_the_store_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "data.zarr")
    train_prior(store, tmp_path / "whole", settings_of(), device="cpu")
    with pytest.raises(Stopped):
        train_prior(store, tmp_path / "parts", settings_of(), device="cpu", max_seconds=0)
    before = open_codes(store).fingerprint
    make_store(store, (*CLIPS, ("g", "train", 8)))
    lines = Listener()
    record = train_prior(store, tmp_path / "parts", settings_of(), device="cpu", progress=lines)
    assert record.inputs == {"codes": before}
    assert record.fingerprint == read_record(tmp_path / "whole").fingerprint
    assert any("resuming on its generation 1" in line for line in lines.said)
    with pytest.raises(ChangedRunError, match="was started on codes"):
        train_prior(store, tmp_path / "parts", settings_of(), device="cpu")


def test_class_conditional_prior_learns_from_labels(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data.zarr", label="robot")
    train_prior(store, tmp_path / "run", settings_of({"num_classes": 3}), device="cpu")
    assert read_run(tmp_path / "run")["facts"]["class_names"] == ["robot"]
    unlabelled = make_store(tmp_path / "unlabelled.zarr")
    with pytest.raises(MismatchError, match="clips without a label"):
        train_prior(unlabelled, tmp_path / "other", settings_of({"num_classes": 3}), device="cpu")


def test_the_number_of_classes_may_follow_from_the_labels(tmp_path: Path) -> None:
    labelled, unlabelled = (
        open_codes(make_store(tmp_path / f"{label}.zarr", **({"label": label} if label else {})))
        for label in ("robot", "")
    )
    settings = settings_of({"num_classes": "auto"})
    assert resolve_settings(settings, labelled).model.num_classes == 1
    assert resolve_settings(settings, unlabelled).model.num_classes == 0
    assert resolve_settings(settings).model.num_classes == 0
    with pytest.raises(ConfigError, match="num_classes='some' is not one of auto"):
        settings_of({"num_classes": "some"})


def test_clips_without_a_label_are_trained_without_a_class_where_class_dropout_has_one(tmp_path: Path) -> None:
    labelled = open_codes(make_store(tmp_path / "labelled.zarr", label="robot"))
    unlabelled = open_codes(make_store(tmp_path / "unlabelled.zarr"))
    settings = resolve_settings(settings_of({"num_classes": "auto", "class_dropout": 0.1}), labelled, [unlabelled])
    assert class_names([labelled, unlabelled], settings.model) == ["robot"]
    windows = CodeWindows(unlabelled, frames=settings.model.frames, split="train", cache="ram")
    task = PriorTask(Prior(settings.model), windows, settings.training, class_names=["robot"])
    assert set(task.batch(1, range(settings.training.batch_size))["labels"].tolist()) == {1}


def test_adaptive_layers_take_cutoffs_and_ranks_from_the_training_codes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data.zarr")
    changes = {"decoder_input": "adaptive", "head": "adaptive-tied"}
    train_prior(store, tmp_path / "run", settings_of(changes), device="cpu")
    codes = open_codes(store)
    counts = np.zeros((codes.num_codebooks, codes.codebook_size), np.int64)
    for clip in codes.split("train"):
        for j in range(codes.num_codebooks):
            np.add.at(counts[j], codes[clip.id][..., j].ravel(), 1)
    model = load_prior(tmp_path / "run", device="cpu")
    assert model.config.cutoffs == cutoffs_by_mass(counts)
    ranks = frequency_ranks(counts)
    assert not np.array_equal(ranks[0], np.arange(codes.codebook_size))
    for j, (embedding, output) in enumerate(zip(model.decoder.embeddings, model.predictor.outputs, strict=True)):
        assert np.array_equal(embedding.ranks, ranks[j])
        assert np.array_equal(output.ranks, ranks[j])
    stated = settings_of({**changes, "cutoffs": (2, 5)})
    assert resolve_settings(stated, codes).model.cutoffs == (2, 5)


def test_adaptive_prior_resumes_bit_for_bit(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data.zarr")
    settings = settings_of({"decoder_input": "adaptive", "head": "adaptive"})
    train_prior(store, tmp_path / "whole", settings, device="cpu")
    with pytest.raises(Stopped):
        train_prior(store, tmp_path / "parts", settings, device="cpu", max_seconds=0)
    record = train_prior(store, tmp_path / "parts", settings, device="cpu")
    assert record.fingerprint == read_record(tmp_path / "whole").fingerprint


def test_class_dropout_hides_that_share_of_the_classes_and_nothing_else(tmp_path: Path) -> None:
    store = make_store(tmp_path / "data.zarr", label="robot")
    batches = {}
    for share in (0.0, 0.25):
        settings = resolve_settings(settings_of({"num_classes": 3, "class_dropout": share}), open_codes(store))
        windows = CodeWindows(open_codes(store), frames=settings.model.frames, split="train")
        task = PriorTask(Prior(settings.model), windows, settings.training, class_names=["robot"])
        batches[share] = [task.batch(step, range(settings.training.batch_size)) for step in range(1, 201)]
    hidden = torch.cat([batch["labels"] for batch in batches[0.25]])
    assert set(hidden.tolist()) == {0, 3}
    assert float((hidden == 3).float().mean()) == pytest.approx(0.25, abs=0.05)
    assert set(torch.cat([batch["labels"] for batch in batches[0.0]]).tolist()) == {0}
    for with_classes, without in zip(batches[0.0], batches[0.25], strict=True):
        assert torch.equal(with_classes["codes"], without["codes"])
        assert torch.equal(with_classes["slices"], without["slices"])


IMPORTS = """
import sys
from pathlib import Path
from lvt_pipeline.training.prior_settings import PriorRunSettings
from lvt_pipeline.training.prior import train_prior
print([name for name in sys.modules if name in (
    "decord", "av", "webdataset", "lvt_pipeline.frames.shards", "lvt_pipeline.video.decode",
    "lvt_pipeline.models.vqvae.model")])
"""


def test_prior_training_loads_no_video_no_frames_and_no_tokenizer() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_model_settings_are_those_of_the_prior() -> None:
    ours = {item.name: item.default for item in fields(PriorModelSettings)}
    theirs = {item.name: item.default for item in fields(PriorConfig)}
    left_open = {name: theirs[name] for name, default in ours.items() if default != theirs[name]}
    assert list(ours) == list(theirs)
    assert left_open == FROM_STORE


def test_dry_run_measures_without_writing(codes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    facts = dry_run_prior(settings_of(), codes=codes, device="cpu")
    assert facts["parameters"] == sum(facts["parameters_by_part"].values())
    assert set(facts["parameters_by_part"]) == {"encoder", "decoder", "predictor"}
    assert facts["grid"] == [4, 4]
    assert facts["codes_per_step"] == 4 * 16 * NUM_CODEBOOKS
    assert facts["step_seconds"] > 0
    assert facts["memory_bytes"] > 16 * facts["parameters"]  # weights, gradients and two averages, in float32
    assert dry_run_prior(settings_of(), device="cpu")["grid"] == [16, 16]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("single-frame", 49_872_384),
        ("single-frame-past", 49_872_384),
        ("spatiotemporal", 59_830_528),
        ("spatial-reference", 50_391_808),
        ("table8-single-frame", 45_150_720),
        ("table8-tied", 44_953_728),
    ],
)
def test_paper_presets_have_the_papers_parameters(preset: str, parameters: int) -> None:
    settings = load(PriorRunSettings, "prior", preset=preset)
    with torch.device("meta"):
        model = Prior(resolve_settings(settings).model)
    assert sum(value.numel() for value in model.parameters()) == parameters


def test_presets_build() -> None:
    names = preset_names("prior")
    assert set(names) >= {"tiny", "small", "single-frame", "spatial-reference", "spatial-full", "spatiotemporal"}
    for name in names:
        settings = load(PriorRunSettings, "prior", preset=name)
        resolve_settings(settings)
        training = settings.training
        if name not in ("tiny", "small"):
            assert (training.optimizer, training.learning_rate, training.alpha, training.momentum) == (
                *("rmsprop", 2e-5, 0.95, 0.9),
            )
            assert (training.batch_size, training.max_steps) == (64, 600_000)
    assert load(PriorRunSettings, "prior", preset="spatial-reference").model.frames == 4
    assert load(PriorRunSettings, "prior", preset="spatial-full").model.block == (16, 8, 8)
