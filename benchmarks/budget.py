"""Seconds that whole commands take, beside the budget that they were given: on a quiet machine, and with a load."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from benchmarks.common import LONGEST, Figures, write

QUIET = {"causal-lm": 20, "simcse": 20, "mae": 20, "clip": 3}  # seconds
LOADED = {"causal-lm": 45, "simcse": 45}  # with a load that begins half-way
BUSY = 2  # processes


@contextmanager
def load_from(seconds: float) -> Iterator[None]:
    """Processes that do nothing but compute, from so many seconds on until the block ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.extend(subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY))

    timer = Timer(seconds, start)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for process in started:
            process.kill()
            process.wait()


def measure(objective: str, seconds: float, place: Path) -> Figures:
    """One training as a user starts it: the seconds that it was to take and took, and how it decided."""
    run = place / "run"
    command = ["train", objective, "--budget", f"{seconds}s", "--out", str(run), "--json"]
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "selfsup", *command], check=True, timeout=LONGEST, capture_output=True)
    taken = time.perf_counter() - begun
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    journal = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    figures = {"asked": seconds, "taken": round(taken, 2), "over": round(taken / seconds - 1, 3)}
    return figures | {"steps": summary["steps"], "loss": summary["loss"], "decisions": len(journal)}


def main(arguments: list[str]) -> None:
    figures: dict[str, Figures] = {}
    for loads, budgets in ((False, QUIET), (True, LOADED)):
        for objective, seconds in budgets.items():
            name = f"{objective}, {seconds} s" + (f", {BUSY} busy processes from half of it" if loads else "")
            with tempfile.TemporaryDirectory() as place, load_from(seconds / 2 if loads else LONGEST):
                figures[name] = measure(objective, seconds, Path(place))
            print(name, json.dumps(figures[name]), file=sys.stderr)
    rows = [(name, f"{one['taken']:.1f} s ({one['over']:+.1%})") for name, one in figures.items()]
    write(
        "budget",
        "Seconds of the whole command, from its start to its end, by the budget it was given.",
        {"runs": figures},
        rows,
    )
