"""Charts of numbers (paper figure 5, loss curves) as inline SVG texts.

Drawn here rather than by a plotting library, so that a report is one small file whose lines follow the page's light or
dark colours. Colours come from CSS variables (`--series-1`, ...) with a fallback, so a chart also stands alone. Series
differ by marker as well as by colour (after Okabe and Ito's palette, which colour-blind readers can tell apart).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.usage import USUAL_SHARE, codes_holding

SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A8447F")
REFERENCE_COLOURS = ("#6B6B6B", "#8A6D00", "#5A4FA2")
REFERENCE_DASHES = ("7 3", "2 3", "9 3 2 3")
MOST_POINTS = 240  # longer series are averaged in bins, with a band from lowest to highest
MOST_MARKERS = 40
LOG_RATIO = 30.0  # values spanning more than this ratio get a logarithmic axis
FONT_SIZE = 13
CHART_SIZE = (440, 250)  # in SVG units; a phone shows a little less than one pixel per unit


@dataclass(frozen=True)
class Series:
    """One line of a chart. Values that are not finite are left out; an empty series is drawn as nothing."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int | None = None  # which colour and marker; its place among the series by default


@dataclass(frozen=True)
class Reference:
    """A horizontal line to compare with, such as a baseline."""

    name: str
    value: float


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    references: Sequence[Reference] = (),
    shaded_until: float | None = None,
    always_named: bool = False,
) -> str:
    """Lines over a common axis, as an inline SVG text.

    The vertical axis is logarithmic when the positive values span more than a factor of 30. Long series are averaged in
    bins, with a band from the lowest to the highest value of each bin. A series of one point is a dot.

    Args:
        title: what a reader who cannot see the chart is told first.
        shaded_until: the part of the horizontal axis up to here is shaded (priming frames).
        always_named: a single line has a legend too, because its name is not what the vertical axis says.
    """
    lines = [line for line in (_finite(item, number) for number, item in enumerate(series)) if len(line.x)]
    references = [item for item in references if math.isfinite(item.value)]
    if not lines:
        return ""
    values = np.concatenate([np.asarray(line.y) for line in lines] + [np.array([item.value for item in references])])
    steps = np.concatenate([np.asarray(line.x) for line in lines])
    is_log = bool(values.min() > 0 and values.max() / values.min() > LOG_RATIO)
    legend, legend_height = _legend(lines, references, always_named)
    bottom = legend_height + CHART_SIZE[1] - 40
    y_axis = _Axis.fitting(float(values.min()), float(values.max()), bottom, legend_height + 8, is_log)
    label_width = 0.6 * FONT_SIZE * max((len(spoken_number(tick)) for tick in y_axis.ticks), default=0)
    x_axis = _Axis.linear(float(steps.min()), float(steps.max()), max(58, 28 + label_width), CHART_SIZE[0] - 20)

    parts = [legend, *_grid(x_axis, y_axis, x_label, y_label + (", log scale" if is_log else ""))]
    if shaded_until is not None:
        left, right = x_axis.start, min(max(x_axis.at(shaded_until), x_axis.start), x_axis.end)
        parts.insert(
            1,
            f'<rect x="{left:.1f}" y="{y_axis.end:.1f}" width="{right - left:.1f}" '
            f'height="{y_axis.start - y_axis.end:.1f}" fill="var(--shade, #8883)" />',
        )
    for number, item in enumerate(references):
        height = y_axis.at(item.value)
        parts.append(
            f'<line x1="{x_axis.start:.1f}" x2="{x_axis.end:.1f}" y1="{height:.1f}" y2="{height:.1f}" '
            f'stroke-width="1.5" {_reference_stroke(number)} />'
        )
    for line in lines:
        parts += _drawn_line(line, x_axis, y_axis, x_label)
    parts.append(_reader(x_axis, y_axis, x_label))
    last = "; ".join(f"{line.name} ends at {spoken_number(line.y[-1])}" for line in lines)
    against = "".join(f"; {item.name} is {spoken_number(item.value)}" for item in references)
    return _svg(f"{title}. {last}{against}.", legend_height + CHART_SIZE[1], parts)


def usage_charts(occurrences: NDArray[np.int64]) -> list[str]:
    """Figure 5, one SVG per codebook: codes from most to least used, with the rank that holds 80 % of all positions.

    Args:
        occurrences: int64 (n_c, K), how often each code occurs. A codebook that counted nothing gives an empty chart.
    """
    result = []
    for book, (row, holding) in enumerate(zip(occurrences, codes_holding(occurrences), strict=True)):
        share = np.sort(row)[::-1] / max(int(row.sum()), 1) * 100
        x_axis = _Axis(0.0, float(len(row)), 58, CHART_SIZE[0] - 20, _nice_ticks(0, len(row), 5), False)
        y_axis = _Axis.fitting(0.0, max(float(share.max()), 1e-3), CHART_SIZE[1] - 40, 24, False)
        corners = [f"M{x_axis.at(0):.1f} {y_axis.at(0):.1f}"]
        for rank, value in enumerate(share):
            corners.append(f"V{y_axis.at(value):.1f}H{x_axis.at(rank + 1):.1f}")
        corners.append(f"V{y_axis.at(0):.1f}Z")
        mark = x_axis.at(holding)
        on_left = mark > CHART_SIZE[0] / 2  # the note stays inside the drawing
        note = f"{USUAL_SHARE:.0%} of positions in {holding} code{'' if holding == 1 else 's'}"
        parts = [
            *_grid(x_axis, y_axis, "codes, most used first", "% of positions"),
            f'<path d="{"".join(corners)}" fill="{_series_colour(0)}" fill-opacity="0.75" />',
            f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="{y_axis.end:.1f}" y2="{y_axis.start:.1f}" '
            f'stroke="{_series_colour(1)}" stroke-width="1.5" stroke-dasharray="4 3" />',
            _text(mark + (4 if on_left else -4), y_axis.end - 8, note, anchor="end" if on_left else "start"),
        ]
        unused = int((row == 0).sum())
        result.append(
            _svg(f"Code usage of codebook {book}: {note}, {unused} of {len(row)} never used.", CHART_SIZE[1], parts)
        )
    return result


def spoken_number(value: float) -> str:
    """A number as a person would write it: three significant digits, thousands as k and M."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(value)
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if size >= unit and (unit > 1e3 or size >= 1e4):
            return f"{_three_digits(value / unit)}{name}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True)
class _Axis:
    """Maps values `low`..`high` to positions `start`..`end` of the drawing."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    is_log: bool

    @classmethod
    def linear(cls, low: float, high: float, start: float, end: float) -> _Axis:
        if low == high:  # a run of one point still needs a width
            return cls(low - 1, high + 1, start, end, [low], False)
        return cls(low, high, start, end, [tick for tick in _nice_ticks(low, high, 5) if low <= tick <= high], False)

    @classmethod
    def fitting(cls, low: float, high: float, start: float, end: float, is_log: bool) -> _Axis:
        """An axis whose ends are ticks just outside the values."""
        if is_log:
            low, high = 10 ** (math.log10(low) - 0.05), 10 ** (math.log10(high) + 0.05)
            return cls(low, high, start, end, _log_ticks(low, high), True)
        if low == high:
            room = abs(low) * 0.05 or 1.0
            low, high = low - room, high + room
        ticks = _nice_ticks(low, high, 5)
        return cls(min(ticks[0], low), max(ticks[-1], high), start, end, ticks, False)

    def at(self, value: float) -> float:
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _nice_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from just below `low` to just above `high`."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 1000 else (1, 3)
    every = max(1, math.ceil(len(decades) / 7))
    ticks = [factor * 10.0**decade for decade in decades if decade % every == 0 for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _finite(series: Series, number: int) -> Series:
    """Without what cannot be drawn, and with a style: that of its place when it has none."""
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    style = number if series.style is None else series.style
    return Series(series.name, [x for x, _ in points], [y for _, y in points], style)


def _drawn_line(line: Series, x_axis: _Axis, y_axis: _Axis, x_label: str) -> list[str]:
    number = line.style or 0
    colour = _series_colour(number)
    xs, ys = np.asarray(line.x, float), np.asarray(line.y, float)
    parts = []
    if len(xs) > MOST_POINTS:
        groups = np.array_split(np.arange(len(xs)), MOST_POINTS)
        lowest, highest = [ys[group].min() for group in groups], [ys[group].max() for group in groups]
        xs, ys = np.array([xs[group].mean() for group in groups]), np.array([ys[group].mean() for group in groups])
        band = [*_positions(xs, highest, x_axis, y_axis), *reversed(_positions(xs, lowest, x_axis, y_axis))]
        parts.append(f'<polygon points="{" ".join(band)}" fill="{colour}" fill-opacity="0.16" />')
    if len(xs) > 1:
        points = " ".join(_positions(xs, ys, x_axis, y_axis))
        style = 'fill="none" stroke-width="1.8" stroke-linejoin="round" stroke-linecap="round"'
        parts.append(f'<polyline points="{points}" data-name="{escape(line.name)}" stroke="{colour}" {style} />')
    if len(xs) <= MOST_MARKERS:
        for x, y in zip(xs, ys, strict=True):
            name = escape(f"{line.name}, {x_label} {spoken_number(x)}: {spoken_number(y)}")
            parts.append(_marker(number, x_axis.at(x), y_axis.at(y), name))
    return parts


def _reader(x_axis: _Axis, y_axis: _Axis, x_label: str) -> str:
    """An invisible mark of where the values lie, from which a page can read a position back as numbers."""

    def told(axis: _Axis) -> str:
        return f"{axis.start:.1f} {axis.end:.1f} {axis.low:.9g} {axis.high:.9g} {int(axis.is_log)}"

    return (
        f'<rect class="reader" x="{x_axis.start:.1f}" y="{y_axis.end:.1f}" width="{x_axis.end - x_axis.start:.1f}" '
        f'height="{y_axis.start - y_axis.end:.1f}" fill="none" data-x="{told(x_axis)}" data-y="{told(y_axis)}" '
        f'data-label="{escape(x_label)}" />'
    )


def _positions(xs: Iterable[float], ys: Iterable[float], x_axis: _Axis, y_axis: _Axis) -> list[str]:
    return [f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in zip(xs, ys, strict=True)]


def _marker(number: int, x: float, y: float, name: str = "") -> str:
    """A circle, square, triangle or diamond, so that series differ by more than colour."""
    tooltip = f"<title>{name}</title>" if name else ""
    if number % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_series_colour(number)}">{tooltip}</circle>'
    path = ("M-3-3H3V3H-3Z", "M0-4L3.6 2.6H-3.6Z", "M0-4L4 0L0 4L-4 0Z")[number % 4 - 1]
    place = f"translate({x:.1f} {y:.1f})"
    return f'<path d="{path}" transform="{place}" fill="{_series_colour(number)}">{tooltip}</path>'


def _legend(lines: Sequence[Series], references: Sequence[Reference], always_named: bool) -> tuple[str, float]:
    """Samples and names above the chart, wrapped by an estimate of their width. Returns the drawing and its height."""
    entries = [
        (_sample(f'stroke="{_series_colour(line.style or 0)}"') + _marker(line.style or 0, 10, 0), line.name)
        for line in lines
    ]
    entries += [
        (
            _sample(_reference_stroke(number)),
            f"{item.name} {spoken_number(item.value)}",
        )
        for number, item in enumerate(references)
    ]
    if len(entries) == 1 and not references and not always_named:
        return "", 0.0  # the vertical axis already names it
    parts, x, y = [], 12.0, 12.0
    for drawing, name in entries:
        width = 26 + 0.55 * FONT_SIZE * len(name) + 16
        if x > 12 and x + width > CHART_SIZE[0]:
            x, y = 12.0, y + 18
        label = _text(26, 4, name, anchor="start")
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{drawing}{label}</g>')
        x += width
    return "".join(parts), y + 10


def _sample(stroke: str) -> str:
    return f'<line x1="0" x2="20" y1="0" y2="0" stroke-width="1.8" {stroke} />'


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    """Axes, tick labels, light horizontal lines and what the axes mean."""
    parts = []
    for tick in y_axis.ticks:
        height = y_axis.at(tick)
        parts.append(
            f'<line x1="{x_axis.start:.1f}" x2="{x_axis.end:.1f}" y1="{height:.1f}" y2="{height:.1f}" '
            f'stroke="var(--line, #ddd)" />'
        )
        parts.append(_text(x_axis.start - 6, height + 4, spoken_number(tick), anchor="end"))
    parts.append(
        f'<line x1="{x_axis.start:.1f}" x2="{x_axis.end:.1f}" y1="{y_axis.start:.1f}" y2="{y_axis.start:.1f}" '
        f'stroke="var(--axis, #888)" />'
    )
    for tick in x_axis.ticks:
        place = x_axis.at(tick)
        parts.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{y_axis.start:.1f}" y2="{y_axis.start + 4:.1f}" '
            f'stroke="var(--axis, #888)" />'
        )
        parts.append(_text(place, y_axis.start + 17, spoken_number(tick)))
    parts.append(_text(x_axis.end, y_axis.start + 34, x_label, anchor="end"))
    middle = (y_axis.start + y_axis.end) / 2
    parts.append(
        f'<text transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle" font-size="{FONT_SIZE}" '
        f'fill="var(--muted, #666)">{escape(y_label)}</text>'
    )
    return parts


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{FONT_SIZE}" '
        f'fill="var(--muted, #666)">{escape(text)}</text>'
    )


def _series_colour(number: int) -> str:
    number %= len(SERIES_COLOURS)
    return f"var(--series-{number + 1}, {SERIES_COLOURS[number]})"


def _reference_stroke(number: int) -> str:
    number %= len(REFERENCE_COLOURS)
    colour = f"var(--reference-{number + 1}, {REFERENCE_COLOURS[number]})"
    return f'stroke="{colour}" stroke-dasharray="{REFERENCE_DASHES[number]}"'


def _svg(description: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {CHART_SIZE[0]} {height:.0f}" role="img" '
        f'aria-label="{escape(description)}" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )
