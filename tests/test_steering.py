"""Actions from the code store into training, sampling and evaluation, on codes that actions decide."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, SideArray
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import ConfigError, LVTError, MismatchError, Stopped
from lvt_pipeline.evaluation.actions import probe
from lvt_pipeline.evaluation.actions.measuring import steered_codes
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.report.actions import action_cards, action_tables
from lvt_pipeline.report.page import write_report
from lvt_pipeline.runs.actions import read_rows
from lvt_pipeline.runs.read import load_prior
from lvt_pipeline.storage import read_json
from lvt_pipeline.training.prior import dry_run_prior, train_prior
from tests.listener import Listener
from tests.run_files import metrics_of
from tests.test_prior_training import settings_of
from tests.test_warm_start import start_only, weights_of
from tests.toy_codes import record
from tests.toy_work import make_toy_work

Lvt = Callable[..., tuple[int, str, str]]
K, LENGTH = 4, 8
SPLITS = {"train": 40, "val": 2, "test": 6}
WITHOUT = "train/11"  # a clip that has no actions
SETTINGS = SampleSettings(frames=6, priming_frames=2, num_clips=None)
STEPS = {"max_steps": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 2, "picture_every": 4}
ACTING = {"actions": ["action", "speed"]}


def make_acting_store(path: Path, seed: int = 0) -> Path:
    """Codes of frame t + 1 are those of frame t plus the action, 0 to 2, modulo K; `speed` is constant."""
    generator = np.random.default_rng(seed)
    arrays = tuple(
        SideArray(name=name, dtype=np.dtype(np.float32), dimension=d) for name, d in (("action", 1), ("speed", 2))
    )
    schema = CodeSchema(codebook_size=K, num_codebooks=1, grid=(4, 4), tokenizer="t" * 64, arrays=arrays)
    names = [(split, f"{split}/{number}") for split, count in SPLITS.items() for number in range(count)]
    planned, values = [], {}
    for split, name in names:
        steps = generator.integers(0, 3, (LENGTH, 1))
        first = generator.integers(0, K, (1, 4, 4, 1))
        before = np.concatenate([[[0]], steps[:-1]]).cumsum(0)
        action = np.full((LENGTH, 1), np.nan) if name == WITHOUT else steps
        speed = np.full((LENGTH, 2), np.nan if name == WITHOUT else 7.0)
        values[name] = {"codes": (first + before[:, :, None, None]) % K, "action": action, "speed": speed}
        planned.append(
            PlannedClip(id=name, split=split, label=None, length=LENGTH, fingerprint=f"{name} {seed}", fps=5, source="")
        )
    with CodeStoreWriter.open(path, schema, planned) as writer:
        for shard in writer.pending_shards():
            rows = {
                key: np.concatenate([values[part.clip_id][key][part.start : part.stop] for part in shard.parts])
                for key in ("codes", "action", "speed")
            }
            codes = rows.pop("codes")
            writer.write_shard(shard.index, codes, {key: value.astype(np.float32) for key, value in rows.items()})
        writer.publish(record())
    return path


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_acting_store(tmp_path_factory.mktemp("codes") / "data.zarr")


@pytest.fixture(scope="module")
def prior(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior that has learned what actions do."""
    out = tmp_path_factory.mktemp("runs") / "prior"
    every = dict.fromkeys(("max_steps", "log_every", "eval_every", "picture_every", "checkpoint_every"), 500)
    train_prior(codes, out, settings_of(ACTING, **every, batch_size=16, learning_rate=0.004), device="cpu")
    return out


@pytest.fixture(scope="module")
def plain(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior without actions."""
    out = tmp_path_factory.mktemp("plain") / "prior"
    train_prior(codes, out, settings_of(**STEPS), device="cpu")
    return out


def sampled(codes: Path, prior: Path, out: Path, **settings: Any) -> Any:
    sample_clips(prior, codes, out, replace(SETTINGS, **settings), device="cpu")
    return open_codes(out)


# Training ------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_mean_and_deviation_of_the_known_training_actions(codes: Path, prior: Path) -> None:
    store, model = open_codes(codes), load_prior(prior, device="cpu")
    rows = np.concatenate([store.array("action")[clip.id] for clip in store.split("train") if clip.id != WITHOUT])
    assert model.config.action_widths == (1, 2)
    assert model.encoder.actions is not None
    np.testing.assert_allclose(model.encoder.actions.mean.numpy(), [rows.mean(), 7, 7], rtol=1e-6)
    np.testing.assert_allclose(model.encoder.actions.std.numpy(), [rows.std(), 1, 1], rtol=1e-6)


@pytest.mark.parametrize("model", [{}, {"subscale": [2, 2, 2], "kernel": [5, 3, 3]}], ids=["frames", "spatiotemporal"])
def test_a_resumed_training_on_actions_equals_an_uninterrupted_one(
    codes: Path, tmp_path: Path, model: dict[str, Any]
) -> None:
    settings = settings_of({**ACTING, **model}, **STEPS)
    train_prior(codes, tmp_path / "whole", settings, device="cpu")
    with pytest.raises(Stopped):
        train_prior(codes, tmp_path / "parts", settings, device="cpu", max_seconds=0)
    train_prior(codes, tmp_path / "parts", settings, device="cpu", cache="mmap")
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "parts")
    assert bool(whole["encoder.actions.weight"].any())


def test_streamed_actions_train_the_same_weights(codes: Path, tmp_path: Path) -> None:
    settings = settings_of(ACTING, **STEPS, shuffle="shards")
    for cache in ("ram", "stream"):
        train_prior(codes, tmp_path / cache, settings, device="cpu", cache=cache)  # type: ignore[arg-type]
    ram, stream = weights_of(tmp_path / "ram"), weights_of(tmp_path / "stream")
    assert all(torch.equal(ram[name], stream[name]) for name in ram)


def test_a_warm_start_with_actions_begins_with_the_logits_of_the_plain_prior(
    codes: Path, plain: Path, tmp_path: Path
) -> None:
    lines = Listener()
    with pytest.raises(Stopped):
        train_prior(
            codes, tmp_path / "run", settings_of(ACTING, **STEPS), init_from=plain, device="cpu", max_seconds=0,
            progress=lines,
        )  # fmt: skip
    said = next(line for line in lines.said if "encoder.actions" in line)
    assert all(f"encoder.actions.{name}" in said for name in ("mean", "std", "weight"))
    model, window = load_prior(tmp_path / "run", device="cpu"), open_codes(codes)["test/0"][None, :4]
    actions = np.ones((1, 4, 3))
    with torch.no_grad():
        assert torch.equal(model.logits(window, actions=actions), load_prior(plain, device="cpu").logits(window))


def test_a_warm_start_keeps_the_scale_of_the_same_actions_and_no_other(
    codes: Path, prior: Path, tmp_path: Path
) -> None:
    other = make_acting_store(tmp_path / "other.zarr", seed=5)
    kept = start_only(other, tmp_path / "same", prior, ACTING)
    assert torch.equal(kept["encoder.actions.mean"], weights_of(prior)["encoder.actions.mean"])
    turned = start_only(other, tmp_path / "turned", prior, {"actions": ["speed", "action"]})
    assert not turned["encoder.actions.weight"].any()
    assert turned["encoder.actions.mean"][:2].tolist() == [7, 7]


def test_actions_that_the_codes_do_not_have_are_refused_before_training(codes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MismatchError, match=r"has no array force for the actions of a prior, it has action, speed; enc"
    ):
        train_prior(codes, tmp_path / "run", settings_of({"actions": ["force"]}), device="cpu")
    with pytest.raises(MismatchError, match=r"the settings say model.action_widths=2x2 but the codes in .* have"):
        train_prior(codes, tmp_path / "run", settings_of({**ACTING, "action_widths": [2, 2]}), device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_the_parameters_of_actions(codes: Path) -> None:
    plain, acting = (dry_run_prior(settings_of(model), codes=codes, device="cpu") for model in ({}, ACTING))
    assert acting["parameters"] - plain["parameters"] == 4 * 16 * 3 * (3 + 1)  # changes, steps, numbers and known


# Sampling ------------------------------------------------------------------------------------------------------------


def test_samples_follow_the_actions_that_are_asked_for_and_keep_them(codes: Path, prior: Path, tmp_path: Path) -> None:
    store = open_codes(codes)
    np.save(tmp_path / "two.npy", np.tile(np.float64([2, 7, 7]), (9, 1)))
    (tmp_path / "two.csv").write_text("action,left,right\n" + "2,7,7\n" * 5)
    own = sampled(codes, prior, tmp_path / "own.zarr", top_k=1)
    two = sampled(codes, prior, tmp_path / "two.zarr", top_k=1, actions=str(tmp_path / "two.npy"))
    for clip in own.clips:
        assert (own[clip.id] == store.read(clip.id, 0, 6)).mean() > 0.9
        np.testing.assert_array_equal(own.array("action")[clip.id], store.array("action").read(clip.id, 0, 6))
        np.testing.assert_array_equal(own.array("speed")[clip.id], store.array("speed").read(clip.id, 0, 6))
        steps = np.diff(two[clip.id].astype(int), axis=0)[1:] % K  # from the last priming frame on
        assert (steps == 2).mean() > 0.9
        assert two.array("action")[clip.id].ravel().tolist() == [2] * 6
    zero = sampled(codes, prior, tmp_path / "zero.zarr", actions="zero")
    assert not zero.array("speed")["test/0"].any()
    again = sampled(codes, prior, tmp_path / "csv.zarr", top_k=1, actions=str(tmp_path / "two.csv"))
    assert all(np.array_equal(again[clip.id], two[clip.id]) for clip in two.clips)
    assert np.isnan(again.array("action")["test/0"][-1])  # acts on nothing


def test_samples_do_not_change_while_their_actions_stay(codes: Path, prior: Path, tmp_path: Path) -> None:
    file = tmp_path / "actions.npy"
    np.save(file, np.full((6, 3), 7.0))
    first = sampled(codes, prior, tmp_path / "s.zarr", actions=str(file))
    np.save(file, np.full((20, 3), 7.0))
    assert sampled(codes, prior, tmp_path / "s.zarr", actions=str(file)).fingerprint == first.fingerprint
    np.save(file, np.full((6, 3), 6.0))
    assert sampled(codes, prior, tmp_path / "s.zarr", actions=str(file)).fingerprint != first.fingerprint


def test_after_the_end_of_a_clip_its_last_action_is_repeated(codes: Path, prior: Path, tmp_path: Path) -> None:
    store = open_codes(codes)
    found = sampled(codes, prior, tmp_path / "long.zarr", frames=12, start=3, num_clips=1).array("action")["test/0"]
    own = store.array("action")["test/0"]
    np.testing.assert_array_equal(found, np.concatenate([own[3:], np.repeat(own[-1:], 7, axis=0)]))


def test_actions_that_do_not_fit_are_refused_before_a_sample(
    codes: Path, prior: Path, plain: Path, tmp_path: Path, lvt: Lvt
) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((9, 2)))
    np.save(tmp_path / "short.npy", np.zeros((4, 3)))
    np.save(tmp_path / "cube.npy", np.zeros((4, 3, 1)))
    (tmp_path / "words.csv").write_text("a,b,c\n1,2,left\n")
    for run, actions, message in (
        (prior, "narrow.npy", "has rows of 2 numbers; those of the prior"),
        (prior, "short.npy", "has 4 rows; samples of 6 frames, priming frames included, need 5"),
        (prior, "cube.npy", r"has the shape (4, 3, 1); actions are rows of numbers, (T, d)"),
        (prior, "words.csv", "does not hold rows of numbers; give a .npy (T, d), a .csv or a .parquet"),
        (prior, "nothing.npy", "does not exist"),
        (plain, "narrow.npy", "was trained without actions; leave out --actions"),
    ):
        out = tmp_path / "out.zarr"
        options = ("--num-frames", "6", "--priming-frames", "2", "--actions", str(tmp_path / actions))
        code, _, error = lvt("sample", "--prior", str(run), "--codes", str(codes), "-o", str(out), *options)
        assert code == 1
        assert message in error
        assert len(error.strip().splitlines()) == 1
        assert not out.exists()


def test_rows_of_numbers_are_read_from_every_format(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2.5\n\nnan,-1e3\n")
    np.testing.assert_array_equal(read_rows(tmp_path / "rows.csv"), np.float32([[1, 2.5], [np.nan, -1000]]))
    table = pyarrow.table({"left": [1.0, float("nan")], "right": [2.5, -1e3]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    np.testing.assert_array_equal(read_rows(tmp_path / "rows.parquet"), np.float32([[1, 2.5], [np.nan, -1000]]))
    np.save(tmp_path / "rows.npy", np.int8([[1], [2]]))
    assert read_rows(tmp_path / "rows.npy").tolist() == [[1], [2]]


# Evaluation ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(codes: Path, prior: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("evaluation") / "eval.json"
    samples = sampled(codes, prior, out.parent / "s.zarr", priming_frames=1, num_clips=1).path
    evaluate(Sources(codes=codes, prior=prior, samples=samples), out, EvaluateSettings(frames=4), device="cpu")
    return read_json(out)


def test_true_actions_win_where_they_decide_the_codes(results: dict[str, Any]) -> None:
    found = results["actions"]
    assert found["clips"] == SPLITS["test"]
    bits, saved = found["bits_per_dim"], found["bits_saved"]
    assert bits["true"] == pytest.approx(results["prior"]["bits_per_dim"])
    for name in ("shuffled", "none"):
        assert saved[name]["mean"] == pytest.approx(bits[name] - bits["true"])
        assert saved[name]["mean"] > 0.5
        assert saved[name]["low"] > 0
    samples, read = found["samples"], found["probe"]
    assert samples["same_codes"]["true"] > samples["same_codes"]["shuffled"]
    assert samples["delta_same_codes"]["low"] > 0
    assert "psnr" not in samples
    for name in ("real", "sampled", "sampled_shuffled"):
        assert read[name] < 0.3 * read["mean_action"]


def test_one_start_is_continued_under_three_sequences(results: dict[str, Any], codes: Path) -> None:
    steered = results["actions"]["steered"]
    found = steered_codes(steered)
    assert found.shape == (3, 4, 4, 4, 1)
    assert steered["sequences"] == ["own", "mirrored", "zero"]
    given = steered["priming_frames"]
    assert given == 1  # as the evaluated samples
    assert (found[:, :given] == open_codes(codes).read(steered["clip"], 0, given)).all()
    assert len(base64.b64decode(steered["codes"])) < found.nbytes


def test_the_report_has_a_row_for_each_kind_of_actions(results: dict[str, Any]) -> None:
    bits, samples, read = action_tables(results)
    assert [row[0] for row in bits["rows"]] == ["True actions", "Actions of another clip", "No actions"]
    assert [row[0] for row in samples["rows"]] == ["Codes as in the real clip"]
    assert len(read["rows"]) == 3
    (card,) = action_cards(results)
    assert card["checks"][0]["text"] == "✓ beats shuffled actions"
    assert action_tables({}) == action_cards({}) == []
    json.dumps([bits, samples, read, card])


def test_with_pixels_samples_are_compared_in_decibels_and_shown_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "STEPS", 5)
    work = make_toy_work(tmp_path, acting=True)
    sample_clips(work.prior, work.codes, work.samples, SETTINGS, device="cpu")
    sources = Sources(codes=work.codes, prior=work.prior, frames=work.frames, vqvae=work.vqvae, samples=work.samples)
    evaluate(sources, tmp_path / "eval.json", EvaluateSettings(frames=6), device="cpu")
    found = read_json(tmp_path / "eval.json")["actions"]
    samples = found["samples"]
    assert samples["psnr"]["true"] == pytest.approx(samples["psnr"]["shuffled"], abs=10)
    assert samples["delta_psnr"]["low"] <= samples["delta_psnr"]["mean"] <= samples["delta_psnr"]["high"]
    assert found["probe"]["reconstructed"] > 0
    write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    part = page[page.index("One start under three action sequences") :]
    for name in ("own", "mirrored", "zero"):
        assert f"{name} actions, sampled" in part
    for title in ("Bits per code, by actions", "Samples under true and shuffled actions", "Actions read from codes"):
        assert title in page


def test_a_conditioned_prior_is_not_evaluated_on_codes_without_its_actions(
    prior: Path, plain: Path, codes: Path, tmp_path: Path
) -> None:
    samples = sampled(codes, plain, tmp_path / "s.zarr").path  # a store without side arrays
    with pytest.raises(MismatchError, match="has no array action for the actions of a prior, it has none"):
        evaluate(Sources(codes=samples, prior=prior), tmp_path / "e.json", EvaluateSettings(frames=4), device="cpu")


def test_settings_of_actions_without_actions_are_refused(codes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="action_dropout needs actions"):
        train_prior(codes, tmp_path / "run", settings_of({"action_dropout": 0.2}), device="cpu")
    with pytest.raises(LVTError, match=r"action_dropout=1\.0 must be"):
        settings_of({**ACTING, "action_dropout": 1.0})
