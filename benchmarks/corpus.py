"""Starting on a large corpus a second time, and reading windows beside a training step. Argument: the corpus."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import show, spread, write


def main(arguments: list[str]) -> None:
    if not arguments:
        print("corpus is left out: give it one, such as a folder of books: python -m benchmarks corpus books/")
        return
    import selfsup
    from selfsup.data.text import Windows, prepare_text
    from selfsup.report import Reporter

    start = time.perf_counter()
    corpus = prepare_text(arguments[0])
    first_open = time.perf_counter() - start
    opens = []
    for _ in range(5):
        start = time.perf_counter()
        corpus = prepare_text(arguments[0])
        opens.append(time.perf_counter() - start)
    windows = Windows(corpus.train, 256, corpus.tokenizer.end)
    reads = []
    for i in range(200):
        start = time.perf_counter()
        windows.read(np.random.default_rng(i).integers(0, len(windows), 16))
        reads.append((time.perf_counter() - start) * 1e3)
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        run = selfsup.train(
            "causal-lm",
            data=arguments[0],
            out=Path(directory) / "run",
            steps=20,
            model="0.8m",
            reporter=Reporter(False),
        )
        whole = time.perf_counter() - start
        lines = [line for line in run.metrics() if line["split"] == "train"]
        first_step = lines[0]["time"]
        step = run.environment()["plan"]["step_seconds"]
    figures = {
        "characters": corpus.facts.characters,
        "seconds_to_prepare": first_open,
        "seconds_to_open_again": spread(opens),
        "seconds_to_first_step": first_step,
        "ms_to_read_16_windows_of_256": spread(reads),
        "step_ms": step * 1e3,
        "reading_share_of_a_step": float(np.median(reads)) / (step * 1e3),
        "seconds_for_20_steps_and_saving": whole,
    }
    write(
        "corpus",
        f"Opening a corpus of {corpus.facts.characters:,} characters again, and reading windows beside a step.",
        figures,
        [
            ("seconds to open it again", show(figures["seconds_to_open_again"])),
            ("seconds from the first read to the first step", f"{first_step:.2f}"),
            ("milliseconds to read 16 windows of 256", show(figures["ms_to_read_16_windows_of_256"], 3)),
            ("share of a step of the 0.8m preset", f"{figures['reading_share_of_a_step']:.3%}"),
        ],
    )
