"""Loss against wall time of masked LM on books: the default recipe against HF Trainer's on BERT and ModernBERT.

Arguments: the corpus, and the number of rounds.
"""

from __future__ import annotations

import json
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.common import Figures, alternate, peer, selfsup, show, spread, write

WINDOW, ROWS, VALIDATED = 128, 20_000, 1024
PART = 3  # of the reference's wall time, for the short run


def prepare(corpus: str, file: Path) -> None:
    """Training windows for the reference, and the validation task that selfsup sets itself: windows, mask, targets."""
    from selfsup.data.loader import in_order
    from selfsup.data.passages import Passages
    from selfsup.data.text import prepare_text
    from selfsup.objectives.masked_lm import IGNORE, Masking

    text = prepare_text(corpus, family="encoder")
    windows = Passages(text.train, WINDOW, text.tokenizer)
    held_out = Passages(text.validation, WINDOW, text.tokenizer)
    batch = next(in_order(held_out, VALIDATED, 0, VALIDATED))
    masking = Masking(text.tokenizer, "token")
    tokens = batch.data["tokens"].numpy()
    shown, positions, targets = masking(tokens, 0.15, 0, batch.epochs, batch.records)
    labels = np.full_like(tokens, IGNORE)
    np.put_along_axis(labels, positions, targets, 1)
    chosen = np.random.default_rng(0).choice(len(windows), min(ROWS, len(windows)), replace=False)
    save_file(
        {
            "windows": windows.read(chosen)["tokens"],
            "inputs": torch.from_numpy(shown),
            "labels": torch.from_numpy(labels),
            "vocabulary": torch.tensor(text.tokenizer.vocabulary),
        },
        file,
    )


def train(corpus: str, budget: float, seed: int, out: Path) -> Figures:
    """A training with the default recipe; the clock stops when the held-out windows have been looked at."""
    summary = selfsup(
        "train", "masked-lm", "--data", corpus, "--budget", f"{budget:g}s", "--seed", str(seed), "--out", str(out),
        "--json", f"data.window={WINDOW}", f"evaluate.final_records={VALIDATED}",
    )  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = {key: summary[key] for key in ("loss", "steps", "tokens", "parameters", "wall_seconds")}
    return {**kept, "seconds": lines[-1]["time"]}


def main(arguments: list[str]) -> None:
    if not arguments:
        print("masked_quality is left out: give it a corpus: python -m benchmarks masked_quality books/")
        return
    corpus, rounds = arguments[0], int(next(islice(arguments, 1, None), 3))
    with tempfile.TemporaryDirectory() as name:
        place, latest = Path(name), {"seed": -1}
        prepare(corpus, place / "data.safetensors")

        def reference(which: str) -> Figures:
            latest["seed"] += which == "bert"
            latest[which] = peer("masked_quality", which, str(place / "data.safetensors"), str(latest["seed"]))
            return latest[which]

        def ours(which: str) -> Figures:
            budget = latest[which]["seconds"] / PART
            return train(corpus, budget, latest["seed"], place / f"{which}-{latest['seed']}")

        measured = alternate(
            rounds,
            bert=lambda: reference("bert"),
            beside_bert=lambda: ours("bert"),
            modernbert=lambda: reference("modernbert"),
            beside_modernbert=lambda: ours("modernbert"),
        )
    rows, figures = [], {}
    for which, name in (("bert", "BERT"), ("modernbert", "ModernBERT")):
        for side, what in ((which, f"HF Trainer, {name}"), (f"beside_{which}", f"selfsup in 1/{PART} of that")):
            for figure, digits in (("loss", 3), ("seconds", 1)):
                values = spread([one[side][figure] for one in measured])
                figures[f"{side} {figure}"] = values
                rows.append((f"{what}: {figure}", show(values, digits)))
    write(
        "masked_quality",
        "Nats per hidden token on one fixed mask (15 % of 1,024 held-out windows of 128 tokens); HF Trainer "
        "(4 layers, width 256, batch 32, 500 AdamW steps at 1e-3 with linear decay, bf16) against "
        "`selfsup train masked-lm --budget`, the same tokenizer and window.",
        {"rounds": measured, **figures},
        rows,
    )
