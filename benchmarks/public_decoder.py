"""A public decoder measured and trained on: selfsup against transformers' plain loop and HF Trainer.

`python -m benchmarks public_decoder MODEL TEXT evaluation [CHARACTERS [ROUNDS]]`,
`python -m benchmarks public_decoder MODEL TEXT training [STEPS [ROUNDS]]` and the same with `lora`: the directory of a
decoder, and a text; each part is short and writes a result of its own.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from benchmarks.common import Figures, alternate, peer, ratios, selfsup, show, step_seconds, write

WINDOWS = (2048, 8192)
CHARACTERS = 80_000  # of the text: more than two of the longer windows
STEPS, BATCH, WINDOW = 10, 8, 512
RANK = 16  # of an adapter


def evaluation(model: str, text: Path, characters: int = CHARACTERS, rounds: int = 3) -> None:
    """Tokens per second of a text, and its bits per byte, in the same windows."""
    with tempfile.TemporaryDirectory() as name:
        part = Path(name) / "part.txt"
        part.write_text(text.read_text(encoding="utf-8")[:characters], encoding="utf-8")
        figures: Figures = {}
        rows: list[tuple[str, str]] = []
        for window in WINDOWS:
            how = ("evaluation", model, str(part), str(window))
            sides = {
                "selfsup": partial(peer, "own_decoder", *how, "auto"),
                "selfsup_fp32": partial(peer, "own_decoder", *how, "fp32"),
                "transformers_fp32": partial(peer, "hf_decoder", *how, "fp32"),
                "transformers_bf16": partial(peer, "hf_decoder", *how, "bf16"),
            }
            measured = alternate(rounds, **sides)
            figures[f"window_{window}"] = measured
            for other in ("transformers_bf16", "transformers_fp32"):
                times = show(ratios(measured, "selfsup", other, "tokens_per_second"))
                rows.append((f"windows of {window:,}: tokens per second, times {other.replace('_', ' in ')}", times))
            away = show(ratios(measured, "selfsup_fp32", "transformers_fp32", "bits_per_byte"), 5)
            rows.append((f"windows of {window:,}: bits per byte in fp32, by those of transformers", away))
    what = "Measuring a text with a public decoder, beside a plain loop over transformers' logits."
    write("public_decoder_evaluation", what, figures, rows)


def ours(model: str, text: Path, steps: int, *settings: str) -> Figures:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        summary = selfsup(
            "train", "causal-lm", "--init", model, "--data", str(text), "--steps", str(steps), "--batch", str(BATCH),
            "--out", str(run), "--json", f"data.window={WINDOW}", "train.log_every=1", "train.compile=false",
            "evaluate.every=1000", "evaluate.records=1", "evaluate.final_records=1", "checkpoint.every=1000", *settings,
        )  # fmt: skip
        return {"tokens_per_second": BATCH * WINDOW / step_seconds(run), "peak_memory": summary["peak_memory"]}


def training(
    model: str, text: Path, steps: int = STEPS, rounds: int = 3, name: str = "training", rank: int = 0
) -> None:
    """Tokens per second of steps of the same size, and the memory that they take."""
    how = ("training", model, str(text), str(WINDOW))
    more = [str(BATCH), str(steps), str(rank)]
    measured = alternate(
        rounds,
        selfsup=partial(ours, model, text, steps, *([f"model.lora={rank}"] if rank else [])),
        trainer_fp32=partial(peer, "hf_decoder", *how, "fp32", *more),
        trainer_bf16=partial(peer, "hf_decoder", *how, "bf16", *more),
    )
    rows = []
    for figure in ("tokens_per_second", "peak_memory"):
        for other in ("trainer_fp32", "trainer_bf16"):
            times = show(ratios(measured, "selfsup", other, figure))
            peers_name = f"HF Trainer in {other.removeprefix('trainer_')}"
            rows.append((f"windows of {WINDOW}, batch {BATCH}: {figure.replace('_', ' ')}, times {peers_name}", times))
    beside = f"an adapter of rank {rank}, beside peft in HF Trainer" if rank else "all weights, beside HF Trainer"
    write(f"public_decoder_{name}", f"Steps of training a public decoder: {beside}.", {"rounds": measured}, rows)


def main(arguments: list[str]) -> None:
    model, text, part, *numbers = arguments
    lora = partial(training, name="lora", rank=RANK)
    {"evaluation": evaluation, "training": training, "lora": lora}[part](model, Path(text), *map(int, numbers))
