"""Stage `sample`: samples depend on the clip, the seed and the prior, never on batches, interruptions or order."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvt_pipeline.codes.schema import PlannedClip
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import ConfigError, LVTError, MismatchError, Stopped
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.jobs import sample as sampling
from lvt_pipeline.jobs import sample_shards
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.provenance import read_record
from lvt_pipeline.report.contact_sheet import show
from lvt_pipeline.report.settings import ShowSettings
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.read import load_prior
from lvt_pipeline.storage import read_json
from tests.listener import Listener
from tests.toy_work import (
    BOOKS,
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

SETTINGS = SampleSettings(frames=FRAMES, priming_frames=2, num_clips=None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    return make_toy_work(tmp_path_factory.mktemp("work"))


def run(work: ToyWork, out: Path, settings: SampleSettings = SETTINGS, **options: object) -> None:
    sample_clips(work.prior, work.codes, out, settings, device="cpu", **options)


def codes_of(path: Path) -> dict[str, np.ndarray]:
    store = open_codes(path)
    return {clip.id: store[clip.id] for clip in store.clips}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def test_samples_begin_with_the_real_codes_and_keep_what_the_clip_says(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "s.zarr")
    store, samples = open_codes(work.codes), open_codes(tmp_path / "s.zarr")
    assert [clip.id for clip in samples.clips] == [clip.id for clip in store.split("test")]
    assert samples.tokenizer == store.tokenizer
    for clip in samples.clips:
        assert samples[clip.id].shape == (FRAMES, GRID, GRID, BOOKS)
        assert np.array_equal(samples[clip.id][:2], store.read(clip.id, 0, 2))
        assert not np.array_equal(samples[clip.id], store.read(clip.id, 0, FRAMES))
        assert (clip.split, clip.fps) == ("test", 5.0)


def test_samples_are_those_of_the_model_called_directly(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "s.zarr")
    store = open_codes(work.codes)
    clip = store.split("test")[1]
    priming = store.read(clip, 0, 2)[None].astype(np.int64)
    direct = load_prior(work.prior, device="cpu").sample(priming, frames=FRAMES, clip_ids=[clip.id], sample_ids=[0])
    assert np.array_equal(codes_of(tmp_path / "s.zarr")[clip.id], direct[0].numpy())


def test_ways_of_drawing_reach_the_model_and_make_other_samples(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "plain.zarr")
    plain = codes_of(tmp_path / "plain.zarr")
    store = open_codes(work.codes)
    clip = store.split("test")[1]
    priming = store.read(clip, 0, 2)[None].astype(np.int64)
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"top_k": 1}, {"top_k": 1}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"codebook_temperatures": (0.2, 3.0)}, {"temperature": (0.2, 3.0)}),
    ]
    for number, (settings, arguments) in enumerate(ways):
        out = tmp_path / f"{number}.zarr"
        run(work, out, replace(SETTINGS, **settings))
        model = load_prior(work.prior, device="cpu")
        direct = model.sample(priming, frames=FRAMES, clip_ids=[clip.id], sample_ids=[0], **arguments)
        assert np.array_equal(codes_of(out)[clip.id], direct[0].numpy())
        assert not same(codes_of(out), plain)


def test_looking_ahead_changes_neither_samples_nor_what_counts_as_done(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "plain.zarr")
    run(work, tmp_path / "ahead.zarr", lookahead=5)
    assert same(codes_of(tmp_path / "ahead.zarr"), codes_of(tmp_path / "plain.zarr"))
    before = read_record(tmp_path / "plain.zarr")
    again = sample_clips(work.prior, work.codes, tmp_path / "plain.zarr", SETTINGS, lookahead=3, device="cpu")
    assert again == before


def test_samples_that_are_replaced_or_removed_are_reported(work: ToyWork, tmp_path: Path) -> None:
    out, listener = tmp_path / "s.zarr", Listener()
    run(work, out, progress=listener)
    assert listener.said == []
    run(work, out, replace(SETTINGS, top_p=0.5, num_clips=2), progress=listener)
    assert listener.said == [
        f"{out}: 2 samples are replaced: their settings or inputs were others",
        f"{out}: 1 samples are removed: they are not asked for any more",
    ]


def test_sampling_from_an_unfinished_run_says_so(work: ToyWork, tmp_path: Path) -> None:
    prior, listener = tmp_path / "prior", Listener()
    shutil.copytree(work.prior, prior)
    (prior / "provenance.json").unlink()
    sample_clips(prior, work.codes, tmp_path / "s.zarr", SETTINGS, device="cpu", progress=listener)
    assert listener.said == [f"{prior} is unfinished: sampling with the weights saved at step 0"]


def test_one_temperature_and_several_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        SampleSettings(temperature=0.5, codebook_temperatures=(1.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_temperatures": (1.0, 1.0, 1.0)}, "3 values for 2 codebooks"),
        ({"guidance": 2.0}, "guidance needs"),
        ({"top_k": 0}, "top_k=0"),
    ],
)
def test_drawing_that_the_prior_cannot_do_is_refused_before_anything_is_written(
    work: ToyWork, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(LVTError, match=message):
        run(work, tmp_path / "s.zarr", replace(SETTINGS, **settings))
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_samples_do_not_depend_on_the_batch_size(work: ToyWork, tmp_path: Path, batch_size: int) -> None:
    run(work, tmp_path / "a.zarr", batch_size=batch_size)
    run(work, tmp_path / "b.zarr", batch_size=8)
    assert same(codes_of(tmp_path / "a.zarr"), codes_of(tmp_path / "b.zarr"))


def test_a_clip_has_the_same_sample_whichever_clips_are_sampled_with_it(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "all.zarr")
    run(work, tmp_path / "one.zarr", SampleSettings(frames=FRAMES, priming_frames=2, num_clips=1))
    (name, codes), *rest = codes_of(tmp_path / "one.zarr").items()
    assert not rest
    assert np.array_equal(codes, codes_of(tmp_path / "all.zarr")[name])


def test_several_samples_of_a_clip_differ_and_are_numbered(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "s.zarr", SampleSettings(frames=FRAMES, priming_frames=2, num_clips=1, samples_per_clip=2))
    samples = codes_of(tmp_path / "s.zarr")
    assert list(samples) == ["test/0#0", "test/0#1"]
    assert not np.array_equal(samples["test/0#0"], samples["test/0#1"])


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 3.0}])
def test_other_settings_give_other_samples(work: ToyWork, tmp_path: Path, change: dict[str, float]) -> None:
    run(work, tmp_path / "s.zarr")
    before = codes_of(tmp_path / "s.zarr")
    run(work, tmp_path / "s.zarr", SampleSettings(frames=FRAMES, priming_frames=2, num_clips=None, **change))
    assert not same(before, codes_of(tmp_path / "s.zarr"))


def test_shorter_samples_replace_longer_ones_in_the_same_store(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "s.zarr")
    run(work, tmp_path / "s.zarr", SampleSettings(frames=FRAMES, priming_frames=3, num_clips=2))
    run(work, tmp_path / "fresh.zarr", SampleSettings(frames=FRAMES, priming_frames=3, num_clips=2))
    assert same(codes_of(tmp_path / "s.zarr"), codes_of(tmp_path / "fresh.zarr"))


def test_sampling_again_does_nothing(work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(work, tmp_path / "s.zarr")
    before = {path: path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*") if path.is_file()}
    monkeypatch.setattr(
        sample_shards, "sample_batch", lambda *arguments: pytest.fail("a finished sample was drawn again")
    )
    run(work, tmp_path / "s.zarr")
    assert {path: path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*") if path.is_file()} == before


def test_a_stopped_run_goes_on_and_gives_what_an_uninterrupted_one_gives(
    work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(work, tmp_path / "whole.zarr", batch_size=1)
    drawn = []
    draw = sample_shards.sample_batch

    def draw_then_stop(*arguments: object) -> np.ndarray:
        drawn.append([sample.clip.id for sample in arguments[2]])
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGTERM)
        return draw(*arguments)

    monkeypatch.setattr(sample_shards, "sample_batch", draw_then_stop)
    with pytest.raises(Stopped, match="2 of 3 samples are in"):
        run(work, tmp_path / "s.zarr", batch_size=1)
    run(work, tmp_path / "s.zarr", batch_size=1)
    assert drawn == [["test/0"], ["test/1"], ["test/2"]]
    assert same(codes_of(tmp_path / "s.zarr"), codes_of(tmp_path / "whole.zarr"))
    resumed, uninterrupted = (read_json(tmp_path / name / "zarr.json") for name in ("s.zarr", "whole.zarr"))
    tables = [root["attributes"]["files"] for root in (resumed, uninterrupted)]
    assert tables[0] == tables[1]  # digests of every file, the clip table included
    assert tables[0]


def test_a_missing_split_falls_back_to_the_next_one_and_says_so(tmp_path: Path) -> None:
    work = make_toy_work(tmp_path, lengths={"test/0": 1, "test/1": 1, "test/2": 1})
    lines = Listener()
    record = sample_clips(work.prior, work.codes, work.samples, SETTINGS, device="cpu", progress=lines)
    assert record.counts["split"] == "val"
    assert "using val clips" in lines.said[0]


def test_short_clips_are_left_out_and_counted(tmp_path: Path) -> None:
    work = make_toy_work(tmp_path, lengths={"test/1": 1})
    record = sample_clips(work.prior, work.codes, work.samples, SETTINGS, device="cpu")
    assert (record.counts["clips"], record.counts["short_clips"]) == (2, 1)


def test_no_clip_of_enough_frames_is_one_clear_line(work: ToyWork, tmp_path: Path) -> None:
    settings = SampleSettings(frames=50, priming_frames=40)
    with pytest.raises(LVTError, match="no clip of 40 frames or more"):
        run(work, tmp_path / "s.zarr", settings)
    short = make_toy_work(tmp_path, lengths=dict.fromkeys(open_codes(work.codes), 1))
    with pytest.raises(LVTError, match="the longest has 1"):
        run(short, tmp_path / "s.zarr")


def test_a_prior_of_another_grid_is_refused(work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import toy_work

    monkeypatch.setattr(toy_work, "CODES", 9)
    make_prior(tmp_path / "prior")
    with pytest.raises(MismatchError, match=r"K=12.*models K=9"):
        sample_clips(tmp_path / "prior", work.codes, tmp_path / "s.zarr", SETTINGS, device="cpu")


def test_settings_that_leave_nothing_to_sample_are_refused() -> None:
    with pytest.raises(ConfigError, match="less than frames"):
        SampleSettings(frames=5, priming_frames=5)
    with pytest.raises(ConfigError, match="temperature"):
        SampleSettings(temperature=0.0)


def test_samples_of_other_codes_are_sampled_again(
    work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(work, tmp_path / "s.zarr")
    other = make_codes(
        tmp_path / "other.zarr", make_frames(tmp_path / "frames"), make_tokenizer(tmp_path / "t", seed=5)
    )
    sampled: list[str] = []
    sample = sample_shards.sample_batch

    def sample_and_note(*arguments: object) -> np.ndarray:
        sampled.extend(item.clip.id for item in arguments[2])
        return sample(*arguments)

    monkeypatch.setattr(sample_shards, "sample_batch", sample_and_note)
    sample_clips(work.prior, other.path, tmp_path / "s.zarr", SETTINGS, device="cpu")
    assert len(sampled) == 3
    assert open_codes(tmp_path / "s.zarr").tokenizer == other.tokenizer


def test_a_prior_with_broken_weights_ends_in_one_line_and_leaves_no_samples(
    work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "s.zarr"
    load = sampling.load_prior

    def broken_prior(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        with torch.no_grad():
            model.predictor.norm.bias.fill_(float("nan"))
        return model

    monkeypatch.setattr(sampling, "load_prior", broken_prior)
    with pytest.raises(LVTError, match=r"the prior's logits of clip test/0 are not finite at frame 2, row 0, column 0"):
        run(work, whole)
    with pytest.raises(LVTError):
        open_codes(whole)
    monkeypatch.setattr(sampling, "load_prior", load)
    run(work, whole)
    assert len(open_codes(whole).clips) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": float("nan")}, "guidance=nan is not a finite number"),
        ({"guidance": 1e9}, "guidance=1000000000.0 must be between -1e+06 and 1e+06"),
        ({"temperature": 1e-300}, "temperature=1e-300 must be between 1e-06 and 1e+06"),
        ({"codebook_temperatures": (1.0, -2.0)}, "codebook_temperatures=-2.0 must be above 0"),
        ({"codebook_temperatures": (1.0, float("inf"))}, "codebook_temperatures=inf is not a finite number"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SampleSettings(**change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        ["--guidance", "nan"],
        ["--guidance", "inf"],
        ["--temperature", "nan"],
        ["--temperature", "1e-300"],
        ["--codebook-temperatures", "1,nan"],
        ["--codebook-temperatures", "1,-1"],
        ["--top-p", "nan"],
        ["--seed", "-1"],
        ["--seed", str(2**63)],
        ["--seed", str(2**200)],
        ["--priming-frames", str(10**12)],
    ],
)
def test_options_out_of_range_are_refused_in_one_line(
    work: ToyWork, tmp_path: Path, options: list[str], lvt: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, errors = lvt("sample", "--prior", work.prior, "--codes", work.codes, "-o", tmp_path / "s.zarr", *options)
    assert code in (1, 2)
    assert sum(line.startswith(("lvt: ", "Error: ")) for line in errors.splitlines()) == 1
    assert "Traceback" not in errors
    assert not (tmp_path / "s.zarr").exists()


def test_a_split_with_too_few_clips_is_followed_by_others_which_is_reported(work: ToyWork, tmp_path: Path) -> None:
    store = open_codes(work.codes)
    test_clips = [clip.id for clip in store.split("test")]
    wanted = len(test_clips) + 2
    listener = Listener()
    run(work, tmp_path / "s.zarr", replace(SETTINGS, num_clips=wanted), progress=listener)
    sampled = [clip.id for clip in open_codes(tmp_path / "s.zarr").clips]
    assert len(sampled) == wanted
    assert set(test_clips) < set(sampled)
    assert any(line.startswith(f"found {len(test_clips)} of {wanted} clips; ") for line in listener.said)


def labelled_work(root: Path, class_dropout: float = 0.0) -> ToyWork:
    """A work directory whose test clips have the labels "jump", "run" and none, and a prior that knows the two."""
    work = make_toy_work(root)
    labels = {"test/0": "jump", "test/1": "run"}
    store = open_codes(work.codes)
    planned = [
        PlannedClip(
            id=clip.id,
            split=clip.split,
            label=labels.get(clip.id),
            length=clip.length,
            fingerprint=clip.fingerprint,
            fps=clip.fps,
            source=clip.source,
        )
        for clip in store.clips
    ]
    with CodeStoreWriter.open(work.codes, store.schema, planned) as writer:
        writer.publish(store.provenance)
    torch.manual_seed(0)
    config = replace(PriorSettings().model, num_classes=2, class_dropout=class_dropout)
    settings = PriorSettings(model=config)
    model = Prior(config)
    model.class_names = ("jump", "run")
    save_model_run(work.root / "classes", "prior-run", model, settings, stage="train-prior", version=1, counts={})
    return work


def sample_labelled(work: ToyWork, out: Path, **settings: Any) -> tuple[list[str], Listener]:
    """Ids and labels of the samples, and what was reported."""
    listener = Listener()
    sample_clips(work.root / "classes", work.codes, out, replace(SETTINGS, **settings), device="cpu", progress=listener)
    return [f"{clip.id} {clip.label}" for clip in open_codes(out).clips], listener


def test_a_clip_without_a_known_label_is_left_out_and_the_known_labels_are_listed(tmp_path: Path) -> None:
    work = labelled_work(tmp_path / "work")
    found, listener = sample_labelled(work, tmp_path / "s.zarr")
    assert found == ["test/0 jump", "test/1 run"]
    (line,) = [line for line in listener.said if "test/2" in line]
    assert "clip test/2 has no label" in line
    assert "knows jump, run; --label NAME gives clips a label" in line
    found, _ = sample_labelled(work, tmp_path / "two.zarr", num_clips=3)  # other splits have no label at all
    assert len(found) == 2
    with pytest.raises(MismatchError, match=r"clip test/2 has no label.*knows jump, run"):
        sample_labelled(work, tmp_path / "none.zarr", clips=("test/2",))


def test_a_label_is_given_by_name(tmp_path: Path) -> None:
    work = labelled_work(tmp_path / "work")
    found, _ = sample_labelled(work, tmp_path / "s.zarr", label="run")
    assert found == ["test/0 run", "test/1 run", "test/2 run"]
    model = load_prior(work.root / "classes", device="cpu")
    priming = open_codes(work.codes)["test/0"][None, :2].astype(np.int64)
    expected = model.sample(priming, frames=FRAMES, labels=["run"], clip_ids=["test/0"])[0]
    assert np.array_equal(open_codes(tmp_path / "s.zarr")["test/0"], expected)
    assert torch.equal(expected, model.sample(priming, frames=FRAMES, labels=[1], clip_ids=["test/0"])[0])
    with pytest.raises(MismatchError, match="does not know the label 'walk'; it knows jump, run"):
        sample_labelled(work, tmp_path / "other.zarr", label="walk")
    with pytest.raises(LVTError, match="does not know the label 'walk'; it knows jump, run"):
        model.sample(priming, frames=FRAMES, labels=["walk"])


def test_a_prior_trained_with_class_dropout_samples_clips_without_a_label(tmp_path: Path) -> None:
    work = labelled_work(tmp_path / "work", class_dropout=0.5)
    found, _ = sample_labelled(work, tmp_path / "s.zarr")
    assert found == ["test/0 jump", "test/1 run", "test/2 None"]


def test_a_label_for_a_prior_without_classes_is_refused(work: ToyWork, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="trained without classes"):
        run(work, tmp_path / "s.zarr", replace(SETTINGS, label="run"))


def test_named_clips_are_sampled_from_the_frame_that_is_asked_for(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "s.zarr", replace(SETTINGS, clips=("train/1", "test/2"), start=3))
    store, samples = open_codes(work.codes), open_codes(tmp_path / "s.zarr")
    assert [clip.id for clip in samples.clips] == ["train/1", "test/2"]
    for name in ("train/1", "test/2"):
        assert np.array_equal(samples[name][:2], store[name][3:5])
        assert len(samples[name]) == FRAMES
    with pytest.raises(LVTError, match="no clip 'nowhere'"):
        run(work, tmp_path / "t.zarr", replace(SETTINGS, clips=("nowhere",)))
    with pytest.raises(LVTError, match="has 8 frames; start and priming frames need 9"):
        run(work, tmp_path / "t.zarr", replace(SETTINGS, clips=("test/2",), start=7))


def test_errors_of_samples_that_start_later_are_measured_against_the_same_frames(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "s.zarr", replace(SETTINGS, start=3))
    paths = {"frames": work.frames, "vqvae": work.vqvae, "samples": tmp_path / "s.zarr"}
    sources = Sources(codes=work.codes, **paths)
    evaluate(sources, tmp_path / "eval.json", EvaluateSettings(frames=FRAMES), device="cpu")
    measured = read_json(tmp_path / "eval.json")["samples"]
    # Priming frames of samples are the real codes, decoded: what the reconstruction shows, if frames correspond.
    assert measured["mse_by_frame"][:2] == measured["reconstruction_mse_by_frame"][:2]
    assert measured["mse_by_frame"][5] is None


def test_all_samples_of_a_clip_are_shown_by_its_id(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "s.zarr", replace(SETTINGS, samples_per_clip=3))
    shown = show(
        tmp_path / "s.zarr", tmp_path / "sheet.png", ShowSettings(clips=("test/1",)), vqvae=work.vqvae, device="cpu"
    )
    assert shown == ["test/1#0", "test/1#1", "test/1#2"]
    assert (tmp_path / "sheet.png").exists()
