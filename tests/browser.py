"""A real browser for tests of pages, and a studio to look at; tests that need one are skipped where it is missing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, as Playwright drives it. (Of a module: while it is there no other event loop may run.)"""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs the distribution's chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def visited(browser: Any, address: str, **looks: Any) -> Iterator[Any]:
    """A page at an address; at the end nothing went wrong in it: no error in the console, none that nobody caught.

    Args:
        looks: of the browser's context, such as `color_scheme="dark"` or `viewport=PHONE`.
    """
    context = browser.new_context(**looks)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        page.goto(address)
        yield page
        assert problems == [], problems
    finally:
        context.close()


@contextmanager
def open_studio(runs: Path, data: Sequence[Path] = ()) -> Iterator[str]:
    """The address of a studio that is served in a thread, with its token."""
    from selfsup.serving.guard import Folders, Guard, Token
    from selfsup.serving.server import Server, address_of, bound
    from selfsup.serving.studio.app import make_app
    from selfsup.serving.studio.shared import Studio

    shared = Studio(Folders.of([runs, *data]))
    with bound("127.0.0.1", 0) as taken:
        door = Token(taken.getsockname()[1])
        server = Server(Guard(make_app(shared), "127.0.0.1", door))
        shared.ending = lambda: server.should_exit
        thread = threading.Thread(target=server.run, args=([taken],))
        thread.start()
        try:
            yield f"{address_of(taken, '127.0.0.1')}/?token={door.word}"
        finally:
            server.should_exit = True
            thread.join()
            for name in shared.trainings.running():
                shared.trainings.stop(name)
