"""Pictures of codes and charts: fixed colours, honest masks, and SVG that any browser takes."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from lvt_pipeline.data.pictures import code_palette, png_bytes
from lvt_pipeline.errors import ShapeError
from lvt_pipeline.evaluation.charts import CHART_SIZE, Reference, Series, line_chart, spoken_number, usage_charts
from lvt_pipeline.evaluation.figures import (
    CHANGED,
    UNCHANGED,
    code_strips,
    draw_changes,
    draw_codes,
    strip,
)

SVG = "{http://www.w3.org/2000/svg}"


def chart(*series: Series, **options: object) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, title="t", x_label="step", y_label="loss", **options))


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


@pytest.mark.parametrize("codebook_size", [1, 16, 512, 2048])
def test_every_code_has_its_own_colour(codebook_size: int) -> None:
    palette = code_palette(codebook_size)
    assert palette.shape == (codebook_size, 3)
    assert len(np.unique(palette, axis=0)) == codebook_size


def test_a_code_keeps_its_colour_whatever_the_codebook_size() -> None:
    assert np.array_equal(code_palette(512)[:64], code_palette(64))


def test_neighbouring_codes_look_different() -> None:
    palette = code_palette(512).astype(int)
    assert np.abs(np.diff(palette, axis=0)).sum(1).min() > 60


def test_code_maps_colour_each_position_by_its_code() -> None:
    codes = np.array([[[0, 3], [3, 1]]], np.uint16)
    assert np.array_equal(draw_codes(codes, 4)[0, 0, 1], code_palette(4)[3])


def test_change_masks_are_yellow_exactly_where_codes_differ_from_the_frame_before() -> None:
    codes = np.zeros((3, 2, 2), np.uint8)
    codes[1, 0, 1] = 5
    mask = draw_changes(codes)
    assert (mask[0] == 0).all()  # transparent: nothing to compare with
    for t, y, x in np.ndindex(3, 2, 2):
        if t:
            expected = CHANGED if codes[t, y, x] != codes[t - 1, y, x] else UNCHANGED
            assert tuple(mask[t, y, x]) == (*expected, 255)


def test_a_strip_puts_tiles_side_by_side_with_transparent_gaps() -> None:
    tiles = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    image = strip(tiles, gap=2)
    assert image.shape == (3, 10, 4)
    assert np.array_equal(image[:, :4, :3], tiles[0])
    assert np.array_equal(image[:, 6:, :3], tiles[1])
    assert (image[:, 4:6, 3] == 0).all()
    assert (image[:, :4, 3] == 255).all()


def test_a_strip_of_nothing_is_refused() -> None:
    with pytest.raises(ShapeError, match="needs tiles"):
        strip(np.zeros((0, 2, 2, 3), np.uint8))


def test_a_clip_has_a_code_row_and_a_change_row_for_each_codebook() -> None:
    codes = np.random.default_rng(0).integers(0, 9, (5, 4, 6, 3))
    rows = code_strips(codes, 9)
    assert [row.label for row in rows] == [f"{kind} {book}" for kind in ("codebook", "changed") for book in range(3)]
    assert all(row.image.shape == (4, 5 * 6 + 4, 4) for row in rows)


def test_png_reads_back_to_the_same_pixels_and_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 4), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)
    assert png_bytes(image) == png_bytes(image)


def test_higher_values_are_drawn_higher_and_later_steps_further_right() -> None:
    line = points(chart(Series("a", [0, 10, 20], [1, 3, 2])).find(f"{SVG}polyline"))
    assert line[0][0] < line[1][0] < line[2][0]
    assert line[1][1] < line[2][1] < line[0][1]


def test_everything_drawn_lies_inside_the_chart() -> None:
    tree = chart(Series("a", range(50), [10.0**-n for n in range(50)]), references=[Reference("r", 1e-20)])
    width, height = (float(number) for number in tree.get("viewBox").split()[2:])
    for x, y in points(tree.find(f"{SVG}polyline")):
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_values_over_many_magnitudes_get_a_logarithmic_axis() -> None:
    wide = line_chart([Series("a", [1, 2, 3], [1.0, 0.1, 0.01])], title="t", x_label="x", y_label="y")
    assert "log scale" in wide
    line = points(ElementTree.fromstring(wide).find(f"{SVG}polyline"))
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)
    with_zero = line_chart([Series("a", [1, 2, 3], [1.0, 0.1, 0.0])], title="t", x_label="x", y_label="y")
    assert "log scale" not in with_zero


def test_one_point_is_a_dot_and_no_line() -> None:
    tree = chart(Series("a", [100], [3.3]))
    assert tree.find(f"{SVG}polyline") is None
    assert "step 100: 3.3" in tree.find(f"{SVG}circle/{SVG}title").text


def test_a_series_that_never_changes_is_a_level_line() -> None:
    line = points(chart(Series("a", [1, 2], [0.0, 0.0])).find(f"{SVG}polyline"))
    assert line[0][1] == line[1][1]


def test_no_finite_value_gives_no_chart() -> None:
    assert line_chart([Series("a", [1, 2], [math.nan, math.inf])], title="t", x_label="x", y_label="y") == ""
    assert line_chart([], title="t", x_label="x", y_label="y") == ""


def test_values_that_are_not_finite_are_left_out() -> None:
    assert len(points(chart(Series("a", [1, 2, 3], [1.0, math.nan, 2.0])).find(f"{SVG}polyline"))) == 2


def test_long_series_are_averaged_with_a_band_around_them() -> None:
    steps = np.arange(50_000)
    text = line_chart([Series("a", steps, np.sin(steps) + 2)], title="t", x_label="x", y_label="y")
    assert len(text) < 30_000
    tree = ElementTree.fromstring(text)
    band = points(tree.find(f"{SVG}polygon"))
    heights = [y for _, y in band]
    assert max(heights) - min(heights) > CHART_SIZE[1] / 3


def test_series_differ_by_marker_as_well_as_by_colour() -> None:
    tree = chart(Series("a", [1, 2], [1, 2]), Series("b", [1, 2], [2, 1]))
    assert len(tree.findall(f"{SVG}circle")) == 2
    assert len(tree.findall(f"{SVG}path")) == 2


def test_names_are_escaped() -> None:
    text = line_chart([Series("<b>&", [1], [1]), Series("c", [1], [2])], title='"<x>"', x_label="x", y_label="<y>")
    ElementTree.fromstring(text)
    assert "<b>" not in text


def test_a_chart_tells_its_numbers_to_those_who_cannot_see_it() -> None:
    label = chart(Series("validation", [1, 2], [5.0, 2.5]), references=[Reference("unigram", 4.0)]).get("aria-label")
    assert "validation ends at 2.5" in label
    assert "unigram is 4" in label


def test_usage_charts_say_how_many_codes_hold_four_fifths() -> None:
    first, second = usage_charts(np.array([[6, 1, 1, 2], [0, 0, 0, 0]]))
    assert "80% of positions in 2 codes, 0 of 4 never used" in ElementTree.fromstring(first).get("aria-label")
    assert "4 of 4 never used" in ElementTree.fromstring(second).get("aria-label")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3000, "3000"),
        (0.004, "0.004"),
        (2.165, "2.17"),
        (25_000, "25k"),
        (1_500_000, "1.5M"),
        (-0.5, "-0.5"),
        (1e-7, "1.0e-07"),
        (math.nan, "–"),
        (math.inf, "∞"),
    ],
)
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert spoken_number(value) == text
