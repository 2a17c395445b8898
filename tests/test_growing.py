"""Datasets that grow and pixels that go: nothing trained is discarded unasked, and only what is new is made."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lvt_pipeline
from lvt_pipeline.pipeline import making, networks
from lvt_pipeline.pipeline.options import Making
from lvt_pipeline.pipeline.running import Pipeline
from lvt_pipeline.report.work import WorkDir, stage_records
from lvt_pipeline.storage import read_json
from lvt_pipeline.video.write import write_mp4
from lvt_pipeline.workspace import states as workspace_states
from lvt_pipeline.workspace.settings import settings_of
from lvt_pipeline.workspace.states import work_dir_states
from tests.conftest import moving_square, tiny_options

Lvt = Callable[..., tuple[int, str, str]]
NETWORKS = ("train-vqvae", "train-prior")


@pytest.fixture
def videos(toy_videos: Path, work_dir: Path) -> Path:
    """A copy of the videos, which the work directory was made of."""
    folder = Path(shutil.copytree(toy_videos, work_dir.parent / "videos"))
    path = work_dir / "pipeline.toml"
    path.write_text(path.read_text().replace(str(toy_videos), str(folder)))
    return folder


def run(lvt: Lvt, work_dir: Path, *extra: str) -> tuple[list[str], str]:
    """`lvt run`; the stages that were made, and the lines on stderr."""
    code, out, err = lvt("run", work_dir, "--workers", "1", "--json", *extra)
    assert code == 0, err
    return [stage["stage"] for stage in json.loads(out)["stages"] if stage["made"]], err


def states(work_dir: Path) -> dict[str, str]:
    return {state.name: state.state for state in work_dir_states(work_dir)}


def weights(work_dir: Path, name: str) -> str:
    return str(read_json(work_dir / "runs" / name / "provenance.json")["fingerprint"])


def names(work_dir: Path) -> list[str]:
    """The runs of a directory."""
    return sorted(path.name for path in (work_dir / "runs").iterdir() if path.is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def add_videos(videos: Path, count: int = 3) -> None:
    for number in range(count):
        write_mp4(videos / "train" / f"new{number}.mp4", moving_square(90 + number), fps=10)


# Growing -------------------------------------------------------------------------------------------------------------


def test_added_videos_are_encoded_and_no_network_is_discarded(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    before = {name: weights(work_dir, name) for name in ("vqvae", "prior")}
    add_videos(videos)
    made, err = run(lvt, work_dir)
    assert made[:3] == ["manifest", "ingest", "encode-dataset"]
    assert not set(NETWORKS) & set(made)
    assert {name: weights(work_dir, name) for name in before} == before
    assert [path.name for path in sorted((work_dir / "runs").iterdir())] == ["prior", "vqvae"]
    counts = lvt_pipeline.open_codes(work_dir / "data.zarr").provenance.counts
    assert (counts["kept"], counts["added"], counts["changed"], counts["removed"]) == (10, 3, 0, 0)
    assert "runs/prior is kept and used although its data have changed (codes changed: 3 clips added)" in err
    assert "--retrain prior" in err
    assert "--retrain vqvae" in err
    assert run(lvt, work_dir)[0] == []
    assert states(work_dir)["train-prior"] == states(work_dir)["train-vqvae"] == "outdated"
    assert set(states(work_dir).values()) == {"done", "outdated"}


def test_retraining_is_one_option_and_keeps_the_old_run(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    add_videos(videos)
    before = weights(work_dir, "prior")
    made, _ = run(lvt, work_dir, "--retrain", "prior")
    assert "train-prior" in made
    assert "train-vqvae" not in made
    assert weights(work_dir, "prior.old-1") == before != weights(work_dir, "prior")
    assert states(work_dir)["train-prior"] == "done"


def test_refining_starts_from_the_weights_on_the_data_of_today_and_keeps_the_old_run(
    videos: Path, work_dir: Path, lvt: Lvt
) -> None:
    add_videos(videos)
    before = weights(work_dir, "prior")
    made, err = run(lvt, work_dir)
    assert "train-prior" not in made
    assert "--refine prior" in err
    code, out, _ = lvt("run", work_dir, "--refine", "prior", "--dry-run")
    assert code == 0
    assert next(line for line in out.splitlines() if line.startswith("train-prior")).split()[1] == "refine"
    made, err = run(lvt, work_dir, "--refine", "prior")
    assert made == ["train-prior", "sample", "decode", "evaluate", "report"]
    record = read_json(work_dir / "runs" / "prior" / "provenance.json")
    assert weights(work_dir, "prior.old-1") == before == record["inputs"]["start"]
    assert record["inputs"]["codes"] == lvt_pipeline.open_codes(work_dir / "data.zarr").fingerprint
    assert record["counts"]["fresh_weights"] == []
    assert names(work_dir) == ["prior", "prior.old-1", "vqvae"]
    assert states(work_dir)["train-prior"] == "done"
    assert run(lvt, work_dir, "--refine", "prior")[0] == []


def test_a_refined_tokenizer_makes_other_codes_and_a_new_prior(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    add_videos(videos)
    before = {name: weights(work_dir, name) for name in ("vqvae", "prior")}
    made, _ = run(lvt, work_dir, "--refine", "vqvae")
    assert [name for name in made if name.startswith(("train", "encode"))] == [
        "train-vqvae",
        "encode-dataset",
        "train-prior",
    ]
    assert {name: weights(work_dir, f"{name}.old-1") for name in before} == before
    assert read_json(work_dir / "runs" / "vqvae" / "provenance.json")["inputs"]["start"] == before["vqvae"]
    assert set(states(work_dir).values()) == {"done"}


def test_the_file_can_ask_for_refining_and_an_option_for_something_else(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    add_videos(videos)
    run(lvt, work_dir, "--set", "when_data_changes.prior=refine")
    assert "start" in read_json(work_dir / "runs" / "prior" / "provenance.json")["inputs"]
    assert settings_of(work_dir).when_data_changes.prior == "refine"
    write_mp4(videos / "train" / "last.mp4", moving_square(99), fps=10)
    run(lvt, work_dir, "--retrain", "prior")
    assert "start" not in read_json(work_dir / "runs" / "prior" / "provenance.json")["inputs"]
    assert lvt("run", work_dir, "--retrain", "all", "--refine", "prior")[0] == 2


def test_an_interrupted_refinement_leaves_the_old_run_in_use_and_resumes(
    videos: Path, work_dir: Path, lvt: Lvt
) -> None:
    add_videos(videos)
    before = weights(work_dir, "prior")
    run(lvt, work_dir, "--until", "encode-dataset")
    code, _, _ = lvt("run", work_dir, "--refine", "prior", "--set", "prior.training.max_steps=10000",
                     "--max-seconds", "3")  # fmt: skip
    assert code == 75
    saved = read_json(work_dir / "runs" / "prior.new" / "run.json")["step"]
    assert saved < 10000
    assert weights(work_dir, "prior") == before
    steps = ("--set", f"prior.training.max_steps={saved + 5}")
    write_mp4(videos / "train" / "last.mp4", moving_square(99), fps=10)  # the store grows in the meantime
    run(lvt, work_dir, *steps, "--refine", "prior", "--until", "train-prior")
    state = read_json(work_dir / "runs" / "prior" / "run.json")
    assert (state["status"], state["step"], state["inputs"]["start"]) == ("finished", saved + 5, before)
    assert weights(work_dir, "prior.old-1") == before
    assert names(work_dir) == ["prior", "prior.old-1", "vqvae"]
    assert states(work_dir)["train-prior"] == "outdated"  # it was resumed on the generation that it was started on


def test_an_unfinished_refinement_is_named_while_the_old_run_is_kept(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    add_videos(videos)
    shutil.copytree(work_dir / "runs" / "prior", work_dir / "runs" / "prior.new")
    _, err = run(lvt, work_dir)
    assert "runs/prior.new" in err
    assert "--refine prior" in err


def test_a_refinement_of_other_data_is_set_aside_and_starts_again(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    """A tokenizer has no generation of its frames to resume on."""
    add_videos(videos, 1)
    before = weights(work_dir, "vqvae")
    code, _, _ = lvt("run", work_dir, "--refine", "vqvae", "--set", "vqvae.training.max_steps=10000",
                     "--max-seconds", "3")  # fmt: skip
    assert code == 75
    add_videos(videos)
    few = ("--set", "vqvae.training.max_steps=2")
    _, err = run(lvt, work_dir, "--refine", "vqvae", "--until", "train-vqvae", *few)
    assert "was started with other data or settings: it is kept as" in err
    assert weights(work_dir, "vqvae.old-2") == before
    assert read_json(work_dir / "runs" / "vqvae.old-1" / "run.json")["status"] == "stopped"


def test_a_kill_between_two_renames_costs_nothing(work_dir: Path, lvt: Lvt) -> None:
    (work_dir / "runs" / "prior").rename(work_dir / "runs" / "prior.new")
    assert run(lvt, work_dir)[0] == []
    assert names(work_dir) == ["prior", "vqvae"]


def test_a_prior_on_another_tokenizer_cannot_be_refined(work_dir: Path, lvt: Lvt) -> None:
    code, _, err = lvt("run", work_dir, "--set", "vqvae.training.seed=5", "--refine", "prior")
    assert code == 1
    assert (
        "runs/prior cannot be refined, as its tokenizer is another one (codes will change: setting training.seed" in err
    )
    assert "have it trained again with --retrain prior" in err
    assert names(work_dir) == ["prior", "vqvae"]  # nothing was trained


def test_a_refined_run_resumes_with_more_steps(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    add_videos(videos)
    run(lvt, work_dir, "--refine", "prior")
    old = read_json(work_dir / "runs" / "prior" / "run.json")
    trained = (work_dir / "runs" / "prior" / "trained_clips.txt").read_text()
    run(lvt, work_dir, "--set", f"prior.training.max_steps={old['step'] + 3}", "--until", "train-prior")
    state = read_json(work_dir / "runs" / "prior" / "run.json")
    assert (state["step"], state["inputs"]["start"]) == (old["step"] + 3, old["inputs"]["start"])
    assert (work_dir / "runs" / "prior" / "trained_clips.txt").read_text() == trained
    assert names(work_dir) == ["prior", "prior.old-1", "vqvae"]


def test_the_file_can_ask_for_retraining(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    add_videos(videos)
    made, _ = run(lvt, work_dir, "--set", "when_data_changes.prior=retrain")
    assert "train-prior" in made
    assert settings_of(work_dir).when_data_changes.prior == "retrain"
    code, _, err = lvt("run", work_dir, "--set", "when_data_changes.prior=discard")
    assert code == 1
    assert "keep" in err


def test_status_and_why_speak_of_clips(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    before = contents(work_dir)
    add_videos(videos)
    write_mp4(videos / "train" / "clip0.mp4", moving_square(77), fps=10)
    (videos / "val" / "clip6.mp4").unlink()
    (videos / "test" / "clip8.mp4").unlink()
    code, out, _ = lvt("status", work_dir)
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert code == 0
    assert "3 clips added, 1 changed, 2 removed" in lines["manifest"]
    assert lines["manifest"].startswith("STALE")
    assert lines["encode-dataset"].startswith("STALE")
    assert lines["train-prior"].startswith("outdated")
    code, out, _ = lvt("why", work_dir / "manifest.jsonl")
    assert (code, out) == (0, "manifest: 3 clips added, 1 changed, 2 removed\n")
    assert contents(work_dir) == before


def test_a_touched_video_is_not_a_changed_one(videos: Path, work_dir: Path) -> None:
    for path in videos.rglob("*.mp4"):
        path.touch()
    assert set(states(work_dir).values()) == {"done"}


def test_an_interrupted_training_resumes_although_its_data_have_grown(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(work_dir / "runs" / "prior")
    code, _, _ = lvt("run", work_dir, "--until", "train-prior", "--set", "prior.training.max_steps=10000",
                     "--max-seconds", "2")  # fmt: skip
    assert code == 75
    add_videos(videos)
    saved = read_json(work_dir / "runs" / "prior" / "run.json")["step"]
    code, _, err = lvt("run", work_dir, "--until", "train-prior", "--set", f"prior.training.max_steps={saved + 5}",
                       "--workers", "1")  # fmt: skip
    assert code == 0, err
    assert read_json(work_dir / "runs" / "prior" / "run.json")["step"] == saved + 5
    assert not (work_dir / "runs" / "prior.old-1").exists()


def test_an_expensive_network_is_replaced_only_on_request(
    work_dir: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "CHEAP_SECONDS", 0)
    before = weights(work_dir, "prior")
    settings = (work_dir / "pipeline.toml").read_bytes()
    change = ("--set", "prior.training.seed=5")
    assert plan(lvt, work_dir, *change)["train-prior"]["action"] == "refuse"
    code, _, err = lvt("run", work_dir, *change)
    assert code == 1
    assert (work_dir / "pipeline.toml").read_bytes() == settings
    assert "setting training.seed: 0 -> 5" in err
    assert "--retrain prior" in err
    assert weights(work_dir, "prior") == before
    assert "train-prior" in run(lvt, work_dir, "--retrain", "prior", *change)[0]
    assert weights(work_dir, "prior.old-1") == before != weights(work_dir, "prior")


WHEN = "when_data_changes"
OTHER_TOKENIZERS = {
    "refine": ("--refine", "vqvae"),
    "retrain": ("--retrain", "vqvae"),
    "setting": ("--retrain", "vqvae", "--set", "vqvae.training.seed=5"),
    "precision": ("--set", "encode.precision=bfloat16", "--until", "encode-dataset"),
    "wish": ("--set", f"{WHEN}.vqvae=refine"),
    "both refined": ("--set", f"{WHEN}.vqvae=refine", "--set", f"{WHEN}.prior=refine"),
    "until": ("--refine", "vqvae", "--until", "train-vqvae"),
    "resumed": (),
}


@pytest.mark.parametrize(
    "name",
    [name if name in ("refine", "wish") else pytest.param(name, marks=pytest.mark.slow) for name in OTHER_TOKENIZERS],
)
def test_a_long_trained_prior_is_asked_about_before_its_tokenizer_is_trained(
    videos: Path, work_dir: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(networks, "CHEAP_SECONDS", 0)
    options = OTHER_TOKENIZERS[name]
    if name != "resumed":
        add_videos(videos, 1)
    else:
        (work_dir / "runs" / "vqvae" / "provenance.json").unlink()
    before = contents(work_dir)
    code, _, err = lvt("run", work_dir, *options)
    assert (code, err.count("\n")) == (1, 1)
    assert "runs/prior trained for 0 minutes and cannot be used with another tokenizer (codes will change: " in err
    assert f"have it trained again with --retrain {'all' if '--retrain' in options else 'prior'}, which keeps" in err
    assert contents(work_dir) == before
    if "--until" not in options:
        planned = plan(lvt, work_dir, *options)["train-prior"]
        assert planned["action"] == "refuse"
        assert planned["reasons"][0] in err


def test_what_was_agreed_to_is_not_asked_about(
    videos: Path, work_dir: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "CHEAP_SECONDS", 0)
    add_videos(videos, 1)
    for options in (
        ("--refine", "vqvae", "--retrain", "prior"),
        ("--retrain", "all"),
        ("--set", f"{WHEN}.vqvae=refine", "--set", f"{WHEN}.prior=retrain"),
    ):
        planned = plan(lvt, work_dir, *options)
        assert [planned[stage]["action"] for stage in NETWORKS] in (["refine", "make again"], ["make again"] * 2)
    made, _ = run(lvt, work_dir, *options, "--until", "train-prior")
    assert made[-3:] == ["train-vqvae", "encode-dataset", "train-prior"]
    assert names(work_dir) == ["prior", "prior.old-1", "vqvae", "vqvae.old-1"]


@pytest.mark.slow
def test_a_long_trained_prior_is_asked_about_before_training_also_when_nobody_could_look_for_videos(
    videos: Path, work_dir: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "CHEAP_SECONDS", 0)
    monkeypatch.setattr(workspace_states, "changes_of_videos", lambda *arguments: None)  # as at a URL
    add_videos(videos, 1)
    before = {name: weights(work_dir, name) for name in ("vqvae", "prior")}
    code, _, err = lvt("run", work_dir, "--refine", "vqvae", "--workers", "1")
    assert code == 1
    assert "have it trained again with --retrain prior" in err
    assert names(work_dir) == ["prior", "vqvae"]
    assert {name: weights(work_dir, name) for name in before} == before


def test_a_decoder_that_is_refined_alone_leaves_codes_and_prior_valid(
    videos: Path, work_dir: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "CHEAP_SECONDS", 0)
    codes = lvt_pipeline.open_codes(work_dir / "data.zarr").fingerprint
    made, _ = run(lvt, work_dir, "--refine", "vqvae", "--set", "vqvae.training.freeze=encoder")
    assert made[-4:] == ["train-vqvae", "decode", "evaluate", "report"]
    assert "encode-dataset" not in made
    assert lvt_pipeline.open_codes(work_dir / "data.zarr").fingerprint == codes
    assert names(work_dir) == ["prior", "vqvae", "vqvae.old-1"]


def test_a_prior_on_another_tokenizer_is_stale_and_not_outdated(work_dir: Path, lvt: Lvt) -> None:
    run(lvt, work_dir, "--set", "vqvae.training.seed=5", "--until", "encode-dataset")
    found = {state.name: state for state in work_dir_states(work_dir)}
    assert found["train-prior"].state == "stale"
    assert "it was trained on codes of another tokenizer" in found["train-prior"].reasons


def test_another_geometry_makes_a_tokenizer_stale_and_not_outdated(work_dir: Path, lvt: Lvt) -> None:
    run(lvt, work_dir, "--set", "ingest.geometry.size=16", "--until", "ingest")
    found = {state.name: state for state in work_dir_states(work_dir)}
    assert found["train-vqvae"].state == "stale"
    assert "geometry.size: 32 -> 16" in found["train-vqvae"].reasons


# Pixels that go ------------------------------------------------------------------------------------------------------


def test_a_finished_directory_needs_no_videos(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(videos)
    made, err = run(lvt, work_dir)
    assert made == []
    assert "there are no videos in" in err
    assert set(states(work_dir).values()) == {"done"}


def test_other_videos_that_do_not_exist_are_still_refused(work_dir: Path, lvt: Lvt) -> None:
    code, _, err = lvt("run", work_dir, "--videos", work_dir.parent / "typo")
    assert code == 1
    assert "typo does not exist" in err


def test_deleted_frames_stay_deleted_while_only_codes_are_needed(work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(work_dir / "frames")
    assert run(lvt, work_dir)[0] == []
    made, err = run(lvt, work_dir, "--set", "sample.seed=7")
    assert made == ["sample", "decode", "evaluate", "report"]
    assert "errors in pixels are not measured" in err
    assert not (work_dir / "frames").exists()
    assert "reconstruction" not in read_json(work_dir / "eval.json")
    assert run(lvt, work_dir)[0] == []
    code, out, _ = lvt("status", work_dir)
    assert code == 0
    assert "frames was deleted; it is made again when a stage needs it" in out


def test_gc_deletes_frames_that_are_encoded_and_verified(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    code, out, _ = lvt("gc", work_dir, "--frames")
    assert (code, (work_dir / "frames").exists()) == (0, True)
    assert "10 clips, all encoded and verified" in out
    assert "can be given back with --apply" in out
    code, out, _ = lvt("gc", work_dir, "--frames", "--apply", "--json")
    assert json.loads(out)["frames"]["can_be_restored"]
    assert not (work_dir / "frames").exists()
    assert "deleted already" in lvt("gc", work_dir, "--frames", "--apply")[1]
    assert run(lvt, work_dir)[0] == ["manifest"]  # the videos were moved
    assert set(states(work_dir).values()) == {"done"}


def test_gc_warns_that_frames_without_videos_cannot_be_made_again(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(videos)
    assert "cannot be made again" in lvt("gc", work_dir, "--frames")[1]


def test_gc_keeps_frames_that_are_needed(videos: Path, work_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    shard = work_dir / "data.zarr" / "codes" / "c" / "0" / "0" / "0" / "0"
    content = shard.read_bytes()
    shard.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    code, _, err = lvt("gc", work_dir, "--frames", "--apply")
    assert (code, "has 1 damaged shard" in err) == (1, True)
    shard.write_bytes(content)
    add_videos(videos)
    run(lvt, work_dir, "--until", "ingest")
    code, _, err = lvt("gc", work_dir, "--frames", "--apply")
    assert (code, "encode-dataset is stale" in err) == (1, True)
    assert (work_dir / "frames").is_dir()
    code, _, err = lvt("gc", tmp_path / "typo", "--frames", "--apply")
    assert (code, "is not a work directory" in err, (tmp_path / "typo").exists()) == (1, True, False)
    assert lvt("gc", work_dir, "--frames", "--cache")[0] == 2


def test_a_clip_is_explained_after_its_frames_are_deleted(work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(work_dir / "frames")
    assert lvt("why", work_dir / "data.zarr", "train/clip0")[:2] == (0, "train/clip0: up to date\n")


def test_a_directory_without_a_pipeline_file_has_the_states_that_its_records_give(
    videos: Path, work_dir: Path, lvt: Lvt
) -> None:
    add_videos(videos)
    run(lvt, work_dir, "--until", "ingest")
    expected = states(work_dir)
    (work_dir / "pipeline.toml").unlink()
    assert states(work_dir) == expected
    assert (expected["encode-dataset"], expected["train-vqvae"]) == ("stale", "outdated")
    code, out, _ = lvt("status", work_dir)
    assert (code, len(out.splitlines())) == (0, 9)
    assert "3 clips added" in lvt("why", work_dir / "data.zarr")[1]
    assert lvt("inspect", work_dir / "data.zarr")[0] == 0


def test_a_stage_that_needs_pixels_gets_its_frames_back(work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(work_dir / "frames")
    shutil.rmtree(work_dir / "data.zarr")
    made, err = run(lvt, work_dir)
    assert "encode-dataset needs pixels" in err
    assert made == ["encode-dataset"]
    assert (work_dir / "frames" / "provenance.json").exists()


def test_without_frames_and_videos_codes_are_enough(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(work_dir / "frames")
    shutil.rmtree(videos)
    assert run(lvt, work_dir)[0] == []
    assert run(lvt, work_dir, "--set", "prior.training.seed=5")[0][:2] == ["train-prior", "sample"]
    shutil.rmtree(work_dir / "data.zarr")
    code, _, err = lvt("run", work_dir)
    assert code == 1
    assert "encode-dataset needs pixels" in err
    assert "put one of them back" in err


def test_frames_that_went_before_anything_was_remembered_do_not_stop_a_run(
    videos: Path, work_dir: Path, lvt: Lvt
) -> None:
    shutil.rmtree(work_dir / "frames")
    shutil.rmtree(work_dir / ".lvt")
    shutil.rmtree(videos)
    made, err = run(lvt, work_dir, "--set", "sample.seed=7")
    assert made[0] == "sample"
    assert "only codes are used" in err


# Options of lvt run --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    before = contents(work_dir)
    add_videos(videos)
    code, out, _ = lvt("run", work_dir, "--dry-run")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "3 clips added" in lines["manifest"]
    assert "update" in lines["encode-dataset"]
    assert "3 clips" in lines["encode-dataset"]
    assert "keep" in lines["train-prior"]
    assert "nothing" not in lines["sample"]
    code, out, _ = lvt("run", work_dir, "--dry-run", "--json")
    plan = {stage["name"]: stage for stage in json.loads(out)["stages"]}
    assert plan["train-vqvae"]["action"] == "keep"
    assert plan["ingest"]["clips"] == 3
    assert contents(work_dir) == before


def plan(lvt: Lvt, *arguments: object) -> dict[str, dict[str, Any]]:
    code, out, err = lvt("run", *arguments, "--dry-run", "--json")
    assert code == 0, err
    return {stage["name"]: stage for stage in json.loads(out)["stages"]}


def test_a_dry_run_in_a_new_directory_counts_clips_and_steps_and_admits_to_have_no_estimate(
    toy_videos: Path, tmp_path: Path, lvt: Lvt
) -> None:
    work = tmp_path / "new"
    planned = plan(lvt, "--videos", toy_videos, "--work-dir", work, *tiny_options())
    assert {stage["action"] for stage in planned.values()} == {"make"}
    assert (planned["ingest"]["clips"], planned["train-vqvae"]["steps"], planned["sample"]["clips"]) == (11, 12, 2)
    _, out, _ = lvt("run", "--videos", toy_videos, "--work-dir", work, "--dry-run")
    assert all("no estimate before it has run once" in line for line in out.splitlines())
    assert not work.exists()


def test_a_dry_run_says_that_a_source_has_no_videos(tmp_path: Path, lvt: Lvt) -> None:
    planned = plan(lvt, "--videos", tmp_path / "nowhere", "--work-dir", tmp_path / "new")
    assert planned["manifest"]["action"] == "refuse"
    assert "there are no videos in" in planned["manifest"]["reasons"][0]


def test_a_dry_run_knows_that_another_tokenizer_needs_another_prior(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    for change in ("vqvae.training.max_steps=14", "encode.precision=bfloat16", "ingest.geometry.size=64"):
        planned = plan(lvt, work_dir, "--set", change)
        assert planned["train-prior"]["action"] == "make again", change
    add_videos(videos)
    assert plan(lvt, work_dir)["train-prior"]["action"] == "keep"
    planned = plan(lvt, work_dir, "--retrain", "vqvae")
    assert [planned[name]["action"] for name in NETWORKS] == ["make again", "make again"]


def test_one_reason_is_not_repeated_for_every_input(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    add_videos(videos)
    for state in work_dir_states(work_dir):
        assert " ".join(state.reasons).count("3 clips added") == 1, state.name


def test_an_interrupted_training_is_planned_as_the_rest_of_its_steps(work_dir: Path, lvt: Lvt) -> None:
    (work_dir / "runs" / "prior" / "provenance.json").unlink()
    planned = plan(lvt, work_dir, "--set", "prior.training.max_steps=30")["train-prior"]
    assert (planned["action"], planned["steps"]) == ("resume", 20)


@pytest.mark.parametrize("change", ["encode.precision=bfloat16", "vqvae.training.max_steps=14"])
def test_a_change_that_needs_lost_pixels_is_refused_before_it_is_saved(
    videos: Path, work_dir: Path, lvt: Lvt, change: str
) -> None:
    run(lvt, work_dir)
    shutil.rmtree(work_dir / "frames")
    before = (work_dir / "pipeline.toml").read_bytes()
    planned = plan(lvt, work_dir, "--set", change)
    assert planned["ingest"]["action"] == "make"
    assert "needs pixels" in planned["ingest"]["reasons"][0]
    shutil.rmtree(videos)
    assert "refuse" in [stage["action"] for stage in plan(lvt, work_dir, "--set", change).values()]
    code, _, err = lvt("run", work_dir, "--set", change)
    assert code == 1
    assert "needs pixels" in err
    assert (work_dir / "pipeline.toml").read_bytes() == before
    assert run(lvt, work_dir)[0] == []


def test_deleting_frames_does_not_make_an_outdated_tokenizer_current(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    add_videos(videos)
    run(lvt, work_dir)
    assert states(work_dir)["train-vqvae"] == "outdated"
    shutil.rmtree(work_dir / "frames")
    assert states(work_dir)["train-vqvae"] == "outdated"
    assert states(work_dir)["encode-dataset"] == "done"


def test_status_says_how_many_clips_an_outdated_tokenizer_was_trained_on(
    videos: Path, work_dir: Path, lvt: Lvt
) -> None:
    add_videos(videos)
    run(lvt, work_dir)
    line = next(line for line in lvt("status", work_dir)[1].splitlines() if "train-vqvae" in line)
    assert "6 train clips in the training, 9 today" in line


def test_status_says_that_the_videos_are_gone(videos: Path, work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(videos)
    assert f"there are no videos in {videos}" in lvt("status", work_dir)[1].splitlines()[0]


def test_until_ends_after_a_stage(work_dir: Path, lvt: Lvt) -> None:
    before = contents(work_dir / "samples.zarr")
    made, _ = run(lvt, work_dir, "--set", "sample.seed=7", "--until", "train-prior")
    assert made == []
    assert contents(work_dir / "samples.zarr") == before
    assert lvt("run", work_dir, "--until", "lunch")[0] == 2


def test_when_the_time_is_over_a_run_stops_with_75(work_dir: Path, lvt: Lvt) -> None:
    code, _, err = lvt("run", work_dir, "--max-seconds", "0")
    assert code == 75
    assert "run the same command again" in err


def test_options_of_training_reach_the_stages(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def train_prior(codes: Path, out: Path, settings: Any, **options: Any) -> None:
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "train_prior", train_prior)
    shutil.rmtree(work_dir / "runs" / "prior")
    options = Making(device="cpu", cache="stream", track=("tensorboard",), deadline=float("inf"))
    with pytest.raises(KeyboardInterrupt):
        Pipeline(settings_of(work_dir), options).run()
    assert (given["cache"], given["track"], given["max_seconds"]) == ("stream", ("tensorboard",), float("inf"))


def test_the_report_and_status_agree(videos: Path, work_dir: Path) -> None:
    path = work_dir / "pipeline.toml"
    path.write_text(path.read_text().replace("scale = 4", "scale = 3"))
    add_videos(videos)
    in_report = {record["title"]: record["state"] for record in stage_records(WorkDir(work_dir))}
    in_status = [state.state for state in work_dir_states(work_dir)]
    assert list(in_report.values()) == in_status[: len(in_report)]
    assert (in_report["Videos"], in_report["Prior"]) == ("stale", "outdated")


# Ends the process by SIGKILL in the 8th step of the training; the last checkpoint is then two or three steps old.
KILLED = """
import os, signal, sys
from itertools import count
from lvt_pipeline.cli import run
from lvt_pipeline.training.loop import _Loop

due, calls = _Loop._do_what_is_due, count(1)

def killed_after_some_steps(self, bar):
    due(self, bar)
    if next(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)

_Loop._do_what_is_due = killed_after_some_steps
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("role", [pytest.param("vqvae", marks=pytest.mark.slow), "prior"])
def test_a_refinement_that_is_killed_keeps_the_old_network_and_ends_as_one_that_is_not(
    videos: Path, work_dir: Path, lvt: Lvt, role: str
) -> None:
    add_videos(videos)
    options = ("--refine", role, "--until", f"train-{role}")
    before = weights(work_dir, role)
    other = Path(shutil.copytree(work_dir, work_dir.parent / "other"))
    run(lvt, other, *options)
    command = [sys.executable, "-c", KILLED, "run", str(work_dir), "--workers", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert weights(work_dir, role) == before
    assert f"{role}.new" in names(work_dir)
    run(lvt, work_dir, *options)
    assert names(work_dir) == sorted(["prior", "vqvae", f"{role}.old-1"])
    assert weights(work_dir, f"{role}.old-1") == before != weights(work_dir, role) == weights(other, role)
