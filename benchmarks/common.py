"""What every benchmark needs: the machine's facts, the spread of a figure, and its result file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, versions, and the rate of matrix products now, in GFLOP/s."""
    import torch

    from selfsup.machine import matrix_rate, processor

    cpu = torch.device("cpu")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gflops_fp32": round(matrix_rate(cpu, "fp32") / 1e9),
        "gflops_bf16": round(matrix_rate(cpu, "bf16") / 1e9),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and number of some measurements."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}


def write(name: str, figures: dict[str, Any]) -> None:
    """Put figures, with machine, date and command, into benchmarks/results/NAME.json, and print them."""
    result = {
        "command": f"python -m benchmarks {' '.join([name, *sys.argv[2:]])}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
