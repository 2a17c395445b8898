"""Whether the prior obeys its actions, in a report. `samples` shows one start continued under three sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lvt_pipeline.progress import count_of
from lvt_pipeline.report.parts import Part, beats, card, check, table

PROBED = {
    "real": "Real codes",
    "reconstructed": "Reconstructed and encoded again",
    "sampled": "Samples, against their true actions",
    "sampled_shuffled": "Samples under shuffled actions, against these",
}


def action_cards(results: Mapping[str, Any]) -> list[Part]:
    """Bits that the true actions save."""
    if "actions" not in results:
        return []
    saved = results["actions"]["bits_saved"]["shuffled"]
    verdict = beats(saved["low"] > 0, "shuffled actions", _interval(saved))
    return [card("Bits saved by actions", f"{saved['mean']:.3f}", "bits per code", [verdict])]


def action_tables(results: Mapping[str, Any]) -> list[Part]:
    """Bits and samples under true, shuffled and no actions, and the probe."""
    found = results.get("actions")
    return [] if found is None else [_bits_table(found), _samples_table(found["samples"]), _probe_table(found["probe"])]


def _bits_table(found: Mapping[str, Any]) -> Part:
    bits = found["bits_per_dim"]
    rows: list[Sequence[str | Part]] = [("True actions", f"{bits['true']:.3f}", "–", "")]
    for name, title in (("shuffled", "Actions of another clip"), ("none", "No actions")):
        saved = found["bits_saved"][name]
        rows.append((title, f"{bits[name]:.3f}", _interval(saved), beats(saved["low"] > 0)))
    note = f"{count_of(found['clips'], 'clip')}, the same for every row; 95 % intervals over clips, paired."
    return table("Bits per code, by actions", ["", "Bits", "Saved by the true ones", ""], rows, note)


def _samples_table(samples: Mapping[str, Any]) -> Part:
    rows: list[Sequence[str | Part]] = []
    for name, title, form in (("same_codes", "Codes as in the real clip", "{:.1%}"), ("psnr", "PSNR, dB", "{:.2f}")):
        if name in samples:
            values = [form.format(samples[name][kind]) for kind in ("true", "shuffled")]
            delta = samples[f"delta_{name}"]
            rows.append((title, *values, _interval(delta, form.replace("{:", "{:+")), beats(delta["low"] > 0)))
    header = ["", "True", "Shuffled", "Difference", ""]
    note = f"{count_of(samples['clips'], 'clip')}, the same random numbers for both."
    return table("Samples under true and shuffled actions", header, rows, note)


def _probe_table(probe: Mapping[str, Any]) -> Part:
    guess = probe["mean_action"]
    rows: list[Sequence[str | Part]] = [
        (title, f"{probe[name]:.3f}", check("better", "✓ reads actions") if probe[name] < guess else "")
        for name, title in PROBED.items()
        if probe.get(name) is not None
    ]
    note = (
        f"In units of the actions' variance; guessing the mean action gives {guess:.3f}. A small network, "
        "trained on real codes of the training split, reads the action between two frames."
    )
    return table("Actions read from codes", ["", "Squared error", ""], rows, note)


def _interval(found: Mapping[str, float], form: str = "{:.3f}") -> str:
    mean, low, high = (form.format(found[name]) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
