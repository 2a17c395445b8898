"""How many steps each learning recipe needs to a given quality; everything but the recipe is equal.

Recipes differ in optimizer, rates, clipping and moving average. Network, start, batch size, order of the data and seeds
are those of the preset `tiny`; all recipes are told the same number of steps. `LVT_CODES` names a code store (default:
the demo's). `LVT_VIDEOS` names folders of small real clips, with colons between: every fourth clip is held out, a
tokenizer learns on the others, and priors learn on their codes. `LVT_CURVES` names a folder for the curves, as CSV and
SVG.
"""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.codebooks import write_demo_frames
from benchmarks.real_videos import VIDEOS
from lvt_pipeline.config import build, merge, read_preset, with_recipe
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.report.plots.engine import Series
from lvt_pipeline.report.plots.page_charts import line_chart
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings
from lvt_pipeline.training.vqvae import train_vqvae

CODES = Path(os.environ.get("LVT_CODES", "demo/work/data.zarr"))
CURVES = "LVT_CURVES"
STEPS = int(os.environ.get("LVT_STEPS", "500"))
EVERY = 25  # steps between evaluations
EVALUATED_CLIPS, EVALUATED_FRAMES = 8, 128
SEEDS = (0, 1)
DEFAULT, PAPER = "default", "paper"
HELD_OUT = 4  # one real clip in so many
REAL_FRAMES = 8  # the shortest of the real clips have ten
LEVELS = (1.5, 1.25, 1.1, 1.0)  # times the lowest that the paper's recipe reaches

# The paper's recipe at a higher rate shows what the rate alone is worth: the paper's is for a network of four times the
# width and 600,000 steps.
PRIOR_RECIPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    DEFAULT: (DEFAULT, {}),
    PAPER: (PAPER, {}),
    "paper, rate 5e-4": (PAPER, {"learning_rate": 5e-4}),
}
TOKENIZER_RECIPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    DEFAULT: (DEFAULT, {}),
    PAPER: (PAPER, {}),
    "paper, rate 1e-3": (PAPER, {"learning_rate": 1e-3}),
}


@dataclass(frozen=True)
class Curve:
    """One training. Scores are measured on held-out data, `learnt` is the mean over the batches since the last one."""

    recipe: str
    seed: int
    steps: Sequence[int]
    scores: Sequence[float]
    learnt: Sequence[float]
    step_seconds: float  # of the processor, evaluations included: other programs disturb it less than wall time

    def steps_to(self, level: float) -> int | None:
        """Steps until an evaluation is at or below the level."""
        return next((step for step, score in zip(self.steps, self.scores, strict=True) if score <= level), None)


@dataclass(frozen=True)
class Subject:
    """What learns on what.

    Attributes:
        slug: names the files of its curves.
        train: takes settings and a run directory.
        score: the held-out metric, in metrics.jsonl, and how it is called.
        learnt: its counterpart on the batches.
        eval_items: what it is measured on.
    """

    title: str
    slug: str
    family: str
    settings: type[PriorRunSettings] | type[VQVAERunSettings]
    changes: Mapping[str, Any]
    train: Callable[[Any, Path], object]
    score: tuple[str, str]
    learnt: str
    eval_items: int
    recipes: Mapping[str, tuple[str, Mapping[str, Any]]]


def run() -> str:
    """Tables of priors on the demo's codes and on those of real clips, and of tokenizers on the demo's frames."""
    tables = []
    if CODES.exists():
        tables.append(_compare(_prior(f"Priors on {CODES.name}", "demo", CODES, {})))
    else:
        tables.append(f"skipped: {CODES} does not exist; run `make demo`, or set LVT_CODES to a code store\n")
    with TemporaryDirectory() as folder:
        if VIDEOS in os.environ:
            clips = [
                path
                for root in os.environ[VIDEOS].split(":")
                for path in sorted(Path(root).rglob("*"))
                if path.is_file()
            ]
            codes = _encode_real(clips, Path(folder))
            changes = {"model": {"frames": REAL_FRAMES, "subscale": [REAL_FRAMES, 1, 1]}}
            held_out = len(clips) // HELD_OUT
            tables.append(
                _compare(_prior(f"Priors on {len(clips)} real clips, {held_out} held out", "real", codes, changes))
            )
        frames = Path(folder) / "demo-frames"
        write_demo_frames(frames)
        tables.append(_compare(_tokenizer(frames)))
    return "\n".join(["## Recipes: `recipes`", "", *tables])


def _prior(title: str, slug: str, codes: Path, changes: Mapping[str, Any]) -> Subject:
    return Subject(
        title,
        slug,
        "prior",
        PriorRunSettings,
        changes,
        lambda settings, out: train_prior(codes, out, settings, device="cpu"),
        ("bits_per_dim", "bits/dim"),
        "bits_per_dim",
        EVALUATED_CLIPS,
        PRIOR_RECIPES,
    )


def _tokenizer(frames: Path) -> Subject:
    return Subject(
        "Tokenizers on demo frames",
        "tokenizer",
        "vqvae",
        VQVAERunSettings,
        {},
        lambda settings, out: train_vqvae(frames, out, settings, device="cpu"),
        ("mse", "MSE"),
        "reconstruction_loss",
        EVALUATED_FRAMES,
        TOKENIZER_RECIPES,
    )


def _encode_real(clips: Sequence[Path], folder: Path) -> Path:
    """A code store of these clips, by a tokenizer that has not seen those held out."""
    listed = io.StringIO()
    rows = [
        (path.resolve(), "val" if number % HELD_OUT == HELD_OUT - 1 else "train") for number, path in enumerate(clips)
    ]
    csv.writer(listed).writerows([("path", "split"), *rows])
    (folder / "clips.csv").write_text(listed.getvalue())
    build_manifest(str(folder / "clips.csv"), folder / "manifest.jsonl")
    ingest(folder / "manifest.jsonl", folder / "frames", max_failures=0.0)
    settings = build(VQVAERunSettings, read_preset("vqvae", "tiny"))
    train_vqvae(folder / "frames", folder / "vqvae", settings, device="cpu")
    encode_dataset(folder / "frames", folder / "vqvae", folder / "data.zarr", device="cpu")
    return folder / "data.zarr"


def _compare(subject: Subject) -> str:
    """Every recipe with every seed: seeds outside, so that a machine that slows down is slower for all."""
    curves = [_learn(subject, name, seed) for seed in SEEDS for name in subject.recipes]
    if CURVES in os.environ:
        folder = Path(os.environ[CURVES])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"recipes-{subject.slug}.csv").write_text(_as_csv(curves))
        (folder / f"recipes-{subject.slug}.svg").write_text(_chart(subject, curves))
    return _table(subject, curves)


def _settings(subject: Subject, name: str, seed: int) -> PriorRunSettings | VQVAERunSettings:
    recipe, rates = subject.recipes[name]
    tables = merge(read_preset(subject.family, "tiny"), subject.changes)
    how_often = {"eval_every": EVERY, "log_every": EVERY, "picture_every": STEPS, "checkpoint_every": STEPS}
    training = {"max_steps": STEPS, "seed": seed, "eval_items": subject.eval_items, **how_often, **rates}
    tables = merge(with_recipe(subject.family, tables, recipe, "tiny"), {"training": training})
    return build(subject.settings, tables)


def _learn(subject: Subject, name: str, seed: int) -> Curve:
    with TemporaryDirectory() as folder:
        started = time.process_time()
        subject.train(_settings(subject, name, seed), Path(folder) / "run")
        seconds = time.process_time() - started
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if line["split"] == "val"]
    curve = Curve(
        name,
        seed,
        [line["step"] for line in measured],
        [line[subject.score[0]] for line in measured],
        [line[subject.learnt] for line in lines if line["split"] == "train"],
        seconds / STEPS,
    )
    print(f"{subject.title}: {name}, seed {seed}: {min(curve.scores):.4g}", flush=True)
    return curve


def _table(subject: Subject, curves: Sequence[Curve]) -> str:
    """Steps to some levels, by recipe; and where each recipe ends, with the time of a step."""
    names = list(subject.recipes)
    by_recipe = {name: [curve for curve in curves if curve.recipe == name] for name in names}
    lowest = {name: max(min(curve.scores) for curve in own) for name, own in by_recipe.items()}  # every seed gets there
    levels = [factor * lowest[PAPER] for factor in LEVELS]
    levels += sorted((lowest[name] for name in names if lowest[name] < lowest[PAPER]), reverse=True)
    metric = subject.score[1]
    lines = [
        f"### {subject.title}",
        "",
        f"Preset `tiny`, {STEPS} steps, seeds {', '.join(map(str, SEEDS))}; steps until an evaluation (one every "
        f"{EVERY} steps) is at or below a level.",
        "",
        f"| {metric} | {' | '.join(names)} | default beside paper |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    for level in levels:
        found = {name: [curve.steps_to(level) for curve in by_recipe[name]] for name in names}
        cells = [" / ".join("never" if steps is None else str(steps) for steps in found[name]) for name in names]
        lines.append(f"| {level:.4g} | {' | '.join(cells)} | {_share(found[DEFAULT], found[PAPER])} |")
    lines += [
        "",
        f"| recipe | lowest held-out {metric}, at step | `{subject.learnt}` of the last batches | processor ms |",
        "|---|---|---|---|",
    ]
    for name, own in by_recipe.items():
        lowest_of = " / ".join(f"{min(one.scores):.4g}, {one.steps_to(min(one.scores))}" for one in own)
        last = " / ".join(f"{one.learnt[-1]:.4g}" for one in own)
        seconds = statistics.median(one.step_seconds for one in own)
        lines.append(f"| {name} | {lowest_of} | {last} | {1000 * seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _share(ours: Sequence[int | None], theirs: Sequence[int | None]) -> str:
    if None in ours or None in theirs:
        return ""
    return f"{sum(step or 0 for step in ours) / sum(step or 0 for step in theirs):.2f}"


def _as_csv(curves: Sequence[Curve]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("recipe", "seed", "step", "held_out", "learnt"))
    for curve in curves:
        for step, score, learnt in zip(curve.steps, curve.scores, curve.learnt, strict=True):
            writer.writerow((curve.recipe, curve.seed, step, f"{score:.6g}", f"{learnt:.6g}"))
    return text.getvalue()


def _chart(subject: Subject, curves: Sequence[Curve]) -> str:
    """The mean over the seeds of each recipe."""
    lines = []
    for name in subject.recipes:
        own = [curve for curve in curves if curve.recipe == name]
        mean = [statistics.mean(scores) for scores in zip(*(curve.scores for curve in own), strict=True)]
        lines.append(Series(name, own[0].steps, mean))
    drawing = line_chart(lines, title=subject.title, x_label="step", y_label=f"held-out {subject.score[1]}")
    # A page names its charts by itself; a picture alone says what it shows.
    return drawing.replace(">", f"><title>Steps of each recipe: {escape(subject.title)}</title>", 1)
