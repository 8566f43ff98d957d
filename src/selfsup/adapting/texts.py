"""The texts that a model is adapted to: what they are, and which of them are set aside before anything is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from selfsup.data.sources import Table, open_text
from selfsup.data.split import hold_out
from selfsup.data.text_pairs import PairTable, open_text_pairs
from selfsup.errors import UserError
from selfsup.evaluation.structure import PAIR, passages
from selfsup.files import whole_directory
from selfsup.seeding import derive

FILES = ("train", "choose", "judge")  # NAME.jsonl: trained on; by which a candidate is chosen; by which all is judged
HELD_OUT = 0.15  # of the documents, one half to choose by and one to judge by
FEWEST = 40  # documents: fewer are cut
PIECE = 1500  # characters of a piece, about
QUERY, PASSAGES = PAIR  # columns of what belongs together
MOST = 1 << 30  # characters that are read: more than any budget is enough for
SENTENCES = 0.6  # of the lines of a file that end as sentences do, from where on each is a text by itself
ENDS = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")
LINES = 200  # that are looked at


@dataclass(frozen=True)
class Texts:
    """What was found.

    Attributes:
        source: what the user named.
        documents, characters: how many there are.
        length: characters of a document, in the median.
        passages: of the held-out documents, those that another one follows.
        cut: whether documents were cut, since there are few.
        pairs: which columns belong together, in words; empty where none do.
        notes: how the source was read.
        place: the directory of the parts.
    """

    source: str
    documents: int
    characters: int
    length: int
    passages: int
    cut: bool
    pairs: str
    notes: dict[str, str]
    place: Path

    @property
    def training(self) -> dict[str, Any]:
        """What a training is given of them."""
        return {"data": str(self.place / f"{FILES[0]}.jsonl")}

    def part(self, name: str, model: Any) -> str:
        """What a model is measured on, of one part."""
        return str(self.place / f"{name}.jsonl")

    def told(self) -> dict[str, str]:
        """For the report."""
        whole = "pieces of documents" if self.cut else "documents"
        return {
            "data": f"{self.source}: {self.documents:,} {whole}, {self.characters:,} characters, {self.length:,} in "
            f"the median; {HELD_OUT:.0%} of them set aside, half to choose by, half to judge by",
            **({"pairs": self.pairs} if self.pairs else {}),
            **self.notes,
        }


def set_aside(source: str, column: str | None, failures: float, seed: int, place: Path) -> Texts:
    """Read a source once and write its parts (`FILES`) and what it is into a directory; read that where it is there.

    A document belongs to a part by the hash of its content, so that equal ones fall on one side.

    Raises:
        UserError: what `open_text` raises; there is too little text to set any aside.
    """
    if not place.exists():
        table, rows, cut = _read(source, column, failures)
        if len(rows) < FEWEST:
            raise UserError(
                f"{source} has {len(rows)} pieces of text, too few to set some aside and to learn from the "
                f"others; give {FEWEST} documents, or {FEWEST * PIECE:,} characters."
            )
        texts = [row["text"] for row in rows]
        parts, lengths = _parts(texts, seed), [len(text) for text in texts]
        followed = sum(max(0, len(passages(text)) - 1) for text, part in zip(texts, parts, strict=True) if part)
        pairs = table.told() if isinstance(table, PairTable) else ""
        size = len(texts), sum(lengths), round(median(lengths))
        found = Texts(source, *size, followed, cut, pairs, table.notes, place)
        with whole_directory(place) as temporary, ExitStack() as files:
            opened = [files.enter_context((temporary / f"{name}.jsonl").open("w", encoding="utf-8")) for name in FILES]
            for row, part in zip(rows, parts, strict=True):
                opened[part].write(json.dumps(row, ensure_ascii=False) + "\n")
            (temporary / "found.json").write_text(json.dumps(asdict(found) | {"place": ""}), encoding="utf-8")
    return Texts(**{**json.loads((place / "found.json").read_text(encoding="utf-8")), "place": place})


def _read(source: str, column: str | None, failures: float) -> tuple[Table, list[dict[str, str]], bool]:
    """A source, its documents as rows of what is written, and whether they were cut. Of columns that belong together
    both texts are kept, as `query` and `passage`."""
    pairs = _pairs(source, column, failures)
    if pairs is not None:
        rows = ({"text": passage, QUERY: query, PASSAGES: passage} for query, passage in pairs.groups())
        return pairs, list(_within(rows)), False
    table = open_text(source, column, failures, "training")
    documents = list(_within({"text": text} for text in _documents(table)))
    if len(documents) >= FEWEST:
        return table, documents, False
    return table, [{"text": piece} for document in documents for piece in pieces(document["text"])], True


def _pairs(source: str, column: str | None, failures: float) -> PairTable | None:
    """The source as pairs of columns, where it is clear which belong together."""
    with suppress(UserError):  # it is not clear, or not all rows belong together
        table = open_text_pairs(source, column, failures, "training")
        return table if table.origin == "columns" else None
    return None


def _parts(documents: list[str], seed: int) -> list[int]:
    """To which of the parts each document belongs: all equal ones to the same one."""
    hashes = np.array([derive(seed, document) for document in documents], np.uint64) << np.uint64(1)
    held_out = hold_out(hashes, HELD_OUT)
    judged = hold_out(hashes[held_out], HELD_OUT / 2)
    parts = np.zeros(len(documents), int)
    parts[held_out] = np.where(judged, 2, 1)
    return [int(part) for part in parts]


def _documents(table: Table) -> Iterator[str]:
    """The documents of a source; of a text file whose lines are sentences, the lines."""
    for text, row in table.texts():
        lines = text.splitlines() if row.part.whole_file else []
        if _are_sentences(lines):
            yield from (line.strip() for line in lines if line.strip())
        else:
            yield text


def _are_sentences(lines: list[str]) -> bool:
    looked = [line.strip() for line in lines if line.strip()][:LINES]
    return len(looked) > 1 and sum(ENDS.search(line) is not None for line in looked) > SENTENCES * len(looked)


def _within(rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Those that begin within the most that is read."""
    read = 0
    for row in rows:
        if read >= MOST:
            return
        read += len(row["text"])
        yield row


def pieces(document: str) -> Iterator[str]:
    """A document in consecutive pieces of whole lines, of `PIECE` characters about; a long line in several."""
    piece, size = [], 0
    for line in document.splitlines(keepends=True):
        for start in range(0, len(line), PIECE):
            piece.append(line[start : start + PIECE])
            size += len(piece[-1])
            if size >= PIECE:
                yield "".join(piece)
                piece, size = [], 0
    if "".join(piece).strip():
        yield "".join(piece)
