"""Run directories as readers see them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvt_pipeline.config import build, read_toml
from lvt_pipeline.errors import ArtefactError, CheckpointError, MismatchError, Stopped
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.provenance import missing_outputs, read_record
from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME, find_checkpoint, load_weights
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.read import load_prior, load_vqvae, read_run, read_run_config, read_tokenizer, run_fingerprint
from lvt_pipeline.training.prior_settings import ResolvedPriorSettings
from lvt_pipeline.training.settings import VQVAERunSettings
from lvt_pipeline.training.vqvae import train_vqvae

MODEL = {"num_codebooks": 2, "codebook_size": 8, "code_width": 8, "stem_width": 4, "residual_width": 4}
TRAINING = {"max_steps": 4, "batch_size": 2, "eval_every": 2, "checkpoint_every": 2, "picture_every": 100}
PRIOR_MODEL = {
    "frames": 2,
    "grid": [2, 2],
    "num_codebooks": 2,
    "codebook_size": 8,
    "subscale": [2, 1, 1],
    "width": 8,
    "head_width": 4,
    "num_heads": 1,
    "embedding_width": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
}


def settings_of(**training: Any) -> VQVAERunSettings:
    return build(VQVAERunSettings, {"model": MODEL, "training": {**TRAINING, **training}})


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames") / "frames"
    generator = np.random.default_rng(0)
    samples = [
        FrameSample.from_array(
            f"clip{number}", generator.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8), split=("train", "val")[number]
        )
        for number in range(2)
    ]
    write_frames(root, samples, stage="test", settings={}, inputs={})
    return root


@pytest.fixture(scope="module")
def trained(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "vqvae"
    train_vqvae(frames, out, settings_of(ema_decay=0.5), device="cpu")
    return out


@pytest.fixture
def vqvae_run(trained: Path, tmp_path: Path) -> Path:
    """A finished run that the test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "vqvae"))


@pytest.fixture
def prior_run(tmp_path: Path) -> Path:
    settings = build(ResolvedPriorSettings, {"model": PRIOR_MODEL, "training": {}})
    torch.manual_seed(0)
    model = Prior(settings.model)
    save_model_run(tmp_path / "prior", "prior-run", model, settings, stage="test", version=1, counts={})
    return tmp_path / "prior"


def test_importing_runs_does_not_import_torch() -> None:
    script = "import sys, lvt_pipeline.runs.read; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_loaded_vqvae_is_ready_to_encode_and_decode(vqvae_run: Path) -> None:
    model = load_vqvae(vqvae_run, device="cpu")
    assert not model.training
    codes = model.encode(np.zeros((3, 8, 8, 3), np.uint8))
    assert codes.shape == (3, 2, 2, 2)
    assert model.decode(codes).shape == (3, 8, 8, 3)


def test_loaded_weights_are_the_moving_average_when_there_is_one(vqvae_run: Path) -> None:
    checkpoint = find_checkpoint(vqvae_run)
    average, raw = load_weights(checkpoint, EMA_NAME), load_weights(checkpoint, MODEL_NAME)
    loaded = dict(load_vqvae(vqvae_run, device="cpu").state_dict())
    torch.testing.assert_close(loaded, average, rtol=0, atol=0)
    assert not torch.equal(average["encoder.mix.weight"], raw["encoder.mix.weight"])


def test_tokenizer_is_known_without_loading_it(vqvae_run: Path) -> None:
    assert read_tokenizer(vqvae_run) == tokenizer_fingerprint(load_vqvae(vqvae_run, device="cpu"))


def test_earlier_and_best_checkpoints_load_by_name(vqvae_run: Path) -> None:
    second = load_vqvae(vqvae_run, checkpoint=2, device="cpu").state_dict()
    expected = load_weights(find_checkpoint(vqvae_run, 2), EMA_NAME)
    torch.testing.assert_close(dict(second), expected, rtol=0, atol=0)
    load_vqvae(vqvae_run, checkpoint="best", device="cpu")
    with pytest.raises(CheckpointError, match="no checkpoint 3; known: latest, best, and the steps 2, 4"):
        load_vqvae(vqvae_run, checkpoint=3, device="cpu")


def test_config_on_disk_builds_the_settings_of_the_run(vqvae_run: Path) -> None:
    assert build(VQVAERunSettings, read_toml(vqvae_run / "config.toml")) == settings_of(ema_decay=0.5)
    assert read_run_config(vqvae_run)["model"]["codebook_size"] == 8


def test_path_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_vqvae(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"is not a run directory \(no run.json\)"):
        load_prior(tmp_path)


def test_prior_is_not_taken_for_a_vqvae(prior_run: Path, vqvae_run: Path) -> None:
    with pytest.raises(MismatchError, match="prior is a prior run; a VQ-VAE run is needed here"):
        load_vqvae(prior_run)
    with pytest.raises(MismatchError, match="vqvae is a VQ-VAE run; a prior run is needed here"):
        load_prior(vqvae_run)
    with pytest.raises(MismatchError, match="a VQ-VAE run is needed here"):
        read_tokenizer(prior_run)


def test_unfinished_run_loads_its_latest_checkpoint_or_says_there_is_none(frames: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train_vqvae(frames, tmp_path / "run", settings_of(), device="cpu", max_seconds=0)
    assert not load_vqvae(tmp_path / "run", device="cpu").training
    assert read_tokenizer(tmp_path / "run") is None
    unfinished = run_fingerprint(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_vqvae(tmp_path / "run")
    train_vqvae(frames, tmp_path / "run", settings_of(), device="cpu")
    assert run_fingerprint(tmp_path / "run") != unfinished


def test_damaged_weights_are_named_with_what_can_be_used(vqvae_run: Path) -> None:
    weights = vqvae_run / "checkpoints" / "step-00000004" / MODEL_NAME
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"step-00000004/model.safetensors is damaged.*step 2 in .* is good"):
        load_vqvae(vqvae_run)
    load_vqvae(vqvae_run, checkpoint=2, device="cpu")


def test_lost_last_checkpoint_is_not_replaced_silently(vqvae_run: Path, frames: Path) -> None:
    shutil.rmtree(vqvae_run / "checkpoints" / "step-00000004")
    with pytest.raises(CheckpointError, match=r"finished at step 4 but that checkpoint is missing.*ask for step 2"):
        load_vqvae(vqvae_run)
    before = read_record(vqvae_run).fingerprint
    record = train_vqvae(frames, vqvae_run, settings_of(ema_decay=0.5), device="cpu")
    assert record.fingerprint == before
    assert not missing_outputs(vqvae_run, record)


def test_config_changed_by_hand_is_an_expected_error(vqvae_run: Path) -> None:
    config = vqvae_run / "config.toml"
    config.write_text(config.read_text().replace("code_width = 8", "code_width = 16"))
    message = r"config.toml was changed by hand \(model.code_width is 16 but the run has 8\); undo this, or run"
    with pytest.raises(CheckpointError, match=message):
        load_vqvae(vqvae_run)
    config.write_text("[model]\nwidht = 3\n")
    with pytest.raises(CheckpointError, match=r"changed by hand \(model\.\w+ is unset but the run has"):
        load_vqvae(vqvae_run)
    config.write_text("width = [")
    with pytest.raises(CheckpointError, match=r"config.toml is not a TOML file"):
        load_vqvae(vqvae_run)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"config.toml does not exist"):
        load_vqvae(vqvae_run)


def test_damaged_description_is_an_expected_error(vqvae_run: Path) -> None:
    (vqvae_run / "run.json").write_text('{"kind": "vqvae-run"}')
    with pytest.raises(CheckpointError, match=r"run.json is damaged or was changed by hand"):
        read_run(vqvae_run)
    (vqvae_run / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged run directory"):
        read_run(vqvae_run)


def test_saved_model_comes_back_as_it_was(tmp_path: Path) -> None:
    settings = settings_of()
    torch.manual_seed(3)
    model = VQVAE(settings.model)
    counts = {"tokenizer": tokenizer_fingerprint(model)}
    record = save_model_run(tmp_path / "r", "vqvae-run", model, settings, stage="import", version=1, counts=counts)
    loaded = load_vqvae(tmp_path / "r", device="cpu")
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert read_record(tmp_path / "r") == record
    assert run_fingerprint(tmp_path / "r") == record.fingerprint
    assert read_tokenizer(tmp_path / "r") == counts["tokenizer"]
    with pytest.raises(ArtefactError, match="holds a run already"):
        save_model_run(tmp_path / "r", "vqvae-run", model, settings, stage="import", version=1, counts=counts)


def test_loaded_prior_is_in_evaluation_mode(prior_run: Path) -> None:
    prior = load_prior(prior_run, device="cpu")
    assert not prior.training
    assert prior.logits(torch.zeros(1, 2, 2, 2, 2, dtype=torch.int64)).shape == (1, 2, 2, 2, 2, 8)
