"""Pairs per second of CLIP's training from image and caption to update, beside open_clip, on small images.

Arguments: a parquet file of images with captions, such as emoji.parquet; rounds (3).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import (
    OPEN_CLIP,
    Figures,
    Quick,
    alternate,
    has_open_clip,
    open_clip,
    ratios,
    selfsup,
    show,
    spread,
    step_seconds,
    write,
)

BATCH = 128
QUICK = Quick(("{data}/emoji.parquet", "1"), ("open_clip_train",), OPEN_CLIP)
SKIPPED, STEPS = 4, 12  # first steps of ours; steps that are timed, of both
TOWERS: Figures = {  # those of peers/open_clip_step.py
    "model.patch": 8, "model.layers": 12, "model.width": 192, "model.heads": 3, "model.registers": 0, "data.size": 64,
    "text.layers": 6, "text.width": 256, "text.heads": 4, "data.window": 77, "clip.dimension": 192,
}  # fmt: skip
SAME: Figures = {"clip.crop": 0.9, "clip.hidden_tokens": 0, "text.dropout": 0, "optim.matrices": "adamw"}
SIDES = {
    "open_clip_fp32": "open_clip fp32: pairs/s",
    "open_clip_bf16": "open_clip amp_bf16: pairs/s",
    "selfsup_fp32": "selfsup fp32: pairs/s",
    "selfsup_bf16": "selfsup bf16 (its default here): pairs/s",
    "selfsup_usual": "selfsup bf16, with its own view and Muon: pairs/s",
}
COMPARED = {
    "selfsup fp32 / open_clip fp32": ("selfsup_fp32", "open_clip_fp32"),
    "selfsup bf16 / open_clip amp_bf16": ("selfsup_bf16", "open_clip_bf16"),
    "selfsup bf16 / open_clip fp32": ("selfsup_bf16", "open_clip_fp32"),
}


def train(pairs: str, precision: str, settings: Figures) -> Figures:
    """Steps as a user starts them."""
    given = {
        **TOWERS, **settings, "precision": precision, "steps": SKIPPED + STEPS + 1, "batch": BATCH,
        "evaluate.every": 1000, "evaluate.final_records": BATCH, "train.log_every": 1,
    }  # fmt: skip
    words = [f"{name}={value}" for name, value in given.items()]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        summary = selfsup("train", "clip", "--data", pairs, "--out", str(out), "--json", *words)
        seconds = step_seconds(out, SKIPPED)
    return {"pairs_per_second": BATCH / seconds, "seconds": seconds, "peak_memory": summary["peak_memory"]}


def main(arguments: list[str]) -> None:
    if not arguments or not has_open_clip():
        print("clip_steps is left out: give it open_clip and pairs: python -m benchmarks clip_steps FILE.parquet")
        return
    pairs, rounds = arguments[0], int(arguments[1]) if len(arguments) > 1 else 3
    measured = alternate(
        rounds,
        open_clip_fp32=lambda: open_clip("open_clip_step", "fp32", pairs, str(STEPS)),
        selfsup_fp32=lambda: train(pairs, "fp32", SAME),
        open_clip_bf16=lambda: open_clip("open_clip_step", "bf16", pairs, str(STEPS)),
        selfsup_bf16=lambda: train(pairs, "bf16", SAME),
        selfsup_usual=lambda: train(pairs, "bf16", {}),
    )
    rates = {side: spread([one[side]["pairs_per_second"] for one in measured]) for side in SIDES}
    compared = {what: ratios(measured, *sides, "pairs_per_second") for what, sides in COMPARED.items()}
    write(
        "clip_steps",
        "CLIP's training steps from an encoded image and its caption to the update, batch 128, AdamW: a vision "
        "transformer of 12 layers of width 192 on 64 pixels in patches of 8, a text tower of 6 layers of width 256. "
        "open_clip with its own loop, transform and two loader workers, captions padded to its 77 tokens, from a "
        "vocabulary of 49,408; selfsup reads as many tokens as a caption has, from a vocabulary trained on them.",
        {"rounds": measured, "rates": rates, "compared": compared},
        [(what, show(rates[side], 1)) for side, what in SIDES.items()]
        + [(what, show(ratio)) for what, ratio in compared.items()],
    )
