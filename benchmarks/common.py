"""What every benchmark needs: the two sides in turn, the machine's rate beside them, the spread, the result file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
PEERS = Path(__file__).parent / "peers"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
LONGEST = 3600.0  # seconds of one side
LIGHTLY = os.environ.get(
    "LIGHTLY_PYTHON", sys.executable
)  # an interpreter that has lightly, see peers/lightly_parts.py
OPEN_CLIP = os.environ.get("OPEN_CLIP_PYTHON", LIGHTLY)  # likewise, see peers/open_clip_step.py

Figures = dict[str, Any]


class Quick(NamedTuple):
    """One short round of a comparison, of which all together take a quarter of an hour: see benchmarks/quick.py.

    Attributes:
        arguments: of the benchmark, with `{data}` for the directory that holds its data.
        needs: the packages of the other side.
        interpreter: that runs it.
    """

    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    interpreter: str = sys.executable

    @property
    def installed(self) -> bool:
        """Whether the other side is."""
        return all(_has(self.interpreter, package) for package in self.needs)


def rates() -> dict[str, int]:
    """The rate of square matrix products now, in GFLOP/s."""
    import torch

    from selfsup.machine import matrix_rate

    cpu = torch.device("cpu")
    return {f"gflops_{kind}": round(matrix_rate(cpu, kind) / 1e9) for kind in ("fp32", "bf16")}


def machine() -> Figures:
    """Processor, versions, and the rate of matrix products."""
    import torch

    from selfsup.machine import processor

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **rates(),
    }


def spread(values: Sequence[float]) -> Figures:
    """Median, smallest, largest and number of some measurements."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}


def run(*command: str) -> Figures:
    """What a process prints as its last line, a JSON object."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=LONGEST)
    figures: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def peer(name: str, *arguments: str) -> Figures:
    """A script of benchmarks/peers, of the other side, in a process of its own."""
    return run(sys.executable, str(PEERS / f"{name}.py"), *arguments)


def has_lightly() -> bool:
    """Whether the interpreter that is to run lightly has it."""
    return _has(LIGHTLY, "lightly")


def has_open_clip() -> bool:
    """Whether the interpreter that is to run open_clip has it."""
    return _has(OPEN_CLIP, "open_clip_train")


def _has(interpreter: str, package: str) -> bool:
    look = f"import importlib.util; raise SystemExit(importlib.util.find_spec('{package}') is None)"
    return subprocess.run([interpreter, "-c", look], check=False).returncode == 0


def lightly(name: str, *arguments: str) -> Figures:
    """A script of benchmarks/peers that runs lightly, in a process of its own."""
    return run(LIGHTLY, str(PEERS / f"{name}.py"), *arguments)


def open_clip(name: str, *arguments: str) -> Figures:
    """A script of benchmarks/peers that runs open_clip, in a process of its own."""
    return run(OPEN_CLIP, str(PEERS / f"{name}.py"), *arguments)


def selfsup(*arguments: str) -> Figures:
    """A command of selfsup, as a user types it."""
    return run(sys.executable, "-m", "selfsup", *arguments)


def step_seconds(run_directory: Path, skipped: int = 4) -> float:
    """The median time of a step of a run that logs each of them; the first ones are left out."""
    lines = (run_directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = [line["time"] for line in map(json.loads, lines) if line["split"] == "train"]
    return median(b - a for a, b in pairwise(times[skipped:]))


def first_images(source: Path, count: int, place: Path) -> Path:
    """A parquet file of the first images of another."""
    import pyarrow.parquet as pq

    file = place / f"{source.stem}-first-{count}.parquet"
    pq.write_table(pq.read_table(source).slice(0, count), file)
    return file


def alternate(rounds: int, **sides: Callable[[], Figures]) -> list[Figures]:
    """Every side once per round, one after the other, and the machine's rates in each round."""
    measured = []
    for number in range(rounds):
        measured.append({**rates(), **{name: side() for name, side in sides.items()}})
        print(f"round {number + 1}: {json.dumps(measured[-1])}", file=sys.stderr)
    return measured


def ratios(rounds: list[Figures], ours: str, theirs: str, figure: str) -> Figures:
    """A figure of ours divided by theirs, round by round."""
    return spread([one[ours][figure] / one[theirs][figure] for one in rounds])


def write(name: str, what: str, figures: Figures, rows: list[tuple[str, str]]) -> None:
    """Put figures, with machine, date and command, into benchmarks/results/NAME.json.

    Args:
        what: one sentence on what was compared.
        rows: what the table of docs/benchmarks.md says: a measure and its value.
    """
    result = {
        "what": what,
        "command": f"python -m benchmarks {' '.join(Path(word).name for word in sys.argv[1:])}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "table": rows,
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def show(spread_: Figures, digits: int = 2) -> str:
    """A spread as `median (min to max, n runs)`."""
    low, middle, high = (f"{spread_[key]:,.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle} ({low} to {high}, {spread_['n']} runs)"


def write_page() -> None:
    """Make docs/benchmarks.md of the results."""
    parts = [
        "# Benchmarks\n\nMade by `python -m benchmarks NAME` from the files in benchmarks/results/, "
        "which hold every single measurement. The sides of a comparison run in turn, in processes of their own; times "
        "of different tables are not comparable, for machines that others use too change from minute to minute.\n"
    ]
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if "table" not in result:
            continue
        where = result["machine"]
        lines = [
            f"## {file.stem}\n",
            f"{result['what']}\n",
            f"`{result['command']}`, {result['date']}, {where['cores']} cores of {where['processor']}, torch "
            f"{where['torch']}, matrix products at {where['gflops_fp32']:,} GFLOP/s in fp32 and "
            f"{where['gflops_bf16']:,} in bf16.\n",
            "| measure | value |\n| --- | --- |",
            *(f"| {measure} | {value} |" for measure, value in result["table"]),
        ]
        parts.append("\n".join(lines) + "\n")
    PAGE.write_text("\n".join(parts), encoding="utf-8")
