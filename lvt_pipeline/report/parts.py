"""The pieces that pages are made of: plain data for the templates.

A section is a dictionary, or a `problem` when it cannot be shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

Part = dict[str, Any]


def problem(message: str, command: str | None = None) -> Part:
    """Why a section cannot be shown, and the command that helps, if one does."""
    return {"problem": message, "command": command}


def check(kind: str, text: str, note: str = "") -> Part:
    """A cell of a table, or a line of a card. `kind` is better or worse (a verdict), plain, or value (a number)."""
    return {"kind": kind, "text": text, "note": note}


def beats(is_better: bool, baseline: str = "", note: str = "") -> Part:
    """A verdict in words: "✓ beats the unigram"; without a name for the baseline in the same row of a table."""
    if is_better:
        return check("better", f"✓ beats {baseline or 'it'}", note)
    return check("worse", f"✗ does not beat {baseline}" if baseline else "✗ does not", note)


def card(label: str, value: str, unit: str, checks: Sequence[Part] = (), note: str = "") -> Part:
    """A key number with its baselines."""
    return {"label": label, "value": value, "unit": unit, "checks": checks, "note": note}


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str | Part]], note: str = "") -> Part:
    """Numbers in rows, of which the first column names the row."""
    return {"title": title, "header": header, "rows": rows, "note": note}


def chart(title: str, svg: str, caption: str = "") -> list[Part]:
    """A chart with its title; nothing for an empty one."""
    return [{"title": title, "svg": Markup(svg), "caption": caption}] if svg else []


def problems_of(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Stages that are not up to date, as tab, sentence and command; those that one command helps are one item."""
    by_command: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["state"] in ("stale", "unfinished", "outdated"):
            by_command.setdefault(record["command"], []).append(record)
    found = [
        (group[0]["tab"], " ".join(f"{record['title']}: {record['reason']}." for record in group), command)
        for command, group in by_command.items()
    ]
    missing = [record for record in records if record["state"] == "missing"]
    if missing:
        names = ", ".join(record["title"].lower() for record in missing)
        found.append((missing[0]["tab"], f"Not made yet: {names}.", missing[0]["command"]))
    return found
