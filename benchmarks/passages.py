"""A library of books in passages: rate of making it, time of a query, recall of its index, and what is found.

Arguments: a sentence-transformers directory, a folder of books-*.parquet (title, author, text), how many of its files
(all by default), and the number of rounds.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import Figures, alternate, peer, show, spread, write

SOME = 2000  # passages of the comparison of rates
SHOWN = (1, 3, 10)

# What is asked, the book that answers it, and what the passage that is shown has to hold.
QUESTIONS = (
    ("Which gold coin is nailed to the mast for whoever first sees the white whale?", "Moby-Dick", "doubloon|ounce"),
    ("Who is the harpooneer that shares a bed with Ishmael at the inn?", "Moby-Dick", "Queequeg"),
    ("Why is a raven like a writing desk?", "Alice's Adventures in Wonderland", "raven like a writing"),
    ("What did the bottle labelled drink me taste of?", "Alice's Adventures in Wonderland", "cherry"),
    ("How tall are the inhabitants of Lilliput?", "Gulliver's Travels", "six\\s+inches"),
    ("At which end do they break their eggs, and what wars came of it?", "Gulliver's Travels", "[Bb]ig-?\\s?[Ee]nd"),
    ("How many pins can workmen make in a day when they divide the labour?", "The Wealth of Nations", "pins"),
    ("What does the swallow pick from the sword of the statue?", "The Happy Prince & Other Tales", "ruby"),
    ("What did Tom use the Great Seal of England for?", "The Prince and the Pauper", "nuts"),
    ("Who will exchange old lamps for new ones?", "Aladdin and the Magic Lamp", "new (lamps|ones)"),
    ("Tragedy purges the emotions through pity and fear", "Poetics", "pity and fear"),
    ("Who first taught the slave boy the alphabet?", "Narrative of the Life of Frederick Douglass", "A, B, C|alphabet"),
    ("Cast down your bucket where you are", "Up from Slavery", "bucket"),
    ("Man is a rope stretched between the animal and the Superman", "Thus Spoke Zarathustra", "rope"),
    ("The friends have a tin of pineapple but no tin opener", "Three Men in a Boat", "pine-?apple"),
    ("Cheeses that smelt so strongly that the railway carriage emptied", "Three Men in a Boat", "chees"),
    ("Annual income twenty pounds, annual expenditure nineteen and six", "David Copperfield", "nineteen"),
    ("Prince Andrew looks at the old oak", "War and Peace", "\\boak\\b"),
    ("For what purpose may power be exercised over someone against his will?", "On Liberty", "harm"),
    ("Man is born free and everywhere he is in chains", "The Social Contract", "in chains"),
    ("Whose chariot was wrecked in the race?", "Ben-Hur", "wheel"),
    ("Narcissus falls in love with his own reflection", "Metamorphoses", "Narcissus"),
    ("Which creatures live underground and feed on the Eloi?", "The Time Machine", "Morlock"),
    ("The ghost of a child begs at the window to be let in", "Wuthering Heights", "[Ll]et me in"),
    ("Why did all the clocks in the house of Miss Havisham stop?", "Great Expectations", "twenty minutes to nine"),
    ("I went to the woods because I wished to live deliberately", "Walden", "deliberately"),
    ("What is the name of Captain Nemo's submarine?", "Twenty Thousand Leagues Under the Sea", "Nautilus"),
    ("The wager of twenty thousand pounds at the Reform Club", "Around the World in 80 Days", "wager"),
    ("Better to reign in Hell than serve in Heaven", "Paradise Lost", "reign in Hell"),
    ("The spectre that is haunting Europe", "The Communist Manifesto", "spectre"),
    ("With what did Raskolnikov kill the old pawnbroker?", "Crime and Punishment", "axe"),
    ("The crocodile that swallowed a clock", "Peter Pan", "clock|tick"),
    ("The robin shows her where the key is buried", "The Secret Garden", "key"),
    ("The mongoose fights the cobra in the bathroom", "The Jungle Book", "Nag|mongoose"),
    ("The curious incident of the dog in the night-time", "Silver Blaze", "curious incident|did nothing"),
    ("In what was the baby found at Victoria Station?", "The Importance of Being Earnest", "hand-?bag"),
    ("Jim overhears the mutineers from inside the apple barrel", "Treasure Island", "barrel"),
    ("The animal with a head at each end", "The Story of Doctor Dolittle", "pushmi|two\\s+heads|head at each end"),
    ("Priam begs for the body of his son Hector", "The Iliad", "Priam"),
)  # fmt: skip


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        print("passages is left out: python -m benchmarks passages minilm/ books/")
        return
    model, files = arguments[0], sorted(Path(arguments[1]).glob("books-*.parquet"))
    parts = int(arguments[2]) if len(arguments) > 2 else len(files)
    rounds = int(arguments[3]) if len(arguments) > 3 else 3
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        books = _joined(files[:parts], place / "books.parquet")
        made = peer("index", model, str(books), str(place / "books.lance"))
        compared = alternate(rounds, **_sides(model, books, place))
        answers = {how: list(_answers(place / "books.lance", how == "hybrid")) for how in ("vectors", "hybrid")}
    _write(Path(model).name, parts, made, compared, answers)


def _joined(files: list[Path], out: Path) -> Path:
    """The books of some files in one, where several are a source."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.concat_tables([pq.read_table(file) for file in files]), out)
    return out


def _sides(model: str, books: Path, place: Path) -> dict[str, Any]:
    """The first books of `SOME` passages, indexed; the same passages, encoded by the other library."""
    import lancedb
    import pyarrow.parquet as pq

    stored = lancedb.connect(place).open_table("books").search().select(["text", "document", "start"]).to_arrow()
    rows = sorted(stored.to_pylist(), key=lambda row: (row["document"], row["start"]))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["document"]] = counts.get(row["document"], 0) + 1
    chosen: list[str] = []
    for document, count in counts.items():
        if sum(counts[each] for each in chosen) + count <= SOME:
            chosen.append(document)
    texts = [" ".join(row["text"].split()) for row in rows if row["document"] in chosen]
    (place / "some.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    numbers = sorted(int(document.rpartition(" ")[2]) - 1 for document in chosen)
    pq.write_table(pq.read_table(books).take(numbers), place / "some.parquet")
    made = iter(range(1000))
    return {
        "encode_bf16": lambda: peer("encode", model, "bf16", str(place / "some.txt")),
        "index": lambda: peer("index", model, str(place / "some.parquet"), str(place / f"some{next(made)}.lance")),
    }


def _answers(library: Path, hybrid: bool) -> Iterator[Figures]:
    """For each question about a book that is there: the place of the first passage that answers it, and the time."""
    import selfsup

    searcher = selfsup.Searcher(library)
    searcher("what is read when a library is first asked", hybrid=hybrid)
    for question, title, answer in QUESTIONS:
        if not searcher(question, top=1, where="title = '{}'".format(title.replace("'", "''"))):
            continue
        start = time.perf_counter()
        hits = searcher(question, hybrid=hybrid)
        seconds = time.perf_counter() - start
        places = [n for n, hit in enumerate(hits, 1) if hit.values["title"] == title and re.search(answer, hit.text)]
        yield {"question": question, "place": min(places, default=None), "seconds": seconds}


def _write(model: str, parts: int, made: Figures, compared: list[Figures], answers: dict[str, list[Figures]]) -> None:
    rate = spread(
        [one["index"]["passages_per_second"] / one["encode_bf16"]["sentences_per_second"] for one in compared]
    )
    table = [("passages; index", f"{made['passages']:,}; {made['index']}")]
    for how, found in answers.items():
        times = spread([1000 * one["seconds"] for one in found])
        table.append((f"a query by {how}, ms", show(times, 0)))
        for most in SHOWN:
            right = sum(one["place"] is not None and one["place"] <= most for one in found)
            table.append((f"answered by {how} among the first {most}", f"{right} of {len(found)}"))
    write(
        "passages",
        f"Books in passages, indexed with {model} ({parts} files), and questions about them.",
        {"made": made, "rounds": compared, "answers": answers},
        [("selfsup index / SentenceTransformer.encode bf16, passages/s", show(rate)), *table],
    )
