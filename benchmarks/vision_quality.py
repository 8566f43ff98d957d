"""What eight minutes of training are worth: kNN-20 on CIFAR-10 from its first 10,000 images, beside lightly's SimCLR.

Arguments: the directory of cifar10-train.parquet and cifar10-test.parquet; one for what is made, which is kept; a
recipe (the first of `RECIPES`); seconds of a training (480). One call makes as many parts as fit into ten minutes,
which is one training; the next one goes on, and the result holds the parts that are there.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import Figures, first_images, has_lightly, lightly, peer, rates, selfsup, show, spread, write

TRAINED_ON, TESTED_ON = 10_000, 10_000
SEEDS = 3
LIMIT = 585.0  # seconds of one call
AROUND = 60.0  # seconds of a part beside its training
UNTRAINED: Figures = {"steps": 16, "batch": 256, "optim.lr": 1e-12, "optim.adamw_lr": 1e-12}  # statistics alone


class Recipe(NamedTuple):
    """An objective, a network of benchmarks/networks.py or selfsup's own, and what is set beside the budget."""

    objective: str
    network: str | None
    settings: Figures


RECIPES = {
    "simclr-resnet-9": Recipe("simclr", "resnet-9-half", {"data.validation": 0.01}),
    "simclr": Recipe("simclr", None, {"data.validation": 0.01}),  # as the command does it by itself
    "dino-vit": Recipe("dino", None, {"model": "vit-pico", "data.validation": 0.01}),
    "mae-vit": Recipe("mae", None, {"model": "vit-nano", "data.validation": 0.01}),
}


class Data(NamedTuple):
    """Parquet files of what is trained on, which is the bank of the neighbours too, and of the test images."""

    bank: Path
    test: Path

    def knn(self, vectors: Path) -> float:
        """kNN-20 in percent, of vectors kept as the arrays `bank` and `test`."""
        from selfsup.evaluation.knn import knn

        with np.load(vectors) as arrays:
            answers = knn(arrays["bank"], labels(self.bank), arrays["test"], 20, 0.07)
        return 100 * float((answers == labels(self.test)).mean())


def labels(parquet: Path) -> np.ndarray:
    import pyarrow.parquet as pq

    return pq.read_table(parquet, columns=["label"])["label"].to_numpy().copy()


def train(data: Data, recipe: Recipe, given: Figures, out: Path) -> Figures:
    """One training as a user starts it, and the kNN-20 of what it left."""
    settings = {**recipe.settings, **given}
    if recipe.network is None:
        words = [f"{name}={value}" for name, value in settings.items()]
        summary = selfsup("train", recipe.objective, "--data", str(data.bank), "--out", str(out), "--json", *words)
        score = selfsup(
            "evaluate", str(out), "--protocol", "knn-20", "--data", str(data.bank), "--test", str(data.test), "--json"
        )  # fmt: skip
        return {**summary, "knn": score["value"]}
    vectors, settings = out.with_suffix(".npz"), settings | {"data": str(data.bank), "out": str(out)}
    sources = (f"{part}={getattr(data, part)}" for part in Data._fields)
    summary = peer("train_network", recipe.network, recipe.objective, json.dumps(settings), str(vectors), *sources)
    return {**summary, "knn": data.knn(vectors)}


def train_lightly(data: Data, seconds: float, seed: int, out: Path) -> Figures:
    vectors = out.with_suffix(".npz")
    given = (str(data.bank), str(data.test), f"{seconds:g}", str(seed), str(vectors))
    return {**lightly("lightly_quality", *given), "knn": data.knn(vectors)}


def look_at_pixels(data: Data, out: Path) -> Figures:
    """The images themselves, values from −1 to 1."""
    from selfsup.data.images import open_images

    vectors = {}
    for part, file in data._asdict().items():
        stack = open_images(file).stack
        assert stack is not None
        vectors[part] = (stack / np.float32(127.5) - 1).reshape(len(stack), -1)
    np.savez(out.with_suffix(".npz"), **vectors)
    return {"knn": data.knn(out.with_suffix(".npz"))}


def parts(name: str, data: Data, seconds: float, work: Path) -> dict[str, tuple[float, Callable[[], Figures]]]:
    """What is to be made, in order: its name, the seconds of its training, and the call."""
    made: dict[str, tuple[float, Callable[[], Figures]]] = {}

    def add(part: str, needed: float, make: Callable[..., Figures], *given: object) -> None:
        made[part] = needed, partial(make, data, *given, work / part)

    add("pixels", 0, look_at_pixels)
    for seed in range(SEEDS):
        budget = {"budget": f"{seconds:g}s", "seed": seed}
        add(f"untrained-{name}-{seed}", 0, train, RECIPES[name], {**UNTRAINED, "seed": seed})
        add(f"{name}-{seconds:g}s-{seed}", seconds, train, RECIPES[name], budget)
        if has_lightly():
            add(f"lightly-{seconds:g}s-{seed}", seconds, train_lightly, seconds, seed)
    return made


def main(arguments: list[str]) -> None:
    begun = time.perf_counter()
    if len(arguments) < 2:
        print(
            "vision_quality is left out: give it CIFAR-10 and a place: "
            "python -m benchmarks vision_quality images/ work/"
        )
        return
    source, work = Path(arguments[0]), Path(arguments[1])
    name = next((word for word in arguments[2:] if word in RECIPES), next(iter(RECIPES)))
    seconds = next((float(word) for word in arguments[2:] if word.isdecimal()), 480.0)
    work.mkdir(parents=True, exist_ok=True)
    data = Data(
        first_images(source / "cifar10-train.parquet", TRAINED_ON, work),
        first_images(source / "cifar10-test.parquet", TESTED_ON, work),
    )
    planned, recipe = parts(name, data, seconds, work), RECIPES[name]._asdict()
    anything = False
    for part, (needed, make) in planned.items():
        file = work / f"{part}.json"
        if file.exists():
            if "recipe" in (had := json.loads(file.read_text())) and had["recipe"] != recipe:
                sys.exit(f"{file} was made with other settings; give another place, or take it away.")
            continue
        if anything and time.perf_counter() - begun + needed + AROUND > LIMIT:
            break
        anything = True
        shutil.rmtree(work / part, ignore_errors=True)  # of a call that was stopped
        figures = {**rates(), **make()} | ({"recipe": recipe} if name in part else {})
        file.write_text(json.dumps(figures), encoding="utf-8")
        print(f"{part}: kNN-20 {figures['knn']:.2f} %", file=sys.stderr)
    made = {part: json.loads(file.read_text()) for part in planned if (file := work / f"{part}.json").exists()}
    report(name, seconds, made, len(planned))


def report(name: str, seconds: float, made: dict[str, Figures], planned: int) -> None:
    recipe = RECIPES[name]
    network = recipe.network or "selfsup's own network"
    sides = {
        f"{name}-{seconds:g}s-": f"selfsup {recipe.objective} on {network}: kNN-20 in %",
        f"lightly-{seconds:g}s-": "lightly's SimCLR on ResNet-9 of half width: kNN-20 in %",
        f"untrained-{name}-": "the same network untrained: kNN-20 in %",
        "pixels": "raw pixels: kNN-20 in %",
    }
    values = {
        what: spread(found)
        for side, what in sides.items()
        if (found := [figures["knn"] for part, figures in made.items() if part.startswith(side)])
    }
    write(
        "vision_quality",
        f"kNN-20 on CIFAR-10's {TESTED_ON:,} test images, neighbours and labels from the {TRAINED_ON:,} images "
        f"trained on without labels for {seconds:g} seconds; of each side so many seeds "
        f"({len(made)} of {planned} parts made).",
        {"recipe": recipe._asdict(), "parts": made, "knn": values},
        [(what, show(value, 1)) for what, value in values.items()],
    )
