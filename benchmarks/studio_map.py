"""The map of the studio: how many times a second 50,000 points are drawn while one pans and zooms."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.common import Figures, show, spread, write
from benchmarks.studio import ARGUMENTS, served

POINTS, WIDTH, CLUSTERS = 50_000, 384, 40
SECONDS, ROUNDS = 4, 3
SIZES = {"1280 by 800": {"width": 1280, "height": 800}, "1920 by 1080": {"width": 1920, "height": 1080}}

# Moves in every frame, as a hand does, and says when each frame was due.
DRIVE = """async ([kind, seconds]) => {
  const canvas = document.querySelector("canvas");
  const at = (type, clientX, clientY) => canvas.dispatchEvent(new PointerEvent(type, { clientX, clientY, button: 0 }));
  const box = canvas.getBoundingClientRect();
  const [middle, height] = [box.left + box.width / 2, box.top + box.height / 2];
  canvas.setPointerCapture = () => {};
  if (kind === "pan") at("pointerdown", middle, height);
  const times = [];
  await new Promise((done) => {
    const frame = (time) => {
      times.push(time);
      const turn = (time - times[0]) / 400;
      const where = { clientX: middle, clientY: height };
      if (kind === "pan") at("pointermove", middle + 150 * Math.sin(turn), height + 150 * Math.cos(turn));
      else canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 60 * Math.sin(turn), ...where }));
      time - times[0] < 1000 * seconds ? requestAnimationFrame(frame) : done();
    };
    requestAnimationFrame(frame);
  });
  if (kind === "pan") at("pointerup", middle, height);
  return times;
}"""


def main(arguments: Sequence[str]) -> None:
    points = int(arguments[0]) if arguments else POINTS
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SELFSUP_CACHE"] = str(Path(folder, "cache"))  # so that the map is not there yet
        library(Path(folder), points)
        figures = measured(Path(folder), points)
    rows = [
        (f"frames a second, panning ({size})", show(figures[f"pan {size}"]["frames_a_second"], 1)) for size in SIZES
    ] + [(f"frames a second, zooming ({size})", show(figures[f"zoom {size}"]["frames_a_second"], 1)) for size in SIZES]
    rows.append(("seconds to the first map (PCA, then drawn)", f"{figures['seconds_to_first_map']:.1f}"))
    rows.append(("seconds to the same map again", f"{figures['seconds_to_kept_map']:.1f}"))
    write(
        "studio_map",
        f"The studio's map of {points:,} records with vectors of {WIDTH} numbers, in headless Chromium "
        "without a GPU (software rendering): frames in a second while the pointer pans or the wheel zooms in "
        "every frame. 60 is the most that the browser asks for.",
        figures,
        rows,
    )


def library(folder: Path, points: int) -> None:
    """A library of clusters, as no model made it."""
    from selfsup.inference.library import Library

    random = np.random.default_rng(0)
    cluster = random.integers(0, CLUSTERS, points)
    centres = random.normal(size=(CLUSTERS, WIDTH))
    vectors = (centres[cluster] + random.normal(size=(points, WIDTH))).astype(np.float32)
    made = {"model": str(folder), "model_fingerprint": "0" * 32, "pooling": "mean", "dimension": WIDTH}
    ids = [f"record {number}" for number in range(points)]
    texts = [f"The text of record {number}, of cluster {of}." for number, of in enumerate(cluster)]
    rows = {"id": ids, "text": texts, "source": ids, "content_hash": ids, "values_hash": ids}
    with Library.held(folder / "points.lance", made) as opened:
        opened.widen({"cluster": pa.int64()})
        opened.put({**rows, "cluster": cluster.tolist()}, vectors)


def measured(folder: Path, points: int) -> Figures:
    from playwright.sync_api import sync_playwright

    figures: Figures = {"points": points, "width": WIDTH}
    with sync_playwright() as driver, served(folder) as address:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        figures["chromium"] = browser.version
        for name, size in SIZES.items():
            page = browser.new_page(viewport=size)
            started = time.monotonic()
            page.goto(f"{address}#/map")
            page.wait_for_selector(f"text={points:,} in view", timeout=300_000)
            figures.setdefault("seconds_to_first_map", time.monotonic() - started)
            figures["seconds_to_kept_map"] = time.monotonic() - started
            for kind in ("pan", "zoom"):
                rounds = [np.diff(page.evaluate(DRIVE, [kind, SECONDS])) for _ in range(ROUNDS)]
                slow = [float(np.quantile(times, 0.95)) for times in rounds]
                rates = [1000 * len(times) / float(times.sum()) for times in rounds]
                figures[f"{kind} {name}"] = {"frames_a_second": spread(rates), "ms_of_a_slow_frame": spread(slow)}
            page.close()
        browser.close()
    return figures
