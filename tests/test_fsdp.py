"""A prior whose weights are split over processes ("fsdp") is trained, saved and resumed as a whole one is."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.config import build
from lvt_pipeline.errors import ConfigError, Stopped, TrainingError
from lvt_pipeline.provenance import Provenance, read_record
from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME, find_checkpoint, load_state, load_weights
from lvt_pipeline.runs.read import load_prior, read_run
from lvt_pipeline.training.distributed import Ranks
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.prior_task import PriorTask
from lvt_pipeline.training.settings import PriorRunSettings, TrainingSettings, VQVAERunSettings
from lvt_pipeline.training.sharding import shard
from lvt_pipeline.training.task import StepLoss
from tests.run_files import metrics_of
from tests.test_prior_training import (
    MODEL,
    TRAINING,
)
from tests.torchrun import run_together
from tests.toy_codes import make_store

STEPS = 8
STOPPED_AT = 3


def settings(**training: Any) -> PriorRunSettings:
    model = {**MODEL, "encoder_layers": 2, "decoder_layers": 2}
    options = {**TRAINING, "optimizer": "rmsprop", "learning_rate": 0.0005, "grad_clip": 0.5, "ema_decay": 0.7}
    options["picture_every"] = STEPS
    return build(PriorRunSettings, {"model": model, "training": {**options, "eps": 1e-3, **training}})


def train(codes: Path, out: Path, stop_at: int = 0, break_at: int = 0, **training: Any) -> Provenance | None:
    """Train, or stop after a step as a signal would, or lose the loss."""
    loss, calls = PriorTask.loss, 0
    parts = training.get("gradient_accumulation_steps", 1)

    def stopping(self: PriorTask, model: Any, batch: Any) -> StepLoss:
        nonlocal calls
        calls += 1
        if calls == stop_at * parts:
            os.kill(os.getpid(), signal.SIGTERM)
        found = loss(self, model, batch)
        assert found.loss is not None
        return found._replace(loss=found.loss * math.inf) if calls == break_at else found

    PriorTask.loss = stopping  # type: ignore[method-assign]
    try:
        return train_prior(codes, out, settings(**training), device="cpu")
    except Stopped:
        return None
    finally:
        PriorTask.loss = loss  # type: ignore[method-assign]


def _is_first() -> bool:
    return os.environ["RANK"] == "0"


def train_in_this_process(codes: str, folder: str) -> None:
    """What each process does; the runs it makes are looked at by the tests."""
    store, runs = Path(codes), Path(folder)
    record = train(store, runs / "fsdp", parallel="fsdp")
    assert record == read_record(runs / "fsdp")  # in every process
    assert train(store, runs / "parts", stop_at=STOPPED_AT, parallel="fsdp") is None
    train(store, runs / "parts", parallel="fsdp")
    assert train(store, runs / "to-one", stop_at=STOPPED_AT, parallel="fsdp") is None
    train(store, runs / "from-one", parallel="fsdp")
    with pytest.raises(
        TrainingError,
        match=r"loss is inf at step 3.*and the weights after" if _is_first() else "loss is inf at step 3",
    ):
        train(store, runs / "broken", break_at=3, parallel="fsdp")
    train(store, runs / "accumulated", parallel="fsdp", gradient_accumulation_steps=2, activation_checkpointing=True)


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = {f"train/{i}": 4 + i % 3 for i in range(6)} | {"val/a": 6, "val/b": 4}
    # 7 codes: not all weights divide evenly among two processes.
    return make_store(tmp_path_factory.mktemp("codes") / "a.zarr", lengths, codebook_size=7, frame_shape=(4, 4, 2)).path


@pytest.fixture(scope="module")
def runs(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs of one process and of two."""
    folder = tmp_path_factory.mktemp("runs")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(codes, folder / "one")
    assert train(codes, folder / "from-one", stop_at=STOPPED_AT) is None
    run_together("tests.test_fsdp", "train_in_this_process", codes, folder)
    train(codes, folder / "to-one", parallel="ddp")
    yield folder
    torch.set_num_threads(threads)


def assert_close_runs(a: Path, b: Path) -> None:
    for file in (MODEL_NAME, EMA_NAME):
        torch.testing.assert_close(load_weights(find_checkpoint(a), file), load_weights(find_checkpoint(b), file))
    for ours, theirs in zip(metrics_of(a), metrics_of(b), strict=True):
        assert ours.pop("split") == theirs.pop("split")
        for line in (ours, theirs):
            line["bits_per_slice"] = [value or 0 for value in line.get("bits_per_slice", [])]
        assert set(ours) == set(theirs)
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.parametrize("name", ["fsdp", "accumulated"])
def test_sharded_workers_take_the_steps_of_one_process(runs: Path, name: str) -> None:
    assert_close_runs(runs / "one", runs / name)
    assert {line["split"] for line in metrics_of(runs / name)} == {"train", "val"}


def test_sharded_run_resumes_bit_for_bit(runs: Path) -> None:
    whole, parts = (find_checkpoint(runs / name) for name in ("fsdp", "parts"))
    for file in (MODEL_NAME, EMA_NAME):
        torch.testing.assert_close(load_weights(parts, file), load_weights(whole, file), rtol=0, atol=0)
    assert metrics_of(runs / "parts") == metrics_of(runs / "fsdp")
    assert read_record(runs / "parts").fingerprint == read_record(runs / "fsdp").fingerprint


@pytest.mark.parametrize("name", ["to-one", "from-one"])
def test_run_goes_on_with_another_number_of_processes_and_another_way(runs: Path, name: str) -> None:
    assert_close_runs(runs / "one", runs / name)
    assert read_record(runs / name).counts["steps"] == STEPS


def test_sharded_checkpoint_is_that_of_one_process(runs: Path) -> None:
    one, sharded = (find_checkpoint(runs / name) for name in ("one", "fsdp"))
    assert sorted(file.name for file in one.path.iterdir()) == sorted(file.name for file in sharded.path.iterdir())
    states = [load_state(checkpoint)["optimizer"] for checkpoint in (one, sharded)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for number, entry in states[0]["state"].items():
        torch.testing.assert_close(entry, states[1]["state"][number], rtol=1e-3, atol=1e-4)
        assert {type(value) for value in states[1]["state"][number].values()} == {torch.Tensor}


def test_a_sharded_run_that_breaks_down_leaves_whole_weights_to_look_at(runs: Path) -> None:
    kept = load_file(runs / "broken" / "breakdown" / MODEL_NAME)
    sound = load_weights(find_checkpoint(runs / "one"))
    assert {name: value.shape for name, value in kept.items()} == {name: value.shape for name, value in sound.items()}
    assert read_run(runs / "broken")["status"] == "failed"


def test_sharded_run_is_loaded_drawn_and_validated_as_any_other(codes: Path, runs: Path) -> None:
    prior = load_prior(runs / "fsdp", device="cpu")
    window = torch.from_numpy(open_codes(codes)["val/b"][:4].astype("int64"))[None]
    assert prior.sample(window[:, :1], frames=4).shape == window.shape
    other = torch.from_numpy(open_codes(codes)["val/a"][:4].astype("int64"))[None]
    bits = prior.bits_per_dim(torch.cat([window, other]))
    assert read_record(runs / "fsdp").counts["val_bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    assert sorted(file.name for file in (runs / "fsdp/pictures").iterdir()) == [
        "step-00000008.png",
    ]


def test_the_way_of_working_together_is_no_part_of_what_a_run_is(runs: Path) -> None:
    plain = read_record(runs / "one").settings["training"]
    assert {**plain, "parallel": "fsdp"} == read_record(runs / "fsdp").settings["training"]


def test_a_tokenizer_is_not_sharded() -> None:
    with pytest.raises(
        ConfigError, match=r"training.parallel=fsdp .* every process keeps its codebooks whole: use ddp"
    ):
        build(VQVAERunSettings, {"training": {"parallel": "fsdp"}})
    with pytest.raises(ConfigError, match=r"training.compile does not go with training.parallel=fsdp"):
        TrainingSettings(parallel="fsdp", compile=True)
    with pytest.raises(ConfigError, match=r"here it is parallel"):
        build(TrainingSettings, {"strategy": "fsdp"})


def test_a_torch_that_cannot_shard_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed.fsdp

    monkeypatch.delattr(torch.distributed.fsdp, "FSDPModule")
    with pytest.raises(ConfigError, match=r'training.parallel="fsdp" needs a newer torch than .*parallel="ddp"'):
        shard(torch.nn.Linear(2, 2), Ranks(rank=0, size=1, device=torch.device("cpu")))
