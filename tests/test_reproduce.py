"""`lvt reproduce`: the paper's numbers as printed, what each table needs, and our numbers beside them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvt_pipeline.config import load
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.pipeline.making import Maker
from lvt_pipeline.pipeline.options import Making
from lvt_pipeline.pipeline.running import StageResult
from lvt_pipeline.reproduce import running
from lvt_pipeline.reproduce.experiments import (
    TARGETS,
    count_parameters,
    find_targets,
    prior_recipe,
    target_priors,
    tokenizer_recipe,
)
from lvt_pipeline.reproduce.published import COPY, TABLES, parse_number
from lvt_pipeline.reproduce.running import Reproduction
from lvt_pipeline.reproduce.settings import Asked, ReproduceSettings, load_settings
from lvt_pipeline.reproduce.tables import FilledRow, FilledTable, Measured, in_millions, spoken
from lvt_pipeline.storage import read_json
from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings
from lvt_pipeline.workspace.stages import Stage
from tests.scripted_networks import ToyFeatures, save_scripted

PAPER = Path(__file__).parents[2] / "shared" / "paper" / "latent_video_transformer.txt"
Lvt = Callable[..., tuple[int, str, str]]

# Everything in seconds: 32x32 frames, 8x8 grids, a few steps. Clips of 16 frames, as in the paper.
SMALLEST = (
    "demo={num_clips=18, num_frames=16}",
    "ingest.geometry.size=32",
    "vqvae.model={stem_width=8, code_width=16, residual_width=8, codebook_size=16}",
    "vqvae.training={max_steps=6, batch_size=8, eval_every=6, picture_every=6, checkpoint_every=6, warmup_steps=2}",
    "prior.model={width=16, head_width=8, num_heads=2, embedding_width=8, encoder_layers=1, decoder_layers=1}",
    "prior.training={max_steps=4, batch_size=4, eval_every=4, eval_items=1, picture_every=100, checkpoint_every=4,"
    " warmup_steps=2}",
    "max_clips=2",
    "repetitions=1",
)


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def plan(work_dir: Path, *names: str, **asked: Any) -> list[running.PlannedStep]:
    settings = load_settings(work_dir, Asked(**asked))
    return Reproduction(find_targets(names), settings, work_dir, device="cpu").plan()


# The published numbers ------------------------------------------------------------------------------------------------


def test_tables_have_the_rows_of_the_paper() -> None:
    assert {name: len(table.rows) for name, table in TABLES.items()} == {
        "table1": 2,
        "table2": 6,
        "table3": 12,
        "table4": 2,
        "table5": 3,
        "table6": 5,
        "table7": 3,
        "table8": 9,
    }
    for table in TABLES.values():
        for row in table.rows:
            assert len(row.labels) == len(table.labels)
            assert len(row.numbers) == len(table.columns)


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text lies beside the checkout, or not")
@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_printed_in_the_paper(name: str) -> None:
    table = TABLES[name]
    text = PAPER.read_text().replace(r"\pm", "±").replace("LVT (ours, $n_c = 1$)", "LVT (n_c = 1)")
    text = text.replace("LVT (ours, $n_c = 4$)", "LVT (n_c = 4)").replace("LVT (ours)", "LVT")
    _, _, after = text.partition(f"\nTable {table.number}: ")
    lines = re.sub(r" *± *", " ± ", after).split("\n")[2:]  # the title, an empty line, then the table
    printed = [line.split("\t") for line in lines[1 : 1 + len(table.rows)]]
    assert [[*row.labels, *row.numbers] for row in table.rows] == printed
    assert "\t" not in lines[1 + len(table.rows)], "the paper's table has no further row"


def test_rows_that_stand_in_two_tables_agree() -> None:
    for number in range(3):
        assert TABLES["table2"].rows[number].numbers == TABLES["table8"].rows[number].numbers
        assert TABLES["table2"].rows[number].ours == TABLES["table8"].rows[number].ours
    assert TABLES["table7"].rows[0].numbers[:2] == TABLES["table2"].rows[3].numbers
    assert TABLES["table6"].rows[1].numbers == TABLES["table5"].rows[0].numbers


def test_printed_numbers_are_read() -> None:
    assert parse_number("258.89 ± 2.85") == (258.89, 2.85)
    assert parse_number("0.002") == (0.002, None)
    assert parse_number("-") == (None, None)
    assert in_millions(33_095_168) == "33.09"


# What a table needs ---------------------------------------------------------------------------------------------------


def test_nothing_is_made_twice_and_what_a_stage_needs_comes_before_it(tmp_path: Path) -> None:
    outputs = [str(step.state.output.relative_to(tmp_path)) for step in plan(tmp_path, "all")]
    assert len(set(outputs)) == len(outputs)
    place = {output: number for number, output in enumerate(outputs)}
    assert place["frames"] < place["runs/vqvae-nc1"] < place["codes-nc1.zarr"] < place["runs/prior-nc1-tied"]
    assert place["runs/prior-nc1-tied"] < place["eval/prior-nc1-tied.json"]
    assert sum(output.startswith("runs/prior-") for output in outputs) == 14
    assert sum(output.startswith("eval/timing-") for output in outputs) == 3


def test_tables_of_both_datasets_share_their_runs_where_the_networks_are_the_same(tmp_path: Path) -> None:
    tiny = {step.state.name for step in plan(tmp_path, "table2", "table5")}
    assert tiny == {step.state.name for step in plan(tmp_path, "table2")}
    paper = [step.state.name for step in plan(tmp_path, "table2", "table5", scale="paper")]
    assert "train-vqvae nc4" in paper
    assert "train-vqvae kinetics-nc4" in paper
    assert "train-prior kinetics-nc4-spatial" in paper


def test_at_the_papers_scale_every_run_is_the_preset_of_its_row() -> None:
    settings = ReproduceSettings(scale="paper")
    for dataset, books, preset in [
        ("bair", 1, "bair-vqvae-nc1"),
        ("bair", 4, "bair-vqvae-nc4"),
        ("kinetics", 1, "kinetics-vqvae-nc1"),
        ("kinetics", 4, "kinetics-vqvae-nc4"),
    ]:
        assert tokenizer_recipe(dataset, books, settings).settings == load(VQVAERunSettings, "vqvae", preset=preset)
    for key, preset in [
        ("nc1-single-frame", "table8-single-frame"),
        ("nc1-spatiotemporal", "table8-spatiotemporal"),
        ("nc1-adaptive-tied-projections", "table8-adaptive-tied-projections"),
        ("nc4-spatial", "spatial-reference"),
        ("nc4-spatiotemporal", "spatiotemporal"),
    ]:
        assert prior_recipe("bair", key, settings).settings == load(PriorRunSettings, "prior", preset=preset)


def test_a_smaller_scale_keeps_what_a_row_is_about(tmp_path: Path) -> None:
    tiny, paper = load_settings(tmp_path), ReproduceSettings(scale="paper")
    kept = ("frames", "subscale", "kernel", "attention", "decoder_input", "head", "priming_frames")
    kinds = set()
    for target in TARGETS.values():
        for small, large in zip(target_priors(target, tiny), target_priors(target, paper), strict=True):
            of_the_row = [getattr(small.settings.model, name) for name in kept]
            assert of_the_row == [getattr(large.settings.model, name) for name in kept]
            assert small.tokenizer.settings.model.num_codebooks == large.tokenizer.settings.model.num_codebooks
            assert (small.settings.model.width, large.settings.model.width) == (64, 512)
            kinds.add((small.tokenizer.settings.model.num_codebooks, *map(str, of_the_row)))
    assert len(kinds) == 14


def test_table_8_has_all_adaptive_variants_and_table_7_all_kinds_of_attention() -> None:
    settings = ReproduceSettings(scale="paper")
    eighth = [it.settings.model for it in target_priors(TARGETS["table8"], settings)]
    assert [(model.decoder_input, model.head) for model in eighth] == [
        ("embedding", "separate"),
        ("embedding", "separate"),
        ("embedding", "separate"),
        ("embedding", "tied"),
        ("adaptive", "separate"),
        ("embedding", "adaptive"),
        ("adaptive", "adaptive"),
        ("adaptive", "adaptive-tied"),
        ("adaptive", "adaptive-tied-projections"),
    ]
    seventh = target_priors(TARGETS["table7"], settings)
    assert [it.settings.model.attention for it in seventh] == ["query-key", "key-only", "distance-only"]
    published = [row.numbers[2] for row in TABLES["table7"].rows]
    assert [in_millions(count_parameters(it)) for it in seventh] == published


def test_both_readings_of_spatial_can_be_asked_for() -> None:
    def frames(spatial: Any) -> list[int]:
        found = target_priors(TARGETS["table5"], ReproduceSettings(scale="paper", spatial=spatial))
        return [it.settings.model.frames for it in found]

    assert (frames("reference"), frames("full"), frames("both")) == ([16, 4, 16], [16, 16, 16], [16, 4, 16, 16])


def test_a_dry_run_counts_parameters_and_steps_and_writes_nothing(tmp_path: Path, lvt: Lvt) -> None:
    work_dir = tmp_path / "w"
    code, out, err = lvt("reproduce", "table7", "--work-dir", work_dir, "--scale", "paper", "--dry-run", "--json")
    assert code == 0, err
    steps = {step["stage"]: step for step in json.loads(out)["steps"]}
    counts = [steps[f"train-prior nc4-{kind}"]["parameters"] for kind in ("single-frame", "key-only", "distance-only")]
    assert counts == [49_872_384, 41_500_160, 33_095_168]
    assert steps["train-vqvae nc4"]["training_steps"] == 500_000
    assert not work_dir.exists()
    code, out, _ = lvt("reproduce", "table7", "--work-dir", work_dir, "--dry-run")
    assert code == 0
    assert "time-sampling nc4-key-only" in out
    assert "13 of 13 stages to run" in out


def test_frames_of_another_work_directory_are_taken_as_they_are(work_dir: Path, lvt: Lvt) -> None:
    steps = plan(work_dir, "table1")
    assert [step.state.name for step in steps[:2]] == ["train-vqvae nc1", "encode-dataset nc1"]
    code, out, _ = lvt("reproduce", "table1", "--work-dir", work_dir, "--dry-run")
    assert code == 0
    assert "on the clips of videos" in out


# Tables ---------------------------------------------------------------------------------------------------------------


def filled(**changes: Any) -> FilledTable:
    paper = TABLES["table2"]
    rows = [
        FilledRow(
            row.labels,
            {"bits": Measured(2.0 + number), "fvd": Measured(100.0 + number, 0.125)},
            dict(zip(paper.columns, row.numbers, strict=True)),
            row.ours,
        )
        for number, row in enumerate(paper.rows)
    ]
    rows.append(FilledRow(("last priming frame repeated", ""), {"fvd": Measured(7.0)}, {}, None, is_extra=True))
    table = FilledTable(
        name="table2",
        paper=paper,
        data="my clips",
        dataset=None,
        scale="tiny",
        clips=4,
        split="test",
        runs=2,
        fvd_label="FVD, exact port",
        rows=rows,
        notes=["a note"],
    )
    return replace(table, **changes)


def test_the_text_has_both_numbers_of_every_row_under_their_titles() -> None:
    lines = filled().to_text().splitlines()
    assert lines[0] == "Table 2: Video prediction performance (Rakhimov et al. 2020, section 4.2)"
    assert lines[1] == "ours: my clips, preset tiny, 4 test clips, 2 runs of sampling"
    title = next(number for number, line in enumerate(lines) if line.startswith("Subscaling type"))
    spatial = lines[title + 3]
    assert spatial.split() == ["Spatial", "1", "3.000", "1.79", "101.00", "±", "0.12", "524.43", "±", "9.41"]
    assert spatial.index("1.79") == lines[title].index("paper, BAIR")
    assert spatial.index("101.00") == lines[title - 1].index("FVD")
    assert lines[-1] == "a note"


def test_nobody_takes_demo_numbers_for_the_papers() -> None:
    assert "Other data than the paper's" in filled().to_text()
    assert "Other data" not in filled(dataset="bair", scale="paper").to_text()
    assert "smaller networks" in filled(dataset="bair").to_text()
    assert "Other data than the paper's" in filled(dataset="kinetics").to_markdown()


def test_without_a_network_the_column_says_what_it_needs() -> None:
    bare = [
        replace(row, ours={key: value for key, value in row.ours.items() if key == "bits"}) for row in filled().rows
    ]
    table = filled(rows=bare, fvd_label=None)
    assert "ours: needs --i3d FILE" in table.to_text()
    assert "| FVD, ours: needs --i3d FILE | FVD, paper, BAIR |" in table.to_markdown()
    assert table.to_json()["rows"][0]["ours"]["fvd"] is None
    toy = filled(fvd_label="not FVD: the network gives 6 features")
    assert "ours: not FVD" in toy.to_text()


def test_csv_and_json_have_means_and_spreads_of_both() -> None:
    rows = list(csv.DictReader(io.StringIO(filled().to_csv())))
    assert rows[1]["bits_ours"] == "3.0"
    assert (rows[1]["fvd_published"], rows[1]["fvd_published_std"]) == ("524.43", "9.41")
    assert (rows[1]["fvd_ours_std"], rows[1]["experiment"]) == ("0.125", "nc1-spatial")
    assert rows[-1]["fvd_published"] == ""
    found = filled().to_json()
    assert found["rows"][1]["published"]["fvd"] == {"printed": "524.43 ± 9.41", "mean": 524.43, "std": 9.41}
    assert found["rows"][1]["ours"]["fvd"] == {"mean": 101.0, "std": 0.125}
    assert found["rows"][-1]["published"]["fvd"] is None
    assert found["rows"][-1]["is_extra"]


def test_numbers_have_the_digits_of_their_column() -> None:
    assert spoken("mse", Measured(0.00038)) == "0.00038"
    assert spoken("bits", Measured(1.2345)) == "1.234"
    assert spoken("fvd", Measured(125.756, 2.904)) == "125.76 ± 2.90"
    assert spoken("parameters", Measured(49_872_384)) == "49.87"
    assert spoken("seconds", Measured(34.96)) == "35"


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (["tabel3"], 1, "no target 'tabel3'; did you mean table3?"),
        (["Table 3"], 1, "did you mean table3?"),
        (["figure2"], 1, "known: all, table1"),
        (["table1", "--scale", "papr"], 1, "no preset 'papr'; did you mean paper? known: tiny, small, paper"),
        (["table1", "--videos", "nowhere"], 1, "nowhere does not exist"),
        (["table1", "--set", "run=3"], 1, "unknown setting run; did you mean runs?"),
        (["table1", "--set", "vqvae.model.widht=3"], 1, "tokenizer nc1 (vqvae): unknown setting model.widht"),
        (["table2", "--set", "prior.training.max_step=3"], 1, "did you mean training.max_steps?"),
        (["table1", "--set", "repetitions=0"], 1, "repetitions=0 must be at least 1"),
        ([], 2, "give a table or figure and --work-dir"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    given: list[str], code: int, says: str, tmp_path: Path, lvt: Lvt
) -> None:
    found, out, err = lvt("reproduce", *given, "--work-dir", tmp_path / "w")
    assert (found, out) == (code, "")
    assert says in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "w").exists()


def test_the_list_names_every_target(lvt: Lvt) -> None:
    code, out, _ = lvt("reproduce", "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(TARGETS)


# The real thing, as small as it gets ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A work directory with table 1. Shared: copy it before you change it."""
    from lvt_pipeline.cli import run

    work_dir = tmp_path_factory.mktemp("reproduce") / "w"
    i3d = save_scripted(ToyFeatures(), work_dir.parent / "i3d.pt")
    given = ["reproduce", "table1", "--work-dir", work_dir, "--i3d", i3d, "--runs", "2", "--workers", "1"]
    assert run([str(part) for part in [*given, "--device", "cpu", *options(*SMALLEST)]]) == 0
    return work_dir


def test_a_table_is_written_in_three_forms_with_what_was_measured(tiny_dir: Path) -> None:
    found = read_json(tiny_dir / "tables" / "table1.json")
    for row, name in zip(found["rows"], ("nc1", "nc4"), strict=True):
        results = read_json(tiny_dir / "eval" / f"vqvae-{name}.json")
        assert row["ours"]["mse"]["mean"] == results["reconstruction"]["mse"]
        assert row["ours"]["fvd"]["mean"] == results["fvd"]["reconstruction"]
        assert row["experiment"] == name
    assert found["ours"]["fvd"].startswith("not FVD")
    assert found["ours"]["data"] == "the demo's clips"
    for kind in ("md", "csv"):
        assert (tiny_dir / "tables" / f"table1.{kind}").stat().st_size


def test_a_second_call_remembers_the_settings_and_trains_nothing(tiny_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    work_dir = shutil.copytree(tiny_dir, tmp_path / "w")
    before = {path: path.stat().st_mtime_ns for path in work_dir.rglob("*") if path.is_file()}
    code, out, err = lvt("reproduce", "table1", "--work-dir", work_dir, "--device", "cpu", "--workers", "1")
    assert code == 0, err
    assert err.count("unchanged") == 8
    assert "Table 1: VQ-VAE performance" in out
    changed = {path.relative_to(work_dir).parts[0] for path, seen in before.items() if path.stat().st_mtime_ns != seen}
    assert changed <= {"tables", "reproduce.toml", ".lvt"}  # .lvt: a memory of digests, by inode
    code, out, _ = lvt("reproduce", "table1", "--work-dir", work_dir, "--dry-run", "--device", "cpu")
    assert "0 of 8 stages to run, 0 training steps" in out


def test_a_work_directory_has_one_scale(tiny_dir: Path, lvt: Lvt) -> None:
    code, _, err = lvt("reproduce", "table1", "--work-dir", tiny_dir, "--scale", "paper")
    assert code == 1
    assert "holds experiments of preset tiny but --preset paper was asked for; give another work directory" in err


def test_a_network_that_is_gone_is_named(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.pt does not exist; give the TorchScript file"):
        plan(tiny_dir, "table1", i3d=str(tmp_path / "gone.pt"))


def test_a_network_that_never_was_is_refused_before_anything_is_made(tmp_path: Path, lvt: Lvt) -> None:
    code, _, err = lvt("reproduce", "table1", "--work-dir", tmp_path / "new", "--i3d", tmp_path / "none.pt")
    assert code == 1
    assert "none.pt does not exist; give the TorchScript file" in err
    assert not (tmp_path / "new").exists()


def test_frames_without_a_test_clip_are_refused_before_any_training(
    tiny_dir: Path, tmp_path: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_only = tmp_path / "videos"
    shutil.copytree(tiny_dir / "demo-videos" / "train", train_only / "train")
    for video in sorted((train_only / "train").iterdir())[2:]:
        video.unlink()
    given = ["--videos", train_only, "--device", "cpu", "--workers", "1", *options("ingest.geometry.size=32")]
    code, out, err = lvt("reproduce", "table1", "--work-dir", tmp_path / "w", *given)
    assert (code, out) == (1, "")
    assert "has no test clip of 16 frames, so there is nothing to measure" in err
    assert not (tmp_path / "w" / "runs").exists()


def test_a_signal_ends_it_after_the_stage_in_hand(
    tiny_dir: Path, tmp_path: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = shutil.copytree(tiny_dir, tmp_path / "w")
    ran: list[str] = []
    original = running.bring_up_to_date

    def interrupted(stage: Stage, making: Making, make: Maker | None, *, always: bool) -> StageResult:
        result = original(stage, making, make, always=always)
        ran.append(stage.name)
        if stage.name == "ingest":
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(running, "bring_up_to_date", interrupted)
    code, _, err = lvt("reproduce", "table1", "--work-dir", work_dir, "--device", "cpu", "--workers", "1")
    assert code == 75
    assert ran == ["manifest", "ingest"]
    assert "stopped by SIGTERM: ingest is finished; run the same command again to resume" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_every_target_runs_and_each_row_of_ours_has_a_number(name: str, tiny_dir: Path, lvt: Lvt) -> None:
    if not TARGETS[name].is_table:
        pytest.importorskip("matplotlib")
    code, out, err = lvt("reproduce", name, "--work-dir", tiny_dir, "--device", "cpu", "--workers", "1", "--json")
    assert code == 0, err
    found = json.loads(out)[name]
    assert all(Path(path).stat().st_size for path in found["files"])
    if not TARGETS[name].is_table:
        assert [Path(path).suffix for path in found["files"]] == [".png", ".svg", ".csv"]
        return
    paper = TABLES[name]
    assert len([row for row in found["rows"] if not row["is_extra"]]) == len(paper.rows)
    for row, published in zip(found["rows"], paper.rows, strict=False):
        columns = [column for column, value in row["ours"].items() if value is not None]
        expected = () if published.ours is None else ("fvd",) if published.ours == COPY else paper.columns
        assert columns == list(expected), published.labels
    assert all(any(row["ours"].values()) for row in found["rows"] if row["is_extra"])
