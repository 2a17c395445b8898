"""The report page: self-contained, complete, and honest about what is missing, stale or broken."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.errors import ArtefactError, ConfigError
from lvt_pipeline.evaluation.compare import compare
from lvt_pipeline.evaluation.protocols.evaluate import evaluate_protocol
from lvt_pipeline.evaluation.protocols.results import Protocol
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.provenance import missing_outputs, read_record, write_record
from lvt_pipeline.report import samples as report_samples
from lvt_pipeline.report.clips import clips_section, evenly_chosen
from lvt_pipeline.report.numbers import format_spread
from lvt_pipeline.report.page import write_comparison, write_report
from lvt_pipeline.report.plots.engine import Series
from lvt_pipeline.report.plots.page_charts import line_chart
from lvt_pipeline.report.sections import cards
from lvt_pipeline.report.work import WorkDir, read_metrics, stage_records
from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.tiles import shrunk
from tests.finished_work import PRIMING, make_finished_work, make_other_run, sample_and_evaluate
from tests.run_files import edit_run, replace_record
from tests.scripted_networks import ToyDistance, ToyFeatures, save_scripted
from tests.toy_work import FRAMES, ToyWork, make_codes, make_frames, make_prior, make_tokenizer, make_toy_work

Lvt = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    work = make_finished_work(tmp_path_factory.mktemp("finished") / "work")
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
    assert (clip["data-frames"], clip["data-priming"]) == (str(FRAMES), str(PRIMING))


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
    assert (html.count("✓ beaten"), html.count("✗ not beaten")) == (3, 0)


def test_equal_artefacts_give_an_equal_page(work: ToyWork) -> None:
    assert page(work) == page(work)


def test_the_record_names_what_the_page_was_made_of(finished: ToyWork) -> None:
    record = read_record(finished.root / "report.html")
    assert record.inputs == WorkDir(finished.root).fingerprints
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


def test_what_one_command_makes_right_is_said_once(work: ToyWork) -> None:
    shutil.rmtree(work.prior)
    make_prior(work.prior, seed=3)
    (work.root / "pipeline.toml").write_text("")
    html = page(work)
    assert "Samples: made from another prior. Evaluation: made from another prior." in html
    assert html[html.index('class="attention"') :].split("</ul>")[0].count("<pre>") == 2  # this, and what is missing


def test_a_line_by_itself_is_named_where_its_axis_does_not_name_it() -> None:
    line = Series("alone", [1, 2], [3, 4])
    assert ">alone<" not in line_chart([line], title="t", x_label="x", y_label="y")
    assert ">alone<" in line_chart([line], title="t", x_label="x", y_label="y", always_named=True)


def test_a_training_under_way_is_shown_as_unfinished(work: ToyWork) -> None:
    (work.prior / "provenance.json").unlink()
    edit_run(work.prior, status="running", step=50, max_steps=200)
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


@pytest.mark.parametrize(("name", "tab"), [("eval.json", "evaluation"), ("samples.zarr/zarr.json", "samples")])
def test_a_damaged_part_is_named_once_on_the_overview(work: ToyWork, name: str, tab: str) -> None:
    (work.root / name).write_text("cut sho")
    html = page(work)
    overview = html[html.index('id="overview"') : html.index('id="data"')]
    links = [link["href"] for link in Elements(overview[: overview.index("</ul>")]).named("a")]
    assert links.count(f"#{tab}") >= 1
    assert "#clips" not in links
    assert name.split("/")[0] in overview[: overview.index("</ul>")]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("prior",), 3),
        (("prior", "bits_per_dim"), None),
        (("reconstruction",), []),
        (("samples",), "none"),
        (("samples", "mse_by_frame"), {"a": 1}),
        (("fvd",), [1]),
        (("protocol",), 7),
        (("baselines", "fitted_on"), None),
        (("per_clip",), {"evaluated": {"bits": 3}, "samples": []}),
        (("codes", "codebook_size"), -1),
        (("clips",), "many"),
        (("missing",), [3]),
    ],
)
def test_an_evaluation_of_odd_content_is_one_line_on_the_page(
    work: ToyWork, place: tuple[str, ...], value: object
) -> None:
    results = json.loads((work.root / "eval.json").read_text())
    part = results
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (work.root / "eval.json").write_text(json.dumps(results))
    html = page(work)
    assert html.rstrip().endswith("</html>")
    text = Elements(html).text
    assert "eval.json" in text
    assert "Error(" not in text


NESTED = "[" * 100_000


BAD_LINES = [
    '{"step": "ten", "split": "train", "loss": 1.0}',
    '{"step": 20, "split": ["train"], "loss": 1.0}',
    '{"step": null, "split": "val"}',
    '{"split": "val", "mse": 1}',
    "[1, 2]",
    f'{{"step": 20, "split": "train", "loss": {NESTED}',
    '{"step": 200, "split": "train", "loss": ' + "9" * 6000 + "}",
    "\x00\xff",
]
ODD_VALUES = ['"x"', "[null]", '{"a": 1}', "true", "[[1], 2]", '["a", "b"]']


def append(log: Path, *lines: str) -> None:
    log.write_bytes(log.read_bytes() + "".join(f"{line}\n" for line in lines).encode("latin-1"))


def odd_lines(value: str, step: int = 110) -> list[str]:
    """Lines of training and of validation whose numbers are all this value."""
    keys = ("loss", "mse", "perplexity", "reconstruction_loss", "batch_perplexity")
    numbers = ", ".join(f'"{key}": {value}' for key in keys)
    return [f'{{"step": {step + 10 * i}, "split": "{split}", {numbers}}}' for i, split in enumerate(("train", "val"))]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_line_of_a_log_that_makes_no_sense_costs_only_itself(work: ToyWork, line: str) -> None:
    log = work.prior / "metrics.jsonl"
    before = read_metrics(log).main_curves("prior")
    append(log, line)
    assert read_metrics(log).main_curves("prior") == before


def test_lines_of_a_log_that_make_no_sense_leave_the_page_as_it_was(work: ToyWork) -> None:
    before = page(work)
    append(work.prior / "metrics.jsonl", *BAD_LINES)
    after = page(work)
    chart = "Bits per code of the prior over training."
    assert before[before.index(chart) :][:200] == after[after.index(chart) :][:200]


@pytest.mark.parametrize("value", ODD_VALUES)
def test_a_value_of_a_log_that_is_no_number_is_left_out(work: ToyWork, value: str) -> None:
    log = work.vqvae / "metrics.jsonl"
    append(log, *odd_lines(value))
    training, validation = read_metrics(log).main_curves("vqvae")
    assert (training.y[-1], validation.y[-1]) == (0.1, 0.02)


def test_values_of_a_log_that_are_no_numbers_leave_the_page_as_it_was(work: ToyWork) -> None:
    for number, value in enumerate(ODD_VALUES):
        append(work.vqvae / "metrics.jsonl", *odd_lines(value, 110 + 20 * number))
    assert "Reconstruction error over training. training ends at 0.1; validation ends at 0.02" in page(work)


def test_missing_validation_is_stated_with_its_reason(work: ToyWork) -> None:
    for run in (work.vqvae, work.prior):
        log = run / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines if '"train"' in line))
    assert Elements(page(work)).text.count("There are no validation scores yet; the val split has 1 clip.") == 2
    make_frames(work.root / "without", {}, splits={"train": 4, "test": 3})
    shutil.rmtree(work.frames)
    (work.root / "without").rename(work.frames)
    assert "no clip is in the val split" in Elements(page(work)).text


def test_counts_of_one_have_no_plural(tmp_path: Path) -> None:
    work = ToyWork(tmp_path / "work")
    frames = make_frames(work.frames, {"test/0": 1}, splits={"test": 1})
    make_codes(work.codes, frames, make_tokenizer(work.vqvae))
    text = " ".join(Elements(page(work)).text.split())
    assert "1 clip, 1 frame ·" in text
    assert not re.search(r"\b1 (clips|frames|samples|sampled videos|codes|runs)\b", text)


def test_errors_of_samples_are_no_verdict(finished: ToyWork) -> None:
    html = (finished.root / "report.html").read_text()
    text = Elements(html).text
    assert "A sanity check, not a score: a sample is one of many possible futures." in " ".join(text.split())
    assert "still last frame</span>" not in html
    assert '<span class="verdict worse">not closer' not in html
    assert '<span class="verdict plain">not closer than a still frame' in html


def test_perplexity_is_called_perplexity(finished: ToyWork) -> None:
    html = (finished.root / "report.html").read_text()
    assert ">perplexity</text>" in html
    assert "codes in use</text>" not in html


def test_the_title_names_the_folder_above_too(finished: ToyWork) -> None:
    html = (finished.root / "report.html").read_text()
    assert f"<h1>{finished.root.parent.name}/work</h1>" in html


def test_notes_about_clips_are_listed_with_counts_and_examples(tmp_path: Path) -> None:
    notes = {f"train/{number}": (Note("non-square-pixels", f"pixels are {number}:1"),) for number in range(4)}
    make_frames(tmp_path / "work" / "frames", notes=notes)
    write_report(tmp_path / "work", tmp_path / "report.html")
    text = " ".join(Elements((tmp_path / "report.html").read_text()).text.split())
    assert "Unusual, but accepted" in text
    assert re.search(
        r"non square pixels ?4 ?train/0: pixels are 0:1 ?train/1: pixels are 1:1 ?train/2: pixels are 2:1", text
    )
    assert "train/3: pixels" not in text


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
    states = {record["role"]: record["state"] for record in stage_records(WorkDir(work.root))}
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
        replace_record(work.vqvae, record.__class__(**{**record.__dict__, "counts": counts}))
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
    assert "1 of 2 are shown: more would make the page larger than 20 MB." in elements.text


def test_a_folder_that_is_no_work_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    with pytest.raises(ArtefactError, match="not a work directory"):
        write_report(tmp_path, tmp_path / "report.html")


def test_a_resumed_log_has_each_step_once_and_the_later_one_counts(tmp_path: Path) -> None:
    lines = [(10, 1.0), (20, 0.9), (30, 0.8), (20, 0.7), (30, 0.6)]
    text = "".join(json.dumps({"step": step, "split": "train", "loss": loss}) + "\n" for step, loss in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 40, "split": "tr')
    log = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in log.training] == [(10, 1.0), (20, 0.7), (30, 0.6)]
    assert log.validation == []


def test_no_results_give_no_cards() -> None:
    assert cards({"evaluation": None, "codes": None, "data": None}) == []


def test_long_samples_are_shown_in_strips_of_bounded_length() -> None:
    frames = np.zeros((4, 200, 200, 3), np.uint8)
    assert shrunk(frames, 64).shape == (4, 66, 66, 3)


TABS = ("overview", "data", "tokenizer", "codes", "prior", "samples", "evaluation", "clips")


def test_every_tab_has_a_section_and_every_output_its_record_in_one(finished: ToyWork) -> None:
    elements = Elements((finished.root / "report.html").read_text())
    sections = [section["id"] for section in elements.named("section")]
    assert sections == list(TABS)
    assert all("hidden" not in section for section in elements.named("section")), "without scripts all is there"
    links = [link["href"] for link in elements.named("a")]
    assert links[: len(TABS)] == [f"#{tab}" for tab in TABS]
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert all(link.removeprefix("#") in ids for link in links if link is not None)
    assert {"record-frames", "record-vqvae", "record-codes", "record-prior", "record-evaluation"} <= set(ids)


def rows_of(html: str, list_id: str) -> dict[str, dict[str, float]]:
    """What the items of a list are ordered by, by clip."""
    part = html[html.index(f'id="{list_id}"') :]
    tag = "tr" if list_id == "clip-list" else "article"
    return {item["data-name"]: json.loads(item["data-order"]) for item in Elements(part).named(tag)}


def test_every_evaluated_clip_has_its_numbers_in_the_table(finished: ToyWork) -> None:
    rows = rows_of((finished.root / "report.html").read_text(), "clip-list")
    values = json.loads((finished.root / "eval.json").read_text())["per_clip"]
    assert list(rows) == values["evaluated"]["clip"]
    for number, clip in enumerate(values["evaluated"]["clip"]):
        assert rows[clip]["bits"] == values["evaluated"]["bits"][number]
        assert rows[clip]["reconstruction_mse"] == values["evaluated"]["reconstruction_mse"][number]
    for number, clip in enumerate(values["samples"]["clip"]):
        assert rows[clip]["sample_mse"] == values["samples"]["sample_mse"][number]


def test_the_longest_line_of_a_column_is_at_its_worst_clip(finished: ToyWork) -> None:
    section = clips_section(WorkDir(finished.root))
    for place, metric in enumerate(section["metrics"]):
        rows = [row for row in section["rows"] if metric.key in row["order"]]
        worst = (max if metric.lower_is_better else min)(rows, key=lambda row: row["order"][metric.key])
        assert worst["cells"][place]["width"] == 100.0
        assert all(0 <= row["cells"][place]["width"] <= 100 for row in rows)


def test_players_are_ordered_by_the_numbers_of_their_clip(finished: ToyWork) -> None:
    html = (finished.root / "report.html").read_text()
    players = rows_of(html, "sample-list")
    assert len(players) == 2
    assert all(values == rows_of(html, "clip-list")[clip] for clip, values in players.items())
    assert "sample SSIM, worst first" in html


def test_of_hundreds_of_clips_the_worst_and_the_best_are_chosen() -> None:
    names = [f"clip-{number}" for number in range(300)]
    values = {"sample_ssim": {name: (number * 7 % 300) / 300 for number, name in enumerate(names)}}
    chosen, reason = evenly_chosen(names, values, 12)
    by_value = sorted(names, key=lambda name: values["sample_ssim"][name])
    assert len(chosen) == 12
    assert set(by_value[:4]) | set(by_value[-4:]) <= set(chosen)
    assert chosen == sorted(chosen, key=names.index)
    assert "12 of 300 are shown: the 4 worst and the 4 best by sample SSIM" in reason
    errors = {"sample_mse": {name: number / 300 for number, name in enumerate(names)}}
    extremes = {names[number] for number in (0, 1, 298, 299)}
    assert extremes <= set(evenly_chosen(names, {**values, **errors}, 12)[0])
    assert evenly_chosen(names[:12], values, 12) == (names[:12], "")
    assert len(set(evenly_chosen(names, {}, 12)[0])) == 12


def test_several_samples_of_a_clip_stand_beside_each_other(work: ToyWork) -> None:
    sample_and_evaluate(work, samples_per_clip=2)
    elements = Elements(page(work))
    assert len(elements.named("article")) == 2
    captions = [video["aria-label"].split(" video")[0] for video in elements.named("video")]
    assert captions == ["Real", "Reconstructed", "Sampled 1", "Sampled 2"] * 2
    assert "Codes that differ between samples of one clip" in elements.text
    assert "4 of 2 clips" in elements.text


def test_a_protocol_is_shown_with_its_spread_its_baselines_and_what_is_not_as_in_the_paper(work: ToyWork) -> None:
    protocol = Protocol(name="toy", frames=FRAMES, priming_frames=2, runs=10, clips=256, published={"fvd": 125.76})
    options = {"i3d": save_scripted(ToyFeatures(), work.root / "i3d.pt")}
    options["lpips"] = save_scripted(ToyDistance(), work.root / "lpips.pt")
    sources = Sources(codes=work.codes, prior=work.prior, frames=work.frames, vqvae=work.vqvae, **options)
    out = work.root / "eval.json"
    evaluate_protocol(sources, out, protocol, num_runs=2, device="cpu")
    results = json.loads(out.read_text())
    text = Elements(page(work)).text
    assert "Every run of the protocol toy" in text
    assert "Protocol toy differs from the paper: 3 clips, the paper has 256; 2 runs, the paper has 10" in text
    assert "Not FVD: the network gives 6 features" in text
    assert "Published, with four codebooks: fvd 125.76" in text
    assert "sha256" in text  # the card
    main_tables = text[text.index("Samples, against what really happened") : text.index("Every run of the protocol")]
    for name in ("mse", "ssim", "lpips", "fvd_real_priming", "fvd_reconstructed_priming"):
        mean, std = (results["protocol"][key][name] for key in ("mean", "std"))
        assert format_spread(mean, std) in main_tables, name
    assert "KVD [95 %]" in main_tables
    for kernel in results["fvd"]["kvd"].values():
        assert "{value:.4g} [{low:.4g}, {high:.4g}]".format(**kernel) in main_tables
    assert "LPIPS over the horizon" in text
    assert "repeating the last frame" in text


def test_a_spread_is_written_with_two_digits() -> None:
    assert format_spread(125.7612, 2.8977) == "125.8 ± 2.9"
    assert format_spread(0.012341, 0.000123) == "0.01234 ± 0.00012"
    assert format_spread(19.36, None) == "19.4"
    assert format_spread(1.0, 0.0) == "1.0000 ± 0.0000"


def test_what_was_not_measured_is_named_with_what_it_needs(finished: ToyWork) -> None:
    text = Elements((finished.root / "report.html").read_text()).text
    assert "Not measured" in text
    assert "needs a TorchScript I3D (--i3d)" in text


def test_measured_training_clips_are_a_warning(work: ToyWork) -> None:
    results = json.loads((work.root / "eval.json").read_text())
    (work.root / "eval.json").write_text(json.dumps({**results, "training_clips": 2}))
    assert "2 of these clips were used for training; the scores are optimistic." in Elements(page(work)).text


def test_a_work_directory_of_a_tokenizer_alone_is_a_page(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "work" / "runs" / "vqvae")
    write_report(tmp_path / "work", tmp_path / "report.html")
    text = Elements((tmp_path / "report.html").read_text()).text
    assert "Not made yet: manifest, frames, codes, prior, samples, videos, evaluation." in text
    assert "No reconstructions: frames does not exist yet." in text


@pytest.mark.parametrize(
    "broken", [3, [], {"evaluated": 3, "samples": []}, {"evaluated": {"clip": 4, "bits": "x"}, "samples": {}}, {}]
)
def test_values_of_single_clips_that_make_no_sense_cost_only_the_table(work: ToyWork, broken: object) -> None:
    results = json.loads((work.root / "eval.json").read_text())
    (work.root / "eval.json").write_text(json.dumps({**results, "per_clip": broken}))
    elements = Elements(page(work))
    assert len(elements.named("video")) == 6
    assert "eval.json holds no values of single clips" in elements.text


def test_old_numbers_of_another_prior_are_called_stale_before_anything_else(work: ToyWork) -> None:
    shutil.rmtree(work.prior)
    make_prior(work.prior, seed=3)
    html = page(work)
    assert html.index("Samples: made from another prior.") < html.index("Bits per code")


@pytest.fixture(scope="module")
def other(finished: ToyWork, tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    """Another prior on the same codes."""
    return make_other_run(finished, tmp_path_factory.mktemp("other") / "second")


@pytest.fixture(scope="module")
def both(finished: ToyWork, other: ToyWork, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("both") / "comparison.html"
    write_comparison([finished.root, other.root], out)
    return out.read_text()


def test_two_runs_have_the_numbers_and_verdicts_of_lvt_compare(finished: ToyWork, other: ToyWork, both: str) -> None:
    text = Elements(both).text
    found = compare([finished.root, other.root])
    for first, second in found.table.values():
        assert f"{first.mean:.4g}" in text
        assert f"[{second.low:.4g}, {second.high:.4g}]" in text
    bits = next(item for item in found.differences if item.metric == "bits")
    assert f"{bits.mean:+.3g} [{bits.low:+.3g}, {bits.high:+.3g}], paired, 3" in text
    assert bits.verdict in text
    assert "equal" in text  # the reconstructions of one tokenizer


def test_two_runs_are_seen_side_by_side_and_shared_parts_once(both: str) -> None:
    elements = Elements(both)
    assert [video["aria-label"].split(" video")[0] for video in elements.named("video")] == [
        "Real",
        "Reconstructed",
        "work, sampled",
        "second, sampled",
    ] * 2
    assert "bits per code, second gains most" in elements.text
    charts = " ".join(svg["aria-label"] for svg in elements.named("svg"))
    assert "work ends at 3.1; second ends at 3.1" in charts
    assert "same as work" in elements.text
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_gains_order_the_clips_of_two_runs(finished: ToyWork, other: ToyWork, both: str) -> None:
    values = [json.loads((work.root / "eval.json").read_text())["per_clip"]["samples"] for work in (finished, other)]
    orders = rows_of(both, "sample-list")
    for number, clip in enumerate(values[0]["clip"]):
        gain = values[1]["sample_mse"][number] - values[0]["sample_mse"][number]
        assert orders[clip]["sample_mse-1"] == pytest.approx(gain)


def test_settings_that_differ_are_listed_and_others_are_not(work: ToyWork, finished: ToyWork, tmp_path: Path) -> None:
    record = read_record(work.prior)
    settings = {**record.settings, "model": {**record.settings.get("model", {}), "width": 99}}
    replace_record(work.prior, record.__class__(**{**record.__dict__, "settings": settings}))
    write_comparison([finished.root, work.root], tmp_path / "c.html")
    html = (tmp_path / "c.html").read_text()
    part = Elements(html[html.index('id="settings"') : html.index('id="provenance"')]).text
    assert "Prior: model.width" in part
    assert "Samples:" not in part


def test_a_run_that_has_not_come_far_takes_part_with_what_it_has(
    work: ToyWork, finished: ToyWork, tmp_path: Path
) -> None:
    for name in ("samples.zarr", "runs/prior"):
        shutil.rmtree(work.root / name)
    (work.root / "eval.json").write_text("{}")
    moved = work.root.rename(tmp_path / "young")
    record = write_comparison([moved, finished.root], tmp_path / "c.html")
    text = Elements((tmp_path / "c.html").read_text()).text
    assert "young is left out of the numbers" in text
    assert "young: Not made yet: " in text
    assert "Fewer than two of them have samples." in text
    assert "young/prior" in record.counts["not_up_to_date"]
    assert record.inputs["work/codes"] == read_record(finished.codes).fingerprint


def test_two_tokenizers_have_a_reconstruction_each(finished: ToyWork, tmp_path: Path) -> None:
    other = make_finished_work(tmp_path / "other")
    for path in (other.vqvae, other.codes, other.samples):
        shutil.rmtree(path)
    make_codes(other.codes, FrameShards(other.frames), make_tokenizer(other.vqvae, seed=4))
    sample_and_evaluate(other)
    write_comparison([finished.root, other.root], tmp_path / "c.html")
    elements = Elements((tmp_path / "c.html").read_text())
    captions = [video["aria-label"].split(" video")[0] for video in elements.named("video")][:5]
    assert captions == ["Real", "work, sampled", "other, sampled", "work, reconstructed", "other, reconstructed"]
    assert "tokenizer differ" in elements.text  # bits of other codes are not compared


def test_samples_that_cannot_be_read_cost_only_the_clips(work: ToyWork, finished: ToyWork, tmp_path: Path) -> None:
    shutil.rmtree(work.samples / "codes" / "c")
    moved = work.root.rename(tmp_path / "torn")
    write_comparison([finished.root, moved], tmp_path / "c.html")
    elements = Elements((tmp_path / "c.html").read_text())
    assert "is missing; run the command that made the store again" in elements.text
    assert elements.named("video") == []
    assert "Key numbers" in elements.text


def test_a_clip_of_the_same_name_that_is_another_one_is_noted(finished: ToyWork) -> None:
    work = WorkDir(finished.root)
    (clip, siblings), *_ = report_samples.checked_samples(work).items()
    first = replace(report_samples.videos_of_run(work, "first", siblings), num_samples=3)
    same = replace(first, name="same", num_samples=1)
    assert first.real is not None
    another = replace(first, name="second", real=255 - first.real, priming_frames=1, num_samples=1)
    assert report_samples.clip_player(clip, 1, [same, replace(same, name="b")], [], {})["notes"] == []
    assert report_samples.clip_player(clip, 1, [first, another], [], {})["notes"] == [
        "second has 1 priming frame.",
        "The clip of this name is another one in second: the real video is first's.",
        "Shown: 1 of 3 samples of first.",
    ]


def test_runs_without_a_clip_in_common_say_so(finished: ToyWork, tmp_path: Path) -> None:
    other = make_toy_work(tmp_path / "other")
    settings = SampleSettings(frames=FRAMES, priming_frames=2, split="val", num_clips=1)
    sample_clips(other.prior, other.codes, other.samples, settings, device="cpu")
    write_comparison([finished.root, other.root], tmp_path / "c.html")
    assert "They have no sampled clip in common" in (tmp_path / "c.html").read_text()


def test_too_many_or_equal_runs_are_refused(finished: ToyWork, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 4 work directories, found 5"):
        write_comparison([finished.root] * 5, tmp_path / "c.html")
    with pytest.raises(ConfigError, match="given twice"):
        write_comparison([finished.root, finished.root / ".." / "work"], tmp_path / "c.html")
    with pytest.raises(ArtefactError, match="does not exist"):
        write_comparison([finished.root, tmp_path / "nowhere"], tmp_path / "c.html")


def test_the_command_takes_one_or_several(finished: ToyWork, other: ToyWork, tmp_path: Path, lvt: Lvt) -> None:
    code, out, _ = lvt("report", finished.root, "-o", tmp_path / "one.html")
    assert (code, "one.html" in out) == (0, True)
    code, out, _ = lvt("report", finished.root, other.root, "-o", tmp_path / "two.html", "--json")
    assert code == 0
    assert json.loads(out)["counts"]["bytes"] == (tmp_path / "two.html").stat().st_size
