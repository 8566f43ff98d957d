"""The studio in a real browser: every page loads without an error, curves grow as a training does, keyboard only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, open_studio, visited

import selfsup

pytest.importorskip("fastapi", reason="needs fastapi")

NAME = "<img src=x onerror=alert(1)>"
PATIENCE = 120_000  # milliseconds, for whatever needs torch
PAGES = ["runs", "run/done", "compare?run=done&run=other", "compare", "inspect", "start"]


@pytest.fixture(scope="module")
def address(finished: selfsup.Run, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("browsed")
    for name in ("done", "other", NAME):
        run = shutil.copytree(finished.directory, place / "runs" / name)
        sample = next((run / "samples").glob("*.txt"))
        sample.write_text(f"<script>alert(2)</script> {NAME}")
    (place / "data").mkdir()
    shutil.copyfile(corpus, place / "data" / "corpus.txt")
    with open_studio(place / "runs", [place / "data"]) as address:
        yield address


def shown(page: Any, address: str, name: str) -> None:
    """Go to a page of the studio and wait until it stands."""
    page.goto(f"{address.partition('?')[0]}#/{name}")
    page.locator(".view:not([aria-busy]) h1").first.wait_for(timeout=PATIENCE)
    page.locator("[aria-busy]").first.wait_for(state="detached", timeout=PATIENCE)


@pytest.mark.parametrize("looks", [{"color_scheme": "light"}, {"color_scheme": "dark", "viewport": PHONE}])
def test_every_page_loads_without_an_error(chromium: Any, address: str, looks: dict[str, Any]) -> None:
    with visited(chromium, address, **looks) as page:
        for name in PAGES:
            shown(page, address, name)
            assert page.locator(".banner").is_hidden(), page.locator(".banner").inner_text()
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, name


def test_the_token_goes_and_the_cookie_stays(chromium: Any, address: str) -> None:
    with visited(chromium, address) as page:
        page.locator("h1").first.wait_for()
        assert "token" not in page.url
        assert page.evaluate("document.cookie") == ""  # no script sees it
        page.reload()
        page.locator("h1").first.wait_for()
    with pytest.raises(AssertionError, match="401"), visited(chromium, address.partition("?")[0]):
        pass


def test_names_and_samples_are_texts(chromium: Any, address: str) -> None:
    with visited(chromium, address) as page:
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.get_by_role("link", name=NAME).click()
        page.locator("h1", has_text=NAME).wait_for()
        page.locator("[aria-busy]").first.wait_for(state="detached", timeout=PATIENCE)
        page.get_by_text("<script>alert(2)</script>").first.wait_for()
        assert page.locator("img[src=x]").count() == 0
        assert page.evaluate("document.querySelectorAll('[onerror]').length") == 0


def test_a_sentence_is_inspected_by_keyboard(chromium: Any, address: str) -> None:
    with visited(chromium, address) as page:
        page.locator("h1", has_text="Runs").wait_for()
        page.keyboard.press("3")
        page.locator("h1", has_text="Inspect").wait_for(timeout=PATIENCE)
        focus(page, "select[name=objective]")
        page.keyboard.type("masked")
        focus(page, "textarea")
        page.keyboard.type("The cat sat on the mat and the dog sat on the cat.")
        focus(page, "button[type=submit]")
        page.keyboard.press("Enter")
        page.get_by_text("[MASK]").first.wait_for(timeout=PATIENCE)


def test_curves_grow_while_a_training_that_was_started_here_runs(chromium: Any, address: str) -> None:
    """From the form to the stop, by keyboard."""
    values = {
        "data.source": "corpus.txt", "train.steps": "100000", "train.batch": "4", "train.log_every": "1",
        "model.layers": "1", "model.width": "32", "model.heads": "1", "data.window": "16",
        "data.tokenizer": "characters", "evaluate.every": "100000",
    }  # fmt: skip
    with visited(chromium, address) as page:
        page.locator("h1", has_text="Runs").wait_for()
        page.keyboard.press("7")
        page.locator("h1", has_text="Start").wait_for(timeout=PATIENCE)
        for summary in page.locator("form summary").all():
            summary.press("Enter")
        focus(page, "input[name=name]")
        page.keyboard.type("live")
        for key, value in values.items():
            focus(page, f"[name='{key}']")
            page.keyboard.type(value)
        page.keyboard.press("Enter")
        start = page.get_by_role("button", name="Start this training")
        start.wait_for(timeout=PATIENCE)
        assert page.evaluate("document.activeElement.textContent") == "Start this training"
        page.keyboard.press("Enter")
        page.locator(".trainings .state.running").wait_for()
        page.keyboard.press("1")
        page.locator("h1", has_text="Runs").wait_for()
        page.get_by_role("link", name="live").wait_for(timeout=PATIENCE)
        page.get_by_role("link", name="live").press("Enter")
        page.locator("h1", has_text="live").wait_for()
        drawn = page.wait_for_function("document.querySelector('.live path[d]')?.getAttribute('d')", timeout=PATIENCE)
        before = drawn.json_value()
        page.wait_for_function(
            "before => document.querySelector('.live path[d]').getAttribute('d') !== before",
            arg=before,
            timeout=PATIENCE,
        )
        page.keyboard.press("7")
        stop = page.get_by_role("button", name="Stop it")
        stop.wait_for(timeout=PATIENCE)
        stop.press("Enter")
        page.locator(".trainings .state.stopped").wait_for(timeout=PATIENCE)


def focus(page: Any, wanted: str) -> None:
    """Press Tab until an element has the focus, as one does without a mouse."""
    for _ in range(200):
        if page.evaluate("wanted => document.activeElement?.matches(wanted) ?? false", wanted):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{wanted} is not reached by Tab")
