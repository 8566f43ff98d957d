"""Tokens per second of masked LM: 6 layers, 6 heads, width 384, window 128, batch 32, vocabulary 8,192, AdamW."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.common import Figures, alternate, peer, ratios, selfsup, show, spread, write
from benchmarks.quality import TEXT

STEPS = 24
SHAPE = (
    "model.layers=6", "model.width=384", "model.heads=6", "model.mlp=1024", "data.window=128", "train.batch=32",
    "data.vocabulary=8192",
)  # fmt: skip


def train(precision: str) -> Figures:
    """Steps of a run as a user starts it; the last ones' median."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        summary = selfsup(
            "train", "masked-lm", "--data", str(TEXT), "--steps", str(STEPS), "--precision", precision,
            "--out", str(out), "--json", *SHAPE, "optim.matrices=adamw", "evaluate.every=1000",
            "evaluate.final_records=8", "train.log_every=1",
        )  # fmt: skip
        lines = [
            json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    times = [line["time"] for line in lines if line["split"] == "train"]
    step = median(b - a for a, b in pairwise(times[4:]))
    return {"tokens_per_second": 32 * 128 / step, "seconds": step, "peak_memory": summary["peak_memory"]}


def main(arguments: list[str]) -> None:
    sides = ("trainer_fp32", "selfsup_fp32", "trainer_bf16", "selfsup_bf16")
    rounds = alternate(
        int(arguments[0]) if arguments else 3,
        trainer_fp32=lambda: peer("masked_step", "fp32"),
        selfsup_fp32=lambda: train("fp32"),
        trainer_bf16=lambda: peer("masked_step", "bf16"),
        selfsup_bf16=lambda: train("bf16"),
    )
    rates = {side: spread([one[side]["tokens_per_second"] for one in rounds]) for side in sides}
    to_fp32 = ratios(rounds, "selfsup_bf16", "trainer_fp32", "tokens_per_second")
    to_bf16 = ratios(rounds, "selfsup_bf16", "trainer_bf16", "tokens_per_second")
    fp32 = ratios(rounds, "selfsup_fp32", "trainer_fp32", "tokens_per_second")
    write(
        "masked_throughput",
        "Training steps of masked LM, HF Trainer on ModernBERT (15 % hidden) and selfsup (30 % hidden): "
        "6 layers, 6 heads, width 384, window 128, batch 32, vocabulary 8,192, AdamW.",
        {"rounds": rounds, "rates": rates, "to_fp32": to_fp32, "to_bf16": to_bf16, "fp32": fp32},
        [
            ("HF Trainer fp32 (its default): tokens/s", show(rates["trainer_fp32"], 0)),
            ("HF Trainer bf16: tokens/s", show(rates["trainer_bf16"], 0)),
            ("selfsup fp32: tokens/s", show(rates["selfsup_fp32"], 0)),
            ("selfsup bf16 (its default here): tokens/s", show(rates["selfsup_bf16"], 0)),
            ("selfsup bf16 / HF Trainer fp32", show(to_fp32)),
            ("selfsup bf16 / HF Trainer bf16", show(to_bf16)),
            ("selfsup fp32 / HF Trainer fp32", show(fp32)),
        ],
    )
