"""The one plotting engine: lines over an axis, for figures on disk (PNG, SVG, CSV) and for charts inside a page (SVG).

matplotlib is loaded only when something is plotted, and used without pyplot: no window, no display, no global state.
The settings of the user's own matplotlibrc do not count, so the same input gives the same bytes. Series differ by
marker as well as by colour (after Okabe and Ito's palette, which colour-blind readers can tell apart).
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.report.numbers import format_number
from lvt_pipeline.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_WIDTH = 7.0  # inches: the text width of a page in print
FONT_SIZE = 8.5  # points
TITLE_HEIGHT = 0.25  # inches
SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A8447F")
PRIMING_COLOUR, SAMPLED_COLOUR = SERIES_COLOURS[0], SERIES_COLOURS[1]
REFERENCE_COLOURS = ("#6B6B6B", "#8A6D00", "#5A4FA2")
REFERENCE_DASHES = ((0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)))
FAINT = "#8C8C8C"
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
MOST_POINTS = 240  # longer series are averaged in bins, with a band from the lowest to the highest value
MOST_MARKERS = 40
LOG_RATIO = 30.0  # values spanning more than this ratio get a logarithmic axis
LEGEND_SPACE = 3.4  # of an entry next to its text, in font sizes
FIGURE_SIZE = (PAGE_WIDTH, 3.0)  # of line figures, in inches

LOOK: dict[str, Any] = {
    "axes.autolimit_mode": "round_numbers",
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelsize": "medium",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.xmargin": 0.0,
    "axes.ymargin": 0.0,
    "figure.dpi": 200,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],  # the first comes with matplotlib
    "font.size": FONT_SIZE,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "image.composite_image": False,
    "legend.fontsize": "medium",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "path.simplify": False,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "lvt",  # names inside the file, otherwise random
    "text.parse_math": False,  # a clip may be called $1$
    "xtick.labelsize": "medium",
    "ytick.labelsize": "medium",
}


class FigureFiles(NamedTuple):
    """The three files of a figure."""

    png: Path
    svg: Path
    csv: Path


@dataclass(frozen=True)
class Series:
    """One line. Values that are not finite are left out of it; an empty series is not plotted.

    Attributes:
        style: which colour, dashes and marker; its place among the series by default.
        is_thin: a line in the background, such as the training curve of a run.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int | None = None
    is_thin: bool = False

    @property
    def finite(self) -> Series:
        """Without the points that have no finite value."""
        pairs = zip(self.x, self.y, strict=True)
        points = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
        return Series(self.name, [x for x, _ in points], [y for _, y in points], self.style, self.is_thin)


@dataclass(frozen=True)
class Reference:
    """A horizontal line to compare with, such as a baseline."""

    name: str
    value: float


@contextmanager
def figure_look(**changes: Any) -> Iterator[None]:
    """Everything inside is plotted and saved with our settings; afterwards matplotlib's are as before."""
    import matplotlib.style

    with matplotlib.style.context(["default", LOOK | changes]), warnings.catch_warnings():
        # A clip may be named in a script that the font lacks; a box is plotted for each letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def new_figure(width: float, height: float, title: str = "", *, is_laid_out: bool = True) -> Figure:
    """An empty figure of a size in inches, higher by the title if there is one; call it inside `figure_look`.

    Args:
        is_laid_out: whether matplotlib finds the place of everything, which takes twice as long as the plot.
    """
    from matplotlib.figure import Figure

    size = (width, height + (TITLE_HEIGHT if title else 0.0))
    figure = Figure(figsize=size, layout="constrained" if is_laid_out else None)
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def save_figure(figure: Figure, out: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> FigureFiles:
    """Write `out`.png, .svg and .csv; call it inside `figure_look`.

    Args:
        out: path without an ending; a dot in its name is kept.
        header, rows: the numbers behind the figure. None and nan become empty cells.

    Raises:
        LVTError: the operating system refused.
    """
    files = FigureFiles(*(out.with_name(f"{out.name}.{ending}") for ending in FigureFiles._fields))
    for file, left_out in ((files.png, "Software"), (files.svg, "Date")):  # they would change from run to run
        stream = io.BytesIO()
        figure.savefig(stream, format=file.suffix[1:], metadata={left_out: None})
        write_bytes(file, stream.getvalue())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    write_bytes(files.csv, table.getvalue().encode())
    return files


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def line_figure(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    references: Sequence[Reference] = (),
    priming_frames: int = 0,
    size: tuple[float, float] = FIGURE_SIZE,
    has_legend: bool = True,
    is_laid_out: bool = True,
) -> Figure:
    """Lines over a common axis; call it inside `figure_look`.

    The vertical axis is logarithmic when the values are positive and span more than a factor of 30. Long series are
    averaged in bins, with a band from the lowest to the highest value of each bin. A series of one point is a dot.

    Args:
        priming_frames: frames 1 to this are shaded.
        size: in inches.
        has_legend: whether the lines are named above the plot.
        is_laid_out: see `new_figure`.

    Raises:
        ShapeError: no series has a finite value.
    """
    lines = [(number if item.style is None else item.style, item.finite) for number, item in enumerate(series)]
    lines = [(style, line) for style, line in lines if len(line.x)]
    if not lines:
        raise ShapeError("no curve has a finite value; there is nothing to plot")
    figure = new_figure(*size, is_laid_out=is_laid_out)
    axes = _new_axes(figure, title, priming_frames)
    for number, (style, line) in enumerate(lines):
        _plot_line(axes, line, style, f"line-{number}")
    references = [item for item in references if math.isfinite(item.value)]
    _plot_references(axes, references)
    _set_scales(axes, [line for _, line in lines], [item.value for item in references], x_label, y_label)
    if has_legend:
        _add_legend(figure, axes)
    return figure


def _new_axes(figure: Figure, title: str, priming_frames: int) -> Axes:
    axes = figure.subplots()
    axes.set_title(title)  # below the legend
    if priming_frames:
        axes.axvspan(0.5, priming_frames + 0.5, color=PRIMING_COLOUR, alpha=0.1, linewidth=0)
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "color": PRIMING_COLOUR}
        axes.text(0.5 + priming_frames / 2, 0.03, "priming", **place)
    return axes


def _plot_references(axes: Axes, references: Sequence[Reference]) -> None:
    for number, item in enumerate(references):
        label, dashes = f"{item.name}, {format_number(item.value)}", REFERENCE_DASHES[number % 3]
        axes.axhline(item.value, label=label, color=REFERENCE_COLOURS[number % 3], linestyle=dashes, linewidth=1.3)


def _plot_line(axes: Axes, line: Series, style: int, name: str) -> None:
    xs, ys = np.asarray(line.x, float), np.asarray(line.y, float)
    look = line_style(style)
    if len(xs) > MOST_POINTS:
        groups = np.array_split(np.arange(len(xs)), MOST_POINTS)
        lowest, highest = [ys[group].min() for group in groups], [ys[group].max() for group in groups]
        xs, ys = np.array([xs[group].mean() for group in groups]), np.array([ys[group].mean() for group in groups])
        axes.fill_between(xs, lowest, highest, color=look["color"], alpha=0.16, linewidth=0, gid=f"band-{name}")
    if line.is_thin and len(xs) > 1:
        look |= {"marker": "", "linewidth": 0.9, "alpha": 0.7}
    elif len(xs) > MOST_MARKERS:
        look |= {"markevery": max(1, len(xs) // 25)} if len(xs) < MOST_POINTS else {"marker": ""}
    axes.plot(xs, ys, label=line.name, gid=name, clip_on=False, **look)


def _set_scales(axes: Axes, lines: Sequence[Series], levels: Sequence[float], x_label: str, y_label: str) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator

    values = [value for line in lines for value in line.y] + list(levels)
    steps = [value for line in lines for value in line.x]
    if min(values) > 0 and max(values) / min(values) > LOG_RATIO:
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.1, max(values) * 1.1)
        subs = (1.0, 2.0, 5.0) if max(values) / min(values) < 300 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        y_label += ", log scale"
    if x_label in ("frame", "slice"):
        axes.set_xlim(0.5, max(steps) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    elif min(steps) < max(steps):
        axes.set_xlim(min(steps), max(steps))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    plain_numbers(axes, "x", "y")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Names above the plot, where they hide no line, in as many columns as fit."""
    import matplotlib

    room = figure.get_figwidth()
    space = LEGEND_SPACE * matplotlib.rcParams["font.size"] / 72
    entries = [text_width(text) + space for text in axes.get_legend_handles_labels()[1]]
    columns = len(entries) if sum(entries) < room else max(1, int(room / max(entries)))
    look: dict[str, Any] = {"ncols": columns, "columnspacing": 1.4, "handlelength": 2.0, "borderpad": 0.1}
    is_laid_out = figure.get_layout_engine() is not None
    figure.legend(loc="outside upper left" if is_laid_out else "upper left", **look)


def text_width(text: str) -> float:
    """Inches that a line of text takes in the figures' font; call it inside `figure_look`."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=matplotlib.rcParams["font.size"])
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def line_style(number: int) -> dict[str, Any]:
    """How the line of a series looks: colour, dashes and marker differ, so that colour alone never tells two apart."""
    turn = number // len(SERIES_COLOURS)
    return {
        "color": SERIES_COLOURS[number % len(SERIES_COLOURS)],
        "linestyle": DASHES[(number + turn) % len(DASHES)],
        "marker": MARKERS[(number + 2 * turn) % len(MARKERS)],
    }


def plain_numbers(axes: Axes, *names: str) -> None:
    """Tick labels without offsets and powers: 0.001, 25k."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for name in names:
        axis = axes.xaxis if name == "x" else axes.yaxis
        ticks = set(axis.get_majorticklocs().tolist())
        digits = len({format_number(tick) for tick in ticks}) < len(ticks)  # three are too few to tell them apart
        axis.set_major_formatter(FuncFormatter(lambda x, _, digits=digits: f"{x:.6g}" if digits else format_number(x)))
        axis.set_minor_formatter(NullFormatter())
