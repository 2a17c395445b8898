"""Figures as part of a page: small SVG texts whose colours follow the page's light or dark theme.

What matplotlib writes is made smaller and safe to embed: no identifiers, styles or links that would reach outside the
chart. Colours become CSS variables (`--series-1`, ...) with the original as a fallback, so a chart also works alone.
Lines carry their names, from which the page reads values at the pointer.
"""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lvt_pipeline.report.numbers import format_number
from lvt_pipeline.report.plots.engine import (
    MOST_MARKERS,
    REFERENCE_COLOURS,
    SERIES_COLOURS,
    Reference,
    Series,
    figure_look,
    line_figure,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

CHART_SIZE = (440.0, 262.0)  # in SVG units; a phone shows a little less than one pixel per unit
CHART_INCHES = (CHART_SIZE[0] / 72, CHART_SIZE[1] / 72)
FONT_SIZE = 13.0
SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
TEXT, AXIS, GRID = "#5C6069", "#8B8F97", "#E3E3DE"
_VARIABLES = {
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES_COLOURS, 1)},
    **{colour: f"--reference-{number}" for number, colour in enumerate(REFERENCE_COLOURS, 1)},
    TEXT: "--muted",
    AXIS: "--axis",
    GRID: "--line",
}
_LOOK = {
    "axes.edgecolor": AXIS,
    "axes.facecolor": "none",
    "axes.labelcolor": TEXT,
    "axes.spines.left": False,
    "figure.dpi": 72.0,
    "figure.facecolor": "none",
    "font.size": FONT_SIZE,
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.0,
    "text.color": TEXT,
    "xtick.color": AXIS,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "ytick.left": False,
}


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    references: Sequence[Reference] = (),
    priming_frames: int = 0,
    always_named: bool = False,
) -> str:
    """Lines over a common axis as an inline SVG text; empty when there is no finite value. See `plots.line_figure`.

    Args:
        title: the first words of the description for readers who cannot see the chart.
        always_named: a single line has a legend too, because the vertical axis does not name it.
    """
    lines = [line for item in series if len((line := item.finite).x)]
    if not lines:
        return ""
    with chart_look():
        figure = line_figure(
            series,
            x_label=x_label,
            y_label=y_label,
            references=references,
            priming_frames=priming_frames,
            size=CHART_INCHES,
            has_legend=always_named or len(lines) + len(references) > 1,
            is_laid_out=False,
        )
        place_axes(figure)
        last = "; ".join(f"{line.name} ends at {format_number(line.y[-1])}" for line in lines)
        against = "".join(f"; {item.name} is {format_number(item.value)}" for item in references)
        return embedded(figure, f"{title}. {last}{against}.", lines, x_label)


def place_axes(figure: Figure) -> None:
    """Place the only axes of a chart by the sizes of its legend and labels; call it inside `chart_look`."""
    (axes,) = figure.axes
    width, height = CHART_SIZE
    left = FONT_SIZE * 1.9 + max(_label_widths(axes.yaxis, axes.get_ylim()), default=0.0)
    right = 8 + max(FONT_SIZE, *_label_widths(axes.xaxis, axes.get_xlim())) / 2
    columns = figure.legends[0]._ncols if figure.legends else 1  # type: ignore[attr-defined]
    lines = math.ceil(len(figure.legends[0].get_texts()) / columns) if figure.legends else 0
    top, bottom = 10 + 1.75 * FONT_SIZE * lines, 3.1 * FONT_SIZE
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes.set_position(box)


def _label_widths(axis: Axis, limits: Sequence[float]) -> list[float]:
    """Widths of the labels of the ticks within these limits, in SVG units."""
    ticks = [tick for tick in axis.get_major_locator()() if min(limits) <= tick <= max(limits)]
    return [72 * text_width(label) for label in axis.get_major_formatter().format_ticks(ticks)]


def chart_look() -> Any:
    """`figure_look` for a chart of a page."""
    return figure_look(**_LOOK)


def embedded(figure: Figure, description: str, lines: Sequence[Series] = (), x_label: str = "") -> str:
    """A figure as an inline SVG text; call it inside `chart_look`.

    Args:
        description: for readers who cannot see it.
        lines: those with the identifiers `line-0`, `line-1`, ... in the figure.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    shapes = {shape.get("id", ""): shape for shape in root.iter(f"{SVG}path") if shape.get("id")}
    result = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg")
    width, height = (72 * inches for inches in figure.get_size_inches())
    result.attrib |= {
        "class": "chart",
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "aria-label": description,
        "stroke-linejoin": "round",
    }
    for child in root:
        _copy(child, result, shapes)
    for number, line in enumerate(lines):
        _name_line(result, number, line, x_label)
    for element in result.iter():
        element.attrib.pop("id", None)
    if lines:
        _add_reader(result, figure.axes[0], height, x_label)
    return ElementTree.tostring(result, encoding="unicode")


def _copy(source: ElementTree.Element, parent: ElementTree.Element, shapes: dict[str, ElementTree.Element]) -> None:
    """Add what is visible of an element to `parent`; shapes that are used by name are written out."""
    tag = source.tag.removeprefix(SVG)
    if tag in ("defs", "metadata"):
        return
    if tag == "g" and "id" not in source.attrib and not source.attrib.keys() - {"clip-path"}:
        for child in source:
            _copy(child, parent, shapes)
        return
    attributes: dict[str, str] = {}
    for name, value in source.attrib.items():
        if name not in ("clip-path", _HREF):
            attributes[name] = value
    if tag == "use":
        shape = shapes[source.attrib[_HREF].removeprefix("#")]
        tag = "path"
        place = f"translate({float(attributes.pop('x', 0)):.1f} {float(attributes.pop('y', 0)):.1f})"
        style = attributes.get("style", "") or shape.get("style", "")
        attributes = {"d": str(shape.get("d")), "transform": place, "style": str(style)}
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    for name in ("x", "y", "transform"):
        if name in attributes:
            attributes[name] = _short_numbers(attributes[name])
    if "d" in attributes:
        attributes["d"] = _short_numbers(" ".join(attributes["d"].split()))
    if "style" in attributes:
        attributes["style"] = _themed(attributes["style"])
    if not attributes.get("d", "x"):
        return
    copy = ElementTree.SubElement(parent, tag, attributes)
    copy.text = source.text if tag == "text" else None
    for child in source:
        _copy(child, copy, shapes)


def _short_numbers(text: str) -> str:
    """The same text with two decimals at most in its numbers."""
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)


def _themed(style: str) -> str:
    """A style with CSS variables for colours, and with the font of the page."""
    style = re.sub(r"font-family:[^;]*;? ?", "", re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", style))
    for colour, name in _VARIABLES.items():
        style = style.replace(colour.lower(), f"var({name}, {colour.lower()})")
    return style


def _name_line(chart: ElementTree.Element, number: int, line: Series, x_label: str) -> None:
    """Mark what is plotted of a line with its name, and its markers with their values."""
    group = next((element for element in chart.iter("g") if element.get("id") == f"line-{number}"), None)
    if group is None:
        return
    group.set("class", "line")
    if len(line.x) == 1:  # matplotlib also writes the line from the point to itself
        for path in [path for path in group.findall("path") if "transform" not in path.attrib]:
            group.remove(path)
    group.set("data-name", line.name)
    markers = [shape for shape in group.iter("path") if "transform" in shape.attrib]
    if len(markers) == len(line.x) <= MOST_MARKERS:
        for shape, x, y in zip(markers, line.x, line.y, strict=True):
            title = ElementTree.SubElement(shape, "title")
            title.text = f"{line.name}, {x_label} {format_number(x)}: {format_number(y)}"


def _add_reader(chart: ElementTree.Element, axes: Axes, height: float, x_label: str) -> None:
    """An invisible mark of the plot's area, from which a page can read a position back as numbers."""
    box = axes.get_window_extent()
    ends = (
        (box.x0, box.x1, axes.get_xlim(), axes.get_xscale()),
        (height - box.y0, height - box.y1, axes.get_ylim(), axes.get_yscale()),
    )
    x, y = (f"{a:.1f} {b:.1f} {low:.9g} {high:.9g} {int(scale == 'log')}" for a, b, (low, high), scale in ends)
    ElementTree.SubElement(
        chart,
        "rect",
        {
            "class": "reader",
            "x": f"{box.x0:.1f}",
            "y": f"{height - box.y1:.1f}",
            "width": f"{box.width:.1f}",
            "height": f"{box.height:.1f}",
            "fill": "none",
            "data-x": x,
            "data-y": y,
            "data-label": x_label,
        },
    )
