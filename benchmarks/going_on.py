"""A public decoder trained on for so long: selfsup against HF Trainer's usual recipe, on new text and on old.

`python -m benchmarks going_on MODEL BOOKS WIKITEXT [SECONDS [ROUNDS]]`: the directory of a decoder, that of the books
(parquet files with a column `text`; the first is trained on, the last is held out) and a text of another kind.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.common import Figures, alternate, peer, selfsup, show, spread, write

BOOKS, BEGINNING = 16, 6_000  # held-out books, and characters of each, from behind its title pages
SKIPPED = 20_000
OLD = 100_000  # characters of the other text
Evaluated = dict[str, float]


def evaluate(model: Path, texts: list[Path]) -> Evaluated:
    """Bits per byte of each text, by transformers: the same judge for both sides."""
    return peer("bits_per_byte", str(model), *map(str, texts))


def held_out(books: Path, wikitext: Path, place: Path) -> list[Path]:
    """Two files, `new` and `old`, of a size that a judge reads in minutes."""
    texts = pq.read_table(books, columns=["text"]).column("text").to_pylist()
    long = [text for text in texts if len(text) > SKIPPED + BEGINNING][:BOOKS]
    new, old = place / "new.txt", place / "old.txt"
    new.write_text("\n\n".join(text[SKIPPED : SKIPPED + BEGINNING] for text in long), encoding="utf-8")
    old.write_text(wikitext.read_text(encoding="utf-8")[:OLD], encoding="utf-8")
    return [new, old]


def ours(model: str, data: Path, texts: list[Path], seconds: float, place: Path, seed: int) -> Figures:
    out = place / f"ours-{seed}"
    summary = selfsup(
        "train", "causal-lm", "--init", model, "--data", str(data), "--budget", f"{seconds:g}s", "--seed", str(seed),
        "--out", str(out), "--json",
    )  # fmt: skip
    kept = {key: summary[key] for key in ("steps", "tokens", "wall_seconds", "peak_memory")}
    return kept | evaluate(out / "model", texts)


def theirs(model: str, data: Path, texts: list[Path], seconds: float, place: Path, seed: int) -> Figures:
    out = place / f"theirs-{seed}"
    return peer("hf_continue", model, str(data), f"{seconds:g}", str(seed), str(out)) | evaluate(out, texts)


def main(arguments: list[str]) -> None:
    model, books, wikitext = arguments[0], sorted(Path(arguments[1]).glob("books-*.parquet")), Path(arguments[2])
    seconds, rounds = float(arguments[3]) if len(arguments) > 3 else 1200.0, int((arguments[4:] or ["3"])[0])
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        texts = held_out(books[-1], wikitext, place)
        start = evaluate(Path(model), texts)
        ours_seeds, theirs_seeds = iter(range(rounds)), iter(range(rounds))
        measured = alternate(
            rounds,
            selfsup=lambda: partial(ours, model, books[0], texts, seconds, place)(next(ours_seeds)),
            trainer=lambda: partial(theirs, model, books[0], texts, seconds, place)(next(theirs_seeds)),
        )
    values = {
        f"{side} {text}": spread([one[side][text] for one in measured])
        for side in ("selfsup", "trainer")
        for text in ("new", "old")
    }
    forgotten = {
        side: spread([one[side]["old"] / start["old"] - 1 for one in measured]) for side in ("selfsup", "trainer")
    }
    write(
        "going_on",
        f"Bits per byte after {seconds / 60:g} minutes from a public decoder of 135 M parameters on books: "
        "`selfsup train causal-lm --init MODEL --budget`, nothing else set, against HF Trainer's usual recipe, both "
        "judged by a plain loop of transformers in fp32; new text is of held-out books, old text is WikiText-2's.",
        {"start": start, "rounds": measured, "forgotten": forgotten, **values},
        [
            ("start: new text, old text", f"{start['new']:.4f}, {start['old']:.4f}"),
            *((f"{side}: {text} text", show(values[f"{side} {text}"], 4)) for side in ("selfsup", "trainer")
              for text in ("new", "old")),
            *((f"{side}: old text, relative change", show(forgotten[side], 4)) for side in forgotten),
        ],
    )  # fmt: skip
