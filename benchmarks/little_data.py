"""Held-out loss of causal LM on little data: the default recipe against others, for the same time or the same passes.

Arguments: a folder with books (parquet, column `text`) and files wikitext*.txt; a budget such as 60s, or, for a machine
that is not at rest, a number of passes such as 10; the number of seeds; then every other recipe as one word of
settings, such as "optim.weight_decay=2 optim.average=0". Names of texts among them (see `TEXTS`) leave out the others.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, variance

from benchmarks.common import Figures, alternate, selfsup, spread, write
from selfsup.data import samples

RECORDS = 512  # held-out windows that are looked at, at most
BOOK = 600_000  # characters of the one book, at most
SURE = 2.0  # standard errors that a mean difference is to be away from none
TOKENIZERS = {"characters": "characters"}  # by the name of the text; bpe elsewhere


def main(arguments: list[str]) -> None:
    if len(arguments) < 4:
        print(
            "little_data is left out: give it texts, a budget, seeds and recipes, such as texts/ 60s 3 model.tied=true"
        )
        return
    folder, length, seeds, *others = arguments
    chosen = [name for name in TEXTS if name in others]
    variants = [word for word in others if word not in TEXTS]
    texts = {}
    with tempfile.TemporaryDirectory() as name:
        for text in chosen or TEXTS:
            place = Path(name) / text
            place.mkdir()
            texts[text] = _measured(text, TEXTS[text](Path(folder), place), length, int(seeds), variants)
    compared = {
        variant: compare({name: _pairs(rounds, variant) for name, rounds in texts.items()}) for variant in variants
    }
    how = f"{length} passes" if length.isdecimal() else length
    write(
        "little_data",
        f"Bits per byte of at most {RECORDS:,} held-out windows after {how} of `selfsup train causal-lm`, the default "
        "recipe beside others: in brackets the difference in per cent from the default with the same seed, the mean "
        "and the least and most of the seeds. A recipe is better that wins over all texts together and harms none, "
        "each by more than its noise.",
        {"texts": texts, "compared": compared},
        [
            *(
                (f"{name}, default", _shown([one["default"]["bits_per_byte"] for one in rounds]))
                for name, rounds in texts.items()
            ),
            *(row for variant in variants for row in _rows(variant, texts, compared[variant])),
        ],
    )


# -- what is compared ----------------------------------------------------------------------------------------


def compare(pairs: dict[str, list[tuple[float, float]]]) -> Figures:
    """A recipe against the default, by pairs (default, other) of equal seeds on each text.

    A difference is in per cent of the default. Its noise is taken to be alike on all texts: the deviation between the
    seeds of one text, over all of them.
    """
    differences = {name: [100 * (other / own - 1) for own, other in of_one] for name, of_one in pairs.items()}
    means = {name: fmean(values) for name, values in differences.items()}
    seeds = min(map(len, differences.values()))
    noise = math.sqrt(fmean(map(variance, differences.values()))) if seeds > 1 else math.inf
    error, overall = noise / math.sqrt(seeds), fmean(means.values())
    wins = overall < -SURE * error / math.sqrt(len(means))
    harmed = [name for name, mean in means.items() if mean > SURE * error]
    return {
        "texts": {name: {"mean": means[name], **spread(values)} for name, values in differences.items()},
        "overall": overall,
        "error": error / math.sqrt(len(means)),
        "harmed": harmed,
        "better": wins and not harmed,
    }


def _pairs(rounds: list[Figures], variant: str) -> list[tuple[float, float]]:
    return [(one["default"]["bits_per_byte"], one[variant]["bits_per_byte"]) for one in rounds]


def _rows(variant: str, texts: dict[str, list[Figures]], found: Figures) -> Iterator[tuple[str, str]]:
    for name, rounds in texts.items():
        values, difference = [one[variant]["bits_per_byte"] for one in rounds], found["texts"][name]
        least, most = difference["min"], difference["max"]
        yield f"{name}, {variant}", f"{_shown(values)} [{difference['mean']:+.2f} %, {least:+.2f} to {most:+.2f}]"
    verdict = (
        "better" if found["better"] else "not better" if not found["harmed"] else f"harms {', '.join(found['harmed'])}"
    )
    yield f"all, {variant}", f"{found['overall']:+.2f} % ± {found['error']:.2f}: {verdict}"


def _shown(values: list[float]) -> str:
    return f"{fmean(values):.4f} ({min(values):.4f} to {max(values):.4f}, {len(values)} seeds)"


# -- a training ----------------------------------------------------------------------------------------------


def _measured(text: str, source: Path, length: str, seeds: int, variants: list[str]) -> list[Figures]:
    """All recipes on one text, in turn, once for each seed."""
    tokenizer = TOKENIZERS.get(text.rpartition("-")[2], "bpe")
    spent = f"train.epochs={length}" if length.isdecimal() else f"train.budget={length}"
    common = ["causal-lm", "--data", str(source), "--tokenizer", tokenizer, spent]
    selfsup("plan", *common, "--json")  # the text is prepared, for all alike
    numbers: dict[str, Iterator[int]] = {}

    def side(settings: str) -> Callable[[], Figures]:
        numbers[settings] = iter(range(seeds))
        return lambda: _train(common, settings, next(numbers[settings]), source.parent / "run")

    return alternate(seeds, default=side(""), **{variant: side(variant) for variant in variants})


def _train(common: list[str], settings: str, seed: int, out: Path) -> Figures:
    """A training, and its loss lately; what a recipe sets takes the place of what all have."""
    own = settings.split()
    given = {word.partition("=")[0] for word in own}
    words = [word for word in common if word.partition("=")[0] not in given]
    summary = selfsup(
        "train", *words, *own, "--seed", str(seed), "--out", str(out), f"evaluate.final_records={RECORDS}", "--json"
    )
    kept = ("bits_per_byte", "loss", "best", "steps", "tokens", "parameters", "validation_records", "wall_seconds")
    training = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line["loss"] for line in training if line["split"] == "train"][-10:]
    shutil.rmtree(out)
    return {**{key: summary[key] for key in kept}, "training_loss": fmean(last)}


# -- the texts -----------------------------------------------------------------------------------------------


def _shakespeare(folder: Path, place: Path) -> Path:
    return Path(samples.__path__[0]) / "shakespeare.txt"


def _books(folder: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    for file in sorted(folder.rglob("books*.parquet")):
        yield from pq.read_table(file, columns=["text"]).column("text").to_pylist()


def _book(folder: Path, place: Path) -> Path:
    """The first book that is long enough, cut."""
    text = next(book for book in _books(folder) if len(book) >= BOOK)
    (place / "book.txt").write_text(text[:BOOK], encoding="utf-8")
    return place / "book.txt"


def _first(characters: int) -> Callable[[Path, Path], Path]:
    """Whole books, until there are so many characters."""

    def written(folder: Path, place: Path) -> Path:
        left = characters
        with (place / "books.jsonl").open("w", encoding="utf-8") as file:
            for book in _books(folder):
                if left <= 0:
                    break
                file.write(json.dumps({"text": book}) + "\n")
                left -= len(book)
        return place / "books.jsonl"

    return written


def _wikitext(folder: Path, place: Path) -> Path:
    """Its articles, as one document each."""
    lines = [
        line for file in sorted(folder.rglob("wikitext*.txt")) for line in file.read_text(encoding="utf-8").splitlines()
    ]
    articles: list[list[str]] = []
    for line in lines:
        if (line.startswith(" = ") and not line.startswith(" = = ")) or not articles:
            articles.append([])
        articles[-1].append(line)
    with (place / "wikitext.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": "\n".join(article)}) + "\n" for article in articles)
    return place / "wikitext.jsonl"


# By name: where a text lies, given the folder of texts and a place to write to.
TEXTS: dict[str, Callable[[Path, Path], Path]] = {
    "shakespeare": _shakespeare,
    "shakespeare-characters": _shakespeare,
    "book": _book,
    "books-3m": _first(3_000_000),
    "books-30m": _first(30_000_000),
    "wikitext": _wikitext,
}
