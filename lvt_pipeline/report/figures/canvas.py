"""What every figure shares: its look, and how it reaches the disk as PNG, SVG and CSV.

matplotlib is imported only when something is drawn, and used without pyplot: no window, no display, no global state.
The settings of the user's own matplotlibrc do not count, so the same input gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lvt_pipeline.errors import LVTError
from lvt_pipeline.report.charts import SERIES_COLOURS
from lvt_pipeline.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_WIDTH = 7.0  # inches: the text width of a page in print
FONT_SIZE = 8.5  # points
DOTS_PER_INCH = 200
TITLE_HEIGHT = 0.25  # inches
GIVEN_COLOUR, GENERATED_COLOUR = SERIES_COLOURS[0], SERIES_COLOURS[1]
FAINT = "#8C8C8C"
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")

_LOOK: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelsize": FONT_SIZE,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT_SIZE,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],  # the first comes with matplotlib
    "font.size": FONT_SIZE,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": FONT_SIZE,
    "legend.frameon": False,
    "lines.markersize": 4.0,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "lvt",  # names inside the file, otherwise random
    "text.parse_math": False,  # a clip may be called $1$
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
}


class FigureFiles(NamedTuple):
    """The three files of a figure."""

    png: Path
    svg: Path
    csv: Path


def require_matplotlib() -> None:
    """Make sure that figures can be drawn, before any work is done for them.

    Raises:
        LVTError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise LVTError(
            f"figures need matplotlib ({error}); install it with: pip install 'lvt-pipeline[figures]'"
        ) from error


@contextmanager
def figure_look() -> Iterator[None]:
    """Everything inside is drawn and saved with our settings; afterwards matplotlib's are as before."""
    require_matplotlib()
    import matplotlib.style

    with matplotlib.style.context(["default", _LOOK]), warnings.catch_warnings():
        # A clip may be named in a script that the font lacks; a box is drawn for each letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of a size in inches, higher by the title if there is one; call it inside `figure_look`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height + (TITLE_HEIGHT if title else 0.0)), layout="constrained")
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def save_figure(
    figure: Figure,
    out: Path,
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    dots_per_inch: float = DOTS_PER_INCH,
) -> FigureFiles:
    """Write `out`.png, .svg and .csv; call it inside `figure_look`.

    Args:
        out: path without an ending; a dot in its name is kept.
        header, rows: the numbers behind the figure. None and nan are written as nothing.

    Raises:
        LVTError: the operating system refused.
    """
    files = FigureFiles(*(out.with_name(f"{out.name}.{ending}") for ending in FigureFiles._fields))
    for file, left_out in ((files.png, "Software"), (files.svg, "Date")):  # they would change from run to run
        stream = io.BytesIO()
        figure.savefig(stream, format=file.suffix[1:], dpi=dots_per_inch, metadata={left_out: None})
        write_bytes(file, stream.getvalue())
    write_bytes(files.csv, csv_bytes(header, rows))
    return files


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as comma-separated text with full precision; None and nan become empty cells."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return stream.getvalue().encode()


def text_width(text: str) -> float:
    """Inches that a line of text takes in the figures' font; call it inside `figure_look`."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=FONT_SIZE)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def line_style(number: int) -> dict[str, Any]:
    """How the line of a series looks: colour, dashes and marker differ, so colour alone never tells two apart."""
    turn = number // len(SERIES_COLOURS)
    return {
        "color": SERIES_COLOURS[number % len(SERIES_COLOURS)],
        "linestyle": DASHES[(number + turn) % len(DASHES)],
        "marker": MARKERS[(number + 2 * turn) % len(MARKERS)],
    }


def plain_numbers(axes: Axes, *names: str) -> None:
    """Tick labels without offsets and powers: 0.001, 25k."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from lvt_pipeline.report.charts import spoken_number

    for name in names:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(FuncFormatter(lambda value, _: spoken_number(value)))
        axis.set_minor_formatter(NullFormatter())


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
