"""The texts that a model is adapted to: what they are, and which of them are set aside before anything is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np

from selfsup.data.sources import Table, open_text
from selfsup.data.split import hold_out
from selfsup.errors import UserError
from selfsup.evaluation.structure import passages
from selfsup.files import whole_directory
from selfsup.seeding import derive

FILES = ("train", "choose", "judge")  # NAME.jsonl: trained on; by which a candidate is chosen; by which all is judged
HELD_OUT = 0.15  # of the documents, one half to choose by and one to judge by
FEWEST = 40  # documents: fewer are cut
PIECE = 1500  # characters of a piece, about
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
        notes: how the source was read.
        place: the directory of the parts.
    """

    source: str
    documents: int
    characters: int
    length: int
    passages: int
    cut: bool
    notes: dict[str, str]
    place: Path

    @property
    def training(self) -> dict[str, Any]:
        """What a training is given of them."""
        return {"data": str(self.place / f"{FILES[0]}.jsonl"), "column": "text"}

    def part(self, name: str, model: Any) -> str:
        """What a model is measured on, of one part."""
        return str(self.place / f"{name}.jsonl")

    def told(self) -> dict[str, str]:
        """For the report."""
        whole = "pieces of documents" if self.cut else "documents"
        return {
            "data": f"{self.source}: {self.documents:,} {whole}, {self.characters:,} characters, {self.length:,} in "
            f"the median; {HELD_OUT:.0%} of them set aside, half to choose by, half to judge by",
            **self.notes,
        }


def set_aside(source: str, column: str | None, failures: float, seed: int, place: Path) -> Texts:
    """Read a source once and write its parts (`FILES`) and what it is into a directory; read that where it is there.

    A document belongs to a part by the hash of its content, so that equal ones fall on one side.

    Raises:
        UserError: what `open_text` raises; there is too little text to set any aside.
    """
    if not place.exists():
        table = open_text(source, column, failures, "training")
        documents = list(_within(_documents(table)))
        cut = len(documents) < FEWEST
        if cut:
            documents = [piece for document in documents for piece in pieces(document)]
        if len(documents) < FEWEST:
            raise UserError(
                f"{source} has {len(documents)} pieces of text, too few to set some aside and to learn from the "
                f"others; give {FEWEST} documents, or {FEWEST * PIECE:,} characters."
            )
        parts = _parts(documents, seed)
        held_out = [text for text, part in zip(documents, parts, strict=True) if part]
        lengths = [len(document) for document in documents]
        followed = sum(max(0, len(passages(text)) - 1) for text in held_out)
        found = Texts(source, len(documents), sum(lengths), round(median(lengths)), followed, cut, table.notes, place)
        with whole_directory(place) as temporary, ExitStack() as files:
            opened = [files.enter_context((temporary / f"{name}.jsonl").open("w", encoding="utf-8")) for name in FILES]
            for text, part in zip(documents, parts, strict=True):
                _write(opened[part], {"text": text})
            (temporary / "found.json").write_text(json.dumps(asdict(found) | {"place": ""}), encoding="utf-8")
    return Texts(**{**json.loads((place / "found.json").read_text(encoding="utf-8")), "place": place})


def _write(file: IO[str], row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


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


def _within(documents: Iterator[str]) -> Iterator[str]:
    """Those that begin within the most that is read."""
    read = 0
    for document in documents:
        if read >= MOST:
            return
        read += len(document)
        yield document


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
