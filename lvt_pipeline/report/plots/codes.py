"""How often each code occurs: sorted (paper figure 5), and as a map of the codebook."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.usage import USUAL_SHARE, codes_holding, perplexity
from lvt_pipeline.errors import ShapeError
from lvt_pipeline.progress import count_of
from lvt_pipeline.report.plots.engine import (
    FAINT,
    PAGE_WIDTH,
    SERIES_COLOURS,
    FigureFiles,
    figure_look,
    new_figure,
    plain_numbers,
    save_figure,
)
from lvt_pipeline.report.plots.page_charts import CHART_INCHES, chart_look, embedded, place_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 2  # of panels with one codebook each
MAP_COLUMNS = 4
WIDEST_MAP = 2.4  # inches


def plot_code_frequencies(counts: NDArray[np.int64], out: Path, *, title: str = "") -> FigureFiles:
    """Plot, for each codebook, its codes from most to least used, and mark how many hold 80 % of all positions.

    The CSV has a line per codebook and rank: `codebook`, `rank` (from 1), `code`, `count`, `share` and `cumulative`
    (share of the codes up to this rank). Codes used equally often are in the order of their index.

    Args:
        counts: int64 (n_c, K), how often each code occurs.
        out: path of the files without an ending.

    Raises:
        ShapeError: `counts` is not a table with at least one codebook of one code.
    """
    num_rows, columns = _layout(counts, COLUMNS)
    with figure_look():
        figure = new_figure(PAGE_WIDTH, 0.35 + 2.0 * num_rows, title)
        panels = figure.subplots(num_rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for book, (axes, row) in enumerate(zip(panels, counts, strict=False)):
            used = f"perplexity {perplexity(row[None])[0]:.1f}, {int((row == 0).sum())} never used"
            axes.set_title(f"{_prefix(book, counts)}{used if row.sum() else 'nothing counted'}")
            _plot_sorted(axes, row)
        for axes in panels[len(counts) :]:
            axes.set_axis_off()
        highest = float((counts.max(1) / np.maximum(counts.sum(1), 1)).max())
        _leave_room(panels[0], highest)
        figure.supxlabel("codes, most used first (dotted: if all were used equally)", fontsize="medium")
        figure.supylabel("share of positions, %", fontsize="medium")
        header = ("codebook", "rank", "code", "count", "share", "cumulative")
        return save_figure(figure, out, header, _sorted_rows(counts))


def usage_charts(counts: NDArray[np.int64]) -> list[str]:
    """The panels of figure 5 for a page, one SVG text per codebook.

    Args:
        counts: int64 (n_c, K), how often each code occurs. A codebook that counted nothing gives an empty chart.
    """
    charts = []
    for book, (row, holding) in enumerate(zip(counts, codes_holding(counts), strict=True)):
        with chart_look():
            figure = new_figure(*CHART_INCHES, is_laid_out=False)
            axes = figure.subplots()
            _plot_sorted(axes, row)
            axes.set(xlabel="codes, most used first", ylabel="% of positions")
            highest = float(row.max() / max(int(row.sum()), 1))
            _leave_room(axes, highest)
            place_axes(figure)
            note = f"{USUAL_SHARE:.0%} of positions in {count_of(holding, 'code')}"
            unused = int((row == 0).sum())
            charts.append(
                embedded(figure, f"Code usage of codebook {book}: {note}, {unused} of {len(row)} never used.")
            )
    return charts


def plot_code_usage(counts: NDArray[np.int64], out: Path) -> FigureFiles:
    """Plot each codebook as a map with one cell per code, in the order of the indices, on a logarithmic scale.

    The CSV has a line per code: `codebook`, `code`, `count`, `share` and `times_even` (count over the count that each
    code would have if all were used equally).

    Args:
        counts: int64 (n_c, K), how often each code occurs.
        out: path of the files without an ending.

    Raises:
        ShapeError: `counts` is not a table with at least one codebook of one code.
    """
    num_rows, columns = _layout(counts, MAP_COLUMNS)
    times_even = counts / np.maximum(counts.sum(1, keepdims=True), 1) * counts.shape[1]
    width = _map_width(counts.shape[1])
    height = math.ceil(counts.shape[1] / width)
    with figure_look():
        panel = min(PAGE_WIDTH / columns - 0.15, WIDEST_MAP)
        figure = new_figure(PAGE_WIDTH, (panel * height / width + 0.4) * num_rows + 0.8)
        panels = figure.subplots(num_rows, columns, squeeze=False)
        _plot_maps(figure, panels, times_even, (height, width))
        lines = (
            (book, code, int(count), float(share), float(share * len(row)))
            for book, row in enumerate(counts)
            for code, (count, share) in enumerate(zip(row, row / max(int(row.sum()), 1), strict=True))
        )
        return save_figure(figure, out, ("codebook", "code", "count", "share", "times_even"), lines)


def _layout(counts: NDArray[np.int64], most_columns: int) -> tuple[int, int]:
    """Rows and columns of panels with one codebook each."""
    if counts.ndim != 2 or not counts.size:
        raise ShapeError(f"counts of shape (n_c, K) are needed, found {counts.shape}")
    columns = min(len(counts), most_columns)
    return math.ceil(len(counts) / columns), columns


def _prefix(book: int, counts: NDArray[Any]) -> str:
    return f"codebook {book}: " if len(counts) > 1 else ""


def _plot_maps(figure: Figure, panels: Any, times_even: NDArray[np.float64], shape: tuple[int, int]) -> None:
    """A map for each codebook, and one colour bar for all.

    Args:
        times_even: float64 (n_c, K), how often a code occurs against equal use.
        shape: height and width of a map, in cells.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    num_books, size = times_even.shape
    used = times_even[times_even > 0]
    low, high = min(0.99, used.min(initial=0.99)), max(1.01, used.max(initial=1.01))
    colours = colormaps["cividis"].with_extremes(under="white", bad="#DDDDDD")
    for book, axes in enumerate(panels.flat[:num_books]):
        cells = np.full(math.prod(shape), np.nan)  # the last line may have cells without a code
        cells[:size] = np.where(times_even[book] > 0, times_even[book], low / 2)
        picture = axes.imshow(cells.reshape(shape), cmap=colours, norm=LogNorm(low, high), interpolation="none")
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_visible(True)
        axes.set_title(f"{_prefix(book, times_even)}{int((times_even[book] == 0).sum())} never used")
    for axes in panels.flat[num_books:]:
        axes.set_axis_off()
    bar = figure.colorbar(picture, ax=panels, location="bottom", shrink=0.6, aspect=40)
    meaning = "white: never used" + ("; grey: no code" if math.prod(shape) > size else "")
    bar.set_label(f"times as often as if all codes were used equally ({meaning})")
    bar.ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high / low < 1000 else (1.0,)))
    plain_numbers(bar.ax, "x")


def _plot_sorted(axes: Axes, row: NDArray[np.int64]) -> None:
    """One codebook: bars from most to least used, and the mark after those that hold 80 %."""
    size, total = len(row), int(row.sum())
    axes.set_xlim(0, size)
    plain_numbers(axes, "x", "y")
    if not total:
        return
    holding = codes_holding(row[None])[0]
    share = np.sort(row)[::-1] / total * 100
    edges = np.arange(size + 1)
    axes.stairs(share[:holding], edges[: holding + 1], fill=True, color=SERIES_COLOURS[0])
    axes.stairs(share[holding:], edges[holding:], fill=True, color=FAINT)
    axes.axhline(100 / size, color=axes.xaxis.label.get_color(), linewidth=0.8, linestyle=":")
    axes.axvline(holding, color=SERIES_COLOURS[1], linewidth=1.4, linestyle="--")
    is_far = holding > 0.5 * size  # then the note is before the mark, else after it
    axes.annotate(
        f"{holding} of {size} codes {'hold' if holding > 1 else 'holds'} {USUAL_SHARE:.0%}",
        (holding, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if is_far else 4, 0),
        textcoords="offset points",
        ha="right" if is_far else "left",
        va="top",
        color=SERIES_COLOURS[1],
    )


def _leave_room(axes: Axes, highest: float) -> None:
    """Heights up to the highest bar, a share of all positions, with room for the note above it."""
    axes.set_ylim(0, 130 * (highest or 1.0))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= min(100, 130 * (highest or 1.0))])


def _sorted_rows(counts: NDArray[np.int64]) -> list[tuple[int, int, int, int, float, float]]:
    lines = []
    for book, row in enumerate(counts):
        order = np.argsort(-row, kind="stable")
        total = max(int(row.sum()), 1)
        running = np.cumsum(row[order])
        lines += [
            (book, rank + 1, int(code), int(row[code]), float(row[code] / total), float(running[rank] / total))
            for rank, code in enumerate(order)
        ]
    return lines


def _map_width(size: int) -> int:
    """Cells per line: a divisor of the number of codes that makes the map nearly square, if there is one."""
    root = math.ceil(math.sqrt(size))
    return next((width for width in range(root, 2 * root + 1) if size % width == 0), root)
