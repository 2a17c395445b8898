"""Trainings that start from the weights of an earlier run (`--init-from`), and decoders trained alone (`--freeze`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import ChangedRunError, ConfigError, MismatchError, Stopped
from lvt_pipeline.jobs.decode import decode_store
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.settings import DecodeSettings
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.runs.checkpoints import MODEL_NAME, find_checkpoint, load_weights
from lvt_pipeline.runs.read import load_vqvae, read_run, run_fingerprint
from lvt_pipeline.runs.trained_clips import find_trained_clips
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.vqvae import train_vqvae
from tests.test_prior_training import make_store as make_codes
from tests.test_prior_training import settings_of
from tests.test_training_options import Watched
from tests.test_vqvae_training import make_frames, tiny
from tests.toy_codes import make_store

STEPS = {"max_steps": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 4, "picture_every": 4}
LENGTHS = {f"train/{i}": 4 + i % 5 for i in range(11)} | {"val/a": 6}


def store(path: Path, lengths: dict[str, int], **options: Any) -> Path:
    return make_store(path, lengths, codebook_size=8, frame_shape=(4, 4, 2), **options).path


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("codes") / "a.zarr", LENGTHS)


@pytest.fixture(scope="module")
def first(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    train_prior(codes, out, settings_of(**STEPS), device="cpu")
    return out


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_weights(find_checkpoint(run), MODEL_NAME)


def start_only(codes: Path, out: Path, first: Path, model: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """The weights that a warm start begins with."""
    with pytest.raises(Stopped):
        train_prior(codes, out, settings_of(model or {}, **STEPS), init_from=first, device="cpu", max_seconds=0)
    return weights_of(out)


def test_a_prior_starts_with_all_weights_on_a_grown_store_and_the_run_records_it(first: Path, tmp_path: Path) -> None:
    grown = store(tmp_path / "grown.zarr", {**LENGTHS, "train/99": 9})
    started = start_only(grown, tmp_path / "run", first)
    torch.testing.assert_close(started, weights_of(first), rtol=0, atol=0)
    assert read_run(tmp_path / "run")["inputs"]["start"] == run_fingerprint(first)
    record = train_prior(grown, tmp_path / "run", settings_of(**STEPS), init_from=first, device="cpu")
    assert record.inputs["start"] == run_fingerprint(first)
    assert record.counts["fresh_weights"] == []
    assert record.fingerprint != run_fingerprint(first)


def test_a_warm_start_that_was_stopped_ends_like_one_that_was_not(codes: Path, first: Path, tmp_path: Path) -> None:
    settings = settings_of(**STEPS)
    whole = train_prior(codes, tmp_path / "whole", settings, init_from=first, device="cpu")
    start_only(codes, tmp_path / "parts", first)
    parts = train_prior(codes, tmp_path / "parts", settings, init_from=first, device="cpu")
    assert parts.fingerprint == whole.fingerprint
    assert parts.counts["fresh_weights"] == whole.counts["fresh_weights"]
    assert train_prior(codes, tmp_path / "parts", settings, device="cpu") == parts


def test_a_warm_start_resumes_without_the_run_that_it_started_from(codes: Path, first: Path, tmp_path: Path) -> None:
    settings = settings_of(**STEPS)
    whole = train_prior(codes, tmp_path / "whole", settings, init_from=first, device="cpu")
    start_only(codes, tmp_path / "parts", first)
    parts = train_prior(codes, tmp_path / "parts", settings, device="cpu")
    assert (parts.fingerprint, parts.inputs, parts.counts) == (whole.fingerprint, whole.inputs, whole.counts)
    with pytest.raises(ChangedRunError, match=r"was started on weights \(--init-from\) \w+ but these are \w+"):
        train_prior(codes, tmp_path / "parts", settings, init_from=tmp_path / "whole", device="cpu")


def test_weights_that_do_not_fit_another_subscale_order_are_listed_and_fresh(
    codes: Path, first: Path, tmp_path: Path
) -> None:
    order = {"subscale": [1, 2, 2], "kernel": [1, 3, 3]}
    lines = Watched()
    with pytest.raises(Stopped):
        train_prior(
            codes,
            tmp_path / "run",
            settings_of(order, **STEPS),
            init_from=first,
            device="cpu",
            max_seconds=0,
            progress=lines,
        )
    fresh = read_run(tmp_path / "run")["fresh_weights"]
    assert "encoder.slice_embedding.weight" in fresh
    assert any("; fresh: " in line and "encoder.slice_embedding.weight" in line for line in lines.said)
    before, after = weights_of(first), weights_of(tmp_path / "run")
    assert set(fresh) < set(after)
    for name in after.keys() - set(fresh):
        assert torch.equal(before[name], after[name])


def test_codes_of_another_tokenizer_are_no_ground_to_start_from(first: Path, tmp_path: Path) -> None:
    other = store(tmp_path / "other.zarr", LENGTHS, tokenizer="f" * 64)
    with pytest.raises(
        MismatchError, match=r"was trained on codes of tokenizer \w+ but .* the same numbers mean other"
    ):
        train_prior(other, tmp_path / "run", settings_of(**STEPS), init_from=first, device="cpu")
    assert not (tmp_path / "run").exists()


def test_clips_of_the_earlier_run_count_as_trained_on(codes: Path, first: Path, tmp_path: Path) -> None:
    later = store(tmp_path / "later.zarr", {f"train/new{i}": 6 for i in range(4)} | {"val/a": 6})
    start_only(later, tmp_path / "run", first)
    clips = [clip for path in (codes, later) for clip in open_codes(path).clips]
    held_out = [replace(clip, split="test") for clip in clips]
    found = {clip.id for clip in find_trained_clips(held_out, tmp_path / "run")}
    assert {f"train/{i}" for i in range(11)} | {f"train/new{i}" for i in range(4)} <= found


def test_classes_are_added_to_a_prior_that_had_none(tmp_path: Path) -> None:
    plain, labelled = make_codes(tmp_path / "plain.zarr"), make_codes(tmp_path / "labelled.zarr", label="robot")
    train_prior(plain, tmp_path / "first", settings_of(**STEPS), device="cpu")
    before = weights_of(tmp_path / "first")
    after = start_only(labelled, tmp_path / "run", tmp_path / "first", {"num_classes": 3})
    fresh = set(read_run(tmp_path / "run")["fresh_weights"])
    # The projection after the embeddings of codes and classes is wider with classes.
    assert fresh == {"encoder.class_embedding.weight", "encoder.project.weight"}
    kept = before.keys() - fresh
    torch.testing.assert_close(
        {name: after[name] for name in kept}, {name: before[name] for name in kept}, rtol=0, atol=0
    )
    settings = settings_of({"num_classes": 3}, **STEPS)
    record = train_prior(labelled, tmp_path / "run", settings, init_from=tmp_path / "first", device="cpu")
    assert set(record.counts["fresh_weights"]) == fresh
    assert read_run(tmp_path / "run")["facts"]["class_names"] == ["robot"]


def test_a_vqvae_is_no_start_for_a_prior(codes: Path, tokenizers: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="a prior run is needed here"):
        train_prior(codes, tmp_path / "run", settings_of(**STEPS), init_from=tokenizers[1], device="cpu")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Frames, a tokenizer, and one whose decoder was trained further on its own."""
    folder = tmp_path_factory.mktemp("tokenizers")
    frames = make_frames(folder / "frames")
    train_vqvae(frames, folder / "first", tiny(**STEPS, ema_decay=0.5), device="cpu")
    frozen = tiny(**STEPS, ema_decay=0.5, freeze="encoder")
    train_vqvae(frames, folder / "second", frozen, init_from=folder / "first", device="cpu")
    return frames, folder / "first", folder / "second"


def test_a_decoder_trained_alone_leaves_every_code_valid(
    tokenizers: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, first, second = tokenizers
    before, after = (load_vqvae(run, device="cpu") for run in (first, second))
    assert tokenizer_fingerprint(before) == tokenizer_fingerprint(after)
    made = encode_dataset(frames, first, tmp_path / "data.zarr", device="cpu")
    monkeypatch.setattr(type(after), "encode", None)  # encoding anything would fail
    again = encode_dataset(frames, second, tmp_path / "data.zarr", device="cpu")
    assert again.generation == made.generation
    assert again.provenance == made.provenance
    codes = torch.zeros(1, 2, 2, before.num_codebooks, dtype=torch.int64)
    pairs = zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    assert not all(torch.equal(old, new) for old, new in pairs)
    assert before.decode(codes).shape == after.decode(codes).shape


def test_a_decoder_of_fsq_codes_trained_alone_leaves_every_code_valid_and_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = make_frames(tmp_path / "frames")
    first, second = tmp_path / "first", tmp_path / "second"
    settings = tiny(**STEPS)
    model = replace(settings.model, quantizer="fsq", codebook_size=9, fsq_levels=(3, 3))
    settings = replace(settings, model=model)
    train_vqvae(frames, first, settings, device="cpu")
    frozen = replace(settings, training=replace(settings.training, freeze="encoder"))
    train_vqvae(frames, second, frozen, init_from=first, device="cpu")
    made = encode_dataset(frames, first, tmp_path / "data.zarr", device="cpu")
    for run in (first, second):
        decode_store(
            tmp_path / "data.zarr", run, tmp_path / f"by-{run.name}", DecodeSettings(format="npy"), device="cpu"
        )
    monkeypatch.setattr(VQVAE, "encode", None)  # encoding anything would fail
    again = encode_dataset(frames, second, tmp_path / "data.zarr", device="cpu")
    assert (again.generation, again.provenance) == (made.generation, made.provenance)
    names = sorted(path.name for path in (tmp_path / "by-first").glob("**/*.npy"))
    assert names
    for name in names:
        old, new = (np.load(next((tmp_path / f"by-{run}").glob(f"**/{name}"))) for run in ("first", "second"))
        assert old.shape == new.shape
        assert not np.array_equal(old, new)


def test_a_frozen_encoder_needs_a_run_to_come_from_and_its_model(
    tokenizers: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    frames, first, _ = tokenizers
    with pytest.raises(ConfigError, match="give that run as --init-from"):
        train_vqvae(frames, tmp_path / "run", tiny(freeze="encoder"), device="cpu")
    wider = tiny(**STEPS, freeze="encoder")
    wider = replace(wider, model=replace(wider.model, codebook_size=wider.model.codebook_size * 2))
    with pytest.raises(MismatchError, match=r"quantizer\.\S+ of .* does not fit this model, and it must stay as it is"):
        train_vqvae(frames, tmp_path / "run", wider, init_from=first, device="cpu")


def test_the_commands_take_the_options(
    tokenizers: tuple[Path, Path, Path], codes: Path, tmp_path: Path, lvt: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = lvt("train-vqvae", "--frames", tokenizers[0], "-o", tmp_path / "v", "--freeze", "encoder")
    assert code == 1
    assert "--init-from" in err
    code, _, err = lvt("train-prior", "--codes", codes, "-o", tmp_path / "p", "--init-from", tokenizers[1])
    assert code == 1
    assert "a prior run is needed here" in err
