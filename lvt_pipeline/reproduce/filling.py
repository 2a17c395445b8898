"""From results on disk to a table: our numbers next to the paper's, and the lines below them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lvt_pipeline.evaluation.protocols.results import Protocol
from lvt_pipeline.progress import count_of
from lvt_pipeline.reproduce.experiments import (
    PriorRecipe,
    Target,
    TokenizerRecipe,
    count_parameters,
    prior_recipe,
    row_variants,
    target_priors,
    target_tokenizers,
    tokenizer_recipe,
)
from lvt_pipeline.reproduce.places import Places, describe_data
from lvt_pipeline.reproduce.published import COPY, TABLES, Column, PublishedTable, Row
from lvt_pipeline.reproduce.settings import ReproduceSettings
from lvt_pipeline.reproduce.tables import FilledRow, FilledTable, Measured, in_millions
from lvt_pipeline.runs.read import read_run_record
from lvt_pipeline.storage import read_json

# One protocol for both datasets, so that a prior that both need is evaluated once.
PROTOCOL = Protocol(name="paper")

Results = Mapping[str, Any]


def fill_table(target: Target, settings: ReproduceSettings, places: Places) -> FilledTable:
    """The table of a target whose experiments are all done.

    Raises:
        ArtefactError: a result is missing.
    """
    paper = TABLES[target.name]
    priors, tokenizers = target_priors(target, settings), target_tokenizers(target, settings)
    needed: list[TokenizerRecipe | PriorRecipe] = [*tokenizers, *priors]
    results = {it.name: _results(it, places) for it in needed}
    rows = [filled for row in paper.rows for filled in _fill_row(target, paper, row, settings, places)]
    if target.priors and "Method" not in paper.labels:
        rows += _extra_rows(paper, priors, results)
    data = describe_data(settings.videos, places)
    first = next(iter(results.values()))
    return FilledTable(
        name=target.name,
        paper=paper,
        data=data.name,
        dataset=data.dataset,
        scale=settings.scale,
        clips=first["clips"],
        split=first["split"],
        runs=settings.runs if target.priors else None,
        fvd_label=_fvd_label(results.values()),
        rows=rows,
        notes=_notes(target, settings, places, priors, list(results.values())),
    )


def _fill_row(
    target: Target, paper: PublishedTable, row: Row, settings: ReproduceSettings, places: Places
) -> Iterator[FilledRow]:
    published = dict(zip(paper.columns, row.numbers, strict=True))
    if row.ours is None:
        yield FilledRow(row.labels, {}, published)
    elif row.ours == COPY:
        last = target_priors(target, settings)[-1]
        yield FilledRow(row.labels, _of_copies(_results(last, places)), published)
    elif row.ours in target.priors:
        for number, key in enumerate(row_variants(row.ours, settings)):
            recipe = prior_recipe(target.dataset, key, settings)
            labels = list(row.labels)
            if key.endswith("-full"):
                labels[0] += f" ({recipe.settings.model.frames}-frame clips)"
            # What the paper printed stands once, next to the first reading of its row.
            yield FilledRow(labels, _of_prior(recipe, places), published if number == 0 else {}, recipe.name)
    else:
        tokenizer = tokenizer_recipe(target.dataset, int(row.labels[0]), settings)
        yield FilledRow(row.labels, _of_tokenizer(_results(tokenizer, places)), published, tokenizer.name)


def _results(recipe: TokenizerRecipe | PriorRecipe, places: Places) -> Results:
    found: Results = read_json(places.result(recipe))
    return found


def _of_tokenizer(results: Results) -> dict[Column, Measured]:
    found: dict[Column, Measured] = {"mse": Measured(results["reconstruction"]["mse"])}
    if "reconstruction" in results.get("fvd", {}):
        found["fvd"] = Measured(results["fvd"]["reconstruction"])
    return found


def _of_prior(recipe: PriorRecipe, places: Places) -> dict[Column, Measured]:
    results = _results(recipe, places)
    runs = results["protocol"]
    found: dict[Column, Measured] = {"bits": Measured(results["prior"]["bits_per_dim"])}
    if "fvd_real_priming" in runs["mean"]:
        found["fvd"] = Measured(runs["mean"]["fvd_real_priming"], runs["std"]["fvd_real_priming"])
    record = read_run_record(places.run(recipe))
    assert record is not None, "a prior that was evaluated is finished"
    found["parameters"] = Measured(float(record.counts["parameters"]))
    if places.timing(recipe).exists():
        found["seconds"] = Measured(read_json(places.timing(recipe))["seconds"])
    return found


def _of_copies(results: Results) -> dict[Column, Measured]:
    value = results["protocol"]["baselines"].get("copy_fvd")
    return {} if value is None else {"fvd": Measured(value)}


def _extra_rows(
    paper: PublishedTable, priors: Sequence[PriorRecipe], results: Mapping[str, Results]
) -> list[FilledRow]:
    """What our numbers have to beat: repeating the last frame, in pixels and in codes."""
    blank = [""] * (len(paper.labels) - 1)
    rows = []
    if copies := _of_copies(results[priors[-1].name]):
        rows.append(FilledRow(["last priming frame repeated", *blank], copies, is_extra=True))
    for books, recipe in {it.tokenizer.settings.model.num_codebooks: it for it in priors}.items():
        bits = Measured(results[recipe.name]["baselines"]["previous_frame_bits"])
        labels = ["same code as a frame earlier", *blank]
        if "n_c" in paper.labels:
            labels[list(paper.labels).index("n_c")] = str(books)
        rows.append(FilledRow(labels, {"bits": bits}, is_extra=True))
    return rows


def _fvd_label(results: Iterable[Results]) -> str | None:
    """What the distances in these results may be called, None where there are none."""
    return next((str(it["fvd"]["label"]) for it in results if "label" in it.get("fvd", {})), None)


def _notes(
    target: Target,
    settings: ReproduceSettings,
    places: Places,
    priors: Sequence[PriorRecipe],
    results: Sequence[Results],
) -> list[str]:
    """The lines below a table: how its numbers were measured, and their differences from the paper."""
    notes, paper = [], TABLES[target.name]
    if priors:
        books = {it.tokenizer.settings.model.num_codebooks for it in priors}
        apart = "; one and four codebooks do not compare" if len(books) > 1 else ""
        notes.append(f"bits/dim: bits per code after the first frame, teacher-forced{apart}.")
    if "Method" in paper.labels:
        own = {row.labels[0]: row.ours for row in paper.rows if row.ours in target.priors}
        named = {label: prior_recipe(target.dataset, key, settings).name for label, key in own.items() if key}
        notes.append(f"As in the paper, {' and '.join(f'{label} is {name}' for label, name in named.items())}.")
    if "Decoder Input" in paper.labels and settings.scale != "paper":
        model = priors[0].settings.model
        notes.append(f"128d and 512d are the paper's widths; here they are {model.embedding_width} and {model.width}.")
    label = _fvd_label(results)
    missing = next((str(it["fvd"]["missing"]) for it in results if "missing" in it.get("fvd", {})), None)
    if label is not None:
        given = f"{PROTOCOL.priming_frames} real priming frames; " if priors else ""
        notes.append(f"FVD: {given}{label}.")
    elif missing is not None:
        notes.append(f"FVD: {missing}.")
    short = sorted({it.settings.model.frames for it in priors} - {PROTOCOL.frames})
    if short:
        notes.append(
            f"Spatial: trained on clips of {short[0]} frames, as in the released code; --set spatial=both adds clips "
            f"of {PROTOCOL.frames}, as in the paper's text."
        )
    if target.is_timed:
        notes += _timing_notes(target, settings, places, priors)
    if priors and settings.runs != PROTOCOL.runs:
        notes.append(f"Runs of sampling: {settings.runs}; the paper has {PROTOCOL.runs}.")
    return notes


def _timing_notes(
    target: Target, settings: ReproduceSettings, places: Places, priors: Sequence[PriorRecipe]
) -> list[str]:
    found = read_json(places.timing(priors[0]))
    threads = "" if found["threads"] is None else f", {count_of(found['threads'], 'thread')}"
    clip = f"one clip of {found['frames']} frames, {found['priming_frames']} of them priming frames"
    notes = [
        f"s per clip: {clip}, on {found['device']}{threads}, {found['dtype']}, fastest of {len(found['all_seconds'])}; "
        "the paper's on one V100 GPU."
    ]
    if settings.scale != "paper":
        counts = [in_millions(count_parameters(it)) for it in target_priors(target, ReproduceSettings(scale="paper"))]
        notes.append(f"parameters at the paper's scale, counted without training: {', '.join(counts)} M.")
    return notes
