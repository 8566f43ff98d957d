"""Tokens per second of masked LM: 6 layers, 6 heads, width 384, window 128, batch 32, vocabulary 8,192, AdamW."""

from __future__ import annotations

from benchmarks.common import Figures, Quick, write
from benchmarks.quality import TEXT
from benchmarks.throughput import beside_trainer, steps

SHAPE = (
    "model.layers=6", "model.width=384", "model.heads=6", "model.mlp=1024", "data.window=128", "train.batch=32",
    "data.vocabulary=8192",
)  # fmt: skip


QUICK = Quick(("1", "12"), ("transformers", "accelerate"))


def train(count: int, precision: str) -> Figures:
    """Steps of masked LM as a user starts it."""
    return steps(count, "masked-lm", TEXT, precision, 32 * 128, *SHAPE)


def main(arguments: list[str]) -> None:
    rounds, figures, rows = beside_trainer(arguments, "masked_step", train)
    write(
        "masked_throughput",
        "Training steps of masked LM, HF Trainer on ModernBERT (15 % hidden) and selfsup (30 % hidden): "
        "6 layers, 6 heads, width 384, window 128, batch 32, vocabulary 8,192, AdamW.",
        {"rounds": rounds, **figures},
        rows,
    )
