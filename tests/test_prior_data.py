"""Training a prior on codes that are streamed, and on several stores: the same bits however the codes are kept."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvt_pipeline.codes.loading import batches as batches_module
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import ChangedRunError, ConfigError, MismatchError, Stopped
from lvt_pipeline.models.prior.adaptive import frequency_ranks
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.runs.checkpoints import find_checkpoint, load_weights
from lvt_pipeline.runs.read import load_prior, read_run
from lvt_pipeline.training import prior as prior_training
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.prior_task import PriorTask
from lvt_pipeline.training.task import StepLoss
from tests.run_files import metrics_of
from tests.test_prior_training import (
    MODEL,
    TRAINING,
    settings_of,
    task_of,
)
from tests.test_prior_training import make_store as make_labelled_store
from tests.toy_codes import make_store

SHAPE: dict[str, Any] = {"codebook_size": 8, "frame_shape": (4, 4, 2)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    lengths = {f"train/{i}": 4 + i % 5 for i in range(11)} | {"val/a": 6, "val/b": 5}
    return make_store(tmp_path / "a.zarr", lengths, **SHAPE).path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_store(tmp_path / "b.zarr", {f"train/other{i}": 7 for i in range(4)} | {"val/c": 4}, **SHAPE).path


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of a few windows, so that a run goes through many."""
    monkeypatch.setattr(batches_module, "POOL_BYTES", 5 * 4 * 4 * 4 * 2)
    defaults = dict(batches_module.make_batches.__kwdefaults__ or {})
    monkeypatch.setattr(
        batches_module.make_batches, "__kwdefaults__", {**defaults, "pool_bytes": batches_module.POOL_BYTES}
    )


def assert_same_training(a: Path, b: Path) -> None:
    torch.testing.assert_close(load_weights(find_checkpoint(a)), load_weights(find_checkpoint(b)), rtol=0, atol=0)
    assert metrics_of(a) == metrics_of(b)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    loss, calls = PriorTask.loss, 0

    def stopping(self: PriorTask, model: Any, batch: Any) -> StepLoss:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch)

    monkeypatch.setattr(PriorTask, "loss", stopping)


def test_streamed_prior_is_that_of_the_mapped_file_and_resumes_bit_for_bit(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(shuffle="shards")
    train_prior(store, tmp_path / "mapped", settings, cache="mmap", device="cpu")
    train_prior(store, tmp_path / "streamed", settings, cache="stream", device="cpu")
    assert_same_training(tmp_path / "mapped", tmp_path / "streamed")
    stop_at(monkeypatch, 5)
    with pytest.raises(Stopped, match="step 5 is saved"):
        train_prior(store, tmp_path / "parts", settings, cache="stream", device="cpu")
    train_prior(store, tmp_path / "parts", settings, cache="ram", device="cpu")
    assert_same_training(tmp_path / "mapped", tmp_path / "parts")


def test_the_share_of_time_that_waits_for_data_is_logged(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shares_of(run: Path) -> list[float]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line["data_wait_share"] for line in lines if line["split"] == "train"]

    train_prior(store, tmp_path / "quick", settings_of(shuffle="shards"), cache="stream", device="cpu")
    batch = PriorTask.batch

    def slow(self: PriorTask, step: int, rows: range) -> Any:
        time.sleep(0.3)  # many times what a step takes
        return batch(self, step, rows)

    monkeypatch.setattr(PriorTask, "batch", slow)
    train_prior(store, tmp_path / "slow", settings_of(shuffle="shards"), cache="stream", device="cpu")
    assert len(shares_of(tmp_path / "quick")) == 3
    assert min(shares_of(tmp_path / "slow")) > 0.5 > shares_of(tmp_path / "quick")[-1] >= 0


def test_a_run_keeps_the_order_it_was_started_with(store: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train_prior(store, tmp_path / "run", settings_of(), cache="stream", device="cpu", max_seconds=0)
    assert read_run(tmp_path / "run")["settings"]["training"]["shuffle"] == "shards"
    train_prior(store, tmp_path / "run", settings_of(), device="cpu")  # auto: in memory, in the order of shards
    train_prior(store, tmp_path / "whole", settings_of(shuffle="shards"), device="cpu")
    assert_same_training(tmp_path / "run", tmp_path / "whole")


def test_auto_streams_a_new_run_that_fits_nowhere_and_never_one_on_clips(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        train_prior(store, tmp_path / "clips", settings_of(), device="cpu", max_seconds=0)
    monkeypatch.setattr(prior_training, "choose_tier", lambda cache, *rest: "stream" if cache == "auto" else cache)
    with pytest.raises(Stopped):
        train_prior(store, tmp_path / "new", settings_of(), device="cpu", max_seconds=0)
    assert read_run(tmp_path / "new")["settings"]["training"]["shuffle"] == "shards"
    assert train_prior(store, tmp_path / "clips", settings_of(), device="cpu").counts["steps"] == 8
    assert read_run(tmp_path / "clips")["settings"]["training"]["shuffle"] is None


TRAINING_PROCESS = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {root!r})
    import torch
    torch.set_num_threads(1)
    from lvt_pipeline.errors import Stopped
    from lvt_pipeline.training.prior import train_prior
    from lvt_pipeline.training.prior_task import PriorTask
    from tests.test_prior_training import settings_of
    batch = PriorTask.batch
    def slowly(self, step, rows):
        print(step, flush=True)
        time.sleep(0.05)
        return batch(self, step, rows)
    PriorTask.batch = slowly
    try:
        train_prior(Path({store!r}), Path({run!r}), settings_of(max_steps={steps}), cache="stream", device="cpu")
    except Stopped:
        sys.exit(75)
"""


def test_a_streaming_training_keeps_its_generation_under_gc_and_can_be_resumed(
    store: Path, tmp_path: Path, lvt: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, steps = tmp_path / "run", 2000
    names = {"root": str(Path(__file__).parent.parent), "store": str(store), "run": str(run), "steps": steps}
    script = textwrap.dedent(TRAINING_PROCESS).format(**names)
    training = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert training.stdout is not None
        assert training.stdout.readline().strip().isdecimal()
        make_store(store, {f"train/new{i}": 9 for i in range(3)} | {"val/a": 6}, **SHAPE)
        code, out, _ = lvt("gc", store, "--apply")
        assert code == 0
        assert out.startswith(f"generation 1 is kept: it is being read by process {training.pid} (")
        reached = [int(training.stdout.readline()) for _ in range(20)][-1]  # whole pools are read after that
        assert reached >= 20
        training.send_signal(signal.SIGTERM)
        training.communicate(timeout=60)
        assert training.returncode == 75
    finally:
        training.kill()
        training.communicate()
    step = read_run(run)["step"]
    assert 0 < step < steps
    shutil.copytree(run, tmp_path / "late")
    stop_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        train_prior(store, run, settings_of(max_steps=steps), cache="stream", device="cpu")
    assert read_run(run)["step"] > step
    assert lvt("gc", store, "--apply")[1].splitlines()[0] == "generation 1 dropped"
    assert open_codes(store).generations == [2]
    with pytest.raises(
        ChangedRunError, match=r"was started on generation 1 of its code store, .* lvt gc has removed it"
    ):
        train_prior(store, tmp_path / "late", settings_of(max_steps=steps), cache="stream", device="cpu")


def test_orders_that_do_not_go_together_are_refused_before_anything_is_written(store: Path, tmp_path: Path) -> None:
    for changes, cache, message in (
        ({"shuffle": "clips"}, "stream", "training.shuffle=clips asks for clips from anywhere"),
        ({"windows_per_clip": 2}, "ram", "windows_per_clip=2 needs training.shuffle=shards"),
        ({"mix": [1.0, 2.0]}, "ram", "has 2 weights for 1 code stores"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_prior(store, tmp_path / "run", settings_of(**changes), cache=cache, device="cpu")  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()
    train_prior(store, tmp_path / "run", settings_of(), device="cpu")
    with pytest.raises(ConfigError, match="this run was started on clips from anywhere"):
        train_prior(store, tmp_path / "run", settings_of(max_steps=9), cache="stream", device="cpu")
    with pytest.raises(ChangedRunError, match=r"training.shuffle: null -> \"shards\""):
        train_prior(store, tmp_path / "run", settings_of(max_steps=9, shuffle="shards"), device="cpu")


@pytest.mark.parametrize(("shuffle", "caches"), [("clips", ("ram", "mmap")), ("shards", ("mmap", "stream"))])
def test_mixed_prior_resumes_bit_for_bit_from_any_tier(
    store: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: str, caches: tuple[Any, Any]
) -> None:
    settings = settings_of(mix=[0.7, 0.3], shuffle=shuffle)
    record = train_prior([store, other], tmp_path / "whole", settings, cache=caches[0], device="cpu")
    assert record.counts["train_clips"] == 15
    assert record.inputs == {"codes": open_codes(store).fingerprint, "codes_2": open_codes(other).fingerprint}
    stop_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        train_prior([store, other], tmp_path / "parts", settings, cache=caches[1], device="cpu")
    train_prior([store, other], tmp_path / "parts", settings, cache=caches[1], device="cpu")
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(ChangedRunError, match=r"was started on codes"):
        train_prior([other, store], tmp_path / "whole", settings, device="cpu")
    with pytest.raises(ChangedRunError, match=r"training.mix: \[0.7,0.3\] -> \[0.6,0.4\]"):
        train_prior([store, other], tmp_path / "whole", settings_of(mix=[0.6, 0.4], shuffle=shuffle), device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 16}, "codebook_size is 8 in the first and 16 in the second"),
        ({"frame_shape": (4, 4, 1)}, "num_codebooks is 2 in the first and 1 in the second"),
        ({"frame_shape": (4, 2, 2)}, "grid is 4x4 in the first and 4x2 in the second"),
    ],
)
def test_stores_whose_codes_differ_are_not_mixed(
    store: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    different = make_store(tmp_path / "c.zarr", {"train/x": 9}, **{**SHAPE, **change}).path
    with pytest.raises(MismatchError, match=message):
        train_prior([store, different], tmp_path / "run", settings_of(), device="cpu")
    assert not (tmp_path / "run").exists()


def test_stores_of_other_tokenizers_are_not_mixed(store: Path, tmp_path: Path) -> None:
    different = make_labelled_store(tmp_path / "c.zarr")  # the same shape, another tokenizer
    with pytest.raises(MismatchError, match="tokenizer is 0123456789ab in the first and tttttttttttt in the second"):
        train_prior([store, different], tmp_path / "run", settings_of(), device="cpu")


def test_a_mixture_is_validated_and_counted_by_its_shares(store: Path, other: Path, tmp_path: Path) -> None:
    changes = {"decoder_input": "adaptive", "head": "adaptive"}
    train_prior([store, other], tmp_path / "run", settings_of(changes, mix=[1.0, 1e6], max_steps=1), device="cpu")
    counts = np.zeros((2, 8), np.int64)
    for clip in open_codes(other).split("train"):
        for j in range(2):
            np.add.at(counts[j], open_codes(other)[clip.id][..., j].ravel(), 1)
    ranks = load_prior(tmp_path / "run", device="cpu").decoder.embeddings[0].ranks
    assert np.array_equal(ranks, frequency_ranks(counts)[0])


def test_checkpointed_activations_and_a_moving_average_leave_every_bit_of_a_run(store: Path, tmp_path: Path) -> None:
    for name, is_on in (("off", False), ("on", True)):
        settings = settings_of(ema_decay=0.5, activation_checkpointing=is_on)
        train_prior(store, tmp_path / name, settings, device="cpu")
    assert_same_training(tmp_path / "off", tmp_path / "on")  # validation is that of the average


def test_bits_of_slices_average_to_the_bits_of_all_codes(store: Path) -> None:
    task = task_of(store, settings_of({"subscale": [2, 2, 2], "kernel": [5, 3, 3]}))
    task.model.eval()
    with torch.no_grad():
        found = task.evaluate(task.model)
    # The obvious way: every code by the offsets of its pixel within a 2x2x2 cell.
    assert isinstance(task.model, Prior)
    nats, counts = np.zeros(8), np.zeros(8)
    for clip in open_codes(store).split("val"):
        window = torch.from_numpy(open_codes(store)[clip.id][:4].astype(np.int64))[None]
        bits = task.model.nats_by_code(window)[0][0].numpy() / math.log(2)
        for t, y, x in np.ndindex(4, 4, 4):
            position = (t % 2) * 4 + (y % 2) * 2 + x % 2
            nats[position] += bits[t, y, x].sum()
            counts[position] += 2 if t else 0
    assert found["bits_per_slice"] == pytest.approx((nats / counts).tolist())
    assert nats.sum() / counts.sum() == pytest.approx(found["bits_per_dim"])
    primed = task_of(store, settings_of())
    with torch.no_grad():
        assert primed.evaluate(primed.model)["bits_per_slice"][0] is None


def test_the_command_mixes_stores_and_streams_them(
    store: Path, other: Path, tmp_path: Path, lvt: Callable[..., tuple[int, str, str]]
) -> None:
    options = [f"model.{name}={value!r}".replace("'", '"') for name, value in MODEL.items()]
    options += [f"training.{name}={value!r}".replace("'", '"') for name, value in TRAINING.items()]
    sets = [part for option in options for part in ("--set", option)]
    command = ["train-prior", "--codes", store, "--codes", other, "--mix", "0.7,0.3", "-o", tmp_path / "run", *sets]
    code, _, errors = lvt(*command, "--cache", "stream", "--device", "cpu")
    assert code == 0, errors
    training = read_run(tmp_path / "run")["settings"]["training"]
    assert (training["mix"], training["shuffle"]) == ([0.7, 0.3], "shards")
    code, _, errors = lvt(*command, "--set", "training.learning_rate=0.1", "--max-steps", "9", "--device", "cpu")
    assert code == 1
    assert "--allow-config-change" in errors
    code, _, errors = lvt(
        *command, "--set", "training.learning_rate=0.1", "--max-steps", "9", "--device", "cpu", "--allow-config-change"
    )
    assert code == 0, errors
    assert read_run(tmp_path / "run")["config_changes"][0]["step"] == 8
