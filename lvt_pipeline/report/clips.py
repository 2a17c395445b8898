"""Single clips in a report: their values by metric, which of many are shown, and all of them in a table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.evaluation.compare import METRICS, values_of_clips
from lvt_pipeline.evaluation.pixels import real_frames
from lvt_pipeline.report.numbers import format_number
from lvt_pipeline.report.parts import Part
from lvt_pipeline.report.work import WorkDir
from lvt_pipeline.video.notebook import data_uri
from lvt_pipeline.video.tiles import picture_grid, shrunk

SHOWN_ROWS = 200
THUMBNAIL_SIZE = 64
JPEG_QUALITY = 88
SAMPLE_METRICS = ("sample_lpips", "sample_ssim", "sample_mse")  # samples are good or bad by the first one measured

ClipValues = Mapping[str, Mapping[str, float]]  # by key of a metric, by id of a clip
METRIC_OF = {metric.key: metric for metric in METRICS}


def clip_values(work: WorkDir) -> ClipValues:
    """Values of single clips that `lvt evaluate` wrote; nothing when there are none that can be used."""
    try:
        return values_of_clips(work.results)
    except (LVTError, KeyError, TypeError, ValueError, AttributeError):
        return {}  # the evaluation section reports the fault


def sample_metric(values: ClipValues) -> str | None:
    """The metric by which clips with samples are chosen: of samples if one was measured, else bits per code."""
    return next((key for key in (*SAMPLE_METRICS, "bits") if key in values), None)


def evenly_chosen(names: Sequence[str], values: ClipValues, most: int, of_what: str = "") -> tuple[list[str], str]:
    """At most `most` of the names, in their order: a third of them the worst and a third the best, the others evenly
    spread. With several metrics, each has its share of the worst and of the best.

    Args:
        of_what: what the values are of, for the reason, such as " of b minus a".

    Returns:
        The names, and why these; no reason when all are shown.
    """
    if len(names) <= most:
        return list(names), ""
    chosen: list[int] = []
    each = most // (3 * len(values)) if values else 0
    for by_clip in values.values():
        known = [index for index, name in enumerate(names) if name in by_clip]
        ordered = sorted(known, key=lambda index: by_clip[names[index]])
        chosen += ordered[:each] + ordered[::-1][:each]
    chosen = list(dict.fromkeys(chosen))
    rest = [index for index in range(len(names)) if index not in set(chosen)]
    wanted = min(most - len(chosen), len(rest))
    chosen += [rest[number * len(rest) // wanted] for number in range(wanted)]
    reason = f"{len(chosen)} of {len(names):,} are shown, evenly spread."
    if each:
        metrics = ", by ".join(METRIC_OF[key].title for key in values)
        which = "worst and best" if each == 1 else f"{each} worst and the {each} best"
        reason = f"{len(chosen)} of {len(names):,} are shown: the {which} by {metrics}{of_what}, the others in between."
    return [names[index] for index in sorted(chosen)], reason


def order(key: str, title: str, is_rising: bool) -> Part:
    """A way to order clips: by a key of their `order`, rising or falling."""
    return {"key": key, "title": title, "is_rising": is_rising}


def orders_of(values: ClipValues) -> list[Part]:
    """Worst and best first, by each metric."""
    return [
        order(key, f"{METRIC_OF[key].title}, {which} first", METRIC_OF[key].lower_is_better == (which == "best"))
        for key in values
        for which in ("worst", "best")
    ]


def clips_section(work: WorkDir) -> Part:
    """Every clip that was evaluated or sampled, with its numbers.

    Raises:
        MissingPart: nothing was evaluated yet.
        ArtefactError: the evaluation holds no values of single clips.
    """
    values = clip_values(work)
    _ = work.results  # reported when it is missing or damaged
    if not values:
        raise ArtefactError("eval.json holds no values of single clips; run lvt evaluate again")
    names = list(dict.fromkeys(name for by_clip in values.values() for name in by_clip))
    shown, reason = evenly_chosen(names, values, SHOWN_ROWS)
    pictures, note = _pictures(work, shown)
    labels = _labels(work)
    rows = [
        {
            "id": name,
            "label": labels.get(name, ""),
            "picture": pictures.get(name, ""),
            "cells": [_cell(key, by_clip, name) for key, by_clip in values.items()],
            "order": {key: by_clip[name] for key, by_clip in values.items() if name in by_clip},
        }
        for name in shown
    ]
    metrics = [METRIC_OF[key] for key in values]
    return {"metrics": metrics, "orders": orders_of(values), "rows": rows, "note": f"{note} {reason}".strip()}


def _cell(key: str, by_clip: Mapping[str, float], name: str) -> Part:
    """A number of the table as text, and the length of its bar, in percent of the longest there: longer is worse."""
    if name not in by_clip:
        return {"text": "–", "width": 0.0}
    # SSIM, for which more is better, is 1 at best.
    badness = {clip: value if METRIC_OF[key].lower_is_better else 1 - value for clip, value in by_clip.items()}
    longest = max(badness.values())
    width = 100 * badness[name] / longest if longest > 0 else 0.0
    return {"text": format_number(by_clip[name]), "width": width}


def _labels(work: WorkDir) -> dict[str, str]:
    try:
        return {clip.id: clip.label for clip in work.codes.clips if clip.label}
    except LVTError:
        return {}


def _pictures(work: WorkDir, names: Sequence[str]) -> tuple[dict[str, str], str]:
    """The middle one of the evaluated frames of each clip and its reconstruction, as data URIs, and a note."""
    try:
        store = work.codes
        tokenizer = work.require_tokenizer_of(store)
        middle = int(work.results["frames"]) // 2
    except LVTError as problem:
        return {}, f"No pictures: {problem}."
    except (TypeError, ValueError, KeyError):
        middle = 0
    result = {}
    for name in names:
        if name not in store:
            continue
        clip = store.clip(name)
        frame = min(middle, clip.length - 1)
        pictures = [tokenizer.decode(store.read(clip, frame, frame + 1)).numpy()[0]]
        with suppress(LVTError):  # frames that are missing or changed: the samples section reports it
            pictures.insert(0, real_frames(store, clip, work.frames, frame + 1)[frame])
        small = shrunk(np.stack(pictures), THUMBNAIL_SIZE)
        result[name] = data_uri(_jpeg_bytes(picture_grid(small[None], gap=0)), "image/jpeg")
    return result, f"Pictures: frame {middle + 1}, real and reconstructed."


def _jpeg_bytes(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()
