"""The evaluation section of a report: every number of `eval.json` beside what it has to beat (paper, tables 1 to 4).

Numbers of samples are the mean ± standard deviation over the runs of a protocol, where there is one. What was not
measured is named with what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.report.charts import Reference, Series, line_chart, spoken_number
from lvt_pipeline.report.parts import Card, Check, Figure, Table, beats
from lvt_pipeline.report.wording import spoken_change, spoken_decibels, spoken_spread
from lvt_pipeline.report.work_dir import WorkDir, settings_text

FVD_ROWS = (  # key in the result, key in a protocol's published numbers, what it is
    ("real_priming", "fvd", "Samples, given frames real"),
    ("reconstructed_priming", "fvd", "Samples, given frames reconstructed"),
    ("reconstruction", "reconstruction_fvd", "Reconstructions, the bound of samples"),
    ("copy", "copy_fvd", "Last given frame repeated"),
)
HORIZON = (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("lpips", "LPIPS"))
HORIZON_KINDS = (("reconstruction_", "reconstructed"), ("", "sampled"), ("copy_", "last given frame repeated"))


@dataclass(frozen=True)
class Bar:
    """One bar of the comparison: width in percent of the longest."""

    label: str
    value: str
    width: float
    kind: str  # prior or baseline
    definition: str
    check: Check | None  # whether the prior beats it


@dataclass(frozen=True)
class EvaluationSection:
    results: Mapping[str, Any]
    bars: Sequence[Bar]
    bits_charts: Sequence[Figure]
    horizon_charts: Sequence[Figure]
    tables: Sequence[Table]
    protocol: Table | None
    warnings: Sequence[str]
    missing: Sequence[tuple[str, str]]
    card: str  # of the FVD protocol, as settings
    note: str
    is_problem: bool = False


def evaluation_section(work: WorkDir) -> EvaluationSection:
    """Every number of `eval.json` beside its baseline.

    Raises:
        MissingPart: nothing was evaluated yet.
        ArtefactError: the file is damaged or of another version.
    """
    results = work.results()
    try:
        return _evaluation(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArtefactError(
            f"eval.json is not a result of this version's lvt evaluate ({error!r}); run it again"
        ) from error


def evaluation_cards(results: Mapping[str, Any]) -> list[Card]:
    """The key numbers, each with what it has to beat."""
    cards = []
    if "prior" in results:
        bits = float(results["prior"]["bits_per_dim"])
        checks = []
        for name, key in (("the unigram", "unigram"), ("“same as previous frame”", "previous_frame")):
            other = float(results["baselines"][f"{key}_bits"])
            checks.append(beats(bits < other, name, spoken_change(bits, other)))
        cards.append(Card("Bits per code", f"{bits:.3f}", "bits", checks))
    if "reconstruction" in results:
        found = results["reconstruction"]
        mse, flat = float(found["mse"]), float(found["mean_picture_mse"])
        check = beats(mse < flat, "the mean picture", f"MSE {mse:.5f}, against {flat:.5f}")
        others = ", ".join(f"{name.upper()} {found[name]:.3f}" for name in ("ssim", "lpips") if name in found)
        cards.append(Card("Reconstruction PSNR", spoken_decibels(mse), "dB", [check], others))
    cards += _fvd_cards(results)
    samples = results.get("samples", {})
    if "mse" in samples and "copy_mse" in samples:
        mse, copied = float(samples["mse"]), float(samples["copy_mse"])
        check = beats(mse < copied, "a still last frame", f"against {spoken_decibels(copied)} dB")
        note = "A sample is one future of many: this is a sanity check, no score."
        cards.append(Card("Sampled frames PSNR", spoken_decibels(mse), "dB", [check], note))
    return cards


def horizon_charts(results: Sequence[tuple[str, Mapping[str, Any]]], *, only_samples: bool = False) -> list[Figure]:
    """Errors of each frame against what really happened, one chart per metric.

    Args:
        results: the `samples` parts of one or more evaluations, by the name their lines get; no name for a single one.
        only_samples: leave out the lines of reconstructions and of the repeated frame.
    """
    charts = []
    for metric, label in HORIZON:
        series, priming = [], 0
        for number, (name, samples) in enumerate(results):
            given = int(samples.get("priming_frames", 0))
            priming = max(priming, given)
            for kind, (prefix, kind_name) in enumerate(HORIZON_KINDS):
                if only_samples and prefix:
                    continue
                values = _numbers(samples.get(f"{prefix}{metric}_by_frame"))
                if prefix == "copy_":  # equal to the real frames by construction until then
                    values = [math.nan] * given + values[given:]
                style = number if only_samples else kind
                series.append(Series(name or kind_name, list(range(1, len(values) + 1)), values, style))
        chart = line_chart(
            series,
            title=f"{metric.upper()} of each frame against the real video",
            x_label="frame",
            y_label=label,
            shaded_until=priming + 0.5 if priming else None,
            always_named=True,
        )
        if chart:
            better = "lower" if metric == "lpips" else "higher"
            charts.append(
                Figure(f"{metric.upper()} over the horizon", Markup(chart), f"{better.capitalize()} is closer.")
            )
    if charts:
        last = charts[-1]
        told = (
            " The shaded frames are given. A sample is one possible future, so far from what happened is not yet bad."
        )
        charts[-1] = Figure(last.title, last.svg, last.caption + told)
    return charts


def bits_charts(results: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Figure]:
    """Bits per code of each frame, and of each slice where slices are not frames; of one or more evaluations."""
    charts = []
    for key, label in (("per_frame", "frame"), ("per_slice", "slice")):
        lists = [(name, _numbers(found.get("prior", {}).get(key))) for name, found in results]
        if key == "per_slice" and all(
            found.get("prior", {}).get("per_slice") == found.get("prior", {}).get("per_frame") for _, found in results
        ):
            continue  # single-frame subscaling: a slice is a frame
        series = [
            Series(name or "this prior", list(range(1, len(values) + 1)), values, number)
            for number, (name, values) in enumerate(lists)
        ]
        references = []
        if len(results) == 1 and (bits := results[0][1].get("baselines", {}).get("previous_frame_bits")) is not None:
            references = [Reference("previous frame, mean", float(bits))]
        chart = line_chart(
            series,
            title=f"Bits per code of each {label}",
            x_label=label,
            y_label="bits per code",
            references=references,
            always_named=len(results) > 1,
        )
        if chart:
            charts.append(Figure(f"Bits per code, by {label}", Markup(chart)))
    return charts


def _evaluation(results: Mapping[str, Any]) -> EvaluationSection:
    protocol = results.get("protocol", {})
    tables = [
        *_reconstruction_tables(results),
        _codebook_table(results),
        *_sample_tables(results),
        *_fvd_tables(results),
    ]
    warnings = []
    if results.get("training_clips"):
        warnings.append(f"{results['training_clips']} clips of the training were measured: this says little.")
    if protocol.get("deviations"):
        warnings.append(f"Protocol {protocol['name']}, not as in the paper: {'; '.join(protocol['deviations'])}.")
    fvd = results.get("fvd", {})
    warnings += [f"FVD: {fvd[key]}." for key in ("warning", "missing") if fvd.get(key)]
    baselines = results["baselines"]
    note = (
        f"Measured on {results['clips']} {results['split']} clips: {int(baselines['codes']):,} codes of frames "
        f"{int(results['priming_frames']) + 1} to {results['frames']}."
    )
    if results.get("short_clips"):
        note += f" {results['short_clips']} shorter clips were left out."
    note += _clips_won(results)
    return EvaluationSection(
        results=results,
        bars=_bars(results),
        bits_charts=bits_charts([("", results)]),
        horizon_charts=horizon_charts([("", results.get("samples", {}))]),
        tables=[table for table in tables if table.rows],
        protocol=_protocol_table(protocol) if protocol else None,
        warnings=warnings,
        missing=list(results.get("missing", {}).items()),
        card=settings_text(fvd.get("card", {})),
        note=note,
    )


def _bars(results: Mapping[str, Any]) -> list[Bar]:
    """Bits per code of the prior and of everything it has to beat."""
    baselines, prior = results["baselines"], results.get("prior")
    measured = [
        ("uniform", math.log2(results["codes"]["codebook_size"]), "baseline", "Every code equally likely: log2 K."),
        (
            "unigram",
            float(baselines["unigram_bits"]),
            "baseline",
            "Entropy of each codebook over exactly these codes: the best that any model without context can do.",
        ),
        (
            "same as previous frame",
            float(baselines["previous_frame_bits"]),
            "baseline",
            "With probability α the code of the same place one frame earlier, else a draw from the add-one smoothed "
            f"unigram; fitted on {baselines['fitted_on']['split']} clips, one α per codebook.",
        ),
    ]
    if prior:
        measured.append(("this prior", float(prior["bits_per_dim"]), "prior", "Teacher-forced, on the same codes."))
    longest = max(bits for _, bits, _, _ in measured) or 1.0
    result = []
    for label, bits, kind, definition in measured:
        check = None
        if prior and kind == "baseline":
            is_beaten = float(prior["bits_per_dim"]) < bits
            check = Check("better", "✓ beaten") if is_beaten else Check("worse", "✗ not beaten")
        result.append(Bar(label, f"{bits:.3f}", 100 * bits / longest, kind, definition, check))
    return result


def _clips_won(results: Mapping[str, Any]) -> str:
    """On how many clips the prior beats the stronger baseline."""
    values = results.get("per_clip", {}).get("evaluated", {})
    pairs = list(zip(values.get("bits", []), values.get("previous_frame_bits", []), strict=False))
    won = sum(ours < theirs for ours, theirs in pairs if ours is not None and theirs is not None)
    return f" The prior needs fewer bits than “same as previous frame” on {won} of {len(pairs)} clips." if pairs else ""


def _reconstruction_tables(results: Mapping[str, Any]) -> list[Table]:
    if "reconstruction" not in results:
        return []
    found = results["reconstruction"]
    mse, flat = float(found["mse"]), float(found["mean_picture_mse"])
    rows: list[Sequence[str | Check]] = [
        ("MSE in [0, 1]", f"{mse:.5f}", f"{flat:.5f}", beats(mse < flat)),
        ("PSNR", f"{spoken_decibels(mse)} dB", f"{spoken_decibels(flat)} dB", beats(mse < flat)),
    ]
    rows += [(name.upper(), f"{found[name]:.4f}", "–", "") for name in ("ssim", "lpips") if name in found]
    note = "The mean picture is the one picture closest to all of these frames: what a tokenizer without codes reaches."
    return [Table("Reconstruction", ["", "Measured", "Mean picture", ""], rows, note)]


def _sample_tables(results: Mapping[str, Any]) -> list[Table]:
    """Samples against what happened, and how much they move and differ."""
    samples = results.get("samples", {})
    mean, std = (results.get("protocol", {}).get(key, {}) for key in ("mean", "std"))
    rows: list[Sequence[str | Check]] = []
    for metric, lower_is_better in (("mse", True), ("psnr", False), ("ssim", False), ("lpips", True)):
        if samples.get(metric) is None:
            continue
        ours, copied, bound = (samples.get(f"{prefix}{metric}") for prefix in ("", "copy_", "reconstruction_"))
        ours = mean.get(metric, ours)
        check = "" if copied is None else beats((ours < copied) == lower_is_better and ours != copied)
        told = [_spoken_metric(metric, value) for value in (copied, bound)]
        spread = std.get(metric)
        sampled = _spoken_metric(metric, ours) if spread is None else spoken_spread(ours, spread)
        rows.append((metric.upper(), sampled, *told, check))
    tables = [
        Table(
            "Samples, against what really happened",
            ["", "Sampled", "Last frame repeated", "Reconstructed", ""],
            rows,
            f"Over the frames that were sampled, of {samples.get('clips', 0)} samples. Colder samples come closer, "
            "also bad ones: this says whether something is broken, not how good a sample is.",
        )
    ]
    rows = []
    if "share_same_as_previous_frame" in samples:
        share = mean.get("share_same_as_previous_frame", samples["share_same_as_previous_frame"])
        rows.append(
            (
                "Codes that stay from frame to frame",
                f"{share:.1%}",
                f"{samples['real_share_same_as_previous_frame']:.1%}",
            )
        )
    diversity = samples.get("diversity", {})
    if "codes" in diversity:
        rows.append(("Codes that differ between samples of one clip", f"{diversity['codes']:.1%}", "–"))
    if "mse" in diversity:
        rows.append(("Squared difference of samples of one clip", f"{diversity['mse']:.5f}", "–"))
    return [*tables, Table("Movement and diversity", ["", "Sampled", "Real"], rows)]


def _fvd_tables(results: Mapping[str, Any]) -> list[Table]:
    fvd, protocol = results.get("fvd", {}), results.get("protocol", {})
    label = str(fvd.get("label", "FVD"))
    is_fvd = label.startswith("FVD")
    published = protocol.get("published", {}) if is_fvd else {}
    rows: list[Sequence[str | Check]] = []
    for key, name, title in FVD_ROWS:
        if fvd.get(key) is None:
            continue
        value, copied = float(fvd[key]), fvd.get("copy")
        cells = [_spoken_distance(value, protocol.get("std", {}).get(f"fvd_{key}"))]
        if published:
            spread = published.get(f"{name}_std")
            cells.append(_spoken_distance(published[name], spread) if name in published else "–")
        check = beats(value < copied, "repeating") if key.endswith("_priming") and copied is not None else ""
        rows.append((title, *cells, check))
    title = "FVD" if is_fvd else "Fréchet distance, not FVD" if label.startswith("not") else "Fréchet distance"
    note = f"{label[:1].upper()}{label[1:]}. Less is better."
    return [Table(title, ["", "Measured", *(["Published"] if published else []), ""], rows, note)]


def _protocol_table(protocol: Mapping[str, Any]) -> Table:
    """Every run of a protocol, then their mean and spread."""
    names = list(protocol["mean"])
    rows: list[Sequence[str | Check]] = [
        (f"seed {run['seed']}", *(spoken_number(float(run[name])) for name in names)) for run in protocol["runs"]
    ]
    rows.append(("mean ± std", *(spoken_spread(protocol["mean"][name], protocol["std"].get(name)) for name in names)))
    note = (
        f"{protocol['frames']} frames, {protocol['priming_frames']} given to the samples, "
        f"{protocol['bits_priming_frames']} for bits per code."
    )
    if protocol.get("published"):
        told = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in protocol["published"].items())
        note += f" Published, with four codebooks: {told}."
    header = [name.replace("share_same_as_previous_frame", "codes that stay").replace("_", " ") for name in names]
    return Table(f"Every run of the protocol {protocol['name']}", ["", *header], rows, note)


def _codebook_table(results: Mapping[str, Any]) -> Table:
    baselines, prior = results["baselines"], results.get("prior")
    rows = [
        (str(book), f"{unigram:.3f}", f"{previous:.3f}", f"{prior['per_codebook'][book]:.3f}" if prior else "–")
        for book, (unigram, previous) in enumerate(
            zip(baselines["unigram_bits_per_codebook"], baselines["previous_frame_bits_per_codebook"], strict=True)
        )
    ]
    return Table("Bits per code, by codebook", ["Codebook", "Unigram", "Previous frame", "This prior"], rows)


def _fvd_cards(results: Mapping[str, Any]) -> list[Card]:
    fvd, protocol = results.get("fvd", {}), results.get("protocol", {})
    kind = next((kind for kind in ("real_priming", "reconstructed_priming") if fvd.get(kind) is not None), None)
    if kind is None:
        return []
    value, copied = float(fvd[kind]), fvd.get("copy")
    checks = [] if copied is None else [beats(value < copied, "repeating the last frame", f"{copied:.5g}")]
    label = str(fvd.get("label", "FVD"))
    note = "" if label.startswith("FVD") else label
    name = "FVD" if label.startswith("FVD") else "Fréchet distance"
    spread = protocol.get("std", {}).get(f"fvd_{kind}")
    return [Card(name, f"{value:.5g}", "" if spread is None else f"± {spread:.3g}", checks, note)]


def _spoken_metric(metric: str, value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} dB" if metric == "psnr" else spoken_number(float(value))


def _spoken_distance(value: float, std: float | None) -> str:
    return f"{value:.5g}" if std is None else spoken_spread(value, std)


def _numbers(values: Any) -> list[float]:
    """A list of an evaluation, with what could not be written as JSON as nan."""
    return [math.nan if value is None else float(value) for value in values or []]
