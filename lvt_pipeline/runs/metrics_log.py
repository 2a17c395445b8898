"""The log of a training: `metrics.jsonl`, one JSON object a line, appended to as the training goes.

A killed writer leaves a half-written last line at most. Any other line that cannot be read was damaged later; such
lines are moved to `metrics.damaged` and never deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvt_pipeline.runs.layout import DAMAGED_NAME
from lvt_pipeline.storage import describe_os_error, json_log, write_bytes

BLOCK_BYTES = 2**16  # read from the end of the log at a time


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line to a log.

    Raises:
        LVTError: the operating system refused.
        ValueError: the line holds a number that is not finite.
    """
    text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with open(path, "ab") as stream:
            stream.write(text.encode())
    except OSError as error:
        raise describe_os_error(error, f"writing {path}") from error


def flush_log(path: Path) -> None:
    """Flush written data to the device."""
    if path.exists():
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def cut_log(path: Path, step: int, keep_final: bool) -> str:
    """Make a log end at a step: drop later lines, a half-written last line, and lines marked as final.

    Args:
        keep_final: keep the lines that only the end of an earlier training caused.

    Returns:
        a message about damaged lines that were moved aside, "" when there was none.
    """
    if not path.exists():
        return ""
    *texts, rest = path.read_bytes().split(b"\n")
    if parse_line(rest) is not None:  # only its newline is missing
        texts.append(rest)
    kept, damaged = [], {}
    for number, text in enumerate(texts, 1):
        line = parse_line(text)
        if line is None:
            damaged[number] = text
        elif line["step"] <= step and (keep_final or not line.get("final")):
            kept.append(text)
    message = _move_aside(path, damaged) if damaged else ""
    write_bytes(path, b"".join(text + b"\n" for text in kept))
    return message


def _move_aside(path: Path, damaged: Mapping[int, bytes]) -> str:
    aside = path.with_name(DAMAGED_NAME)
    before = aside.read_bytes() if aside.exists() else b""
    write_bytes(aside, before + b"".join(text + b"\n" for text in damaged.values()))
    numbers = ", ".join(map(str, damaged))
    return f"{path} has damaged lines (line {numbers}), which were moved to {aside.name}; the other lines are kept"


def lines_from_the_end(path: Path) -> Iterator[dict[str, Any]]:
    """Complete lines of a log that may be growing, the last one first."""
    if not path.exists():
        return
    with open(path, "rb") as stream:
        position, rest = stream.seek(0, 2), b""
        while position:
            size = min(BLOCK_BYTES, position)
            position -= size
            stream.seek(position)
            rest, *lines = (stream.read(size) + rest).split(b"\n")
            yield from (line for text in reversed(lines) if (line := parse_line(text)))
        if line := parse_line(rest):
            yield line


def parse_line(text: bytes) -> dict[str, Any] | None:
    """The metrics in one line of a log, None when it is damaged, half-written or empty."""
    line = next(json_log(text), None)
    if line is None or type(line.get("step")) is not int or not isinstance(line.get("split"), str):
        return None
    return line
