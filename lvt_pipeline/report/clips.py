"""Single clips in a report: their values by metric, which of many are shown, and all of them in a table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from einops import rearrange, reduce
from numpy.typing import NDArray
from PIL import Image

from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.evaluation.compare import METRICS, Metric, values_of_clips
from lvt_pipeline.evaluation.pixels import real_frames
from lvt_pipeline.report.charts import spoken_number
from lvt_pipeline.report.parts import data_uri
from lvt_pipeline.report.work_dir import WorkDir
from lvt_pipeline.runs.compatibility import check_tokenizer

SHOWN_ROWS = 200
THUMBNAIL_SIZE = 64
JPEG_QUALITY = 88

ClipValues = Mapping[str, Mapping[str, float]]  # by key of a metric, by id of a clip
METRIC_OF = {metric.key: metric for metric in METRICS}


def clip_values(work: WorkDir) -> ClipValues:
    """Values of single clips that `lvt evaluate` wrote; nothing when there are none that can be used."""
    try:
        return values_of_clips(work.results())
    except (LVTError, KeyError, TypeError, ValueError, AttributeError):
        return {}  # the evaluation section says what is wrong


@dataclass(frozen=True)
class Choice:
    """Which of many things are shown, as rising indices, and why these."""

    indices: Sequence[int]
    reason: str


def choose(names: Sequence[str], values: ClipValues, most: int, of_what: str = "") -> Choice:
    """At most `most` of the names: a third of them the worst and a third the best, the others evenly spread.

    With several metrics, each has its share of the worst and of the best.

    Args:
        of_what: what the values are of, for the reason, such as " of b minus a".
    """
    if len(names) <= most:
        return Choice(range(len(names)), "")
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
    return Choice(sorted(chosen), reason)


@dataclass(frozen=True)
class ClipOrder:
    """A way to order clips: by a data attribute, rising or falling."""

    key: str
    title: str
    is_rising: bool


def orders_of(values: ClipValues) -> list[ClipOrder]:
    """Worst and best first, by each metric."""
    result = []
    for key in values:
        metric = METRIC_OF[key]
        result.append(ClipOrder(key, f"{metric.title}, worst first", not metric.lower_is_better))
        result.append(ClipOrder(key, f"{metric.title}, best first", metric.lower_is_better))
    return result


@dataclass(frozen=True)
class Cell:
    """A number of the table, as a text, and how long its bar is, in percent of the longest there: longer is worse."""

    key: str
    value: float | None
    text: str
    width: float


@dataclass(frozen=True)
class ClipRow:
    id: str
    label: str
    picture: str
    cells: Sequence[Cell]

    @property
    def order(self) -> dict[str, float]:
        """What rows can be ordered by."""
        return {cell.key: cell.value for cell in self.cells if cell.value is not None}


@dataclass(frozen=True)
class ClipsSection:
    metrics: Sequence[Metric]
    orders: Sequence[ClipOrder]
    rows: Sequence[ClipRow]
    note: str
    is_problem: bool = False


def clips_section(work: WorkDir) -> ClipsSection:
    """Every clip that was evaluated or sampled, with its numbers.

    Raises:
        MissingPart: nothing was evaluated yet.
        ArtefactError: the evaluation holds no values of single clips.
    """
    values = clip_values(work)
    work.results()  # missing or damaged is said so
    if not values:
        raise ArtefactError("eval.json holds no values of single clips: an older lvt evaluate wrote it; run it again")
    ids = list(dict.fromkeys(name for by_clip in values.values() for name in by_clip))
    choice = choose(ids, values, SHOWN_ROWS)
    shown = [ids[index] for index in choice.indices]
    pictures, note = _pictures(work, shown)
    labels = _labels(work)
    rows = [
        ClipRow(name, labels.get(name, ""), pictures.get(name, ""), [_cell(*item, name) for item in values.items()])
        for name in shown
    ]
    return ClipsSection([METRIC_OF[key] for key in values], orders_of(values), rows, f"{note} {choice.reason}".strip())


def _cell(key: str, by_clip: Mapping[str, float], name: str) -> Cell:
    if name not in by_clip:
        return Cell(key, None, "–", 0.0)
    # What is better when it is more, SSIM, is 1 at best.
    badness = {clip: value if METRIC_OF[key].lower_is_better else 1 - value for clip, value in by_clip.items()}
    longest = max(badness.values())
    return Cell(key, by_clip[name], spoken_number(by_clip[name]), 100 * badness[name] / longest if longest > 0 else 0.0)


def _labels(work: WorkDir) -> dict[str, str]:
    try:
        return {clip.id: clip.label for clip in work.store().clips if clip.label}
    except LVTError:
        return {}


def _pictures(work: WorkDir, names: Sequence[str]) -> tuple[dict[str, str], str]:
    """The middle one of the evaluated frames of each clip beside its reconstruction, as data URIs, and a note."""
    try:
        store, tokenizer = work.store(), work.tokenizer()
        check_tokenizer(store, work.artefacts["vqvae"], tokenizer)
        middle = int(work.results()["frames"]) // 2
    except LVTError as problem:
        return {}, f"No pictures: {problem}"
    except (TypeError, ValueError, KeyError):
        middle = 0
    result = {}
    for name in names:
        if name not in store:
            continue
        clip = store.clip(name)
        frame = min(middle, clip.length - 1)
        pictures = [tokenizer.decode(store.read(clip, frame, frame + 1)).numpy()[0]]
        with suppress(LVTError):  # frames that are gone or changed: the samples section says so
            pictures.insert(0, real_frames(store, clip, work.frames(), frame + 1)[frame])
        small = thumbnails(np.stack(pictures), THUMBNAIL_SIZE)
        result[name] = data_uri(_jpeg_bytes(rearrange(small, "k h w c -> h (k w) c")), "image/jpeg")
    return result, f"Pictures: frame {middle + 1}, real and reconstructed."


def thumbnails(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Frames made smaller by whole steps until they are less than twice `size` high; uint8 (T, H, W, 3)."""
    factor = max(1, frames.shape[1] // size)
    height, width = frames.shape[1] // factor * factor, frames.shape[2] // factor * factor
    if factor == 1:
        return frames
    cropped = frames[:, :height, :width].astype(np.float32)
    return np.rint(reduce(cropped, "t (h a) (w b) c -> t h w c", "mean", a=factor, b=factor)).astype(np.uint8)


def _jpeg_bytes(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()
