"""Result files of evaluations: written whole with a record, and found again when nothing changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvt_pipeline import lineage
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.job import Work
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.storage import read_json, write_json

NEEDED_KEYS = {"baselines", "codes", "clips", "split"}


def read_results(path: Path) -> dict[str, Any]:
    """The numbers that `lvt evaluate` wrote.

    Raises:
        ArtefactError: the file is missing, damaged, or not a result of lvt evaluate.
    """
    results = read_json(path)
    if not isinstance(results, dict) or not results.keys() >= NEEDED_KEYS:
        raise ArtefactError(
            f"{path} is damaged or not a result of lvt evaluate in this version; run lvt evaluate again"
        )
    return results


def is_number(value: Any) -> bool:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_unchanged(out: Path, record: Provenance) -> bool:
    """Whether a finished result is unchanged since it was written. One in which a network failed is measured again."""
    try:
        return not record.counts.get("failed") and lineage.results_fingerprint(read_json(out)) == record.fingerprint
    except ArtefactError:
        return False


def write_results(work: Work, results: Mapping[str, Any], counts: Mapping[str, Any]) -> Provenance:
    """Write a result file, then its record."""
    write_json(work.out, results)
    return work.finish(lineage.results_fingerprint(results), counts=counts)


def plain(value: Any) -> Any:
    """The same with null for numbers that JSON cannot write (infinite, or not a number)."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_metric(results: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Results without the numbers of a metric: those whose name has it as a part, such as `sample_lpips`."""
    return {key: value for key, value in results.items() if metric not in key.split("_")}
