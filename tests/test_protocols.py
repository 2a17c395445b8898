"""The paper's protocol: several runs on the same clips, resumable, with mean, spread and baselines."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import ConfigError, Stopped
from lvt_pipeline.evaluation import evaluate as stage
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.protocols.evaluate import evaluate_protocol
from lvt_pipeline.evaluation.protocols.results import PROTOCOLS, Protocol
from lvt_pipeline.evaluation.results import protocol_line
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.jobs import sample as sampling
from lvt_pipeline.jobs import sample_shards
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.storage import read_json
from tests.scripted_networks import ToyDistance, ToyFeatures, save_scripted
from tests.toy_work import FRAMES, ToyWork, make_toy_work

TOY = Protocol(name="toy", frames=FRAMES, priming_frames=2, runs=3, clips=3)
SOURCE_NAMES = {field.name for field in fields(Sources)}
Lvt = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    work = make_toy_work(tmp_path_factory.mktemp("work"))
    save_scripted(ToyFeatures(), work.root / "i3d.pt")
    save_scripted(ToyDistance(), work.root / "lpips.pt")
    return work


def run(work: ToyWork, out: Path, protocol: Protocol = TOY, **options: Any) -> Provenance:
    paths = {"codes": work.codes, "prior": work.prior, "frames": work.frames, "vqvae": work.vqvae}
    given = {name: options.pop(name) for name in list(options) if name in SOURCE_NAMES}
    sources = Sources(**{**paths, "i3d": work.root / "i3d.pt", **given})
    return evaluate_protocol(sources, out, protocol, device="cpu", **options)


@pytest.fixture(scope="module")
def finished(work: ToyWork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation: the folder of `eval.json`. Shared: copy it before you change it."""
    folder = tmp_path_factory.mktemp("finished")
    run(work, folder / "eval.json", lpips=work.root / "lpips.pt")
    return folder


def test_the_protocols_are_those_of_the_paper() -> None:
    for protocol in PROTOCOLS.values():
        assert (protocol.frames, protocol.priming_frames, protocol.bits_priming_frames, protocol.runs) == (16, 5, 1, 10)
    assert PROTOCOLS["bair"].published["copy_fvd"] == 320.90


def test_a_run_is_what_sampling_and_evaluating_with_its_seed_gives(
    work: ToyWork, finished: Path, tmp_path: Path
) -> None:
    settings = sampling.SampleSettings(frames=FRAMES, priming_frames=2, num_clips=None, seed=1)
    sampling.sample_clips(work.prior, work.codes, tmp_path / "s.zarr", settings, device="cpu")
    paths = {"frames": work.frames, "vqvae": work.vqvae, "samples": tmp_path / "s.zarr", "i3d": work.root / "i3d.pt"}
    sources = Sources(codes=work.codes, **paths)
    evaluate(sources, tmp_path / "one.json", EvaluateSettings(frames=FRAMES), device="cpu")
    one, row = read_json(tmp_path / "one.json"), read_json(finished / "eval.json")["protocol"]["runs"][1]
    assert row["seed"] == 1
    assert row["fvd_real_priming"] == one["fvd"]["real_priming"]
    assert row["fvd_reconstructed_priming"] == one["fvd"]["reconstructed_priming"]
    assert (row["mse"], row["ssim"]) == (one["samples"]["mse"], one["samples"]["ssim"])
    stored, drawn = open_codes(finished / row["samples"]), open_codes(tmp_path / "s.zarr")
    assert all(np.array_equal(stored[clip.id], drawn[clip.id]) for clip in drawn.clips)


def test_mean_and_spread_are_over_the_runs(finished: Path) -> None:
    results = read_json(finished / "eval.json")
    found = results["protocol"]
    for name in ("mse", "psnr", "ssim", "lpips", "fvd_real_priming", "fvd_reconstructed_priming"):
        values = [row[name] for row in found["runs"]]
        assert len(set(values)) == 3, f"{name}: the runs have seeds of their own"
        assert found["mean"][name] == pytest.approx(statistics.fmean(values))
        assert found["std"][name] == pytest.approx(math.sqrt(sum((v - np.mean(values)) ** 2 for v in values) / 2))
    assert results["fvd"]["real_priming"] == found["mean"]["fvd_real_priming"]
    assert results["fvd"]["card"]["seeds"] == [0, 1, 2]
    by_run = [read_json(finished / "eval.runs" / f"run-0{n}" / "run.json")["per_clip"]["sample_mse"] for n in range(3)]
    assert results["per_clip"]["samples"]["sample_mse"] == pytest.approx(np.mean(by_run, axis=0).tolist())


def test_the_reconstructions_distance_needs_no_samples(work: ToyWork, finished: Path, tmp_path: Path) -> None:
    sources = Sources(codes=work.codes, frames=work.frames, vqvae=work.vqvae, i3d=work.root / "i3d.pt")
    evaluate(sources, tmp_path / "e.json", EvaluateSettings(frames=FRAMES), device="cpu")
    alone, results = read_json(tmp_path / "e.json"), read_json(finished / "eval.json")
    assert alone["fvd"]["reconstruction"] == results["fvd"]["reconstruction"] > 0
    assert alone["fvd"]["label"] == results["fvd"]["label"]
    assert "--samples" in alone["missing"]["FVD of samples"]


def test_bits_and_baselines_are_those_of_an_evaluation_of_the_same_clips(
    work: ToyWork, finished: Path, tmp_path: Path
) -> None:
    sources = Sources(codes=work.codes, prior=work.prior)
    evaluate(sources, tmp_path / "e.json", EvaluateSettings(frames=FRAMES), device="cpu")
    alone, results = read_json(tmp_path / "e.json"), read_json(finished / "eval.json")
    assert results["prior"] == alone["prior"]
    assert results["baselines"] == alone["baselines"]
    bounds = results["protocol"]["baselines"]
    assert bounds["unigram_bits"] == alone["baselines"]["unigram_bits"]
    assert bounds["previous_frame_bits"] == alone["baselines"]["previous_frame_bits"]
    for metric in ("mse", "ssim", "lpips"):
        for kind in ("reconstruction", "copy"):
            assert bounds[f"{kind}_{metric}"] == results["samples"][f"{kind}_{metric}"]
    assert {"reconstruction_fvd", "copy_fvd"} <= bounds.keys()


def test_what_differs_from_the_paper_is_said(work: ToyWork, finished: Path, tmp_path: Path) -> None:
    assert read_json(finished / "eval.json")["protocol"]["deviations"] == [
        "not FVD: the network gives 6 features, I3D gives 400; for tests only"
    ]
    run(work, tmp_path / "eval.json", settings=EvaluateSettings(split="val", max_clips=1), num_runs=1)
    results = read_json(tmp_path / "eval.json")
    said = results["protocol"]["deviations"]
    assert said[:3] == ["1 clip, the paper has 3", "val clips, the paper has test clips", "1 run, the paper has 3"]
    assert results["protocol"]["std"]["mse"] is None
    assert "differs from the paper" in protocol_line(results)


def test_without_pixels_the_codes_are_still_measured_and_the_rest_is_named(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "eval.json", frames=None, vqvae=None, i3d=None, num_runs=2)
    results = read_json(tmp_path / "eval.json")
    assert set(results["protocol"]["mean"]) == {"share_same_as_previous_frame"}
    assert "--frames" in results["missing"]["FVD"]
    assert "--samples" not in results["missing"]["FVD"]  # a protocol draws its own


def test_a_second_evaluation_does_nothing(work: ToyWork, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and "zarr" not in str(path)
    }
    monkeypatch.setattr(stage, "measure_samples", lambda *arguments, **options: pytest.fail("measured again"))
    monkeypatch.setattr(sample_shards, "sample_batch", lambda *arguments: pytest.fail("sampled again"))
    run(work, finished / "eval.json", lpips=work.root / "lpips.pt")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_an_evaluation_stopped_between_runs_goes_on_and_ends_the_same(
    work: ToyWork, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    original = stage.measure_samples

    def stopping(sampled: Any, *arguments: Any, **options: Any) -> Any:
        if len(measured) == 1:
            raise Stopped("stopped")
        measured.append(sampled.path.parent.name)
        return original(sampled, *arguments, **options)

    monkeypatch.setattr(stage, "measure_samples", stopping)
    out = tmp_path / "eval.json"
    with pytest.raises(Stopped):
        run(work, out, lpips=work.root / "lpips.pt")
    assert not out.exists()
    again: list[str] = []
    monkeypatch.setattr(
        stage,
        "measure_samples",
        lambda sampled, *rest, **options: again.append(sampled.path.parent.name) or original(sampled, *rest, **options),
    )
    run(work, out, lpips=work.root / "lpips.pt")
    assert (measured, again) == (["run-00"], ["run-01", "run-02"])
    assert out.read_bytes() == (finished / "eval.json").read_bytes()


def test_more_runs_keep_those_that_are_there(
    work: ToyWork, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    drawn: list[int] = []
    original = sample_shards.sample_batch
    monkeypatch.setattr(sample_shards, "sample_batch", lambda *given: drawn.append(given[3].seed) or original(*given))
    run(work, folder / "eval.json", num_runs=4, lpips=work.root / "lpips.pt")
    assert drawn == [3]
    first = read_json(finished / "eval.json")["protocol"]["runs"]
    assert read_json(folder / "eval.json")["protocol"]["runs"][:3] == first


def test_clips_too_short_to_be_evaluated_are_not_in_the_samples_either(tmp_path: Path) -> None:
    work = make_toy_work(tmp_path, lengths={"test/0": FRAMES - 1})
    run(work, tmp_path / "eval.json", num_runs=1, i3d=None)
    results = read_json(tmp_path / "eval.json")
    assert (results["clips"], results["samples"]["clips"]) == (2, 2)
    assert results["per_clip"]["samples"]["clip"] == ["test/1", "test/2"]


def test_only_the_clips_that_are_evaluated_are_sampled(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "eval.json", settings=EvaluateSettings(max_clips=2), num_runs=1, frames=None, vqvae=None)
    results = read_json(tmp_path / "eval.json")
    assert results["clips"] == len(open_codes(tmp_path / results["protocol"]["runs"][0]["samples"]).clips) == 2


def test_more_clips_than_the_split_has_are_not_sampled_from_other_splits(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "eval.json", settings=EvaluateSettings(max_clips=5), num_runs=1, frames=None, vqvae=None)
    results = read_json(tmp_path / "eval.json")
    sampled = open_codes(tmp_path / results["protocol"]["runs"][0]["samples"])
    assert [clip.split for clip in sampled.clips] == ["test"] * 3


def test_no_runs_are_refused(work: ToyWork, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        run(work, tmp_path / "eval.json", num_runs=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--protocol", "bair"], "needs --prior"),
        (["--protocol", "bair", "--samples", "s.zarr"], "--samples and --protocol exclude each other"),
        (["--protocol", "bair", "--num-frames", "8"], "--num-frames and --protocol exclude each other"),
        (["--runs", "2"], "--runs belongs to --protocol"),
    ],
)
def test_options_that_do_not_go_together_are_refused(work: ToyWork, lvt: Lvt, options: list[str], says: str) -> None:
    code, _, said = lvt("evaluate", "--codes", work.codes, *options)
    assert code == 2
    assert says in said


def test_the_command_prints_a_line_per_number_with_its_bounds(
    work: ToyWork, tmp_path: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "bair", TOY)
    paths = ["--codes", work.codes, "--prior", work.prior, "--frames", work.frames, "--vqvae", work.vqvae]
    out = ["-o", tmp_path / "eval.json", "--device", "cpu"]
    code, said, error = lvt("evaluate", *paths, "--protocol", "bair", "--runs", "2", *out)
    assert code == 0, error
    assert "protocol toy: 6 frames, 2 of them priming frames, 2 runs" in said
    assert "  mse: " in said
    assert " ± " in said
    assert "FVD needs a TorchScript I3D (--i3d)" in said
