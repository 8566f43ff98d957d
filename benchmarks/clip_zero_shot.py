"""Classes named by words that no caption holds: CLIP on a text tower that own runs taught the language, kept as it is.

Arguments: a parquet file of images with captions and classes, such as emoji.parquet; texts; seeds (3).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.clip_quality import Data, figures_of, measured, split
from benchmarks.common import Figures, selfsup, show, spread, write

PASSAGE = 90  # words
TEXT = ("--tokenizer", "wordpiece", "model.layers=2", "model.width=256", "data.vocabulary=8192")
# Most of a passage is left out of each view, so that its vector tells what it is about rather than its words.
ABOUT = ("simcse.deletion=0.8", "data.window=128")
IMAGE = ("model.layers=6", "model.width=96", "model.heads=3", "model.patch=8", "data.size=64", "batch=256",
         "clip.dimension=256")  # fmt: skip
MASKED, CONTRASTIVE, PAIRS = 300, 150, 120  # seconds of training


def passages(texts: Path) -> Iterator[str]:
    """So many successive words of each document at a time."""
    from selfsup.data.sources import open_text

    for document in open_text(texts).documents():
        words = document.split()
        for start in range(0, len(words), PASSAGE):
            yield " ".join(words[start : start + PASSAGE])


def train(objective: str, data: Path, seconds: int, seed: int, out: Path, *words: str) -> Path:
    """One training as a user starts it."""
    budget = ("--budget", f"{seconds}s", "--seed", str(seed))
    selfsup("train", objective, "--data", str(data), "--out", str(out), *budget, "--json", *words)
    return out


def train_all(data: Data, texts: Path, lines: Path, seed: int, place: Path) -> Figures:
    place.mkdir()
    masked = train("masked-lm", texts, MASKED, seed, place / "masked", *TEXT)
    about = train("simcse", lines, CONTRASTIVE, seed, place / "about", "--init", str(masked), *ABOUT)
    towers = ("--text-init", str(about), "clip.freeze=text", "data.validation=0")
    return measured(data, train("clip", data.train, PAIRS, seed, place / "clip", *towers, *IMAGE))


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        print(
            "clip_zero_shot is left out: give it pairs and texts: "
            "python -m benchmarks clip_zero_shot emoji.parquet texts/"
        )
        return
    seeds = range(int(arguments[2]) if len(arguments) > 2 else 3)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data, lines = split(Path(arguments[0]), place), place / "passages.txt"
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in passages(Path(arguments[1])))
        made = [train_all(data, Path(arguments[1]), lines, seed, place / str(seed)) for seed in seeds]
    values = {name: spread([figures_of(one)[name] for one in made]) for name in figures_of(made[0])}
    shot = made[0]["zero-shot"]
    usual = f"{shot['details']['majority share']:.1f} for {shot['details']['majority']} always"
    write(
        "clip_zero_shot",
        f"CLIP for {PAIRS} s on a text tower, kept as it is, of masked LM on texts for {MASKED} s and of SimCSE on "
        f"their passages of {PASSAGE} words for {CONTRASTIVE} s, {', '.join(ABOUT)}; measured on {shot['n']} images "
        f"held out by the hash of their captions. In %; classes by their names, {shot['details']['classes']} to "
        f"choose from (chance {shot['chance']:.1f}; {usual}).",
        {"seeds": list(seeds), "measured": made, "values": values},
        [(name, show(value, 1)) for name, value in values.items()],
    )
