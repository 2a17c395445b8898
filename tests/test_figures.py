"""Pictures of codes, charts of the report, and the paper's figures: fixed colours, honest masks and marks, SVG that any
browser takes, and the numbers behind a figure."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import ShapeError
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.report.figures import FIGURES
from lvt_pipeline.report.numbers import format_number
from lvt_pipeline.report.plots.codes import plot_code_frequencies, plot_code_usage, usage_charts
from lvt_pipeline.report.plots.engine import PAGE_WIDTH, PRIMING_COLOUR, FigureFiles, Reference, Series, line_figure
from lvt_pipeline.report.plots.lines import plot_horizon, plot_loss_curves
from lvt_pipeline.report.plots.page_charts import CHART_INCHES, CHART_SIZE, chart_look, line_chart, place_axes
from lvt_pipeline.report.plots.videos import SampledVideo, plot_code_rows, plot_samples
from lvt_pipeline.report.settings import FigureName
from lvt_pipeline.video.pictures import (
    CHANGED,
    UNCHANGED,
    change_mask,
    code_palette,
    code_rows,
    colour_codes,
    png_bytes,
)
from lvt_pipeline.video.tiles import strip
from tests.finished_work import make_finished_work
from tests.toy_work import FRAMES

SVG = "{http://www.w3.org/2000/svg}"
PRIMING = tuple(int(PRIMING_COLOUR[place : place + 2], 16) for place in (1, 3, 5))
MARK = (0xD5, 0x5E, 0x00)
COUNTS = np.array([[6, 0, 1, 3], [2, 2, 2, 2]])


def chart(*series: Series, **options: object) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, title="t", x_label="step", y_label="loss", **options))


def lines_of(tree: ElementTree.Element) -> list[ElementTree.Element]:
    """The series of a chart: groups with a line and its markers."""
    return [group for group in tree.iter(f"{SVG}g") if group.get("class") == "line"]


def line_of(tree: ElementTree.Element, number: int = 0) -> ElementTree.Element | None:
    """The line of a series, without its markers."""
    paths = lines_of(tree)[number].iter(f"{SVG}path")
    return next((path for path in paths if "transform" not in path.attrib), None)


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", element.get("d"))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


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
    assert np.array_equal(colour_codes(codes, 4)[0, 0, 1], code_palette(4)[3])


def test_change_masks_are_yellow_exactly_where_codes_differ_from_the_frame_before() -> None:
    codes = np.zeros((3, 2, 2), np.uint8)
    codes[1, 0, 1] = 5
    mask = change_mask(codes)
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
    rows = [(label, strip(tiles)) for label, tiles in code_rows(codes, 9)]
    assert [label for label, _ in rows] == [f"{kind} {book}" for kind in ("codes", "changed") for book in range(3)]
    assert all(image.shape == (4, 5 * 6 + 4, 4) for _, image in rows)


def test_png_reads_back_to_the_same_pixels_and_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 4), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)
    assert png_bytes(image) == png_bytes(image)


def test_higher_values_are_drawn_higher_and_later_steps_further_right() -> None:
    line = points(line_of(chart(Series("a", [0, 10, 20], [1, 3, 2]))))
    assert line[0][0] < line[1][0] < line[2][0]
    assert line[1][1] < line[2][1] < line[0][1]


def test_everything_drawn_lies_inside_the_chart() -> None:
    tree = chart(Series("a", range(50), [10.0**-n for n in range(50)]), references=[Reference("r", 1e-20)])
    width, height = (float(number) for number in tree.get("viewBox").split()[2:])
    for x, y in points(line_of(tree)):
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_values_over_many_magnitudes_get_a_logarithmic_axis() -> None:
    wide = line_chart([Series("a", [1, 2, 3], [1.0, 0.1, 0.01])], title="t", x_label="x", y_label="y")
    assert "log scale" in wide
    line = points(line_of(ElementTree.fromstring(wide)))
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)
    with_zero = line_chart([Series("a", [1, 2, 3], [1.0, 0.1, 0.0])], title="t", x_label="x", y_label="y")
    assert "log scale" not in with_zero


def test_one_point_is_a_dot_and_no_line() -> None:
    tree = chart(Series("a", [100], [3.3]))
    assert line_of(tree) is None
    assert "step 100: 3.3" in next(tree.iter(f"{SVG}title")).text


def test_a_series_that_never_changes_is_a_level_line() -> None:
    line = points(line_of(chart(Series("a", [1, 2], [0.0, 0.0]))))
    assert line[0][1] == line[1][1]


def test_no_finite_value_gives_no_chart() -> None:
    assert line_chart([Series("a", [1, 2], [math.nan, math.inf])], title="t", x_label="x", y_label="y") == ""
    assert line_chart([], title="t", x_label="x", y_label="y") == ""


def test_values_that_are_not_finite_are_left_out() -> None:
    assert len(points(line_of(chart(Series("a", [1, 2, 3], [1.0, math.nan, 2.0]))))) == 2


def test_long_series_are_averaged_with_a_band_around_them() -> None:
    steps = np.arange(50_000)
    text = line_chart([Series("a", steps, np.sin(steps) + 2)], title="t", x_label="x", y_label="y")
    assert len(text) < 30_000
    band = max(ElementTree.fromstring(text).iter(f"{SVG}path"), key=lambda path: len(points(path)))
    assert "opacity: 0.16" in band.get("style")
    heights = [y for _, y in points(band)]
    assert max(heights) - min(heights) > CHART_SIZE[1] / 3


def test_values_that_are_close_have_labels_that_differ() -> None:
    tree = chart(Series("a", [1, 2, 3], [1.4801, 1.4822, 1.4863]))
    labels = [text.text for text in tree.iter(f"{SVG}text") if re.fullmatch(r"1\.4\d*", text.text or "")]
    assert len(labels) == len(set(labels)) >= 4


def test_series_differ_by_marker_as_well_as_by_colour() -> None:
    tree = chart(Series("a", [1, 2], [1, 2]), Series("b", [1, 2], [2, 1]))
    paths = [[path for path in group.iter(f"{SVG}path") if "transform" in path.attrib] for group in lines_of(tree)]
    markers = [[path.get("d") for path in some] for some in paths]
    assert [len(shapes) for shapes in markers] == [2, 2]
    assert len({shape for shapes in markers for shape in shapes}) == 2
    assert "stroke-dasharray" in line_of(tree, 1).get("style")


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
    assert format_number(value) == text


# The paper's figures -----------------------------------------------------------------------------------------------


def flat_frames(*levels: int, size: int = 16) -> np.ndarray:
    """Frames of one colour each, (level, 20, 77); uint8 (T, size, size, 3)."""
    return np.stack([np.full((size, size, 3), (level, 20, 77), np.uint8) for level in levels])


def some_codes(num_frames: int = 4, num_books: int = 2, size: int = 9) -> np.ndarray:
    codes = np.random.default_rng(5).integers(0, size, (num_frames, 4, 4, num_books))
    codes[1:, :2] = codes[0, :2]  # some stay
    return codes


def draw_one(kind: str, out: Path) -> FigureFiles:
    """A small figure of every kind."""
    if kind == "frequencies":
        return plot_code_frequencies(COUNTS, out, title="A title")
    if kind == "usage":
        return plot_code_usage(COUNTS, out)
    if kind == "samples":
        return plot_samples([SampledVideo("walk/$1$ <a>", flat_frames(9, 99, 200))], 1, out, title="A title")
    if kind == "codes":
        return plot_code_rows(flat_frames(9, 99, 200, 30), some_codes(), 9, 2, out)
    if kind == "loss":
        line = Series("", [1, 2, 3], [3.0, math.nan, 0.5])
        return plot_loss_curves({"a": (line, line)}, out, y_label="bits", title="A title")
    return plot_horizon([Series("sampled", [1, 2, 3], [30.0, 25.0, math.nan])], 1, out)


KINDS = ("frequencies", "usage", "samples", "codes", "loss", "horizon")


def table(files: FigureFiles) -> list[dict[str, str]]:
    return list(csv.DictReader(files.csv.read_text().splitlines()))


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def pixels_of(files: FigureFiles) -> np.ndarray:
    return read_png(files.png).astype(int)


def texts_of(files: FigureFiles) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(files.svg).iter(f"{SVG}text")]


def where(pixels: np.ndarray, colour: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of exactly a colour."""
    return np.nonzero((pixels == colour).all(-1))


def runs_along(line: np.ndarray) -> list[tuple[int, ...]]:
    """The colours along a line of pixels, without repetitions."""
    return [key for key, _ in itertools.groupby(map(tuple, line.tolist()))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_is_a_png_an_svg_and_a_table_and_the_same_bytes_whatever_the_users_settings(
    kind: str, tmp_path: Path
) -> None:
    import matplotlib

    files = draw_one(kind, tmp_path / "a.b")
    assert [path.name for path in files] == ["a.b.png", "a.b.svg", "a.b.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    assert ElementTree.parse(files.svg).getroot().tag == f"{SVG}svg"
    assert any(texts_of(files))
    with matplotlib.rc_context({"font.size": 31.0, "figure.facecolor": "red", "svg.fonttype": "path"}):
        settings = dict(matplotlib.rcParams)
        again = draw_one(kind, tmp_path / "again")
        assert dict(matplotlib.rcParams) == settings
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


@pytest.mark.parametrize("kind", ["frequencies", "usage", "loss", "horizon"])
def test_a_figure_is_as_wide_as_a_page_of_print_and_its_words_are_readable(kind: str, tmp_path: Path) -> None:
    files = draw_one(kind, tmp_path / "figure")
    assert pixels_of(files).shape[1] == PAGE_WIDTH * 200
    root = ElementTree.parse(files.svg).getroot()
    assert root.get("width") == f"{PAGE_WIDTH * 72:g}pt"
    sizes = [element.get("style", "") for element in root.iter(f"{SVG}text")]
    assert sizes
    assert all("font: 8.5px" in style or "8.5px" in style for style in sizes), sizes


def test_the_table_of_frequencies_is_that_of_counting_and_sorting(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (2, 13))
    expected = []
    for book in range(2):
        order = sorted(range(13), key=lambda code, book=book: (-counts[book, code], code))
        total, running = sum(counts[book].tolist()), 0
        for rank, code in enumerate(order, start=1):
            running += int(counts[book, code])
            expected.append((book, rank, code, counts[book, code], counts[book, code] / total, running / total))
    found = table(plot_code_frequencies(counts, tmp_path / "f"))
    assert list(found[0]) == ["codebook", "rank", "code", "count", "share", "cumulative"]
    assert [tuple(map(float, line.values())) for line in found] == [pytest.approx(line) for line in expected]


def test_the_eighty_percent_mark_stands_after_the_codes_that_hold_them(tmp_path: Path) -> None:
    files = plot_code_frequencies(np.array([[50, 20, 15, 10, 3, 2, 0, 0, 0, 0]]), tmp_path / "f")
    assert "3 of 10 codes hold 80%" in texts_of(files)
    assert "perplexity 3.9, 4 never used" in texts_of(files)
    pixels = pixels_of(files)
    below = pixels[pixels.shape[0] // 3 :]  # the note is above
    bars = where(below, PRIMING)[1]
    mark = where(below, MARK)[1]
    bar_width = (bars.max() + 1 - bars.min()) / 3
    assert np.median(mark) == pytest.approx(bars.min() + 3 * bar_width, abs=0.05 * bar_width)


def test_one_code_that_holds_everything_and_a_codebook_without_codes_are_told(tmp_path: Path) -> None:
    texts = texts_of(plot_code_frequencies(np.array([[0, 9], [0, 0], [1, 1]]), tmp_path / "f"))
    assert "1 of 2 codes holds 80%" in texts
    assert "codebook 0: perplexity 1.0, 1 never used" in texts
    assert "codebook 1: nothing counted" in texts


def test_the_usage_map_has_white_cells_for_codes_never_used(tmp_path: Path) -> None:
    files = plot_code_usage(np.array([[5, 0, 20, 5]]), tmp_path / "f")
    assert [float(line["times_even"]) for line in table(files)] == pytest.approx(
        [4 * 5 / 30, 0, 4 * 20 / 30, 4 * 5 / 30]
    )
    assert "1 never used" in texts_of(files)
    picture = next(ElementTree.parse(files.svg).iter(f"{SVG}image"))
    cells = embedded_picture(picture)
    assert tuple(cells[0, 1]) == (255, 255, 255)
    assert tuple(cells[0, 0]) == tuple(cells[1, 1]) != tuple(cells[1, 0])


def embedded_picture(element: ElementTree.Element) -> np.ndarray:
    import base64

    data = element.get("{http://www.w3.org/1999/xlink}href").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_samples_keep_their_pixels_and_the_priming_frames_are_framed(tmp_path: Path) -> None:
    levels = (10, 50, 90, 130, 170)
    files = plot_samples([SampledVideo("a", flat_frames(*levels))], 2, tmp_path / "f")
    pixels = pixels_of(files)
    row = where(pixels, (90, 20, 77))[0]
    seen = runs_along(pixels[int(np.median(row))])
    known = [colour for colour in seen if colour == PRIMING or colour[1:] == (20, 77)]
    frames = [(level, 20, 77) for level in levels]
    assert known == [PRIMING, *frames[:2], PRIMING, *frames[2:]]
    areas = [len(where(pixels, frame)[0]) for frame in frames]
    assert max(areas) == min(areas)
    assert {"priming", "sampled", "a", "1", "5"} <= set(texts_of(files))


def test_every_pixel_of_a_frame_is_a_square_of_whole_pixels(tmp_path: Path) -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[..., 0] = np.arange(64).reshape(8, 8) * 3 + 1
    frame[..., 2] = 77
    pixels = pixels_of(plot_samples([SampledVideo("a", frame[None])], 0, tmp_path / "f"))
    sizes = set()
    for y, x in np.ndindex(8, 8):
        rows, columns = where(pixels, tuple(frame[y, x]))
        sizes.add((np.ptp(rows) + 1, np.ptp(columns) + 1, len(rows)))
    ((height, width, area),) = sizes
    assert height == width
    assert area == height * width


def test_a_sample_below_its_real_video_has_its_errors_in_the_table(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    frames, real = (generator.integers(0, 256, (3, 8, 8, 3), np.uint8) for _ in range(2))
    files = plot_samples([SampledVideo("a", frames, real[:2])], 1, tmp_path / "f")
    assert {"a", "real", "sample"} <= set(texts_of(files))
    lines = table(files)
    assert [(line["clip"], line["frame"], line["kind"]) for line in lines] == [
        ("a", "1", "priming"),
        ("a", "2", "sampled"),
        ("a", "3", "sampled"),
    ]
    assert lines[0]["difference_to_previous"] == lines[2]["mse_to_real"] == ""
    for frame in (1, 2):
        steps = [abs(int(a) - int(b)) / 255 for a, b in zip(frames[frame].flat, frames[frame - 1].flat, strict=True)]
        assert float(lines[frame]["difference_to_previous"]) == pytest.approx(sum(steps) / len(steps))
    squares = [((int(a) - int(b)) / 255) ** 2 for a, b in zip(frames[1].flat, real[1].flat, strict=True)]
    assert float(lines[1]["mse_to_real"]) == pytest.approx(sum(squares) / len(squares))


def test_samples_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="at least one row"):
        plot_samples([], 1, tmp_path / "f")
    with pytest.raises(ShapeError, match="give both at one size"):
        plot_samples([SampledVideo("a", flat_frames(1), flat_frames(1, size=8))], 1, tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_a_changed_code_is_yellow_at_its_place_and_the_others_dark(tmp_path: Path) -> None:
    codes = np.zeros((2, 4, 4, 1), int)
    codes[1, 0, 2] = 5
    pixels = pixels_of(plot_code_rows(flat_frames(200, 200), codes, 8, 1, tmp_path / "f"))
    pixels = pixels[: int(where(pixels, UNCHANGED)[0].min()) + 300]  # without the legend
    dark, yellow = where(pixels, UNCHANGED), where(pixels, CHANGED)
    top, left = dark[0].min(), dark[1].min()
    assert len(dark[0]) == 15 * len(yellow[0])
    code = math.isqrt(len(yellow[0]))
    assert (yellow[0].min() - top, yellow[0].max() - top) == (0, code - 1)
    assert (yellow[1].min() - left, yellow[1].max() - left) == (2 * code, 3 * code - 1)


def test_codes_are_drawn_in_their_fixed_colours(tmp_path: Path) -> None:
    codes = np.arange(16).reshape(1, 4, 4, 1)
    pixels = pixels_of(plot_code_rows(flat_frames(200), codes, 16, 0, tmp_path / "f"))
    areas = {len(where(pixels, tuple(colour))[0]) for colour in code_palette(16)}
    assert len(areas) == 1
    assert areas.pop() > 100


@pytest.mark.parametrize("num_books", [1, 2])
def test_code_figures_have_the_rows_of_the_paper(num_books: int, tmp_path: Path) -> None:
    frames, codes = flat_frames(1, 2, 3, 4), some_codes(num_books=num_books)
    for real, blocks in ((None, 1), (codes[::-1], 2), (codes[:3], 2)):
        files = plot_code_rows(frames, codes, 9, 2, tmp_path / "f", real_codes=real)
        pictures = list(ElementTree.parse(files.svg).iter(f"{SVG}image"))
        assert len(pictures) == 1 + 2 * num_books * blocks
        assert all("image-rendering:pixelated" in picture.get("style", "") for picture in pictures)
        assert ("real" in texts_of(files)) == (real is not None)


def test_the_table_of_a_code_figure_counts_changed_codes(tmp_path: Path) -> None:
    codes = some_codes()
    real = codes[::-1]
    lines = table(plot_code_rows(flat_frames(1, 2, 3, 4), codes, 9, 2, tmp_path / "f", real_codes=real))
    assert len(lines) == 2 * 4 * 2
    for line in lines:
        some = real if line["video"] == "real" else codes
        frame, book = int(line["frame"]) - 1, int(line["codebook"])
        assert line["kind"] == ("real" if line["video"] == "real" else "priming" if frame < 2 else "sampled")
        if not frame:
            assert line["changed_share"] == ""
            continue
        changed = [some[frame, y, x, book] != some[frame - 1, y, x, book] for y, x in np.ndindex(4, 4)]
        assert float(line["changed_share"]) == sum(changed) / 16


@pytest.mark.parametrize(
    ("codes", "options", "message"),
    [
        (some_codes(3), {}, "T=4"),
        (some_codes(), {"real_codes": some_codes(4, 1)}, "real codes have shape"),
        (some_codes(), {"real_codes": some_codes(5)}, "real codes have shape"),
        (some_codes() + 1, {}, "do not fit a codebook of 9"),
    ],
)
def test_codes_that_do_not_belong_to_the_frames_are_refused(
    codes: np.ndarray, options: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ShapeError, match=message):
        plot_code_rows(flat_frames(1, 2, 3, 4), codes, 9, 1, tmp_path / "f", **options)


def test_loss_curves_of_several_runs_are_named_and_keep_every_finite_number(tmp_path: Path) -> None:
    runs = {
        name: (Series("", [1, 2, 3], [5.0, math.nan, factor]), Series("", [3], [2 * factor]))
        for name, factor in (("small", 1.0), ("large", 0.1))
    }
    files = plot_loss_curves(runs, tmp_path / "f", y_label="bits", references=[Reference("unigram", 4.5)])
    assert {"small, training", "large, validation", "unigram, 4.5", "bits, log scale"} <= set(texts_of(files))
    assert [tuple(line.values()) for line in table(files)] == [
        ("small", "train", "1", "5.0"),
        ("small", "train", "3", "1.0"),
        ("small", "val", "3", "2.0"),
        ("large", "train", "1", "5.0"),
        ("large", "train", "3", "0.1"),
        ("large", "val", "3", "0.2"),
        ("unigram", "reference", "", "4.5"),
    ]


def test_the_horizon_tells_given_from_generated_frames(tmp_path: Path) -> None:
    series = [Series("sampled", [1, 2, 3], [30.0, 25.0, 20.0]), Series("copied", [1, 2, 3], [math.nan, 24.0, 19.0])]
    files = plot_horizon(series, 1, tmp_path / "f")
    assert {"priming", "sampled", "copied", "PSNR, dB"} <= set(texts_of(files))
    assert [tuple(line.values()) for line in table(files)][:4] == [
        ("sampled", "1", "priming", "30.0"),
        ("sampled", "2", "sampled", "25.0"),
        ("sampled", "3", "sampled", "20.0"),
        ("copied", "1", "priming", ""),
    ]


def test_curves_without_a_finite_value_are_refused(tmp_path: Path) -> None:
    nothing = Series("", [1.0], [math.nan])
    with pytest.raises(ShapeError, match="nothing to plot"):
        plot_loss_curves({"a": (nothing, nothing)}, tmp_path / "f", y_label="bits")
    with pytest.raises(ShapeError, match="nothing to plot"):
        plot_horizon([nothing], 0, tmp_path / "f")


def test_every_named_figure_of_the_command_is_one_of_the_library() -> None:
    assert tuple(FIGURES) == get_args(FigureName)


Lvt = Callable[..., tuple[int, str, str]]


def test_a_work_directory_gives_its_figures_and_names_what_is_missing(work_dir: Path, lvt: Lvt, tmp_path: Path) -> None:
    code, out, err = lvt("figures", work_dir, "-o", tmp_path / "figures", "--json", "--real")
    assert code == 0, err
    found = json.loads(out)
    assert list(found["missing"]) == ["long-rollout", "horizon-lpips"]
    assert "run lvt sample with --num-frames" in found["missing"]["long-rollout"]
    assert "--lpips" in found["missing"]["horizon-lpips"]
    assert len(found["drawn"]) == 10
    for files in found["drawn"].values():
        assert all(Path(path).stat().st_size for path in files.values())
    code, out, err = lvt("inspect", tmp_path / "figures", "--json")
    assert code == 0, err
    assert json.loads(out)["made_by"]["counts"]["figures"] == 10
    assert not json.loads(out)["problems"]

    rows = list(csv.DictReader(Path(found["drawn"]["code-frequencies"]["csv"]).read_text().splitlines()))
    store = open_codes(work_dir / "data.zarr")
    codes = np.concatenate([store.read(clip) for clip in store.split("train")])
    for row in rows:
        assert int(row["count"]) == (codes[..., int(row["codebook"])] == int(row["code"])).sum()


def test_good_and_bad_samples_are_those_that_the_evaluation_ranks_first_and_last(
    work_dir: Path, lvt: Lvt, tmp_path: Path
) -> None:
    values = json.loads((work_dir / "eval.json").read_text())["per_clip"]["samples"]
    ranked = sorted(zip(values["sample_ssim"], values["clip"], strict=True))
    code, _, err = lvt("figures", work_dir, "-o", tmp_path / "f", "--only", "good-sample", "--only", "bad-sample")
    assert code == 0, err
    for name, (value, clip), word in (("bad-sample", ranked[0], "worst"), ("good-sample", ranked[-1], "best")):
        texts = " ".join(ElementTree.parse(tmp_path / "f" / f"{name}.svg").getroot().itertext())
        assert clip in texts
        assert format_number(value) in texts
        assert f"the {word} of {len(ranked)}" in texts


def test_priming_frames_in_a_figure_are_the_real_ones(work_dir: Path, lvt: Lvt, tmp_path: Path) -> None:
    clip = open_codes(work_dir / "samples.zarr").clips[-1]
    code, _, err = lvt("figures", work_dir, "-o", tmp_path / "f", "--only", "samples", "--clip", clip.id, "--real")
    assert code == 0, err
    lines = list(csv.DictReader((tmp_path / "f" / "samples.csv").read_text().splitlines()))
    assert {line["clip"] for line in lines} == {clip.id}
    assert [float(line["mse_to_real"]) for line in lines[:2]] == [0.0, 0.0]
    assert float(lines[2]["mse_to_real"]) > 0
    pixels = read_png(tmp_path / "f" / "samples.png").reshape(-1, 3)
    real = FrameShards(work_dir / "frames").read(clip.id)[2].reshape(-1, 3)
    assert set(map(tuple, real.tolist())) <= set(map(tuple, pixels.tolist()))


def test_figures_of_samples_that_were_not_evaluated_are_refused_by_name(work_dir: Path, lvt: Lvt) -> None:
    path = work_dir / "eval.json"
    results = json.loads(path.read_text())
    results["inputs"]["samples"] = "0" * 64
    path.write_text(json.dumps(results))
    code, _, err = lvt("figures", work_dir, "--only", "bad-sample")
    assert code == 1
    assert err.strip().splitlines()[-1] == (
        "lvt: figure bad-sample cannot be plotted: eval.json holds no errors of the samples in samples.zarr; "
        "run lvt evaluate on them"
    )


def test_figures_do_not_replace_another_stages_output(work_dir: Path, lvt: Lvt, tmp_path: Path) -> None:
    before = (work_dir / "frames" / "provenance.json").read_bytes()
    code, _, err = lvt("figures", work_dir, "-o", work_dir / "frames")
    assert code == 1
    assert "frames is both an input and the output of lvt figures" in err
    assert (work_dir / "frames" / "provenance.json").read_bytes() == before
    code, _, err = lvt("figures", tmp_path)
    assert code == 1
    assert "is not a work directory" in err


def test_long_samples_have_a_figure_from_their_first_to_their_last_frame(tmp_path: Path, lvt: Lvt) -> None:
    work = make_finished_work(tmp_path / "work")
    settings = SampleSettings(frames=20, priming_frames=2, num_clips=2)
    sample_clips(work.prior, work.codes, work.samples, settings, device="cpu", overwrite=True)
    code, out, err = lvt("figures", work.root, "-o", tmp_path / "figures", "--only", "long-rollout", "--real", "--json")
    assert code == 0, err
    files = json.loads(out)["drawn"]["long-rollout"]
    rows = list(csv.DictReader(Path(files["csv"]).read_text().splitlines()))
    assert [int(row["frame"]) for row in rows] == 2 * list(range(1, 21))
    assert [row["kind"] for row in rows[:20]] == 2 * ["priming"] + 18 * ["sampled"]
    text = ElementTree.parse(files["svg"]).getroot()
    numbers = [element.text for element in text.iter(f"{SVG}text") if (element.text or "").isdigit()]
    assert {"1", "20"} <= set(numbers)
    assert len(numbers) == 16


def test_the_errors_of_long_samples_are_reported_for_every_frame_that_really_exists(tmp_path: Path) -> None:
    work = make_finished_work(tmp_path / "work")
    settings = SampleSettings(frames=20, priming_frames=2, num_clips=2)
    sample_clips(work.prior, work.codes, work.samples, settings, device="cpu", overwrite=True)
    paths = {"prior": work.prior, "frames": work.frames, "vqvae": work.vqvae, "samples": work.samples}
    sources = Sources(codes=work.codes, **paths)
    evaluate(sources, tmp_path / "eval.json", EvaluateSettings(frames=FRAMES), device="cpu")
    measured = json.loads((tmp_path / "eval.json").read_text())["samples"]
    assert measured["frames"] == 20
    by_frame = measured["mse_by_frame"]
    assert len(by_frame) == 20
    real = open_codes(work.codes).split("test")[0].length
    assert all(value is not None for value in by_frame[:real])
    assert set(by_frame[real:]) == {None}


def test_the_label_of_an_axis_with_long_numbers_stays_inside_the_chart() -> None:
    with chart_look():
        line = Series("a", [1, 2, 3], [1.4812, 1.4862, 1.4918])
        figure = line_figure([line], x_label="frame", y_label="LPIPS", size=CHART_INCHES, is_laid_out=False)
        place_axes(figure)
        figure.draw_without_rendering()
        assert figure.axes[0].yaxis.label.get_window_extent().x0 >= 0


def test_the_last_step_below_a_chart_is_not_cut_off() -> None:
    with chart_look():
        line = Series("a", [500, 2000, 3500], [3.0, 2.0, 1.0])
        figure = line_figure([line], x_label="step", y_label="perplexity", size=CHART_INCHES, is_laid_out=False)
        place_axes(figure)
        figure.draw_without_rendering()
        last = next(tick for tick in figure.axes[0].xaxis.get_major_ticks() if tick.label1.get_text() == "3500")
        assert last.label1.get_window_extent().x1 <= CHART_SIZE[0]
