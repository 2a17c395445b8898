"""Stage `evaluate`: bits of the prior and of its baselines over the same codes, pixels, and honest bookkeeping."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import metrics

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import ConfigError, LVTError, MismatchError
from lvt_pipeline.evaluation import evaluate as stage
from lvt_pipeline.evaluation.distances import network_process
from lvt_pipeline.evaluation.distances.networks import NetworkError
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.protocols.evaluate import evaluate_protocol
from lvt_pipeline.evaluation.protocols.results import Protocol
from lvt_pipeline.evaluation.results import summary_line
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.provenance import Provenance, digest_file, read_record
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.read import load_prior, load_vqvae
from lvt_pipeline.storage import read_json
from tests.run_files import set_trained_clips
from tests.scripted_networks import Endless, NotFinite, Raising, ToyDistance, save_scripted
from tests.toy_work import (
    BOOKS,
    CODES,
    FRAMES,
    GRID,
    PriorSettings,
    ToyWork,
    make_codes,
    make_frames,
    make_prior,
    make_tokenizer,
    make_toy_work,
)

SETTINGS = EvaluateSettings(frames=FRAMES)
SOURCE_NAMES = {field.name for field in fields(Sources)}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    work = make_toy_work(tmp_path_factory.mktemp("work"))
    settings = SampleSettings(frames=FRAMES, priming_frames=2, num_clips=2, samples_per_clip=2)
    sample_clips(work.prior, work.codes, work.samples, settings, device="cpu")
    return work


def run(work: ToyWork, out: Path, settings: EvaluateSettings = SETTINGS, **options: object) -> Provenance:
    paths = {"codes": work.codes, "prior": work.prior, "frames": work.frames, "vqvae": work.vqvae}
    given = {name: options.pop(name) for name in list(options) if name in SOURCE_NAMES}
    sources = Sources(**{**paths, "samples": work.samples, **given})
    return evaluate(sources, out, settings, device="cpu", **options)


@pytest.fixture(scope="module")
def results(work: ToyWork, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("out") / "eval.json"
    run(work, out)
    return read_json(out)


def evaluated_codes(work: ToyWork, first_frame: int = 1) -> np.ndarray:
    store = open_codes(work.codes)
    return np.stack([store.read(clip, 0, FRAMES)[first_frame:] for clip in store.split("test")])


def test_bits_per_dim_is_the_mean_over_teacher_forced_logits(work: ToyWork, results: dict) -> None:
    codes = torch.from_numpy(evaluated_codes(work, 0).astype(np.int64))
    logits = load_prior(work.prior, device="cpu").logits(codes)
    bits = -logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0] / math.log(2)
    counted = bits[:, 1:].double()
    assert results["prior"]["bits_per_dim"] == pytest.approx(counted.mean().item(), abs=1e-5)
    assert results["prior"]["per_codebook"] == pytest.approx(counted.mean((0, 1, 2, 3)).tolist(), abs=1e-5)
    assert results["prior"]["uniform_bits"] == math.log2(CODES)


def test_bits_by_frame_and_by_slice_are_means_over_teacher_forced_logits(work: ToyWork, results: dict) -> None:
    codes = torch.from_numpy(evaluated_codes(work, 0).astype(np.int64))
    logits = load_prior(work.prior, device="cpu").logits(codes)
    bits = -logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0].double() / math.log(2)
    expected = [None, *bits[:, 1:].mean((0, 2, 3, 4)).tolist()]
    assert results["prior"]["per_frame"][0] is None is results["prior"]["per_slice"][0]
    assert results["prior"]["per_frame"][1:] == pytest.approx(expected[1:], abs=1e-5)
    assert results["prior"]["per_slice"][1:] == pytest.approx(expected[1:], abs=1e-5)  # one frame per slice here
    by_clip = results["per_clip"]["evaluated"]["bits"]
    assert by_clip == pytest.approx(bits[:, 1:].mean((1, 2, 3, 4)).tolist(), abs=1e-5)


def test_bits_of_slices_that_cross_frames_leave_the_priming_frames_out() -> None:
    torch.manual_seed(0)
    config = replace(PriorSettings().model, subscale=(2, 1, 2), kernel=(3, 1, 3))
    model = Prior(config).eval()
    codes = torch.randint(0, CODES, (2, FRAMES, GRID, GRID, BOOKS))
    bits = -model.logits(codes).log_softmax(-1).gather(-1, codes[..., None])[..., 0].double() / math.log(2)

    class Store:
        codebook_size, num_codebooks, grid = CODES, BOOKS, (GRID, GRID)

        def read(self, clip: int, start: int, stop: int) -> np.ndarray:
            return codes[clip, start:stop].numpy()

    found, _ = stage.measure_prior(Store(), [0, 1], model, None, SETTINGS)  # type: ignore[arg-type]
    slices = [bits[:, a::2, :, c::2] for a in range(2) for c in range(2)]
    without_frame_0 = [part[:, 1:] if a == 0 else part for part, a in zip(slices, (0, 0, 1, 1), strict=True)]
    assert found["per_slice"] == pytest.approx([part.mean().item() for part in without_frame_0], abs=1e-5)
    assert found["bits_per_dim"] == pytest.approx(bits[:, 1:].mean().item(), abs=1e-5)


def test_values_of_single_clips_average_to_the_results(results: dict) -> None:
    own = results["per_clip"]["evaluated"]
    assert own["clip"] == ["test/0", "test/1", "test/2"]
    for name, value in {
        "bits": results["prior"]["bits_per_dim"],
        "unigram_bits": results["baselines"]["unigram_bits"],
        "previous_frame_bits": results["baselines"]["previous_frame_bits"],
        "reconstruction_mse": results["reconstruction"]["mse"],
        "reconstruction_ssim": results["reconstruction"]["ssim"],
    }.items():
        assert len(own[name]) == 3
        assert np.mean(own[name]) == pytest.approx(value), name
    sampled = results["per_clip"]["samples"]
    assert sampled["clip"] == ["test/0", "test/1"]
    assert np.mean(sampled["sample_mse"]) == pytest.approx(results["samples"]["mse"])


def test_diversity_compares_the_samples_of_one_clip(work: ToyWork, results: dict) -> None:
    store, tokenizer = open_codes(work.samples), load_vqvae(work.vqvae, device="cpu")
    of_codes, of_pixels = [], []
    for name in ("test/0", "test/1"):
        one, other = (store[f"{name}#{number}"][2:] for number in range(2))
        of_codes.append((one != other).mean())
        difference = tokenizer.decode(one).numpy() / 255.0 - tokenizer.decode(other).numpy() / 255.0
        of_pixels.append((difference**2).mean())
    found = results["samples"]["diversity"]
    assert found == {"clips": 2, "codes": pytest.approx(np.mean(of_codes)), "mse": pytest.approx(np.mean(of_pixels))}


def test_ssim_over_the_horizon_is_that_of_each_frame_index(work: ToyWork, results: dict) -> None:
    frames, store, tokenizer = FrameShards(work.frames), open_codes(work.samples), load_vqvae(work.vqvae, device="cpu")
    values = [
        metrics.structural_similarity(
            frames.read(clip.id[:-2])[4],
            tokenizer.decode(store[clip.id]).numpy()[4],
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        for clip in store.clips
    ]
    assert results["samples"]["ssim_by_frame"][4] == pytest.approx(np.mean(values))
    assert results["samples"]["copy_ssim_by_frame"][:2] == [pytest.approx(1)] * 2


def test_lpips_is_added_with_a_network_and_missing_without(work: ToyWork, tmp_path: Path, results: dict) -> None:
    assert "lpips" not in results["reconstruction"]
    assert results["missing"]["LPIPS"] == "needs a TorchScript network (--lpips)"
    record = run(work, tmp_path / "eval.json", lpips=save_scripted(ToyDistance(), tmp_path / "lpips.pt"))
    measured = read_json(tmp_path / "eval.json")
    assert measured["reconstruction"]["lpips"] == pytest.approx(np.mean(measured["reconstruction"]["lpips_by_frame"]))
    assert measured["samples"]["copy_lpips_by_frame"][:2] == [0, 0]
    assert "LPIPS" not in measured["missing"]
    assert record.inputs["lpips"] == digest_file(tmp_path / "lpips.pt")
    without = {key: value for key, value in results["reconstruction"].items() if "lpips" not in key}
    assert without == {key: value for key, value in measured["reconstruction"].items() if "lpips" not in key}


def test_prior_and_baselines_count_the_same_codes(results: dict) -> None:
    assert results["prior"]["codes"] == results["baselines"]["codes"] == 3 * (FRAMES - 1) * GRID * GRID * BOOKS


def test_unigram_is_the_entropy_of_the_evaluated_codes(work: ToyWork, results: dict) -> None:
    codes = evaluated_codes(work)
    entropies = []
    for book in range(BOOKS):
        counts = Counter(codes[..., book].ravel().tolist())
        total = sum(counts.values())
        entropies.append(-sum(n / total * math.log2(n / total) for n in counts.values()))
    assert results["baselines"]["unigram_bits_per_codebook"] == pytest.approx(entropies)
    assert results["baselines"]["unigram_bits"] == pytest.approx(sum(entropies) / BOOKS)


def test_previous_frame_bits_agree_with_a_loop_over_training_and_evaluated_codes(work: ToyWork, results: dict) -> None:
    store, baselines = open_codes(work.codes), results["baselines"]
    bits = []
    for book in range(BOOKS):
        counts = Counter(int(code) for clip in store.split("train") for code in store[clip.id][..., book].ravel())
        total = sum(counts.values())
        alpha = baselines["previous_frame_alpha"][book]
        for clip in store.split("test"):
            codes = store[clip.id][..., book]
            for t, y, x in np.ndindex(FRAMES, GRID, GRID):
                if t:
                    unigram = (counts[int(codes[t, y, x])] + 1) / (total + CODES)
                    bits.append(-math.log2(alpha * (codes[t, y, x] == codes[t - 1, y, x]) + (1 - alpha) * unigram))
    assert baselines["previous_frame_bits"] == pytest.approx(sum(bits) / len(bits))
    assert baselines["fitted_on"] == {"split": "train", "clips": 4, "codes": 4 * (FRAMES + 2) * GRID * GRID * BOOKS}


def test_an_untrained_prior_does_not_beat_codes_that_repeat(results: dict) -> None:
    assert results["beats"]["previous_frame"] is False
    assert "does not beat both" in summary_line(results)


def test_reconstruction_is_that_of_the_stored_codes_against_the_stored_frames(work: ToyWork, results: dict) -> None:
    frames, store, tokenizer = FrameShards(work.frames), open_codes(work.codes), load_vqvae(work.vqvae, device="cpu")
    clips = [clip.id for clip in store.split("test")]
    real = np.stack([frames.read(clip, 0, FRAMES) for clip in clips]) / 255
    decoded = np.stack([tokenizer.decode(store.read(clip, 0, FRAMES)).numpy() for clip in clips]) / 255
    mse = ((real - decoded) ** 2).mean()
    assert results["reconstruction"]["mse"] == pytest.approx(mse)
    assert results["reconstruction"]["psnr"] == pytest.approx(-10 * math.log10(mse))
    assert results["reconstruction"]["mean_picture_mse"] == pytest.approx(((real - real.mean((0, 1))) ** 2).mean())


def test_sample_errors_are_zero_for_copied_frames_and_averaged_after_the_priming(work: ToyWork, results: dict) -> None:
    samples = results["samples"]
    assert samples["copy_mse_by_frame"][:2] == [0, 0]
    assert samples["mse_by_frame"][:2] == pytest.approx(samples["reconstruction_mse_by_frame"][:2])
    assert samples["mse"] == pytest.approx(np.mean(samples["mse_by_frame"][2:]))
    frames = FrameShards(work.frames)
    last = [((frames.read(c)[5] / 255.0 - frames.read(c)[1] / 255.0) ** 2).mean() for c in ("test/0", "test/1")]
    assert samples["copy_mse_by_frame"][5] == pytest.approx(np.mean(last))
    assert len(samples["mse_by_frame"]) == FRAMES


def test_code_usage_is_that_of_the_training_codes(work: ToyWork, results: dict) -> None:
    store = open_codes(work.codes)
    codes = np.concatenate([store[clip.id] for clip in store.split("train")])
    used = [len(np.unique(codes[..., book])) / CODES for book in range(BOOKS)]
    assert results["codes"]["usage"] == pytest.approx(used)
    assert results["codes"]["dead_codes"] == [round(CODES * (1 - share)) for share in used]


def test_results_do_not_depend_on_the_batch_size(work: ToyWork, tmp_path: Path, results: dict) -> None:
    run(work, tmp_path / "eval.json", batch_size=2)
    assert read_json(tmp_path / "eval.json")["prior"]["bits_per_dim"] == pytest.approx(
        results["prior"]["bits_per_dim"], abs=1e-6
    )


def test_evaluating_leaves_both_models_as_they_were(work: ToyWork, results: dict) -> None:
    prior = load_prior(work.prior, device="cpu")
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    store = open_codes(work.codes)
    stage.measure_prior(store, store.split("test"), prior, None, SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


def test_same_inputs_give_the_same_file_and_a_second_run_does_nothing(
    work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(work, tmp_path / "a.json")
    run(work, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    monkeypatch.setattr(stage, "measure_prior", lambda *arguments: pytest.fail("measured again"))
    assert run(work, tmp_path / "a.json") == record == read_record(tmp_path / "a.json")


def test_an_edited_result_is_measured_again(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "eval.json")
    honest = (tmp_path / "eval.json").read_text()
    forged = honest.replace('"unigram": false', '"unigram": true ').replace('"unigram": true,', '"unigram": false,')
    (tmp_path / "eval.json").write_text(forged)
    run(work, tmp_path / "eval.json")
    assert (tmp_path / "eval.json").read_text() == honest


def test_codes_alone_give_the_baselines(work: ToyWork, tmp_path: Path) -> None:
    evaluate(Sources(codes=work.codes), tmp_path / "eval.json", SETTINGS)
    results = read_json(tmp_path / "eval.json")
    assert not {"prior", "beats", "reconstruction", "samples"} & results.keys()
    assert results["baselines"]["unigram_bits"] > 0
    assert "baselines" in summary_line(results)


def test_samples_without_pixels_are_still_compared_in_codes(work: ToyWork, tmp_path: Path) -> None:
    evaluate(Sources(codes=work.codes, samples=work.samples), tmp_path / "eval.json", SETTINGS)
    samples = read_json(tmp_path / "eval.json")["samples"]
    assert "mse" not in samples
    assert 0 <= samples["share_same_as_previous_frame"] < samples["real_share_same_as_previous_frame"] <= 1


def test_short_clips_are_left_out_and_counted(tmp_path: Path) -> None:
    work = make_toy_work(tmp_path, lengths={"test/0": FRAMES - 1})
    evaluate(Sources(codes=work.codes), tmp_path / "eval.json", SETTINGS)
    results = read_json(tmp_path / "eval.json")
    assert (results["clips"], results["short_clips"], results["split"]) == (2, 1, "test")


def test_frames_that_changed_since_the_encode_are_refused(work: ToyWork, tmp_path: Path) -> None:
    other = make_toy_work(tmp_path, lengths={"test/0": FRAMES + 4})
    with pytest.raises(MismatchError, match="made from other frames"):
        run(work, tmp_path / "eval.json", frames=other.frames)


def test_a_tokenizer_that_did_not_make_the_codes_is_refused(work: ToyWork, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "other", seed=9)
    with pytest.raises(MismatchError, match="was made by tokenizer"):
        run(work, tmp_path / "eval.json", vqvae=tmp_path / "other")


def test_a_length_the_prior_cannot_take_is_refused_with_the_right_one(work: ToyWork, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=f"use frames={FRAMES}"):
        run(work, tmp_path / "eval.json", replace(SETTINGS, frames=FRAMES + 1))


def test_no_clip_of_enough_frames_is_one_clear_line(work: ToyWork, tmp_path: Path) -> None:
    with pytest.raises(LVTError, match="no clip of 99 frames"):
        evaluate(Sources(codes=work.codes), tmp_path / "eval.json", replace(SETTINGS, frames=99))


def test_settings_that_leave_nothing_to_count_are_refused() -> None:
    with pytest.raises(ConfigError, match="priming_frames"):
        EvaluateSettings(frames=4, priming_frames=4)


# What must be refused ------------------------------------------------------------------------------------------------


def refusal(work: ToyWork, out: Path, kind: type[LVTError] = MismatchError, **options: object) -> str:
    """The one line that an evaluation is refused with, before anything is written."""
    with pytest.raises(kind) as caught:
        run(work, out, **options)
    assert "\n" not in str(caught.value)
    assert not list(out.parent.glob("eval*"))
    return str(caught.value)


def test_a_store_without_samples_is_not_taken_for_samples(work: ToyWork, tmp_path: Path) -> None:
    said = refusal(work, tmp_path / "eval.json", samples=work.codes)
    assert "was made by lvt encode-dataset and does not hold samples" in said


def test_samples_of_other_clips_are_refused(work: ToyWork, tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames", {"test/0": FRAMES + 4})
    store = make_codes(tmp_path / "other.zarr", frames, load_vqvae(work.vqvae, device="cpu"))
    settings = SampleSettings(frames=FRAMES, priming_frames=2, num_clips=2)
    sample_clips(work.prior, store.path, tmp_path / "samples.zarr", settings, device="cpu")
    said = refusal(work, tmp_path / "eval.json", samples=tmp_path / "samples.zarr")
    assert "holds samples that continue clips of codes" in said
    assert "run lvt sample again with these codes" in said


def test_samples_of_another_prior_are_refused_next_to_this_one(work: ToyWork, tmp_path: Path) -> None:
    make_prior(tmp_path / "prior", seed=5)
    said = refusal(work, tmp_path / "eval.json", prior=tmp_path / "prior")
    assert "was sampled from prior" in said
    evaluate(Sources(codes=work.codes, samples=work.samples), tmp_path / "alone.json", SETTINGS)


def spoiled_prior(work: ToyWork, run: Path, value: float) -> Path:
    """A prior run with one weight replaced."""
    torch.manual_seed(0)
    settings = PriorSettings()
    model = Prior(settings.model)
    with torch.no_grad():
        next(model.parameters()).fill_(value)
    save_model_run(run, "prior-run", model, settings, stage="train-prior", version=1, counts={})
    return run


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_prior_that_is_not_finite_is_refused_before_anything_is_written(
    work: ToyWork, tmp_path: Path, value: float
) -> None:
    prior = spoiled_prior(work, tmp_path / "prior", value)
    assert "not finite" in refusal(work, tmp_path / "eval.json", LVTError, prior=prior, samples=None)


# Networks that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [Raising(), Endless(), NotFinite()], ids=["raising", "endless", "not-finite"])
def test_a_network_that_fails_costs_only_its_own_numbers(
    work: ToyWork, results: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module
) -> None:
    monkeypatch.setattr(network_process, "CALL_SECONDS", 10.0 if not isinstance(network, Endless) else 1.0)
    networks = {name: save_scripted(network, tmp_path / f"{name}.pt") for name in ("i3d", "lpips")}
    out = tmp_path / "eval.json"
    for _ in range(2):  # a failure is not remembered as a result: the same command tries again
        with pytest.raises(NetworkError) as caught:
            run(work, out, **networks)
        assert "\n" not in str(caught.value)
        assert "i3d.pt" in str(caught.value)
        assert "lpips.pt" in str(caught.value)
        assert str(caught.value).endswith(f"everything else is in {out}")
    found = read_json(out)
    assert found["missing"]["LPIPS"].startswith("failed: the network")
    assert found["missing"]["FVD"].startswith("failed: the network")
    for part in ("prior", "baselines", "reconstruction", "samples", "per_clip"):
        assert found[part] == results[part], part
    summary = str(read_record(out).counts["summary"])
    assert "LPIPS failed: the network" in summary


def test_a_protocol_survives_networks_that_fail(work: ToyWork, tmp_path: Path) -> None:
    protocol = Protocol(name="toy", frames=FRAMES, priming_frames=2, runs=2)
    networks = {name: save_scripted(Raising(), tmp_path / f"{name}.pt") for name in ("i3d", "lpips")}
    sources = Sources(codes=work.codes, prior=work.prior, frames=work.frames, vqvae=work.vqvae, **networks)
    with pytest.raises(NetworkError, match="everything else is in"):
        evaluate_protocol(sources, tmp_path / "eval.json", protocol, device="cpu")
    found = read_json(tmp_path / "eval.json")
    assert {"mse", "ssim"} <= found["protocol"]["mean"].keys()
    assert {"FVD", "LPIPS"} <= found["missing"].keys()
    assert not any("lpips" in name or "fvd" in name for name in found["protocol"]["mean"])


# Training clips ------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(work: ToyWork, tmp_path: Path) -> Path:
    """A prior that has learnt from the training clips, and from the content of `test/1` under another name."""
    prior = Path(shutil.copytree(work.prior, tmp_path / "trained"))
    store = open_codes(work.codes)
    set_trained_clips(prior, [*store.split("train"), replace(store.clip("test/1"), id="mine/7", split="train")])
    return prior


def test_training_clips_are_not_evaluated_unless_that_is_asked_for(work: ToyWork, tmp_path: Path) -> None:
    settings = replace(SETTINGS, split="train")
    for options in ({}, {"prior": None, "samples": None}):
        with pytest.raises(
            LVTError, match=r"4 of these clips of .* are in the train split.*\(train/0, train/1, .*"
        ) as e:
            run(work, tmp_path / "eval.json", settings, **options)
        assert "--allow-training-clips" in str(e.value)
        assert "--test-share" in str(e.value)
    assert not (tmp_path / "eval.json").exists()
    record = run(work, tmp_path / "eval.json", settings, allow_training_clips=True)
    results = read_json(tmp_path / "eval.json")
    assert (results["split"], results["clips"], results["training_clips"]) == ("train", 4, 4)
    assert "4 of these clips were used for training; the scores are optimistic" in str(record.counts["summary"])
    with pytest.raises(LVTError, match="train split"):  # the finished result is no answer either
        run(work, tmp_path / "eval.json", settings)


def test_content_that_the_prior_has_learnt_from_is_found_in_the_test_split(
    work: ToyWork, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(LVTError, match=r"1 of these clips .* or .*trained was trained on their content \(test/1\)"):
        run(work, tmp_path / "eval.json", prior=trained)
    run(work, tmp_path / "eval.json", prior=trained, allow_training_clips=True)
    assert read_json(tmp_path / "eval.json")["training_clips"] == 1
    run(work, tmp_path / "first.json", replace(SETTINGS, max_clips=1), prior=trained, samples=None)
    assert "training_clips" not in read_json(tmp_path / "first.json")


def test_samples_that_continue_training_clips_are_refused(work: ToyWork, tmp_path: Path) -> None:
    sampled = tmp_path / "samples.zarr"
    settings = SampleSettings(frames=FRAMES, priming_frames=2, num_clips=1, samples_per_clip=2, split="train")
    sample_clips(work.prior, work.codes, sampled, settings, device="cpu")
    with pytest.raises(LVTError, match=r"1 of the clips that the samples continue .*\(train/0\)"):
        run(work, tmp_path / "eval.json", samples=sampled)
    run(work, tmp_path / "eval.json", samples=sampled, allow_training_clips=True)
    assert read_json(tmp_path / "eval.json")["training_clips"] == 1


def test_held_out_clips_leave_no_mark(results: dict) -> None:
    assert "training_clips" not in results


def test_the_command_refuses_training_clips_with_one_line(
    work: ToyWork, tmp_path: Path, lvt: Callable[..., tuple[int, str, str]]
) -> None:
    command = ["evaluate", "--codes", work.codes, "-o", tmp_path / "eval.json", "--split", "train"]
    command += ["--num-frames", FRAMES, "--device", "cpu"]
    code, _, errors = lvt(*command)
    assert code == 1
    assert len(errors.strip().splitlines()) == 1
    code, out, errors = lvt(*command, "--allow-training-clips")
    assert code == 0, errors
    assert "of these clips were used for training" in out
    assert lvt(*command, "--allow-training-clips", "--protocol", "bair", "--prior", work.prior)[0] == 2
