"""Damaged inputs by the thousand: `python tests/fuzz/campaign.py [--count N] [--seed S] [SURFACE …]`.

Each worker is a process of its own, so that a crash of the interpreter, a hang or a bomb is a finding like any other.
The findings are printed, and written to `--out`; the exit code is 1 where there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# Inputs of a whole campaign by surface; those that load or train a model take longer.
COUNTS = {
    **dict.fromkeys(
        ("settings", "yaml", "texts", "records", "columnar", "images", "lists", "archives", "collections"), 2000
    ),
    **dict.fromkeys(("tokenizers", "embeddings", "text_cache", "image_cache", "corpora"), 1000),
    "bombs": 60,
    **dict.fromkeys(("checkpoints", "run_files", "models", "cross_encoders", "probes", "libraries"), 800),
}
SLACK = 3  # times the limit of an input that a worker may stay silent: it may have to prepare good inputs first


@dataclass(frozen=True)
class Finding:
    surface: str
    seed: int
    detail: str

    def __str__(self) -> str:
        return f"{self.surface} {self.seed}\n{self.detail}"


class Worker:
    """A process that is started anew when it died or had to be killed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def ask(self, surface: str, seed: int) -> dict[str, Any]:
        """What became of an input; see `worker.answer`."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{surface} {seed}\n")
        process.stdin.flush()
        line = self._line(process)
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        try:
            said = f"the process ended ({process.wait(timeout=1)})"
        except subprocess.TimeoutExpired:
            said = "no answer"
        self.close()
        return {"outcome": "finding", "detail": f"{said}\n{self._errors.read_text()[-2000:]}"}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self._errors = Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz-{os.getpid()}-{id(self)}.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        if not self._line(self._process):
            raise RuntimeError(f"The worker does not start: {self._errors.read_text()}")
        return self._process

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def _line(self, process: subprocess.Popen[str]) -> str:
        """The next line of its answers; empty where it ended, or said nothing for too long."""
        try:
            return self._lines.get(timeout=self.seconds)
        except queue.Empty:
            return ""


def inputs(surfaces: list[str], counts: dict[str, int], seed: int) -> Iterator[tuple[str, int]]:
    for surface in surfaces:
        for number in range(counts[surface]):
            yield surface, seed * 1_000_000 + number


def run(
    surfaces: list[str],
    counts: dict[str, int],
    seed: int = 0,
    workers: int = 2,
    seconds: float = 30.0,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> tuple[Counter[tuple[str, str]], list[Finding]]:
    """All inputs of some surfaces; each finding is told at once, so that one that is cut off has told of its own.

    Returns:
        How often each (surface, outcome) was seen, and the findings.
    """
    waiting = inputs(surfaces, counts, seed)
    tally: Counter[tuple[str, str]] = Counter()
    findings: list[Finding] = []
    lock = threading.Lock()

    def work() -> None:
        worker = Worker(seconds)
        while True:
            with lock:
                case = next(waiting, None)
            if case is None:
                return worker.close()
            found = worker.ask(*case)
            with lock:
                tally[case[0], found["outcome"]] += 1
                if found["outcome"] == "finding":
                    findings.append(Finding(*case, found["detail"]))
                    tell(findings[-1])

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("surfaces", nargs="*", default=list(COUNTS))
    parser.add_argument("--count", type=int, help="inputs of each surface")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the findings are written")
    asked = parser.parse_args()
    counts = COUNTS if asked.count is None else dict.fromkeys(COUNTS, asked.count)
    if asked.out is not None:
        asked.out.write_text("", encoding="utf-8")

    def tell(finding: Finding) -> None:
        print(finding, end="\n\n", flush=True)
        if asked.out is not None:
            with asked.out.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{finding}\n\n")

    tally, findings = run(asked.surfaces, counts, asked.seed, tell=tell)
    for surface in asked.surfaces:
        seen = {outcome: tally[surface, outcome] for outcome in ("read", "refused", "finding")}
        print(f"{surface:14}", *(f"{count:6,} {outcome}" for outcome, count in seen.items()))
    print(f"{sum(tally.values()):,} inputs, {len(findings)} findings")
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
