"""Peak resident memory of training with a vocabulary of 50,304 and windows of 1,024."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from benchmarks.common import Figures, Quick, alternate, peer, ratios, selfsup, show, spread, write

VOCABULARY, WINDOW, BATCH, WORDS = 50304, 1024, 4, 400_000
QUICK = Quick(("1",), ("transformers", "accelerate"))


def write_text(path: Path) -> None:
    """A text in which every word of such a vocabulary occurs: letters in five places, repeated at random."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(letters[i // 26**place % 26] for place in range(5)) for i in range(VOCABULARY)]
    drawn = words + random.Random(0).choices(words, k=WORDS)
    path.write_text(" ".join(drawn), encoding="utf-8")


def train(text: Path, directory: Path) -> Figures:
    return selfsup(
        "train", "causal-lm", "--data", str(text), "--tokenizer", "words", "--steps", "6", "--json",
        "--out", str(directory / "run"), "model.layers=6", "model.width=384", "model.heads=6", "model.tied=true",
        f"data.window={WINDOW}", f"train.batch={BATCH}", f"data.vocabulary={VOCABULARY}", "optim.matrices=adamw",
        "evaluate.final_records=4", "evaluate.every=1000", "checkpoint.every=1000",
    )  # fmt: skip


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        text = Path(name) / "words.txt"
        write_text(text)

        def ours() -> Figures:
            with tempfile.TemporaryDirectory() as directory:
                return train(text, Path(directory))

        rounds = alternate(
            int(arguments[0]) if arguments else 2,
            trainer_fp32=lambda: peer("hf_step", "fp32", str(VOCABULARY), str(WINDOW), str(BATCH)),
            trainer_bf16=lambda: peer("hf_step", "bf16", str(VOCABULARY), str(WINDOW), str(BATCH)),
            selfsup=ours,
        )
    peaks = {
        side: spread([one[side]["peak_memory"] / 2**30 for one in rounds])
        for side in ("trainer_fp32", "trainer_bf16", "selfsup")
    }
    shares = {side: ratios(rounds, "selfsup", side, "peak_memory") for side in ("trainer_fp32", "trainer_bf16")}
    write(
        "memory",
        f"Largest resident size in GiB of training 6 layers of width 384 with a tied head of {VOCABULARY:,} tokens on "
        f"{BATCH} windows of {WINDOW:,} per step, AdamW, HF Trainer on GPT-2 against selfsup.",
        {"rounds": rounds, "peaks": peaks, "shares": shares},
        [
            ("HF Trainer fp32 (its default): GiB", show(peaks["trainer_fp32"])),
            ("HF Trainer bf16: GiB", show(peaks["trainer_bf16"])),
            ("selfsup (bf16, its default here): GiB", show(peaks["selfsup"])),
            ("selfsup / HF Trainer fp32", show(shares["trainer_fp32"])),
            ("selfsup / HF Trainer bf16", show(shares["trainer_bf16"])),
        ],
    )
