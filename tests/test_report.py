"""The report page: self-contained, honest about what is missing or stale, and playing in a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.engine.sampling import SampleSettings, sample_clips
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.evaluation import report_samples
from lvt_pipeline.evaluation.evaluate import EvaluateSettings, evaluate
from lvt_pipeline.evaluation.report import report_inputs, write_report
from lvt_pipeline.evaluation.report_sections import cards
from lvt_pipeline.evaluation.work_dir import WorkDir, read_metrics, stage_records
from lvt_pipeline.provenance import missing_outputs, read_record, write_record
from tests.toy_work import FRAMES, ToyWork, make_codes, make_frames, make_tokenizer, make_toy_work

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def write_curves(work: ToyWork) -> None:
    """What a training would have logged."""
    for run, train, val in (
        (work.vqvae, {"reconstruction_loss": 0.4, "batch_perplexity": 5.0}, {"mse": 0.02, "perplexity": [5.0, 6.0]}),
        (work.prior, {"bits_per_dim": 3.0}, {"bits_per_dim": 3.1}),
    ):
        lines = [{"step": step, "split": "train", **train} for step in range(10, 110, 10)]
        lines += [{"step": 100, "split": "val", **val}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def sample_and_evaluate(work: ToyWork) -> None:
    settings = SampleSettings(frames=FRAMES, priming_frames=2, num_clips=2)
    sample_clips(work.prior, work.codes, work.samples, settings, device="cpu")
    paths = {"prior": work.prior, "frames": work.frames, "vqvae": work.vqvae, "samples": work.samples}
    evaluate(work.codes, work.root / "eval.json", EvaluateSettings(frames=FRAMES), device="cpu", **paths)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    work = make_toy_work(tmp_path_factory.mktemp("finished") / "work")
    write_curves(work)
    sample_and_evaluate(work)
    write_report(work.root, work.root / "report.html")
    return work


@pytest.fixture
def work(finished: ToyWork, tmp_path: Path) -> ToyWork:
    """A copy that the test may change."""
    return ToyWork(Path(shutil.copytree(finished.root, tmp_path / "work")))


def page(work: ToyWork) -> str:
    write_report(work.root, work.root / "report.html")
    return (work.root / "report.html").read_text()


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_nothing_on_the_page_is_fetched_from_anywhere(finished: ToyWork) -> None:
    html = (finished.root / "report.html").read_text()
    for tag, attributes in Elements(html).found:
        for name in ("src", "href", "poster", "srcset", "action", "data", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|<link[^>]+stylesheet", html)


def test_real_reconstructed_and_sampled_videos_stand_side_by_side(finished: ToyWork) -> None:
    elements = Elements((finished.root / "report.html").read_text())
    videos = elements.named("video")
    assert [video["aria-label"].split(" of ")[0] for video in videos] == [
        "Real video",
        "Reconstructed video",
        "Sampled video",
    ] * 2
    for video in videos:
        head, data = video["src"].split(",")
        assert head == "data:video/mp4;base64"
        assert base64.b64decode(data)[4:8] == b"ftyp"
        assert {"muted", "playsinline"} <= video.keys()
    clip = next(attributes for tag, attributes in elements.found if tag == "article")
    assert (clip["data-frames"], clip["data-given"]) == (str(FRAMES), "2")


def test_the_page_names_its_numbers_and_their_baselines(finished: ToyWork) -> None:
    text = Elements((finished.root / "report.html").read_text()).text
    results = json.loads((finished.root / "eval.json").read_text())
    for value in (
        results["prior"]["bits_per_dim"],
        results["baselines"]["unigram_bits"],
        results["baselines"]["previous_frame_bits"],
    ):
        assert f"{value:.3f}" in text
    assert f"{results['reconstruction']['psnr']:.2f}" in text
    assert "✗ does not beat the unigram" in text  # an untrained prior, and the page says so
    assert "Entropy of each codebook over exactly these codes" in text


def test_the_page_shows_curves_usage_pictures_codes_and_changes(finished: ToyWork) -> None:
    elements = Elements((finished.root / "report.html").read_text())
    charts = " ".join(svg["aria-label"] for svg in elements.named("svg"))
    for name in (
        "Reconstruction error",
        "Perplexity",
        "Code usage of codebook 1",
        "Bits per code",
        "PSNR of each frame",
    ):
        assert name in charts
    pictures = [image["alt"] for image in elements.named("img")]
    assert sum("original above, reconstruction below" in name for name in pictures) == 8
    assert sum(name.startswith("changed 1") for name in pictures) == 4  # real and sampled, two clips


def test_every_stage_has_its_provenance(finished: ToyWork) -> None:
    html = (finished.root / "report.html").read_text()
    for path in (finished.frames, finished.vqvae, finished.codes, finished.prior, finished.samples):
        record = read_record(path)
        assert record.fingerprint in html
        assert record.recipe in html


def test_a_better_prior_is_said_to_beat_its_baselines(work: ToyWork) -> None:
    results = json.loads((work.root / "eval.json").read_text())
    results["prior"]["bits_per_dim"] = 0.01
    (work.root / "eval.json").write_text(json.dumps(results))
    html = page(work)
    assert "✓ beats the unigram" in html
    assert "✓ beats “same as previous frame”" in html


def test_equal_artefacts_give_an_equal_page(work: ToyWork) -> None:
    assert page(work) == page(work)


def test_the_record_names_what_the_page_was_made_of(finished: ToyWork) -> None:
    record = read_record(finished.root / "report.html")
    assert record.inputs == report_inputs(finished.root)
    assert record.inputs["codes"] == read_record(finished.codes).fingerprint
    assert missing_outputs(finished.root / "report.html", record) == []


STAGES = {
    "runs/vqvae": "lvt train-vqvae",
    "data.zarr": "lvt encode-dataset",
    "runs/prior": "lvt train-prior",
    "samples.zarr": "lvt sample",
    "eval.json": "lvt evaluate",
    "frames": "lvt ingest",
}


@pytest.mark.parametrize("name", STAGES)
def test_a_missing_part_is_named_with_the_command_that_makes_it(work: ToyWork, name: str) -> None:
    target = work.root / name
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
        (work.root / "eval.json.provenance.json").unlink()
    text = Elements(page(work)).text
    assert STAGES[name] in text
    assert "– missing" in text
    assert "Provenance" in text


def test_an_empty_beginning_shows_every_command(work: ToyWork) -> None:
    for name in STAGES:
        if name != "frames":
            shutil.rmtree(work.root / name, ignore_errors=True)
    (work.root / "eval.json").unlink()
    elements = Elements(page(work))
    assert all(command in elements.text for name, command in STAGES.items() if name != "frames")
    assert elements.named("video") == []


def test_a_work_directory_of_lvt_run_is_helped_by_lvt_run(work: ToyWork) -> None:
    shutil.rmtree(work.samples)
    (work.root / "pipeline.toml").write_text("")
    assert f"lvt run {work.root / 'pipeline.toml'}" in Elements(page(work)).text


def test_a_training_under_way_is_shown_as_unfinished(work: ToyWork) -> None:
    (work.prior / "provenance.json").unlink()
    state = json.loads((work.prior / "run.json").read_text())
    (work.prior / "run.json").write_text(json.dumps({**state, "status": "running", "step": 50, "max_steps": 200}))
    text = Elements(page(work)).text
    assert "50 of 200, running" in text
    assert "… unfinished" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eval.json", "{}"),
        ("eval.json", '{"baselines": 3, "codes": [], "clips": 1, "split": "test"}'),
        ("eval.json", "not json"),
        ("runs/prior/metrics.jsonl", '{"step": 1, "split": "train"}\n{"step": 2, "spl'),
        ("runs/vqvae/run.json", "[]"),
        ("runs/prior/config.toml", "= broken"),
        ("data.zarr/zarr.json", "{}"),
        ("samples.zarr/zarr.json", "cut sho"),
        ("frames/provenance.json", "{}"),
    ],
)
def test_a_damaged_part_never_keeps_the_rest_from_being_shown(work: ToyWork, name: str, content: str) -> None:
    (work.root / name).write_text(content)
    html = page(work)
    assert html.rstrip().endswith("</html>")
    assert "Provenance" in html


def test_codes_of_other_frames_show_no_wrong_real_video(work: ToyWork) -> None:
    shutil.rmtree(work.frames)
    make_frames(work.frames, {"test/0": FRAMES + 5})
    elements = Elements(page(work))
    assert "made from other frames" in elements.text
    assert "✗ stale" in elements.text
    first = [video["aria-label"] for video in elements.named("video") if video["aria-label"].endswith("test/0")]
    assert first == ["Reconstructed video of test/0", "Sampled video of test/0"]


def test_codes_of_another_tokenizer_are_not_decoded(work: ToyWork) -> None:
    shutil.rmtree(work.codes)
    make_codes(work.codes, make_frames(work.root / "f2"), make_tokenizer(work.root / "t2", seed=4))
    states = {record.role: record.state for record in stage_records(WorkDir(work.root))}
    assert states["samples"] == "stale"
    shutil.rmtree(work.vqvae)
    make_tokenizer(work.vqvae, seed=5)
    text = Elements(page(work)).text
    assert "was made by tokenizer" in text


def test_a_codebook_that_collapsed_is_a_visible_warning(work: ToyWork, finished: ToyWork) -> None:
    assert "collapsed" not in Elements((finished.root / "report.html").read_text()).text
    record = read_record(work.vqvae)
    for collapsed, named in (([1], "Codebook 1 has collapsed"), ([0, 1], "Codebooks 0, 1 have collapsed")):
        counts = {**record.counts, "collapsed": collapsed}
        write_record(work.vqvae, record.__class__(**{**record.__dict__, "counts": counts}))
        assert named in Elements(page(work)).text


def test_names_from_files_cannot_inject_markup(work: ToyWork) -> None:
    record = read_record(work.frames)
    write_record(
        work.frames, record.__class__(**{**record.__dict__, "settings": {"a": "</pre><script>alert(1)</script>"}})
    )
    html = page(work)
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_media_stay_within_their_budget(work: ToyWork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_samples, "MOST_EMBEDDED_BYTES", 1)
    elements = Elements(page(work))
    assert len(elements.named("article")) == 1
    assert "1 more samples are in samples.zarr" in elements.text


def test_a_folder_that_is_no_work_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    with pytest.raises(ArtefactError, match="not a work directory"):
        write_report(tmp_path, tmp_path / "report.html")


def test_a_resumed_log_has_each_step_once_and_the_later_one_counts(tmp_path: Path) -> None:
    lines = [(10, 1.0), (20, 0.9), (30, 0.8), (20, 0.7), (30, 0.6)]
    text = "".join(json.dumps({"step": step, "split": "train", "loss": loss}) + "\n" for step, loss in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 40, "split": "tr')
    training, validation = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in training] == [(10, 1.0), (20, 0.7), (30, 0.6)]
    assert validation == []


def test_no_results_give_no_cards() -> None:
    assert cards({"metrics": None, "codes": None, "data": None}) == []


def test_long_samples_are_shown_in_strips_of_bounded_length() -> None:
    frames = np.zeros((4, 200, 200, 3), np.uint8)
    assert report_samples._thumbnails(frames).shape == (4, 66, 66, 3)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_every_video_loads_in_a_browser_without_an_error(finished: ToyWork, tmp_path: Path) -> None:
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [BROWSER, *options.split(), "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"]
    shown = subprocess.run(
        [*command, (finished.root / "report.html").as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    videos = Elements(shown.stdout).named("video")
    assert len(videos) == 6
    assert all(video.get("data-state") == "ready" and "controls" not in video for video in videos)
