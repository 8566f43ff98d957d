"""Images per second of training steps from image to update, SimCLR, DINO and MAE beside lightly, on small images.

Arguments: a parquet file of images of 32 pixels, such as CIFAR-10's; which of simclr, dino and mae (all); rounds.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.common import (
    LIGHTLY,
    Figures,
    Quick,
    alternate,
    first_images,
    has_lightly,
    lightly,
    peer,
    ratios,
    selfsup,
    show,
    spread,
    step_seconds,
    write,
)

IMAGES = 10_000
QUICK = Quick(("{data}/cifar10-train.parquet", "mae", "1"), ("lightly",), LIGHTLY)
SKIPPED = 3  # first steps of ours
STEPS = {"simclr": 2, "dino": 4, "mae": 4}  # that are timed
BATCH = {"simclr": 256, "dino": 64, "mae": 256}
VIT = {"model": "vit-ti", "model.patch": 4, "model.registers": 0}
SAME = {  # as in lightly's examples
    "simclr": {},
    "dino": {
        **VIT, "dino.prototypes": 2048, "dino.hidden": 512, "dino.bottleneck": 64, "dino.local_crops": 6,
        "dino.local_size": 16, "dino.targets": "centring", "dino.ibot": 0, "dino.koleo": 0,
    },
    "mae": {**VIT, "mae.decoder_width": 512, "mae.decoder_layers": 1},
}  # fmt: skip
USUAL = {"dino": VIT | {"dino.local_crops": 6, "dino.local_size": 16}, "mae": VIT}
BF16 = {"simclr": "bf16-channels-last", "dino": "bf16", "mae": "bf16"}  # what is fastest there
WHAT = {
    "simclr": "SimCLR on ResNet-18 with a stem for small images, batch 256",
    "dino": "DINO on ViT-Ti/4, 2 crops of 32 and 6 of 16 pixels, batch 64; 2,048 prototypes, centring, no masked "
    "patches (with `as it comes`: selfsup's own prototypes and Sinkhorn, masked patches, KoLeo)",
    "mae": "MAE on ViT-Ti/4, 75 % hidden, batch 256, a decoder of one block of width 512 (with `as it comes`: "
    "selfsup's own)",
}


def train(objective: str, images: Path, precision: str, settings: Figures) -> Figures:
    """Steps as a user starts them."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        given = {
            **settings, "data": str(images), "out": str(out), "steps": SKIPPED + STEPS[objective] + 1,
            "batch": BATCH[objective], "precision": precision, "optim.matrices": "adamw", "evaluate.every": 1000,
            "evaluate.final_records": BATCH[objective], "train.log_every": 1,
        }  # fmt: skip
        if objective == "simclr":
            summary = peer("train_network", "resnet-18", objective, json.dumps(given))
        else:
            words = [f"{name}={value}" for name, value in given.items() if name not in ("data", "out")]
            summary = selfsup("train", objective, "--data", str(images), "--out", str(out), "--json", *words)
        seconds = step_seconds(out, SKIPPED)
    rate = BATCH[objective] / seconds
    return {"images_per_second": rate, "seconds": seconds, "peak_memory": summary["peak_memory"]}


def compare(objective: str, images: Path, rounds: int) -> None:
    """lightly and selfsup in both precisions, written as a result of its own."""
    theirs = partial(lightly, "lightly_step", objective)
    steps, best = str(STEPS[objective]), BF16[objective]
    sides = {
        "lightly_fp32": lambda: theirs("fp32", str(images), steps),
        "selfsup_fp32": lambda: train(objective, images, "fp32", SAME[objective]),
        "lightly_bf16": lambda: theirs(best, str(images), steps),
        "selfsup_bf16": lambda: train(objective, images, "bf16", SAME[objective]),
    }
    names = {
        "lightly_fp32": "lightly fp32 (its examples on a CPU): images/s",
        "lightly_bf16": f"lightly {best.replace('-', ', ', 1)}: images/s",
        "selfsup_fp32": "selfsup fp32: images/s",
        "selfsup_bf16": "selfsup bf16 (its default here): images/s",
    }
    if objective in USUAL:
        sides["selfsup_usual"] = lambda: train(objective, images, "bf16", USUAL[objective])
        names["selfsup_usual"] = "selfsup bf16, as it comes: images/s"
    measured = alternate(rounds, **sides)
    pairs = {
        "selfsup bf16 / lightly fp32": ("selfsup_bf16", "lightly_fp32"),
        "selfsup bf16 / lightly bf16": ("selfsup_bf16", "lightly_bf16"),
        "selfsup fp32 / lightly fp32": ("selfsup_fp32", "lightly_fp32"),
    }
    rates = {side: spread([one[side]["images_per_second"] for one in measured]) for side in sides}
    compared = {what: ratios(measured, *pair, "images_per_second") for what, pair in pairs.items()}
    write(
        f"vision_steps_{objective}",
        f"Training steps from an image in memory to the update: {WHAT[objective]}. lightly with its examples' loop, "
        "transforms, optimizer and two loader workers; selfsup with AdamW.",
        {"rounds": measured, "rates": rates, "compared": compared},
        [(names[side], show(rates[side], 1)) for side in names]
        + [(what, show(ratio)) for what, ratio in compared.items()],
    )


def main(arguments: list[str]) -> None:
    if not arguments or not has_lightly():
        print("vision_steps is left out: give it lightly and images: python -m benchmarks vision_steps FILE.parquet")
        return
    source, *words = arguments
    chosen = [word for word in words if word in BATCH] or list(BATCH)
    rounds = next((int(word) for word in words if word.isdecimal()), 3)
    with tempfile.TemporaryDirectory() as name:
        images = first_images(Path(source), IMAGES, Path(name))
        for objective in chosen:
            compare(objective, images, rounds)
