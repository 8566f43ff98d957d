"""Tokens per second of a training step: 6 layers, 6 heads, width 384, window 256, batch 16, 65 tokens, AdamW."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.common import Figures, Quick, alternate, peer, ratios, selfsup, show, spread, step_seconds, write
from benchmarks.quality import TEXT

STEPS = 24
QUICK = Quick(("1", "12"), ("transformers", "accelerate"))
SHAPE = ("model.layers=6", "model.width=384", "model.heads=6", "data.window=256", "train.batch=16")
FLOPS_PER_TOKEN = 6 * (6 * 12 * 384**2 + 65 * 384) + 12 * 6 * 384 * 256


def train(count: int, precision: str) -> Figures:
    """Steps of causal LM as a user starts it."""
    return steps(count, "causal-lm", TEXT, precision, 16 * 256, "--tokenizer", "characters", *SHAPE)


def steps(count: int, objective: str, text: Path, precision: str, tokens: int, *options: str) -> Figures:
    """The median of the last of so many steps of a run, each of so many tokens."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        summary = selfsup(
            "train", objective, "--data", str(text), "--steps", str(count), "--precision", precision, "--out", str(out),
            "--json", *options, "optim.matrices=adamw", "evaluate.every=1000", "evaluate.final_records=8",
            "train.log_every=1",
        )  # fmt: skip
        step = step_seconds(out)
    return {"tokens_per_second": tokens / step, "seconds": step, "peak_memory": summary["peak_memory"]}


def beside_trainer(
    arguments: list[str], script: str, train: Callable[[int, str], Figures]
) -> tuple[list[Figures], Figures, list[tuple[str, str]]]:
    """HF Trainer by a script of peers/ and selfsup in both precisions, for as many rounds and of as many steps as the
    arguments say: the rounds, their figures, the table."""
    rounds = int(arguments[0]) if arguments else 3
    ours = partial(train, int(arguments[1]) if len(arguments) > 1 else STEPS)
    measured = alternate(
        rounds,
        trainer_fp32=lambda: peer(script, "fp32"),
        selfsup_fp32=lambda: ours("fp32"),
        trainer_bf16=lambda: peer(script, "bf16"),
        selfsup_bf16=lambda: ours("bf16"),
    )
    names = {
        "trainer_fp32": "HF Trainer fp32 (its default): tokens/s",
        "trainer_bf16": "HF Trainer bf16: tokens/s",
        "selfsup_fp32": "selfsup fp32: tokens/s",
        "selfsup_bf16": "selfsup bf16 (its default here): tokens/s",
    }
    pairs = {
        "to_fp32": ("selfsup bf16 / HF Trainer fp32", "selfsup_bf16", "trainer_fp32"),
        "to_bf16": ("selfsup bf16 / HF Trainer bf16", "selfsup_bf16", "trainer_bf16"),
        "fp32": ("selfsup fp32 / HF Trainer fp32", "selfsup_fp32", "trainer_fp32"),
    }
    rates = {side: spread([one[side]["tokens_per_second"] for one in measured]) for side in names}
    compared = {key: ratios(measured, *sides, "tokens_per_second") for key, (_, *sides) in pairs.items()}
    rows = [(what, show(rates[side], 0)) for side, what in names.items()]
    rows += [(what, show(compared[key])) for key, (what, *_) in pairs.items()]
    return measured, {"rates": rates, **compared}, rows


def main(arguments: list[str]) -> None:
    rounds, figures, rows = beside_trainer(arguments, "hf_step", train)
    rates = [one["selfsup_bf16"]["tokens_per_second"] * FLOPS_PER_TOKEN / 1e9 / one["gflops_bf16"] for one in rounds]
    write(
        "throughput",
        "Training steps of HF Trainer on GPT-2 and of selfsup on its decoder, as many parameters, 6 layers, 6 heads, "
        "width 384, window 256, batch 16, 65 tokens, AdamW.",
        {"rounds": rounds, **figures, "utilisation": spread(rates)},
        [*rows, ("selfsup bf16: share of the bf16 matrix rate", show(spread(rates)))],
    )
