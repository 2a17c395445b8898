"""The report page in a real browser: quiet, playing in step, and usable without a mouse."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvt_pipeline.report.page import write_comparison, write_report
from tests.browser import BROWSER, Browser
from tests.finished_work import make_finished_work, make_other_run
from tests.toy_work import FRAMES, ToyWork, make_tokenizer

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")

TABS = ["overview", "data", "tokenizer", "codes", "prior", "samples", "evaluation", "clips"]
SHOWN = "[...document.querySelectorAll('section')].filter((one) => one.offsetHeight > 0).map((one) => one.id)"
SELECTED = "document.querySelector('[role=tab][aria-selected=true]').hash.slice(1)"
CLIP = "document.querySelector('#sample-list article')"
TIMES = f"[...{CLIP}.querySelectorAll('video')].map((video) => video.currentTime)"
NAMES = "[...document.querySelectorAll('#{} > *')].filter((one) => !one.hidden).map((one) => one.dataset.name)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    return make_finished_work(tmp_path_factory.mktemp("seen") / "work")


@pytest.fixture(scope="module")
def page(work: ToyWork) -> Path:
    write_report(work.root, work.root / "report.html")
    return work.root / "report.html"


def open_tab(browser: Browser, name: str) -> None:
    browser.click(f"#tab-{name}")
    assert browser.run(SELECTED) == name


def test_every_tab_opens_quietly_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    browser.open(page)
    for tab in TABS:
        open_tab(browser, tab)
        assert browser.run(SHOWN) == [tab]
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.wait_for("[...document.querySelectorAll('video')].every((video) => video.dataset.state === 'ready')")
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]


def test_complaints_and_requests_would_be_noticed(browser: Browser, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(page.read_text().replace("<main>", '<main><img src="other.png"><script>undefinedName()</script>', 1))
    browser.open(bad)
    browser.wait_for("true")
    assert len(browser.complaints) >= 2
    assert len(browser.requests) == 2


def test_arrow_keys_home_and_end_move_between_tabs(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('[role=tab]').focus()")
    for key, expected in (
        ("ArrowRight", "data"),
        ("ArrowRight", "tokenizer"),
        ("ArrowLeft", "data"),
        ("End", "clips"),
        ("ArrowRight", "overview"),
        ("ArrowLeft", "clips"),
        ("Home", "overview"),
    ):
        browser.press(key)
        assert browser.run(SELECTED) == expected
        assert browser.run("document.activeElement.hash.slice(1)") == expected
        assert browser.run(SHOWN) == [expected]
    assert browser.run("[...document.querySelectorAll('[role=tab]')].filter((tab) => tab.tabIndex === 0).length") == 1
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "overview"
    outline = "getComputedStyle(document.querySelector('[role=tab]:focus-visible')).outlineStyle"
    browser.run("document.querySelector('[role=tab]').focus()")
    browser.press("End")
    assert browser.run(outline) == "solid"


def test_tabs_are_told_to_those_who_cannot_see_them(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run(
        "[...document.querySelectorAll('[role=tablist] > [role=tab]')].every((tab) => {"
        " const panel = document.getElementById(tab.getAttribute('aria-controls'));"
        " return panel.getAttribute('role') === 'tabpanel' && panel.getAttribute('aria-labelledby') === tab.id; })"
    )


def test_a_link_to_a_record_opens_its_tab_and_the_address_names_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("a[href='#record-prior']")
    browser.wait_for("document.getElementById('record-prior').open")
    assert browser.run(SHOWN) == ["prior"]
    open_tab(browser, "codes")
    assert browser.run("location.hash") == "#codes"
    browser.run("location.reload()")
    browser.wait_for(f"document.readyState === 'complete' && {SELECTED} === 'codes'")


def test_what_the_browsers_search_finds_in_a_hidden_tab_opens_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.getElementById('clips').hidden") == "until-found"
    browser.run("document.getElementById('clips').dispatchEvent(new Event('beforematch'))")
    assert browser.run(SHOWN) == ["clips"]


def test_videos_play_and_stay_on_the_same_frame(browser: Browser, page: Path) -> None:
    browser.open(page)
    open_tab(browser, "samples")
    browser.wait_for(f"{TIMES}.every((time) => time > 0.3)")
    frames = browser.run(
        "new Promise((resolve) => { const seen = []; const look = () => {"
        f" seen.push({TIMES}); seen.length < 60 ? requestAnimationFrame(look) : resolve(seen); }};"
        " requestAnimationFrame(look); })"
    )
    times = np.array(frames)
    assert times.shape[1] == 3
    assert len(np.unique(times[:, 0])) > 10
    assert np.median(np.ptp(times, axis=1)) < 0.5 / 5  # half a frame at 5 frames per second
    browser.run(
        "(() => { const speed = document.querySelector('.speed'); speed.value = '0.25';"
        " speed.dispatchEvent(new Event('change')); })()"
    )
    browser.wait_for(f"{TIMES}[2] < 0.3")
    disturbed = browser.run(
        f"new Promise((resolve) => {{ {CLIP}.querySelector('video').currentTime += 0.6;"
        f" setTimeout(() => resolve({TIMES}), 500); }})"
    )
    assert np.ptp(disturbed) < 0.5 / 5, "a video that is off is brought back"
    browser.click("#sample-list article button")
    browser.wait_for(f"[...{CLIP}.querySelectorAll('video')].every((video) => video.paused)")


def test_a_clip_plays_and_steps_by_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page, prefers_reduced_motion="reduce")
    open_tab(browser, "samples")
    browser.run(f"{CLIP}.focus()")
    shown = f"{CLIP}.querySelector('output').textContent"
    assert browser.run(shown) == f"frame 1 of {FRAMES}, priming"
    for key, text in (
        ("ArrowRight", f"frame 2 of {FRAMES}, priming"),
        ("ArrowRight", f"frame 3 of {FRAMES}, sampled"),
        ("ArrowLeft", f"frame 2 of {FRAMES}, priming"),
        ("End", f"frame {FRAMES} of {FRAMES}, sampled"),
        ("ArrowRight", f"frame {FRAMES} of {FRAMES}, sampled"),
        ("Home", f"frame 1 of {FRAMES}, priming"),
    ):
        browser.press(key)
        assert browser.run(shown) == text
        browser.wait_for(f"new Set({TIMES}.map((time) => time.toFixed(3))).size === 1")
        assert browser.run(f"{CLIP}.querySelector('.ruler .now').textContent") == text.split()[1]
    paused = f"[...{CLIP}.querySelectorAll('video')].map((video) => video.paused)"
    assert browser.run(paused) == [True] * 3
    browser.press("Space")
    browser.wait_for(f"{TIMES}.every((time) => time > 0.3)")
    browser.press("Space")
    browser.wait_for(f"{paused}.every(Boolean)")


def test_a_video_that_is_loaded_after_a_step_shows_the_same_frame_as_the_others(browser: Browser, page: Path) -> None:
    browser.open(page, prefers_reduced_motion="reduce")
    open_tab(browser, "samples")
    browser.wait_for(f"[...{CLIP}.querySelectorAll('video')].every((video) => video.dataset.state === 'ready')")
    step = "dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }))"
    assert browser.run(f"{CLIP}.querySelector('video').load(), {CLIP}.{step}, {TIMES}[0]") == 0
    browser.wait_for(f"{TIMES}.every((time) => time > 0) && new Set({TIMES}.map((time) => time.toFixed(3))).size === 1")


def test_nothing_moves_by_itself_for_readers_who_want_calm(browser: Browser, page: Path) -> None:
    browser.open(page, prefers_reduced_motion="reduce")
    open_tab(browser, "samples")
    browser.wait_for(f"{CLIP}.querySelector('video').dataset.state === 'ready'")
    browser.run("new Promise((resolve) => setTimeout(resolve, 300))")
    assert browser.run("[...document.querySelectorAll('video')].every((video) => video.paused)")


@pytest.mark.parametrize(("tab", "list_id", "count"), [("samples", "sample-list", 2), ("clips", "clip-list", 3)])
def test_the_filter_narrows_to_words_of_the_name(
    browser: Browser, page: Path, tab: str, list_id: str, count: int
) -> None:
    browser.open(page)
    open_tab(browser, tab)
    names = browser.run(NAMES.format(list_id))
    assert len(names) == count
    browser.click(f"[data-list={list_id}] input")
    browser.type(names[1].upper())
    assert browser.run(NAMES.format(list_id)) == [names[1]]
    assert browser.run(f"document.querySelector('[data-list={list_id}] output').textContent") == f"1 of {count} clips"
    browser.type("nothing is called like this")
    assert browser.run(NAMES.format(list_id)) == []


def choose_order(browser: Browser, list_id: str, title: str) -> None:
    select = f"document.querySelector('[data-list={list_id}] select')"
    browser.run(
        f"(() => {{ {select}.value = [...{select}.options].find((one) => one.text === '{title}').value;"
        f" {select}.dispatchEvent(new Event('change')); }})()"
    )


@pytest.mark.parametrize(("tab", "list_id"), [("samples", "sample-list"), ("clips", "clip-list")])
def test_worst_and_best_clips_come_first_when_asked_for(browser: Browser, page: Path, tab: str, list_id: str) -> None:
    browser.open(page)
    open_tab(browser, tab)
    before = browser.run(NAMES.format(list_id))
    values = f"[...document.querySelectorAll('#{list_id} > *')].map((one) => JSON.parse(one.dataset.order).KEY)"
    for key, title, worst_is_high in (
        ("bits", "bits per code", True),
        ("reconstruction_ssim", "reconstruction SSIM", False),
    ):
        choose_order(browser, list_id, f"{title}, worst first")
        found = browser.run(values.replace("KEY", key))
        assert found == sorted(found, reverse=worst_is_high)
        assert len(set(found)) > 1
        choose_order(browser, list_id, f"{title}, best first")
        assert browser.run(values.replace("KEY", key)) == found[::-1]
    browser.run(f"document.querySelector('[data-list={list_id}] select').value = ''")
    browser.run(f"document.querySelector('[data-list={list_id}] select').dispatchEvent(new Event('change'))")
    assert browser.run(NAMES.format(list_id)) == before


def test_a_heading_orders_the_table_and_clips_without_the_number_come_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    open_tab(browser, "clips")
    heading = "th[data-key=sample_mse]"
    for direction in ("descending", "ascending", "descending"):
        browser.click(f"{heading} button")
        assert browser.run(f"document.querySelector('{heading}').getAttribute('aria-sort')") == direction
        last = browser.run(
            "JSON.parse(document.querySelector('#clip-list').lastElementChild.dataset.order).sample_mse ?? null"
        )
        assert last is None


def test_a_row_of_the_table_leads_to_its_player(browser: Browser, page: Path) -> None:
    browser.open(page)
    open_tab(browser, "clips")
    name = browser.run("document.querySelector('#clip-list a').closest('tr').dataset.name")
    browser.click("#clip-list a")
    browser.wait_for(f"{SELECTED} === 'samples'")
    assert browser.run("document.querySelector(location.hash).dataset.name") == name
    assert browser.run(
        "(() => { const box = document.querySelector(location.hash).getBoundingClientRect();"
        " return box.bottom > 0 && box.top < innerHeight; })()"
    )


def brightness(browser: Browser) -> float:
    return float(np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L")).mean())


def test_colours_follow_the_system_until_the_reader_chooses(browser: Browser, page: Path) -> None:
    browser.open(page, prefers_color_scheme="light")
    light = brightness(browser)
    browser.media(prefers_color_scheme="dark")
    assert brightness(browser) < light / 2
    chosen = (
        "(() => {{ const theme = document.getElementById('theme');"
        " theme.value = '{}'; theme.dispatchEvent(new Event('change')); }})()"
    )
    browser.run(chosen.format("light"))
    assert brightness(browser) > light / 2
    browser.open(page, prefers_color_scheme="dark")
    assert brightness(browser) > light / 2, "the choice is remembered"
    browser.run(chosen.format(""))
    assert brightness(browser) < light / 2
    browser.run(chosen.format("dark"))
    browser.media(prefers_color_scheme="light")
    assert brightness(browser) < light / 2
    browser.run(chosen.format(""))


@pytest.mark.parametrize("width", [360, 1280])
def test_no_tab_is_blank_or_wider_than_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    for tab in TABS:
        browser.run(f"document.getElementById('tab-{tab}').click()")
        assert browser.run("document.documentElement.scrollWidth") <= width, tab
        picture = np.asarray(Image.open(io.BytesIO(browser.screenshot(whole=True))).convert("L"), np.float64)
        assert picture.shape[1] == width
        assert picture[200:].std() > 5, f"{tab} is blank"


def test_pointing_at_a_curve_reads_its_values(browser: Browser, page: Path) -> None:
    browser.open(page)
    open_tab(browser, "prior")
    browser.click("#prior svg .reader")
    x, y = browser.run(
        "(() => { const box = document.querySelector('#prior svg .reader').getBoundingClientRect();"
        " return [box.right - 5, box.top + 20]; })()"
    )
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert (
        browser.run("document.querySelector('#prior .plot .note').textContent")
        == "step 100\ntraining 3\nvalidation 3.1"
    )


def test_on_paper_all_sections_are_there(browser: Browser, page: Path) -> None:
    browser.open(page)
    open_tab(browser, "codes")
    browser.media("print")
    assert browser.run(SHOWN) == TABS
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.pdf().startswith(b"%PDF")


def test_two_runs_play_side_by_side_in_step(browser: Browser, work: ToyWork, tmp_path: Path) -> None:
    other = make_other_run(work, tmp_path / "other")
    write_comparison([work.root, other.root], tmp_path / "two.html")
    browser.open(tmp_path / "two.html")
    for tab in ("curves", "settings", "provenance", "overview", "clips"):
        open_tab(browser, tab)
        assert browser.run(SHOWN) == [tab]
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.wait_for(f"{TIMES}.length === 4 && {TIMES}.every((time) => time > 0.3)")
    browser.click("#sample-list article button")
    browser.press("ArrowRight")
    browser.wait_for(f"new Set({TIMES}.map((time) => time.toFixed(3))).size === 1")
    gains = "[...document.querySelectorAll('#sample-list > *')].map((one) => JSON.parse(one.dataset.order)['bits-1'])"
    choose_order(browser, "sample-list", "bits per code, other gains most")
    assert browser.run(gains) == sorted(browser.run(gains))
    assert browser.complaints == []
    assert browser.requests == [(tmp_path / "two.html").as_uri()]


def test_a_page_of_one_stage_is_quiet_too(browser: Browser, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "work" / "runs" / "vqvae")
    write_report(tmp_path / "work", tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    for tab in TABS:
        open_tab(browser, tab)
        assert browser.run(SHOWN) == [tab]
    assert browser.complaints == []
