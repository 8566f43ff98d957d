"""Loss against wall time on tiny Shakespeare in characters: the default recipe against nanoGPT's CPU recipe."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.common import Figures, alternate, peer, selfsup, show, spread, write
from selfsup.data import samples

TEXT = Path(samples.__path__[0]) / "shakespeare.txt"
PART = 8  # of the reference's wall time, for the short run


def train(budget: float, seed: int, directory: Path) -> Figures:
    """A training with the default recipe; the clock stops when the whole held-out part has been looked at."""
    out = directory / f"{budget:g}-{seed}"
    summary = selfsup(
        "train", "causal-lm", "--data", str(TEXT), "--tokenizer", "characters", "--budget", f"{budget:g}s",
        "--seed", str(seed), "--out", str(out), "--json", "evaluate.final_records=1000000000",
    )  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = ("loss", "steps", "tokens", "parameters", "validation_records", "peak_memory", "wall_seconds")
    return {**{key: summary[key] for key in kept}, "seconds": lines[-1]["time"], "saved": summary["wall_seconds"]}


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 3
    with tempfile.TemporaryDirectory() as name:
        directory, seeds = Path(name), iter(range(rounds))
        latest: Figures = {}

        def reference() -> Figures:
            latest.update(peer("gpt2_quality", str(TEXT), str(seed := next(seeds))), seed=seed)
            return dict(latest)

        measured = alternate(
            rounds,
            reference=reference,
            short=lambda: train(latest["seconds"] / PART, latest["seed"], directory),
            equal=lambda: train(latest["seconds"], latest["seed"], directory),
        )
    values = {
        f"{side} {figure}": spread([one[side][figure] for one in measured])
        for side in ("reference", "short", "equal")
        for figure in ("loss", "seconds")
    }
    speed = spread([one["reference"]["seconds"] / one["short"]["seconds"] for one in measured])
    write(
        "quality",
        "Nats per character over the whole held-out tenth; GPT-2 of transformers with nanoGPT's CPU recipe (4 layers, "
        "width 128, windows of 64, batch 12, 2,000 AdamW steps) against `selfsup train --budget`, nothing else set.",
        {"rounds": measured, "times_faster": speed, **values},
        [
            ("reference: loss", show(values["reference loss"], 3)),
            ("reference: seconds", show(values["reference seconds"], 1)),
            (f"selfsup in 1/{PART} of the reference's time: loss", show(values["short loss"], 3)),
            ("its seconds, validation included", show(values["short seconds"], 1)),
            ("selfsup in the reference's time: loss", show(values["equal loss"], 3)),
            ("its seconds, validation included", show(values["equal seconds"], 1)),
        ],
    )
