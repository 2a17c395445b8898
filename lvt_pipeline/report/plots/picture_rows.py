"""Rows of pictures with one column per frame: the layout of the paper's figures 3, 4 and 6 to 8.

Everything is placed in pixels of the PNG, so that each pixel of a frame and each code is a square of whole pixels. In
the SVG the same pictures are embedded, and all lines and text are vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.report.plots.engine import PAGE_WIDTH, PRIMING_COLOUR, SAMPLED_COLOUR, text_width
from lvt_pipeline.video.tiles import fitted, strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE_SIZES = (0.2, 0.9)  # inches: narrower tiles make the page wider than PAGE_WIDTH instead
MOST_TILE_PIXELS = 128  # larger frames are averaged down
LEAST_DOTS = 300  # per inch, of pictures
GAP = 0.02  # inches between tiles
LINE = 0.17  # inches of a line of text
MOST_LABEL = 1.5  # inches; longer labels are cut
LABEL_SPACE = 0.06  # inches on each side of the labels
LEGEND_SPACE = 0.42  # inches of an entry next to its text
MARGIN = 0.04  # inches around the page


@dataclass(frozen=True)
class PictureRow:
    """One row.

    Attributes:
        label: text before it; may have two lines.
        tiles: one picture per frame, uint8 (T, H, W, 3 or 4).
        num_priming: this many of its first tiles are framed; rows without space between them share a frame.
        group: consecutive rows of one group share a bracket with this name.
        space_above: inches.
    """

    label: str
    tiles: NDArray[np.uint8]
    num_priming: int = 0
    group: str = ""
    space_above: float = 0.0


def plot_picture_rows(
    rows: Sequence[PictureRow],
    num_priming: int,
    *,
    title: str = "",
    legend: Sequence[tuple[tuple[int, int, int], str]] = (),
    numbers: Sequence[int] | None = None,
) -> Figure:
    """Plot rows under a head with frame numbers and the kind of the frames; call it inside `figure_look`.

    The figure has the resolution at which its pictures are whole pixels.

    Args:
        num_priming: frames 1 to this are headed as priming frames, the others as sampled.
        legend: colours, 0 to 255, and what they mean, below the rows.
        numbers: of the frames, one per column; 1, 2, ... when not given.

    Raises:
        ShapeError: there are no rows, or one has no frame.
    """
    if not rows or any(row.tiles.ndim != 4 or not row.tiles.size for row in rows):
        raise ShapeError("a figure of pictures needs at least one row of shape (T, H, W, 3) with at least one frame")
    layout = _lay_out(rows, bool(title), [meaning for _, meaning in legend])
    sheet = _Sheet(layout)
    if title:
        sheet.add_title(title)
    sheet.add_head(min(num_priming, layout.num_frames), numbers or range(1, layout.num_frames + 1))
    for row, top in zip(rows, layout.tops, strict=True):
        sheet.add_row(row, top)
    sheet.add_frames(rows)
    sheet.add_groups(rows)
    sheet.add_legend(legend)
    return sheet.figure


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where everything is, in pixels from the top left corner.

    Attributes:
        dots: pixels per inch.
        head: top of the brackets and frame numbers.
        left: left edge of the first tiles.
        tops: of each row.
        below: bottom of the last row and its gap.
        label_room: inches that a label may take.
    """

    dots: int
    num_frames: int
    tile_height: int
    tile_width: int
    head: int
    left: int
    tops: tuple[int, ...]
    below: int
    width: int
    height: int
    label_room: float

    @property
    def gap(self) -> int:
        return self.pixels(GAP)

    def pixels(self, inches: float) -> int:
        return round(inches * self.dots)

    def column(self, frame: int) -> int:
        """Left edge of a frame's tiles."""
        return self.left + frame * (self.tile_width + self.gap)


def _lay_out(rows: Sequence[PictureRow], has_title: bool, meanings: Sequence[str]) -> _Layout:
    """The largest tiles with which the page is as wide as print, of whole pixels per pixel."""
    num_frames = max(len(row.tiles) for row in rows)
    label_room = min(MOST_LABEL, max(text_width(line) for row in rows for line in row.label.split("\n")))
    left = label_room + 2 * LABEL_SPACE + (LINE + 0.1 if any(row.group for row in rows) else 0.0)
    tile = (PAGE_WIDTH - left - MARGIN) / num_frames - GAP
    tile = min(max(tile, TILE_SIZES[0]), TILE_SIZES[1])
    height, width = _tile_shape(rows)
    enlarged = math.ceil(LEAST_DOTS * tile / width)
    dots = round(enlarged * width / tile)

    def pixels(inches: float) -> int:
        return round(inches * dots)

    head = pixels(MARGIN + (1.3 * LINE if has_title else 0.0))
    tops, below = [], head + pixels(2.2 * LINE)
    for row in rows:
        below += pixels(row.space_above)
        tops.append(below)
        below += enlarged * height + pixels(GAP)
    tiles_width = num_frames * (enlarged * width + pixels(GAP))
    legend_width = sum(pixels(LEGEND_SPACE + text_width(meaning)) for meaning in meanings)
    return _Layout(
        dots=dots,
        num_frames=num_frames,
        tile_height=enlarged * height,
        tile_width=enlarged * width,
        head=head,
        left=pixels(left),
        tops=tuple(tops),
        below=below,
        width=pixels(left) + max(tiles_width, legend_width) + pixels(MARGIN),
        height=below + pixels(1.4 * LINE if meanings else MARGIN),
        label_room=label_room,
    )


class _Sheet:
    """A page whose coordinates are pixels from the top left corner."""

    def __init__(self, layout: _Layout) -> None:
        from matplotlib.figure import Figure

        # Slightly more, because matplotlib cuts what rounding leaves just below a whole pixel.
        size = ((layout.width + 1e-4) / layout.dots, (layout.height + 1e-4) / layout.dots)
        self.figure = Figure(figsize=size, dpi=layout.dots)
        self.layout = layout
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, layout.width), ylim=(layout.height, 0))
        self.axes.set_axis_off()

    def add_title(self, title: str) -> None:
        layout = self.layout
        room = (layout.width - layout.left) / layout.dots
        self.text(layout.left, layout.head - layout.pixels(0.7 * LINE), _shortened(title, room), ha="left")

    def add_head(self, num_priming: int, numbers: Sequence[int]) -> None:
        """Brackets over the priming and the sampled frames, and the number of each frame."""
        layout = self.layout
        for first, after, colour, name in (
            (0, num_priming, PRIMING_COLOUR, "priming"),
            (num_priming, layout.num_frames, SAMPLED_COLOUR, "sampled"),
        ):
            if first == after:
                continue
            left, right = layout.column(first), layout.column(after) - layout.gap
            self.text((left + right) / 2, layout.head + layout.pixels(0.4 * LINE), name, color=colour, weight="bold")
            height = layout.head + layout.pixels(0.95 * LINE)
            self.line([left, right], [height, height], color=colour, linewidth=1.6)
        room = 0.8 * (layout.tile_width + layout.gap) / layout.dots
        for frame in range(0, layout.num_frames, math.ceil(text_width(str(max(numbers))) / room)):
            centre = layout.column(frame) + layout.tile_width / 2
            self.text(centre, layout.head + layout.pixels(1.6 * LINE), str(numbers[frame]), color="#444444")

    def add_row(self, row: PictureRow, top: int) -> None:
        layout = self.layout
        label = "\n".join(_shortened(line, layout.label_room) for line in row.label.split("\n"))
        middle = top + layout.tile_height / 2
        self.text(layout.left - layout.pixels(LABEL_SPACE), middle, label, ha="right", va="center")
        tiles = np.stack([fitted(tile, layout.tile_height, layout.tile_width) for tile in row.tiles])
        image = strip(tiles, layout.gap)
        # Slightly less, because matplotlib may enlarge a picture to whole pixels when rounding leaves it just above.
        height, width = image.shape[0] - 1e-3, image.shape[1] - 1e-3
        place = (layout.left, layout.left + width, top + height, top)
        self.axes.imshow(image, interpolation="none", aspect="auto", extent=place)

    def add_frames(self, rows: Sequence[PictureRow]) -> None:
        """A frame around the priming tiles of rows that touch, in the gaps around them."""
        layout, half = self.layout, self.layout.gap / 2
        for first, last in _spans(
            rows, lambda row, below: row.num_priming == below.num_priming and not below.space_above
        ):
            num_priming = min(rows[first].num_priming, layout.num_frames)
            if not num_priming:
                continue
            left, right = layout.left - half, layout.column(num_priming) - half
            top, bottom = layout.tops[first] - half, layout.tops[last] + layout.tile_height + half
            self.line(
                [left, right, right, left, left],
                [top, top, bottom, bottom, top],
                color=PRIMING_COLOUR,
                linewidth=72 * layout.gap / layout.dots,
                solid_joinstyle="miter",
                snap=False,  # it fills the gap exactly, and covers no pixel of a frame
            )

    def add_groups(self, rows: Sequence[PictureRow]) -> None:
        """A line with a name, next to consecutive rows of one group."""
        layout = self.layout
        for first, last in _spans(rows, lambda row, below: row.group == below.group):
            if rows[first].group:
                left = layout.pixels(LINE + 0.05)
                top, bottom = layout.tops[first], layout.tops[last] + layout.tile_height
                self.line([left, left], [top, bottom], color="#555555", linewidth=0.8)
                middle = (top + bottom) / 2
                self.text(left - layout.pixels(0.6 * LINE), middle, rows[first].group, rotation=90, va="center")

    def add_legend(self, legend: Sequence[tuple[tuple[int, int, int], str]]) -> None:
        """Squares of colour and what they mean, below the rows."""
        from matplotlib.patches import Rectangle

        layout = self.layout
        left, middle = layout.left, layout.below + layout.pixels(0.8 * LINE)
        size = layout.pixels(0.11)
        for colour, meaning in legend:
            face = tuple(channel / 255 for channel in colour)
            self.axes.add_patch(Rectangle((left, middle - size / 2), size, size, facecolor=face, edgecolor="none"))
            self.text(left + 1.5 * size, middle, meaning, ha="left")
            left += layout.pixels(LEGEND_SPACE + text_width(meaning))

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        self.axes.text(x, y, text, **{"ha": "center", "va": "center_baseline", **options})

    def line(self, x: Sequence[float], y: Sequence[float], **options: Any) -> None:
        self.axes.plot(x, y, solid_capstyle="butt", clip_on=False, **options)


def _spans(rows: Sequence[PictureRow], joins: Callable[[PictureRow, PictureRow], bool]) -> Iterator[tuple[int, int]]:
    """First and last index of each stretch of rows that belong together, by what joins a row to the one below."""
    first = 0
    for last in range(len(rows)):
        if last + 1 == len(rows) or not joins(rows[last], rows[last + 1]):
            yield first, last
            first = last + 1


def _tile_shape(rows: Sequence[PictureRow]) -> tuple[int, int]:
    """Height and width of the largest tile, in its own pixels, or averaged down by a whole factor."""
    shapes: list[tuple[int, int]] = [(row.tiles.shape[1], row.tiles.shape[2]) for row in rows]
    height, width = max(shapes, key=math.prod)
    factor = math.ceil(max(height, width) / MOST_TILE_PIXELS)
    return max(1, height // factor), max(1, width // factor)


def _shortened(text: str, room: float) -> str:
    """A text on one line that fits into this many inches; the end of an id is more specific than its beginning."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if text_width(text) <= room:
        return text
    while len(text) > 1 and text_width("…" + text) > room:
        text = text[1:]
    return "…" + text
