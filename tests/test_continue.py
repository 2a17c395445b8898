"""`lvt continue`: a video file and two runs become one video, and each mistake is one clear line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lvt_pipeline as lvt_package
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import LVTError, MismatchError
from lvt_pipeline.jobs.continue_video import EDGE, GAP, continue_video
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.provenance import RECORD_NAME, read_record
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.layout import RUN_NAME, SEAL, read_sealed, write_sealed
from lvt_pipeline.runs.read import load_prior, load_vqvae
from lvt_pipeline.video.tiles import PRIMING_EDGE, SAMPLED_EDGE
from lvt_pipeline.workspace.settings import PipelineSettings, save_settings
from tests.listener import Listener
from tests.toy_work import SIZE, PriorSettings, ToyWork, make_tokenizer, make_toy_work, moving_square

Lvt = Callable[..., tuple[int, str, str]]
SETTINGS = SampleSettings(frames=9, priming_frames=3)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    return make_toy_work(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "my.mp4"
    lvt_package.write_video(path, moving_square(5, 12), fps=5)
    return path


def run(work: ToyWork, video: Path, out: Path, settings: SampleSettings = SETTINGS, **options: object) -> None:
    continue_video(video, out, work.vqvae, work.prior, settings, device="cpu", **options)


def tiles_of(path: Path) -> np.ndarray:
    """Frames of a strip with their edges, uint8 (T, height, width, 3)."""
    strip = np.asarray(Image.open(path).convert("RGB"))
    side = SIZE + 2 * EDGE
    return strip.reshape(side, -1, side, 3).swapaxes(0, 1)


def test_the_last_frames_are_continued_as_the_models_would(work: ToyWork, video: Path, tmp_path: Path) -> None:
    run(work, video, tmp_path / "out.png", scale=1)
    shown = tiles_of(tmp_path / "out.png")
    assert len(shown) == 9
    frames, _ = lvt_package.read_video(video, size=SIZE)
    inside = shown[:, EDGE:-EDGE, EDGE:-EDGE]
    assert np.array_equal(inside[:3], frames[-3:])
    vqvae, prior = load_vqvae(work.vqvae, device="cpu"), load_prior(work.prior, device="cpu")
    codes = prior.sample(vqvae.encode(frames[-3:])[None], frames=9, clip_ids=["video"], lookahead=16)[0]
    assert np.array_equal(inside[3:], vqvae.decode(codes)[3:].numpy())


def test_sampled_frames_have_another_edge(work: ToyWork, video: Path, tmp_path: Path) -> None:
    run(work, video, tmp_path / "out.png", scale=1)
    corners = tiles_of(tmp_path / "out.png")[:, 0, 0].tolist()
    assert corners == 3 * [list(PRIMING_EDGE)] + 6 * [list(SAMPLED_EDGE)]


def test_a_start_in_seconds_chooses_the_priming_frames(work: ToyWork, video: Path, tmp_path: Path) -> None:
    run(work, video, tmp_path / "out.png", scale=1, start_seconds=0.4)
    frames, _ = lvt_package.read_video(video, size=SIZE)
    assert np.array_equal(tiles_of(tmp_path / "out.png")[:3, EDGE:-EDGE, EDGE:-EDGE], frames[2:5])


def test_several_samples_play_in_a_grid_and_each_is_what_it_is_alone(
    work: ToyWork, video: Path, tmp_path: Path
) -> None:
    run(work, video, tmp_path / "one.png", scale=1)
    run(work, video, tmp_path / "three.png", replace(SETTINGS, samples_per_clip=3), scale=1)
    one = tiles_of(tmp_path / "one.png")
    side, large = SIZE + 2 * EDGE, 2 * (SIZE + 2 * EDGE) + GAP
    picture = np.asarray(Image.open(tmp_path / "three.png").convert("RGB"))
    grids = picture.reshape(large, 9, large, 3).swapaxes(0, 1)
    assert np.array_equal(grids[:, :side, :side], one)
    assert not np.array_equal(grids[:, :side, side + GAP :], one)


def test_the_command_writes_a_video_of_the_frames_asked_for(
    work: ToyWork, video: Path, tmp_path: Path, lvt: Lvt
) -> None:
    out = tmp_path / "out.mp4"
    arguments = ("--num-frames", "9", "--priming-frames", "3", "--samples", "2", "--top-k", "3", "--seed", "4")
    code, text, err = lvt("continue", video, "-o", out, "--work-dir", work.root, *arguments)
    assert code == 0, err
    assert "3 frames of" in text
    assert "6 sampled frames" in text
    frames, fps = lvt_package.read_video(out, size=SIZE)
    assert len(frames) == 9
    assert fps == 5
    code, _, err = lvt("continue", video, "-o", out, "--vqvae", work.vqvae, "--prior", work.prior, *arguments)
    assert code == 0, err


def test_a_label_is_given_by_name_and_its_lack_lists_the_known_ones(work: ToyWork, video: Path, tmp_path: Path) -> None:
    model = Prior(replace(PriorSettings().model, num_classes=2))
    model.class_names = ("jump", "run")
    other = tmp_path / "prior"
    settings = PriorSettings(model=model.config)
    save_model_run(other, "prior-run", model, settings, stage="train-prior", version=1, counts={})

    def attempt(settings: SampleSettings) -> None:
        continue_video(video, tmp_path / "out.mp4", work.vqvae, other, settings, device="cpu")

    attempt(replace(SETTINGS, label="run"))
    with pytest.raises(LVTError, match="give one of its labels with --label: jump, run"):
        attempt(SETTINGS)
    with pytest.raises(MismatchError, match="does not know the label 'walk'; it knows jump, run"):
        attempt(replace(SETTINGS, label="walk"))


def test_a_continued_video_is_steered_by_a_file_of_actions(work: ToyWork, video: Path, tmp_path: Path) -> None:
    model = Prior(replace(PriorSettings().model, actions=("action",), action_widths=(2,), action_dropout=0.0))
    with torch.no_grad():
        model.encoder.actions.weight.normal_()  # type: ignore[union-attr]
    runs = {}
    for name, config in {"always": model.config, "dropping": replace(model.config, action_dropout=0.5)}.items():
        runs[name] = tmp_path / name
        settings = PriorSettings(model=config)
        save_model_run(runs[name], "prior-run", model, settings, stage="train-prior", version=1, counts={})
    file, listener = tmp_path / "actions.npy", Listener()

    def steered(run: Path, actions: str | None) -> bytes:
        settings = replace(SETTINGS, actions=actions)
        out = tmp_path / "out.png"
        continue_video(video, out, work.vqvae, run, settings, device="cpu", scale=1, progress=listener)
        return out.read_bytes()

    np.save(file, np.full((8, 2), 3.0))
    first = steered(runs["always"], str(file))
    assert steered(runs["always"], "zero") != first
    np.save(file, np.zeros((8, 2)))  # the same path with other rows is another video
    assert steered(runs["always"], str(file)) == steered(runs["always"], "zero")
    assert not listener.said
    assert steered(runs["dropping"], None) != first
    assert "which a video does not have: sampling without; --actions zero or --actions FILE steers" in listener.said[-1]
    with pytest.raises(LVTError, match="which a video does not have; give --actions zero or --actions FILE"):
        steered(runs["always"], None)
    with pytest.raises(MismatchError, match="was trained without actions; leave out --actions zero"):
        steered(work.prior, "zero")


def test_mistakes_are_one_clear_line_and_write_nothing(work: ToyWork, video: Path, tmp_path: Path, lvt: Lvt) -> None:
    copy = Path(shutil.copy(video, tmp_path / "my.mp4"))
    other = tmp_path / "other.mp4"
    other.write_bytes(b"somebody else's")
    short = tmp_path / "short.mp4"
    lvt_package.write_video(short, moving_square(5, 2), fps=5)
    work_dir = ("--work-dir", work.root)
    cases = [
        ((copy, "-o", tmp_path / "o.mp4", "--work-dir", tmp_path / "nowhere"), "nowhere does not exist; give a work"),
        ((copy, "-o", tmp_path / "o.mp4", "--work-dir", tmp_path), "give the run directory that a train command made"),
        ((copy, "-o", tmp_path / "o.mp4"), "give --work-dir, or both --vqvae and --prior"),
        ((copy, "-o", copy, *work_dir), "is both an input and the output of lvt continue"),
        ((copy, "-o", other, *work_dir), "exists and lvt continue did not write it"),
        ((copy, "-o", tmp_path / "o.avi", *work_dir), "give an output that ends in .mp4, .gif, .png"),
        ((short, "-o", tmp_path / "o.mp4", *work_dir), "has 2 frames at 5 per second, and 5 priming frames are needed"),
        ((tmp_path / "no.mp4", "-o", tmp_path / "o.mp4", *work_dir), "no.mp4 is not there; give a video file"),
        ((copy, "-o", tmp_path / "o.mp4", *work_dir, "--start", "99"), "there is no frame between 99 s and"),
        ((copy, "-o", tmp_path / "o.mp4", *work_dir, "--label", "run"), "trained without classes"),
        ((copy, "-o", tmp_path / "o.mp4", *work_dir, "--num-frames", "5"), "must be less than frames=5"),
    ]
    before = copy.read_bytes()
    for arguments, message in cases:
        code, _, err = lvt("continue", *arguments)
        assert code != 0
        assert message in err, err
        assert len(err.strip().splitlines()) == 1, err
    assert copy.read_bytes() == before
    assert other.read_bytes() == b"somebody else's"
    assert not (tmp_path / "o.mp4").exists()


def test_runs_that_do_not_belong_together_are_refused(work: ToyWork, video: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "vqvae", seed=3)
    state = read_sealed(work.prior / RUN_NAME)
    other = Path(shutil.copytree(work.prior, tmp_path / "prior"))
    facts = {**state["facts"], "tokenizer": open_codes(work.codes).tokenizer}
    write_sealed(other / RUN_NAME, {**{key: state[key] for key in state if key != SEAL}, "facts": facts})
    continue_video(video, tmp_path / "a.mp4", work.vqvae, other, SETTINGS, device="cpu")
    with pytest.raises(MismatchError, match=r"was trained on codes of tokenizer .* give the VQ-VAE run that made"):
        continue_video(video, tmp_path / "b.mp4", tmp_path / "vqvae", other, SETTINGS, device="cpu")
    assert not (tmp_path / "b.mp4").exists()


def test_the_recorded_geometry_is_used_without_its_limits_on_length(
    work: ToyWork, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = {"fps": 2.5, "fit": "letterbox", "max_frames": 1, "size": SIZE}
    monkeypatch.setattr("lvt_pipeline.jobs.continue_video.read_run", lambda run: {"facts": {"geometry": recorded}})
    done = continue_video(video, tmp_path / "out.png", work.vqvae, work.prior, SETTINGS, scale=1, device="cpu")
    assert done.fps == 2.5
    frames, _ = lvt_package.read_video(video, size=SIZE, fps=2.5)
    assert np.array_equal(tiles_of(tmp_path / "out.png")[:3, EDGE:-EDGE, EDGE:-EDGE], frames[-3:])


def test_the_same_call_keeps_the_video_and_its_record(work: ToyWork, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gif"
    first = continue_video(video, out, work.vqvae, work.prior, SETTINGS, device="cpu")
    record = read_record(out)
    assert (record.stage, set(record.inputs), record.counts["frames"]) == ("continue", {"video", "vqvae", "prior"}, 9)
    written = out.stat().st_mtime_ns
    assert continue_video(video, out, work.vqvae, work.prior, SETTINGS, device="cpu") == first
    assert out.stat().st_mtime_ns == written
    continue_video(video, out, work.vqvae, work.prior, replace(SETTINGS, seed=1), device="cpu")
    assert read_record(out).fingerprint != record.fingerprint


def test_what_is_not_given_is_as_in_the_work_directory(
    work: ToyWork, video: Path, tmp_path: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SampleSettings] = []

    def remember(video: Path, out: Path, vqvae: Path, prior: Path, settings: SampleSettings, **_: object) -> None:
        asked.append(settings)
        raise LVTError("seen")

    monkeypatch.setattr("lvt_pipeline.jobs.continue_video.continue_video", remember)
    theirs = SampleSettings(frames=16, priming_frames=3, top_p=0.8, codebook_temperatures=(0.9,))
    save_settings(PipelineSettings(videos="videos", sample=theirs), tmp_path / "work")
    call = ("continue", video, "-o", tmp_path / "out.mp4", "--work-dir", tmp_path / "work")
    lvt(*call)
    lvt(*call, "--temperature", "0.5", "--priming-frames", "2")
    assert asked[0] == theirs
    assert asked[1] == replace(theirs, temperature=0.5, codebook_temperatures=None, priming_frames=2)


def test_an_unfinished_prior_is_reported(work: ToyWork, video: Path, tmp_path: Path, lvt: Lvt) -> None:
    prior = tmp_path / "prior"
    shutil.copytree(work.prior, prior)
    (prior / RECORD_NAME).unlink()
    code, _, err = lvt(
        "continue",
        video,
        "-o",
        tmp_path / "out.mp4",
        "--vqvae",
        work.vqvae,
        "--prior",
        prior,
        "--num-frames",
        "9",
        "--priming-frames",
        "3",
    )
    assert code == 0, err
    assert f"{prior} is unfinished: sampling with the weights saved at step" in err
