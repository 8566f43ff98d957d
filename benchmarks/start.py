"""Seconds from the command to `selfsup --help` and to the first token of `selfsup generate`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Figures, selfsup, show, spread, write

REPEATS = 7


def seconds_to_output(*arguments: str) -> float:
    """Until the command writes its first byte; it is stopped then."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "selfsup", *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def several(*arguments: str) -> Figures:
    seconds_to_output(*arguments)  # the files come from the disk once
    return spread([seconds_to_output(*arguments) for _ in range(REPEATS)])


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = str(Path(directory) / "run")
        selfsup("train", "causal-lm", "--steps", "20", "--out", run, "--json", "model.preset=10m")
        first = several("generate", run, "ROMEO:", "--tokens", "200")
    help_ = several("--help")
    write(
        "start",
        "Seconds from the command to its first output.",
        {"help": help_, "generate": first},
        [("`selfsup --help`", show(help_)), ("`selfsup generate`, first token, 10m preset", show(first))],
    )
