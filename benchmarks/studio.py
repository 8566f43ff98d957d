"""The studio: how soon a list of many runs stands in a browser, and how soon a line of metrics is on its page.

`python -m benchmarks studio [RUNS] [LINES]`, by default 100 runs of 10,000 lines, as a training writes them. In the
distribution's Chromium, headless, driven by Playwright; each first paint has a server of its own.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import Figures, show, spread, write

SERVERS, EVENTS = 5, 20
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Milliseconds from the start of the navigation until so many rows stand in the table.
STANDS = """rows => new Promise(resolve => {
  const look = () => document.querySelectorAll("table.runs tbody tr").length >= rows
    ? requestAnimationFrame(() => resolve(performance.now())) : setTimeout(look, 5);
  look();
})"""
# Notes for each text of the figures of a run when it came to stand there, in milliseconds since 1970.
WATCH = """() => {
  window.noted = {};
  const note = () => { window.noted[document.querySelector(".figures").textContent] ??= Date.now(); };
  new MutationObserver(note).observe(document.querySelector(".figures"), { childList: true, subtree: true });
}"""
FOUND = "step => Object.entries(window.noted).find(([text]) => text.includes(step))?.[1]"


def line(step: int, every: int = 100) -> str:
    """What a step leaves in metrics.jsonl; now and then a look behind it."""
    loss = 2 + 8 * math.exp(-step / 2000) + 0.1 * math.sin(step)
    train = {
        "step": step, "time": step * 0.5, "split": "train", "loss": loss, "lr": 0.01, "grad_norm": 0.5 + 1 / step,
        "tokens": step * 8192, "tokens_per_second": 16384.0, "waiting": 0.001, "utilisation": 0.21,
    }  # fmt: skip
    look = {
        "step": step,
        "time": step * 0.5,
        "split": "validation",
        "records": 256,
        "loss": loss,
        "bits_per_byte": loss / 3,
    }
    return "".join(json.dumps(each) + "\n" for each in ([train] if step % every else [train, look]))


def make(place: Path, runs: int, lines: int) -> None:
    """So many runs that are not finished."""
    metrics = "".join(line(step) for step in range(1, lines + 1))
    settings = {"objective": "causal-lm", "data": {"source": "text"}, "train": {"budget": None}}
    plan = {"steps": 2 * lines, "settings": settings, "parameters": 12_345_678, "chance": 9.7}
    for number in range(runs):
        directory = place / f"run-{number:03d}"
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text("objective: causal-lm\n")
        (directory / "environment.json").write_text(json.dumps({"plan": plan}))
        (directory / "metrics.jsonl").write_text(metrics)


@contextmanager
def served(place: Path) -> Iterator[str]:
    """The address of a studio in a process of its own."""
    command = [sys.executable, "-m", "selfsup", "studio", str(place), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield next(word for word in process.stdout.readline().split() if word.startswith("http://"))
        process.terminate()


def first_paint(browser: Any, address: str, runs: int) -> Figures:
    """Of a browser that was never there, and when it is reloaded: milliseconds from the navigation on."""
    context = browser.new_context()
    page = context.new_page()
    found = {}
    for name in ("first", "reloaded"):
        page.goto(address) if name == "first" else page.reload()
        rows = page.evaluate(STANDS, runs)
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        found[name] = {"rows": rows, "paint": paint}
    context.close()
    return found


def latencies(browser: Any, address: str, directory: Path, lines: int) -> list[float]:
    """Seconds from the writing of a line until what it says stands on the page of its run."""
    page = browser.new_page()
    page.goto(f"{address}#/run/{directory.name}")
    page.locator(".figures .card").first.wait_for()
    page.wait_for_timeout(3000)
    page.evaluate(WATCH)
    found = []
    for number in range(1, EVENTS + 1):
        step = lines + number
        with (directory / "metrics.jsonl").open("a") as file:
            file.write(line(step, every=10**9))
        written = time.time()
        seen = page.wait_for_function(FOUND, arg=f"{step:,}", timeout=30_000).json_value()
        found.append(seen / 1000 - written)
        page.wait_for_timeout(137 * (1 + number % 5))
    page.close()
    return found


def main(arguments: Sequence[str]) -> None:
    from playwright.sync_api import sync_playwright

    runs, lines = (int(word) for word in (*arguments, *("100", "10000")[len(arguments) :]))
    paints: list[Figures] = []
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        place = Path(temporary)
        make(place, runs, lines)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        for _ in range(SERVERS):
            with served(place) as address:
                paints.append(first_paint(browser, address, runs))
                print(json.dumps(paints[-1]), file=sys.stderr)
        with served(place) as address:
            waits = latencies(browser, address, place / "run-007", lines)
        browser.close()
    painted = {
        f"{name}_{what}_ms": spread([one[name][what] for one in paints])
        for name in ("first", "reloaded")
        for what in ("paint", "rows")
    }
    write(
        "studio",
        f"The studio on {runs} runs of {lines:,} lines of metrics each, in headless Chromium.",
        {**painted, "event_seconds": spread(waits), "events": waits},
        [
            ("first contentful paint, a server that has just started", f"{show(painted['first_paint_ms'], 0)} ms"),
            (f"until all {runs} rows stand", f"{show(painted['first_rows_ms'], 0)} ms"),
            ("the same when the page is reloaded", f"{show(painted['reloaded_rows_ms'], 0)} ms"),
            ("from a line of metrics.jsonl to the page", f"{show(spread(waits))} s"),
        ],
    )
