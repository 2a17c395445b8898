"""From a folder of videos to a report, and what a second run does: nothing, or exactly what changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import lvt_pipeline
from tests.conftest import TINY_SETTINGS, moving_square, tiny_options

STAGES = [
    "manifest",
    "ingest",
    "train-vqvae",
    "encode-dataset",
    "train-prior",
    "sample",
    "decode",
    "evaluate",
    "report",
]
Lvt = Callable[..., tuple[int, str, str]]


def run_again(lvt: Lvt, work_dir: Path, *extra: str) -> list[str]:
    """Run the pipeline file of a work directory; the stages that were made."""
    code, out, err = lvt("run", work_dir / "pipeline.toml", "--workers", "1", "--json", *extra)
    assert code == 0, err
    return [stage["stage"] for stage in json.loads(out)["stages"] if stage["made"]]


def test_run_makes_every_artefact(finished_work_dir: Path) -> None:
    names = ["manifest.jsonl", "frames", "runs/vqvae", "data.zarr", "runs/prior", "samples.zarr", "videos"]
    for name in [*names, "eval.json", "report.html", "pipeline.toml"]:
        assert (finished_work_dir / name).exists(), name
    assert len(list((finished_work_dir / "videos").rglob("*.mp4"))) == 2


def test_code_store_opens_with_plain_zarr(finished_work_dir: Path) -> None:
    codes = zarr.open_group(finished_work_dir / "data.zarr", mode="r")["codes"]
    assert isinstance(codes, zarr.Array)
    assert codes.shape == (10 * 12, 8, 8, 2)
    assert codes.dtype == np.uint8


def test_broken_video_is_a_recorded_failure_and_the_run_goes_on(finished_work_dir: Path) -> None:
    failures = [json.loads(line) for line in (finished_work_dir / "frames" / "failures.jsonl").read_text().splitlines()]
    assert [(failure["id"], failure["reason"]) for failure in failures] == [("train/not_a_video", "unreadable")]


def test_second_run_does_nothing_and_says_so(work_dir: Path, lvt: Lvt) -> None:
    before = {path: path.stat().st_mtime_ns for path in work_dir.rglob("*") if path.is_file()}
    code, out, _ = lvt("run", work_dir / "pipeline.toml")
    assert code == 0
    assert "nothing to do" in out
    after = {path: path.stat().st_mtime_ns for path in work_dir.rglob("*") if path.is_file()}
    assert before == after


def test_a_run_of_the_first_stages_names_no_video_or_report(toy_videos: Path, tmp_path: Path, lvt: Lvt) -> None:
    places = ("--videos", toy_videos, "--work-dir", tmp_path / "work")
    code, out, err = lvt("run", *places, "--until", "manifest")
    assert code == 0, err
    assert re.fullmatch(r"1 of 1 stages run in [0-9.]+ s\n", out)


def test_status_of_a_file_asks_for_its_folder(work_dir: Path, lvt: Lvt) -> None:
    code, _, err = lvt("status", work_dir / "pipeline.toml")
    assert code == 1
    assert "is a file; give the work directory" in err


def test_work_dir_alone_goes_on_with_its_own_settings(work_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    code, out, _ = lvt("run", "--work-dir", work_dir)
    assert code == 0
    assert "nothing to do" in out
    code, _, err = lvt("run", "--work-dir", tmp_path / "new")
    assert code == 1
    assert "no videos were named" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("lost", "made"),
    [
        ("manifest.jsonl", ["manifest"]),
        ("frames/train-000000.tar", ["ingest"]),
        ("data.zarr", ["encode-dataset"]),
        ("samples.zarr", ["sample"]),
        ("videos", ["decode", "report"]),
        ("eval.json", ["evaluate"]),
        ("report.html", ["report"]),
    ],
)
def test_deleted_artefact_is_made_again_and_what_came_out_the_same_is_kept(
    work_dir: Path, lvt: Lvt, lost: str, made: list[str]
) -> None:
    target = work_dir / lost
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    assert set(run_again(lvt, work_dir)) - {"report"} == set(made) - {"report"}
    assert target.exists()
    assert run_again(lvt, work_dir) == []


def test_deleted_tokenizer_is_trained_again_to_the_same_weights_and_keeps_the_codes(work_dir: Path, lvt: Lvt) -> None:
    shutil.rmtree(work_dir / "runs" / "vqvae")
    assert set(run_again(lvt, work_dir)) - {"report"} == {"train-vqvae"}


@pytest.mark.parametrize(
    ("setting", "made"),
    [
        ("sample.seed=7", {"sample", "decode", "evaluate", "report"}),
        ("decode.scale=2", {"decode", "report"}),
        ("evaluate.max_clips=1", {"evaluate", "report"}),
        ("prior.training.learning_rate=0.5e-3", {"train-prior", "sample", "decode", "evaluate", "report"}),
        ("prior.training.max_steps=12", {"train-prior", "sample", "decode", "evaluate", "report"}),
    ],
)
def test_changed_setting_redoes_exactly_what_it_touches(work_dir: Path, lvt: Lvt, setting: str, made: set[str]) -> None:
    assert set(run_again(lvt, work_dir, "--set", setting)) == made


def test_added_video_is_the_only_one_decoded_and_encoded(toy_videos: Path, work_dir: Path, lvt: Lvt) -> None:
    from lvt_pipeline.video.write import write_mp4

    videos = Path(shutil.copytree(toy_videos, work_dir.parent / "videos"))
    write_mp4(videos / "train" / "new.mp4", moving_square(99), fps=10)
    made = run_again(lvt, work_dir, "--videos", str(videos), "--set", "prior.training.max_steps=5")
    assert made[:2] == ["manifest", "ingest"]
    assert "train/new" in lvt_pipeline.open_codes(work_dir / "data.zarr")
    assert lvt_pipeline.open_codes(work_dir / "data.zarr").provenance.counts["added"] in (1, 11)


def test_status_lists_every_stage_and_why_names_the_field(work_dir: Path, lvt: Lvt) -> None:
    code, out, _ = lvt("status", work_dir)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == STAGES
    assert all(line.startswith("done") for line in out.splitlines())
    settings = (work_dir / "pipeline.toml").read_text().replace("scale = 4", "scale = 3")
    (work_dir / "pipeline.toml").write_text(settings)
    code, out, _ = lvt("why", work_dir / "videos")
    assert (code, out) == (0, "decode: setting scale: 4 -> 3\n")
    code, out, _ = lvt("why", work_dir)
    assert "encode-dataset: up to date" in out
    code, out, _ = lvt("why", work_dir / "data.zarr", "test/clip8")
    assert (code, out) == (0, "test/clip8: up to date\n")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("manifest.jsonl", "manifest"),
        ("frames", "frames"),
        ("runs/vqvae", "vqvae-run"),
        ("data.zarr", "codes"),
        ("runs/prior", "prior-run"),
        ("samples.zarr", "codes"),
        ("videos", "videos"),
        ("eval.json", "evaluation"),
        ("report.html", "report"),
        (".", "work-dir"),
    ],
)
def test_inspect_knows_every_artefact(finished_work_dir: Path, lvt: Lvt, name: str, kind: str) -> None:
    code, out, _ = lvt("inspect", finished_work_dir / name, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["kind"], facts["is_finished"], facts["problems"]) == (kind, True, [])
    assert lvt("inspect", finished_work_dir / name)[0] == 0


def test_python_interface_reads_what_the_commands_made(finished_work_dir: Path) -> None:
    store = lvt_pipeline.open_codes(str(finished_work_dir / "data.zarr"))
    clip = store.split("test")[0]
    codes = store[clip.id]
    assert codes.shape == (clip.length, 8, 8, 2) == (12, 8, 8, 2)
    assert store.codebook_size == 16
    windows = lvt_pipeline.CodeWindows(str(finished_work_dir / "data.zarr"), frames=4, stride=1, split="train")
    assert windows[0].shape == (4, 8, 8, 2)
    vqvae = lvt_pipeline.load_vqvae(str(finished_work_dir / "runs" / "vqvae"))
    frames = vqvae.decode(codes)
    assert frames.shape == (12, 32, 32, 3)
    assert vqvae.encode(frames).shape == (12, 8, 8, 2)
    prior = lvt_pipeline.load_prior(str(finished_work_dir / "runs" / "prior"))
    window = codes[None, :4].astype(np.int64)
    assert prior.logits(window).shape == (1, 4, 8, 8, 2, 16)
    assert prior.sample(window[:, :2], frames=4, seed=0).shape == (1, 4, 8, 8, 2)
    assert 0 < prior.bits_per_dim(window, priming_frames=1) < 10


def test_stored_codes_are_what_the_tokenizer_says_today(finished_work_dir: Path) -> None:
    frames = lvt_pipeline.FrameShards(finished_work_dir / "frames")
    store = lvt_pipeline.open_codes(finished_work_dir / "data.zarr")
    vqvae = lvt_pipeline.load_vqvae(finished_work_dir / "runs" / "vqvae")
    for clip in store.clips:
        np.testing.assert_array_equal(store[clip.id], vqvae.encode(frames.read(clip.id)).numpy())


def test_each_stage_alone_gives_what_run_gives(
    finished_work_dir: Path, toy_videos: Path, tmp_path: Path, lvt: Lvt
) -> None:
    """The same commands one by one, in another folder: the same fingerprints at the end."""
    config = {family: tmp_path / f"{family}.toml" for family in ("vqvae", "prior")}
    for family, path in config.items():
        lines = [setting.removeprefix(f"{family}.") for setting in TINY_SETTINGS if setting.startswith(f"{family}.")]
        path.write_text("\n".join(lines) + "\n")
    frames, vqvae, codes = tmp_path / "frames", tmp_path / "vqvae", tmp_path / "data.zarr"
    prior, samples, clips = tmp_path / "prior", tmp_path / "samples.zarr", tmp_path / "clips.jsonl"
    commands = [
        f"manifest build {toy_videos} -o {clips}",
        f"ingest --manifest {clips} -o {frames} --size 32 --clips-per-shard 4 --workers 1",
        f"train-vqvae --frames {frames} -o {vqvae} --preset tiny --config {config['vqvae']}",
        f"encode-dataset --frames {frames} --vqvae {vqvae} -o {codes}",
        f"train-prior --codes {codes} -o {prior} --preset tiny --config {config['prior']}",
        f"sample --prior {prior} --codes {codes} -o {samples} --frames 4 --priming-frames 2 --num-clips 2 --top-p 0.9",
        f"decode --codes {samples} --vqvae {vqvae} -o {tmp_path / 'videos'}",
    ]
    for command in commands:
        code, _, err = lvt(*command.split())
        assert code == 0, err
    for ours, theirs in (("data.zarr", "data.zarr"), ("prior", "runs/prior"), ("samples.zarr", "samples.zarr")):
        made = json.loads(lvt("inspect", tmp_path / ours, "--json")[1])["made_by"]
        reference = json.loads(lvt("inspect", finished_work_dir / theirs, "--json")[1])["made_by"]
        assert made["fingerprint"] == reference["fingerprint"], ours
        assert made["recipe"] == reference["recipe"], ours


def test_killed_run_is_finished_by_the_same_command(toy_videos: Path, finished_work_dir: Path, tmp_path: Path) -> None:
    """kill -9 at a few moments, then run on: the codes and the prior are those of an uninterrupted run."""
    work = tmp_path / "work"
    program = "import sys; from lvt_pipeline.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "run", "--videos", str(toy_videos), "--work-dir", str(work)]
    command += ["--workers", "1", *tiny_options()]
    watched = [work / "frames" / "train-000000.json", work / "runs" / "vqvae" / "checkpoints", work / "data.zarr"]
    for mark in watched:
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        while not mark.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("data.zarr", "runs/prior", "samples.zarr"):
        path = "zarr.json" if name.endswith(".zarr") else "provenance.json"
        ours, reference = (json.loads((folder / name / path).read_text()) for folder in (work, finished_work_dir))
        if name.endswith(".zarr"):
            ours, reference = ours["attributes"]["provenance"], reference["attributes"]["provenance"]
        assert ours["fingerprint"] == reference["fingerprint"], name
    shard = "data.zarr/codes/c/0/0/0/0"
    assert (work / shard).read_bytes() == (finished_work_dir / shard).read_bytes()


def test_changed_training_keeps_the_old_run_aside(work_dir: Path, lvt: Lvt) -> None:
    before = json.loads((work_dir / "runs" / "prior" / "provenance.json").read_text())["fingerprint"]
    assert "train-prior" in run_again(lvt, work_dir, "--set", "prior.training.seed=5")
    aside = json.loads((work_dir / "runs" / "prior.old-1" / "provenance.json").read_text())["fingerprint"]
    after = json.loads((work_dir / "runs" / "prior" / "provenance.json").read_text())["fingerprint"]
    assert aside == before != after


def test_run_without_a_preset_goes_on_with_the_settings_of_the_directory(
    toy_videos: Path, work_dir: Path, lvt: Lvt
) -> None:
    code, out, err = lvt("run", "--videos", toy_videos, "--work-dir", work_dir)
    assert code == 0, err
    assert "nothing to do" in out


def test_comments_in_a_pipeline_file_stay(work_dir: Path, lvt: Lvt) -> None:
    path = work_dir / "pipeline.toml"
    path.write_text("# mine\n" + path.read_text())
    assert run_again(lvt, work_dir) == []
    assert path.read_text().startswith("# mine\n")


@pytest.mark.parametrize(
    ("lost", "made"),
    [
        ("data.zarr/generations/000001/zarr.json", "encode-dataset"),
        ("samples.zarr/generations/000001/zarr.json", "sample"),
    ],
)
def test_lost_clip_table_is_noticed_and_the_store_made_again(work_dir: Path, lvt: Lvt, lost: str, made: str) -> None:
    (work_dir / lost).unlink()
    assert made in run_again(lvt, work_dir)
    assert (work_dir / lost).exists()
    assert run_again(lvt, work_dir) == []


def test_lost_optimizer_state_of_a_finished_run_changes_nothing(work_dir: Path, lvt: Lvt) -> None:
    for path in (work_dir / "runs" / "prior" / "checkpoints").glob("step-*/state.pt"):
        path.unlink()
    assert run_again(lvt, work_dir) == []


def test_failure_budget_holds_on_every_run(work_dir: Path, lvt: Lvt) -> None:
    for _ in range(2):
        code, _, err = lvt("run", work_dir / "pipeline.toml", "--set", "max_failures=0.01")
        assert code == 3
        assert "1 of 11 clips failed" in err


def test_settings_that_cannot_work_are_refused_before_anything_is_saved(work_dir: Path, lvt: Lvt) -> None:
    before = (work_dir / "pipeline.toml").read_text()
    code, _, err = lvt("run", work_dir / "pipeline.toml", "--set", "sample.frames=5")
    assert code == 1
    assert "sample.frames=5 must be prior.model.frames=4" in err
    assert (work_dir / "pipeline.toml").read_text() == before
