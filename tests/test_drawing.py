"""Inspections and reports as a real browser draws them: every block, by mouse and by keyboard, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, chromium, visited
from conftest import TINY, TINY_PAIRS, TINY_VISION

import selfsup
from selfsup.inspection import Inspection
from selfsup.inspection.blocks import Document
from selfsup.report import Reporter
from selfsup.reporting import page_of, report_of
from selfsup.run import Run

__all__ = ["chromium"]
QUIET: dict[str, Any] = {"reporter": Reporter(False)}
TEXTS = [f"The {animal} is on the {place}." for animal in ("cat", "dog", "hen") for place in ("mat", "bed", "sofa")] * 4
HOSTILE = "</script><img src=x onerror=alert(1)>\u202e"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return selfsup.train("causal-lm", data=TEXTS, out=tmp_path_factory.mktemp("drawing") / "run", **TINY, **QUIET)


@contextmanager
def drawn(browser: Any, html: str, place: Path, **looks: Any) -> Iterator[Any]:
    """A page as the browser shows it, wholly drawn and no wider than its window."""
    file = place / "page.html"
    file.write_text(html, encoding="utf-8")
    with visited(browser, file.as_uri(), **looks) as page:
        page.wait_for_selector("h1")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        yield page


def shown(browser: Any, document: Document | Inspection, place: Path, **looks: Any) -> Any:
    assert isinstance(document, Inspection)
    return drawn(browser, document.to_html(), place, **looks)


def test_a_window_is_read_out_by_mouse_and_keyboard(chromium: Any, run: Run, tmp_path: Path) -> None:
    inspection = selfsup.inspect(text="The hen is on the mat.", run=run.directory)
    with shown(chromium, inspection, tmp_path) as page:
        positions = page.locator(".window .position")
        assert positions.count() == page.locator(".sight g").count() == page.locator("ol.list li").count() == 16
        assert page.locator(".reading").is_hidden()
        positions.nth(5).hover()
        assert page.locator(".reading").is_visible()
        assert page.locator(".window .sees").count() == 6  # itself and what is before it
        assert page.locator(".sight g.now").get_attribute("data-position") == "5"
        page.mouse.move(0, 0)
        assert page.locator(".reading").is_hidden()
        positions.nth(2).focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".window .now").get_attribute("data-position") == "3"
        assert page.locator(".reading .input").count() == 4
        page.keyboard.press("Enter")  # pins it
        page.evaluate("document.activeElement.blur()")
        assert page.locator(".window .now").get_attribute("data-position") == "3"
        page.keyboard.press("Tab")
        page.keyboard.press("Escape")
        assert page.locator(".reading").is_hidden()


@pytest.mark.long
def test_long_windows_say_what_is_left_out(chromium: Any, tmp_path: Path) -> None:
    inspection = selfsup.inspect("causal-lm", text="a b " * 400, tokenizer="words", window=700)
    with shown(chromium, inspection, tmp_path) as page:
        assert page.locator(".window .position").count() == 512
        assert page.get_by_text("The page shows the first 512 of 700.").count() >= 1


def test_hidden_tokens_marks_and_local_layers(chromium: Any, tmp_path: Path) -> None:
    inspection = selfsup.inspect("masked-lm", text="word " * 100, tokenizer="words")
    with shown(chromium, inspection, tmp_path, viewport=PHONE) as page:
        assert page.locator(".sight .far").count() > 0
        assert page.locator(".window .chip.mask").count() > 0
        assert page.locator(".marks .mask").count() > 0
        assert page.locator(".legend .role").count() == 3


@pytest.mark.long
def test_pictures_and_matrices(chromium: Any, captioned: Path, tmp_path: Path) -> None:
    given = {**TINY_PAIRS, "data": captioned, "batch": 20}
    trained = selfsup.train(given.pop("objective"), out=tmp_path / "run", **given, **QUIET)
    with shown(chromium, selfsup.inspect(run=trained.directory), tmp_path, color_scheme="dark") as page:
        tiles = page.locator(".tiles img")
        assert tiles.count() >= 16
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        cell = page.locator(".cell").first
        cell.scroll_into_view_if_needed()
        cell.hover()
        assert "a pair" in page.locator(".matrix p").first.inner_text()
        whole = page.locator("canvas.heat").first
        whole.scroll_into_view_if_needed()
        whole.focus()
        page.keyboard.press("ArrowDown")
        read = page.locator(".matrix:has(canvas) p").first.inner_text()
        assert "no pair" in read or "alike" in read


def test_data_is_text_wherever_it_is_drawn(chromium: Any, tmp_path: Path) -> None:
    inspection = selfsup.inspect("causal-lm", text=HOSTILE, tokenizer="characters")
    with shown(chromium, inspection, tmp_path) as page:
        assert page.locator("img").count() == 0
        assert "\\u202e" in page.locator(".window").inner_text()


@pytest.fixture(scope="module")
def report(run: Run, drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    seeing = selfsup.train("mae", data=drawings, out=tmp_path_factory.mktemp("mae") / "mae", **TINY_VISION, **QUIET)
    return report_of([run, seeing])


@pytest.mark.parametrize("looks", [{}, {"viewport": PHONE, "color_scheme": "dark"}])
def test_a_report(chromium: Any, run: Run, tmp_path: Path, looks: dict[str, Any]) -> None:
    run.write_sample(12, HOSTILE)
    with drawn(chromium, page_of(report_of([run])), tmp_path, **looks) as page:
        assert page.locator("h1").inner_text() == "run"
        for title in ("Curves", "Samples", "Findings", "Plan", "Configuration", "Model card"):
            assert page.locator("h2", has_text=title).count() == 1
        loss = page.locator(".chart.first")
        assert loss.locator("path.line").count() == 3  # training, held out, chance
        loss.locator(".plot").focus()
        page.keyboard.press("ArrowRight")
        assert "step 1" in loss.locator(".where").inner_text()
        page.keyboard.press("ArrowRight")
        assert "step 2" in loss.locator(".where").inner_text()
        loss.locator("button", has_text="chance").click()
        assert loss.locator("path.line").count() == 2
        page.get_by_role("button", name="tokens", exact=True).click()
        assert "tokens" in page.locator(".chart.first .where").inner_text()
        slider = page.locator("input[type=range]")
        assert HOSTILE[:-1] in page.locator(".sample pre").inner_text()
        slider.focus()
        page.keyboard.press("Home")
        assert page.locator(".player output").inner_text() == "step 4"
        assert page.locator("img").count() == 0


def test_several_runs(chromium: Any, report: dict[str, Any], tmp_path: Path) -> None:
    with drawn(chromium, page_of(report), tmp_path) as page:
        assert page.locator(".chart.first").first.locator("path.line").count() == 6
        page.get_by_role("group", name="run").get_by_role("button", name="mae").click()
        assert page.locator(".tiles img").count() > 6
        assert page.locator("h2", has_text="Differences").count() == 1


def test_what_cannot_be_drawn_is_said_and_the_rest_is_there(
    chromium: Any, report: dict[str, Any], tmp_path: Path
) -> None:
    run = {**report["runs"][0], "samples": [{"step": 1, "text": "", "sections": [3]}], "inspection": {"sections": 1}}
    with drawn(chromium, page_of({**report, "runs": [run]}), tmp_path) as page:
        assert page.locator(".error").count() == 2
        assert page.locator("h2", has_text="Model card").count() == 1
