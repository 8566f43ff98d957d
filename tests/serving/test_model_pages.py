"""The pages Try, Search and Map in a real browser: text as it is written, pictures for a picture, points at hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, chromium, open_studio, visited
from tiny_shelf import STORIES, save_libraries, save_models

pytest.importorskip("fastapi", reason="needs fastapi")
pytest.importorskip("uvicorn", reason="needs uvicorn")
pytest.importorskip("lancedb", reason="needs lancedb")

__all__ = ["chromium"]  # a fixture

PAGES = ("try/decoder", "try/pair", "try/seeing", "search", "map")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_libraries(save_models(tmp_path_factory.mktemp("shelf")))


@pytest.fixture(scope="module")
def studio(shelf: Path, chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSUP_CACHE", str(tmp_path_factory.mktemp("cache")))
        with open_studio(shelf) as address:
            yield address


def show(page: Any, place: str) -> None:
    """Go to a page of the studio."""
    page.evaluate(
        """place => new Promise(done => {
          addEventListener("hashchange", done, { once: true });
          location.hash = `#/${place}`;
        })""",
        place,
    )
    page.wait_for_selector(".view:not([aria-busy]) h1")


@pytest.mark.parametrize("looks", [{}, {"viewport": PHONE}], ids=["wide", "phone"])
def test_every_page_is_drawn_within_its_width(chromium: Any, studio: str, looks: dict[str, Any]) -> None:
    with visited(chromium, studio, **looks) as page:
        for place in PAGES:
            show(page, place)
            page.wait_for_selector("main form, main canvas")
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), place


def test_text_comes_as_it_is_written(chromium: Any, studio: str) -> None:
    with visited(chromium, studio) as page:
        show(page, "try/decoder")
        page.fill("[name=prompt]", "Once upon")
        page.fill("[name=tokens]", "150")
        page.fill("[name=temperature]", "0")
        page.evaluate(
            """() => {
              window.lengths = new Set();
              const look = () => window.lengths.add(document.querySelectorAll(".token").length);
              new MutationObserver(look).observe(document.querySelector(".written"), { childList: true });
            }"""
        )
        page.click("text=Write >> nth=-1")
        page.wait_for_selector("text=/tokens in .* s/")
        assert page.evaluate("window.lengths.size") > 10
        page.hover(".token >> nth=3")
        assert "had" in page.inner_text(".card")
        assert page.locator(".card .bar").count() == 5
        page.keyboard.press("Tab")  # the tokens are reached by keyboard, too


def test_writing_can_be_stopped(chromium: Any, studio: str) -> None:
    with visited(chromium, studio) as page:
        show(page, "try/decoder")
        page.fill("[name=tokens]", "2000")
        page.fill("[name=temperature]", "0")
        page.evaluate(
            """() => {
              const stop = () => document.querySelector(".token") && document.querySelector("[data-stop]").click();
              const seen = new MutationObserver(stop);
              seen.observe(document.querySelector(".written"), { childList: true });
            }"""
        )
        page.click("button[type=submit]")
        page.wait_for_selector("text=Stopped.")
        assert 0 < page.locator(".token").count() < 2000


def test_a_dropped_image_finds_pictures(chromium: Any, studio: str, shelf: Path) -> None:
    content = base64.b64encode((shelf / "photos" / "red" / "02.png").read_bytes()).decode()
    with visited(chromium, studio) as page:
        show(page, "search?library=photos.lance")
        page.evaluate(
            """async content => {
              const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
              const dataTransfer = new DataTransfer();
              dataTransfer.items.add(new File([bytes], "red.png", { type: "image/png" }));
              const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
              document.querySelector(".drop").dispatchEvent(drop);
            }""",
            content,
        )
        page.wait_for_selector(".hits.pictures img")
        assert page.locator(".hits img").count() == 12
        page.locator(".hits img").first.scroll_into_view_if_needed()
        page.wait_for_function("document.querySelector('.hits img').naturalWidth > 0")
        assert "red/02.png" in page.inner_text(".hit >> nth=0")


def test_words_find_passages(chromium: Any, studio: str) -> None:
    with visited(chromium, studio) as page:
        show(page, "search?library=stories.lance")
        page.fill("[name=query]", "storm")
        page.check("[name=hybrid]")
        page.keyboard.press("Enter")
        page.wait_for_selector(".hit")
        assert page.locator("mark").count() >= 2


POINTS = """async () => {
  const { points } = await (await fetch("/api/map?library=stories.lance")).json();
  const place = new Float32Array(Uint8Array.from(atob(points), letter => letter.charCodeAt(0)).buffer);
  const canvas = document.querySelector("canvas");
  const box = canvas.getBoundingClientRect();
  const scale = 0.94 * Math.min(canvas.clientWidth, canvas.clientHeight) / 2;
  const left = box.left + canvas.clientLeft + canvas.clientWidth / 2;
  const top = box.top + canvas.clientTop + canvas.clientHeight / 2;
  return [0, 1, 2, 3].map(row => [left + place[2 * row] * scale, top + place[2 * row + 1] * scale]);
}"""


def test_points_of_a_map_are_shown_encircled_and_exported(chromium: Any, studio: str) -> None:
    with visited(chromium, studio) as page:
        show(page, "map?library=stories.lance")
        page.wait_for_selector("text=4 records, by PCA")
        page.locator("canvas").scroll_into_view_if_needed()
        places = page.evaluate(POINTS)
        page.mouse.move(*places[0])
        page.wait_for_selector(".stage .card .passage")
        assert page.inner_text(".stage .passage") in [story["text"] for story in STORIES]
        page.select_option("[name=column]", "author")
        page.wait_for_selector(".entry >> text=Ann")
        left, top = page.evaluate(POINTS)[1]  # the legend has moved them
        page.click("text=Lasso >> nth=0")
        page.mouse.move(left - 15, top - 15)
        page.mouse.down()
        for x, y in ((15, -15), (15, 15), (-15, 15)):
            page.mouse.move(left + x, top + y)
        page.mouse.up()
        page.wait_for_selector("text=1 selected")
        chosen = page.inner_text(".chosen button")
        with page.expect_download() as loading:
            page.click("text=Ids as JSON")
        assert json.loads(Path(loading.value.path()).read_text())["ids"] == [chosen]


def test_a_map_needs_the_keyboard_only(chromium: Any, studio: str) -> None:
    with visited(chromium, studio) as page:
        show(page, "map?library=stories.lance")
        page.wait_for_selector("text=4 in view")
        page.focus("canvas")
        for _ in range(12):
            page.keyboard.press("+")
        page.wait_for_selector("text=/[0-3] in view/")
        page.keyboard.press("0")
        page.wait_for_selector("text=4 in view")
        for _ in range(15):
            page.keyboard.press("ArrowLeft")
        page.wait_for_selector("text=0 in view")
        page.keyboard.press("0")
        page.wait_for_selector("text=4 in view")
        page.focus("text=Select what is in view")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=4 selected")
        page.focus(".chosen button")
        page.wait_for_selector(".stage .card .passage")
        first = page.inner_text(".stage .passage")
        page.keyboard.press("Tab")
        page.wait_for_function("first => document.querySelector('.stage .passage').textContent !== first", arg=first)
