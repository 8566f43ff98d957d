"""Loss on tiny Shakespeare in characters after two minutes, last tenth held out; three seeds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import spread, write

KEPT = ("loss", "bits_per_byte", "steps", "tokens", "parameters", "wall_seconds", "peak_memory")


def run(seed: int, budget: str, directory: Path) -> dict[str, float]:
    """One training as a user starts it; its summary."""
    command = [sys.executable, "-m", "selfsup", "train", "causal-lm", "--data", "sample:shakespeare"]
    command += ["--tokenizer", "characters", "--budget", budget, "--seed", str(seed), "--json"]
    command += ["--out", str(directory / str(seed))]
    summary = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return {key: summary[key] for key in KEPT}


def main(arguments: list[str]) -> None:
    budget = arguments[0] if arguments else "2m"
    with tempfile.TemporaryDirectory() as directory:
        runs = [run(seed, budget, Path(directory)) for seed in range(3)]
    losses = [figures["loss"] for figures in runs]
    write(
        "shakespeare",
        {
            "what": "nats per character over the whole held-out tenth of tiny Shakespeare (1,115,394 characters)",
            "budget": budget,
            "loss": spread(losses),
            "runs": runs,
            "reference": "nanoGPT's CPU recipe: 1.898 after 100-115 s (2 cores)",
        },
    )
