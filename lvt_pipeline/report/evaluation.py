"""The evaluation section of a report: every number of `eval.json` with its baseline (paper, tables 1 to 4).

Numbers of samples are the mean ± standard deviation over the runs of a protocol, where there is one.
Missing measurements are listed with their requirements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.evaluation.results import is_fvd
from lvt_pipeline.progress import count_of
from lvt_pipeline.report.actions import action_cards, action_tables
from lvt_pipeline.report.numbers import format_change, format_decibels, format_number, format_spread
from lvt_pipeline.report.parts import Part, beats, card, chart, check, table
from lvt_pipeline.report.plots.engine import Reference, Series
from lvt_pipeline.report.plots.page_charts import line_chart
from lvt_pipeline.report.work import WorkDir, settings_text

FVD_ROWS = (  # key in the result, key in a protocol's published numbers, title of the row
    ("real_priming", "fvd", "Samples, real priming frames"),
    ("reconstructed_priming", "fvd", "Samples, reconstructed priming frames"),
    ("reconstruction", "reconstruction_fvd", "Reconstructions, the bound of samples"),
    ("copy", "copy_fvd", "Last priming frame repeated"),
)
HORIZON = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}
HORIZON_KINDS = {"reconstruction_": "reconstructed", "": "sampled", "copy_": "last frame repeated"}
DEFINITIONS = {
    "uniform": "Every code equally likely: log2 K.",
    "unigram": "Entropy of each codebook over exactly these codes: the best that any model without context can do.",
    "same as previous frame": (
        "With probability α the code of the same place one frame earlier, otherwise a sample from the add-one smoothed "
        "unigram; fitted on {fitted_on} clips, one α per codebook."
    ),
    "this prior": "Teacher-forced, on the same codes.",
}


def evaluation_section(work: WorkDir) -> Part:
    """Every number of `eval.json` with its baseline.

    Raises:
        MissingPart: nothing was evaluated yet.
        ArtefactError: the file is damaged or of another version.
    """
    results = work.results
    try:
        return _section(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArtefactError(
            "eval.json is damaged or not a result of lvt evaluate in this version; run lvt evaluate again"
        ) from error


def evaluation_cards(results: Mapping[str, Any]) -> list[Part]:
    """The key numbers, each with its baselines."""
    cards = []
    if "prior" in results:
        bits = float(results["prior"]["bits_per_dim"])
        checks = []
        for name, key in (("the unigram", "unigram"), ("“same as previous frame”", "previous_frame")):
            other = float(results["baselines"][f"{key}_bits"])
            checks.append(beats(bits < other, name, format_change(bits, other)))
        cards.append(card("Bits per code", f"{bits:.3f}", "bits", checks))
    if "reconstruction" in results:
        found = results["reconstruction"]
        mse, flat = float(found["mse"]), float(found["mean_picture_mse"])
        verdict = beats(mse < flat, "the mean picture", f"MSE {mse:.5f}, against {flat:.5f}")
        others = ", ".join(f"{name.upper()} {found[name]:.3f}" for name in ("ssim", "lpips") if name in found)
        cards.append(card("Reconstruction PSNR", format_decibels(mse), "dB", [verdict], others))
    cards += action_cards(results)
    cards += _fvd_cards(results)
    samples = results.get("samples", {})
    if "mse" in samples and "copy_mse" in samples:
        mse, copied = float(samples["mse"]), float(samples["copy_mse"])
        note = f"{format_decibels(copied)} dB for a still last frame. A sanity check, not a score: "
        note += "a sample is one of many possible futures."
        cards.append(card("Sampled frames PSNR", format_decibels(mse), "dB", (), note))
    return cards


def horizon_series(samples: Mapping[str, Any], metric: str, kinds: Mapping[str, str] = HORIZON_KINDS) -> list[Series]:
    """Errors of each frame, averaged over clips, as `lvt evaluate` measured them; x are frame numbers from 1.

    Args:
        samples: that part of an `eval.json`.
        kinds: prefix in the file -> name of the series.
    """
    priming = int(samples.get("priming_frames", 0))
    found = []
    for style, (prefix, name) in enumerate(kinds.items()):
        values = _numbers(samples.get(f"{prefix}{metric}_by_frame"))
        if prefix == "copy_":  # equal to the real frames by construction until then
            values = [math.nan] * min(priming, len(values)) + values[priming:]
        if values:
            found.append(Series(name, list(range(1, len(values) + 1)), values, style))
    return found


def horizon_charts(samples: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """Errors of each frame against what really happened, one chart per metric.

    Args:
        samples: that part of one or more evaluations, by name; of several only the samples themselves are shown.
    """
    charts: list[Part] = []
    for metric, label in HORIZON.items():
        series: list[Series] = []
        for number, (name, part) in enumerate(samples.items()):
            kinds = HORIZON_KINDS if len(samples) == 1 else {"": name}
            found = horizon_series(part, metric, kinds)
            series += found if len(samples) == 1 else [Series(line.name, line.x, line.y, number) for line in found]
        svg = line_chart(
            series,
            title=f"{metric.upper()} of each frame against the real video",
            x_label="frame",
            y_label=label,
            priming_frames=max((int(part.get("priming_frames", 0)) for part in samples.values()), default=0),
            always_named=True,
        )
        better = "Lower" if metric == "lpips" else "Higher"
        charts += chart(f"{metric.upper()} over the horizon", svg, f"{better} is closer to the real video.")
    if charts:
        charts[-1]["caption"] += (
            " Priming frames are shaded. A sample is one possible future, so a large error is not necessarily bad."
        )
    return charts


def bits_charts(evaluations: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """Bits per code of each frame, and of each slice where slices are not frames; of one or more evaluations."""
    charts: list[Part] = []
    priors = {name: results.get("prior", {}) for name, results in evaluations.items()}
    for key, label in (("per_frame", "frame"), ("per_slice", "slice")):
        if key == "per_slice" and all(prior.get("per_slice") == prior.get("per_frame") for prior in priors.values()):
            continue  # single-frame subscaling: a slice is a frame
        series = []
        for number, (name, prior) in enumerate(priors.items()):
            values = _numbers(prior.get(key))
            series.append(Series(name, list(range(1, len(values) + 1)), values, number))
        references = []
        baselines = next(iter(evaluations.values())).get("baselines", {}) if len(evaluations) == 1 else {}
        if (bits := baselines.get("previous_frame_bits")) is not None:
            references = [Reference("previous frame, mean", float(bits))]
        svg = line_chart(
            series,
            title=f"Bits per code of each {label}",
            x_label=label,
            y_label="bits per code",
            references=references,
            always_named=len(evaluations) > 1,
        )
        charts += chart(f"Bits per code, by {label}", svg)
    return charts


def _section(results: Mapping[str, Any]) -> Part:
    protocol, fvd = results.get("protocol", {}), results.get("fvd", {})
    tables = [
        *_reconstruction_tables(results),
        _codebook_table(results),
        *action_tables(results),
        *_sample_tables(results),
        *_fvd_tables(results),
    ]
    warnings = []
    if results.get("training_clips"):
        trained = results["training_clips"]
        warnings.append(f"{trained} of these clips were used for training; the scores are optimistic.")
    if protocol.get("deviations"):
        warnings.append(f"Protocol {protocol['name']} differs from the paper: {'; '.join(protocol['deviations'])}.")
    warnings += [f"FVD: {fvd[key]}." for key in ("warning", "missing") if fvd.get(key)]
    clips = count_of(results["clips"], f"{results['split']} clip")
    note = (
        f"Measured on {clips}: {int(results['baselines']['codes']):,} codes of frames "
        f"{int(results['priming_frames']) + 1} to {results['frames']}."
    )
    if results.get("short_clips"):
        note += f" {count_of(results['short_clips'], 'shorter clip')} left out."
    return {
        "results": results,
        "bars": _bars(results),
        "bits_charts": bits_charts({"this prior": results}),
        "horizon_charts": horizon_charts({"": results.get("samples", {})}),
        "tables": [item for item in tables if item["rows"]],
        "protocol": _protocol_table(protocol) if protocol else None,
        "warnings": warnings,
        "missing": list(results.get("missing", {}).items()),
        "card": settings_text(fvd.get("card", {})),
        "note": note + _clips_won(results),
    }


def _bars(results: Mapping[str, Any]) -> list[Part]:
    """Bits per code of the prior and of everything it has to beat; widths in percent of the longest."""
    baselines, prior = results["baselines"], results.get("prior")
    measured = {
        "uniform": math.log2(results["codes"]["codebook_size"]),
        "unigram": float(baselines["unigram_bits"]),
        "same as previous frame": float(baselines["previous_frame_bits"]),
    }
    if prior:
        measured["this prior"] = float(prior["bits_per_dim"])
    longest = max(measured.values()) or 1.0
    bars = []
    for label, bits in measured.items():
        is_prior, verdict = label == "this prior", None
        if prior and not is_prior:
            is_beaten = measured["this prior"] < bits
            verdict = check("better", "✓ beaten") if is_beaten else check("worse", "✗ not beaten")
        definition = DEFINITIONS[label].format(fitted_on=baselines["fitted_on"]["split"])
        kind = "prior" if is_prior else "baseline"
        bars.append(
            {
                "label": label,
                "text": f"{bits:.3f}",
                "width": 100 * bits / longest,
                "kind": kind,
                "definition": definition,
                "check": verdict,
            }
        )
    return bars


def _clips_won(results: Mapping[str, Any]) -> str:
    """On how many clips the prior beats the stronger baseline."""
    values = results.get("per_clip", {}).get("evaluated", {})
    pairs = list(zip(values.get("bits", []), values.get("previous_frame_bits", []), strict=False))
    won = sum(ours < theirs for ours, theirs in pairs if ours is not None and theirs is not None)
    if not pairs:
        return ""
    return f" The prior needs fewer bits than “same as previous frame” on {won} of {count_of(len(pairs), 'clip')}."


def _reconstruction_tables(results: Mapping[str, Any]) -> list[Part]:
    if "reconstruction" not in results:
        return []
    found = results["reconstruction"]
    mse, flat = float(found["mse"]), float(found["mean_picture_mse"])
    rows: list[Sequence[str | Part]] = [
        ("MSE in [0, 1]", f"{mse:.5f}", f"{flat:.5f}", beats(mse < flat)),
        ("PSNR", f"{format_decibels(mse)} dB", f"{format_decibels(flat)} dB", beats(mse < flat)),
    ]
    rows += [(name.upper(), f"{found[name]:.4f}", "–", "") for name in ("ssim", "lpips") if name in found]
    note = "The mean picture is the one picture closest to all of these frames: what a tokenizer without codes reaches."
    return [table("Reconstruction", ["", "Measured", "Mean picture", ""], rows, note)]


def _sample_tables(results: Mapping[str, Any]) -> list[Part]:
    """Samples against what happened, and how much they move and differ."""
    samples = results.get("samples", {})
    mean, std = (results.get("protocol", {}).get(key, {}) for key in ("mean", "std"))
    errors: list[Sequence[str | Part]] = []
    for metric, lower_is_better in (("mse", True), ("psnr", False), ("ssim", False), ("lpips", True)):
        if samples.get(metric) is None:
            continue
        ours, copied, bound = (samples.get(f"{prefix}{metric}") for prefix in ("", "copy_", "reconstruction_"))
        ours = mean.get(metric, ours)
        verdict: str | Part = ""
        if copied is not None:  # in words without colour: it is not a score
            is_closer = (ours < copied) == lower_is_better and ours != copied
            verdict = check("plain", "closer than a still frame" if is_closer else "not closer than a still frame")
        spread = std.get(metric)
        sampled = _format_metric(metric, ours) if spread is None else format_spread(ours, spread)
        errors.append((metric.upper(), sampled, _format_metric(metric, copied), _format_metric(metric, bound), verdict))
    note = (
        f"Over the sampled frames of {count_of(samples.get('clips', 0), 'sample')}. Colder samples have smaller errors "
        "without being better videos: these numbers show whether something is broken, not how good a sample is."
    )
    header = ["", "Sampled", "Last frame repeated", "Reconstructed", ""]
    diversity = samples.get("diversity", {})
    moves: list[Sequence[str | Part]] = []
    if "share_same_as_previous_frame" in samples:
        share = mean.get("share_same_as_previous_frame", samples["share_same_as_previous_frame"])
        real = samples["real_share_same_as_previous_frame"]
        moves.append(("Codes that stay from frame to frame", f"{share:.1%}", f"{real:.1%}"))
    if "codes" in diversity:
        moves.append(("Codes that differ between samples of one clip", f"{diversity['codes']:.1%}", "–"))
    if "mse" in diversity:
        moves.append(("Squared difference of samples of one clip", f"{diversity['mse']:.5f}", "–"))
    return [
        table("Samples, against what really happened", header, errors, note),
        table("Movement and diversity", ["", "Sampled", "Real"], moves),
    ]


def _fvd_tables(results: Mapping[str, Any]) -> list[Part]:
    fvd, protocol = results.get("fvd", {}), results.get("protocol", {})
    label = str(fvd.get("label", "FVD"))
    published = protocol.get("published", {}) if is_fvd(label) else {}
    rows: list[Sequence[str | Part]] = []
    for key, name, title in FVD_ROWS:
        if fvd.get(key) is None:
            continue
        value, copied = float(fvd[key]), fvd.get("copy")
        cells: list[str | Part] = [_format_distance(value, protocol.get("std", {}).get(f"fvd_{key}"))]
        if published:
            spread = published.get(f"{name}_std")
            cells.append(_format_distance(published[name], spread) if name in published else "–")
        if fvd.get("kvd"):
            kernel = fvd["kvd"].get(key)
            cells.append("–" if kernel is None else "{value:.4g} [{low:.4g}, {high:.4g}]".format(**kernel))
        is_sampled = key.endswith("_priming") and copied is not None
        rows.append((title, *cells, beats(value < copied, "repeating") if is_sampled else ""))
    title = "FVD" if is_fvd(label) else "Fréchet distance, not FVD" if label.startswith("not") else "Fréchet distance"
    note = f"{label[:1].upper()}{label[1:]}. Less is better."
    if fvd.get("kvd"):
        note += " The kernel distance (KVD) is of the same features and, unlike FVD, has no bias for few clips."
    header = ["", "Measured", *(["Published"] if published else []), *(["KVD [95 %]"] if fvd.get("kvd") else []), ""]
    return [table(title, header, rows, note)]


def _protocol_table(protocol: Mapping[str, Any]) -> Part:
    """Every run of a protocol, then their mean and spread."""
    names = list(protocol["mean"])
    rows: list[Sequence[str | Part]] = [
        (f"seed {run['seed']}", *(format_number(float(run[name])) for name in names)) for run in protocol["runs"]
    ]
    rows.append(("mean ± std", *(format_spread(protocol["mean"][name], protocol["std"].get(name)) for name in names)))
    note = (
        f"{protocol['frames']} frames; {protocol['priming_frames']} of them priming frames for samples, "
        f"{protocol['bits_priming_frames']} for bits per code."
    )
    if protocol.get("published"):
        published = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in protocol["published"].items())
        note += f" Published, with four codebooks: {published}."
    header = [name.replace("share_same_as_previous_frame", "codes that stay").replace("_", " ") for name in names]
    return table(f"Every run of the protocol {protocol['name']}", ["", *header], rows, note)


def _codebook_table(results: Mapping[str, Any]) -> Part:
    baselines, prior = results["baselines"], results.get("prior")
    unigram, previous = (baselines[f"{name}_bits_per_codebook"] for name in ("unigram", "previous_frame"))
    rows = [
        (f"{book}", f"{one:.3f}", f"{other:.3f}", f"{prior['per_codebook'][book]:.3f}" if prior else "–")
        for book, (one, other) in enumerate(zip(unigram, previous, strict=True))
    ]
    return table("Bits per code, by codebook", ["Codebook", "Unigram", "Previous frame", "This prior"], rows)


def _fvd_cards(results: Mapping[str, Any]) -> list[Part]:
    fvd, protocol = results.get("fvd", {}), results.get("protocol", {})
    kind = next((kind for kind in ("real_priming", "reconstructed_priming") if fvd.get(kind) is not None), None)
    if kind is None:
        return []
    value, copied = float(fvd[kind]), fvd.get("copy")
    checks = [] if copied is None else [beats(value < copied, "repeating the last frame", f"{copied:.5g}")]
    label = str(fvd.get("label", "FVD"))
    name, note = ("FVD", "") if is_fvd(label) else ("Fréchet distance", label)
    spread = protocol.get("std", {}).get(f"fvd_{kind}")
    return [card(name, f"{value:.5g}", "" if spread is None else f"± {spread:.3g}", checks, note)]


def _format_metric(metric: str, value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} dB" if metric == "psnr" else format_number(float(value))


def _format_distance(value: float, std: float | None) -> str:
    return f"{value:.5g}" if std is None else format_spread(value, std)


def _numbers(values: Any) -> list[float]:
    """A list of an evaluation, with what could not be written as JSON as nan."""
    return [math.nan if value is None else float(value) for value in values or []]
