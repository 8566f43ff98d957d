"""Collections for retrieval: documents, queries, and judgements of which document answers which query.

The layout is that of BEIR (Thakur et al. 2021, "BEIR: A Heterogenous Benchmark for Zero-shot Evaluation of Information
Retrieval Models"), a folder with

    corpus.jsonl      _id, text and, where there is one, title
    queries.jsonl     _id, text
    qrels/test.tsv    query-id, corpus-id, score

or that of a data set which MTEB keeps on the hub: folders `corpus`, `queries` and `qrels` (or `data`, or `default`),
with files whose names say the split, and `id` in place of `_id`. Either may be in any format of records. A score above
0 says that the document is relevant, and how much.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from selfsup.data.discovery import SPLITS, Found, find, split_of
from selfsup.data.parts import TEXT, Values, as_number
from selfsup.data.sources import TEXTS, Table, open_text
from selfsup.data.tally import NAMED, Skipped
from selfsup.errors import UserError
from selfsup.files import expanded

# What files and folders of each part are called.
PARTS = {"corpus": ("corpus",), "queries": ("queries",), "qrels": ("qrels", "data", "default")}
LAYOUT = "BEIR's layout is a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv"
IDS, TITLE = ("_id", "id"), "title"
JUDGEMENT = ("query-id", "corpus-id", "score")


class Entry(NamedTuple):
    """A document or a query."""

    id: str
    text: str
    where: str  # it stands


@dataclass(eq=False)
class JudgedCollection:
    """Documents, queries and judgements, read again with each pass.

    Attributes:
        split: the one whose judgements these are, where their files say so.
        left_out: files and folders that are not read, in words.
    """

    name: str
    corpus: Table
    queries: Table
    qrels: Table
    split: str | None = None
    left_out: str = ""

    def documents(self) -> Iterator[Entry]:
        """All that are not blank, with distinct ids; the text of one is its title, a space and its text, as in BEIR.
        Raises what `Table.rows` raises."""
        return _entries(self.corpus, (TITLE,))

    def asked(self) -> Iterator[Entry]:
        """The queries, likewise."""
        return _entries(self.queries, ())

    def judgements(self) -> dict[str, dict[str, float]]:
        """By query, the score of each document that was judged for it; of one judged twice, the later."""
        judged: dict[str, dict[str, float]] = {}
        for row in self.qrels.rows(JUDGEMENT, check=_no_judgement):
            query, document, score = (str(row.values[name]) for name in JUDGEMENT)
            judged.setdefault(query, {})[document] = float(score)
        return judged

    @property
    def notes(self) -> dict[str, str]:
        """How it is read."""
        told = {"split": self.split or "", "left out": self.left_out}
        return {name: text for name, text in told.items() if text}

    @property
    def skipped(self) -> Skipped:
        """Bad records of the last complete passes."""
        parts = [table.skipped for table in (self.corpus, self.queries, self.qrels)]
        return Skipped(
            sum(part.count for part in parts),
            sum(part.seen for part in parts),
            tuple(name for part in parts for name in part.names)[:NAMED],
            sum(part.replaced_bytes for part in parts),
        )

    @property
    def empty(self) -> int:
        """Blank documents and queries."""
        return self.corpus.empty + self.queries.empty


def open_judged(source: object, failures: float = 1.0, split: str | None = None) -> JudgedCollection:
    """Open a collection; nothing but names and first rows are read yet.

    Args:
        source: a folder in the layout above or, from Python, a mapping of `corpus`, `queries` and `qrels` to anything
            that `selfsup.data.sources.open_text` takes.
        failures: the share of bad records, from 0 to 1, above which reading stops.
        split: whose judgements are read, by the names of files; by default test where there is such a one, else the
            only one.

    Raises:
        UserError: it is no such source, a part is missing, or the split is not clear.
    """
    if isinstance(source, Mapping):
        return _of_mapping(source, failures, split)
    if not isinstance(source, str | Path) or not str(source) or not expanded(source).is_dir():
        raise UserError(f"{source if isinstance(source, str | Path) else type(source)} is no folder; {LAYOUT}.")
    every = find(expanded(source), TEXTS.reads, TEXTS.readable)
    parts = {part: Found(every.root) for part in PARTS}
    for file in every.files:
        place = os.path.relpath(file.path, every.root).split(os.sep)[0].partition(".")[0].lower()
        part = next((part for part, names in PARTS.items() if place in names), None)
        if part is None:
            every.leave_out("files of no part", file.path)
        else:
            parts[part].files.append(file)
    for part, names in PARTS.items():
        if not parts[part].files:
            raise UserError(f"{source} holds no {names[0]}; {LAYOUT}.")
    chosen = _judged_split(parts["qrels"], split)
    found = {part: _of(files, chosen) for part, files in parts.items()} | {"qrels": parts["qrels"].of(chosen)}
    corpus, queries, qrels = (
        open_text([Path(file.path) for file in found[part].files], failures=failures) for part in PARTS
    )
    return JudgedCollection(str(source), corpus, queries, qrels, chosen, every.told())


def _of_mapping(source: Mapping[object, object], failures: float, split: str | None) -> JudgedCollection:
    if set(source) != set(PARTS):
        given = ", ".join(map(str, source)) or "nothing"
        raise UserError(f"A collection for retrieval has {', '.join(PARTS)}, and what is given has {given}.")
    if split is not None:
        raise UserError("Judgements that are given by themselves have no split; leave out --split.")
    corpus, queries, qrels = (open_text(source[part], failures=failures) for part in PARTS)
    return JudgedCollection("the collection given from Python", corpus, queries, qrels)


def _judged_split(found: Found, asked: str | None) -> str | None:
    """Whose judgements are read; None where no file says whose they are."""
    if asked is not None:
        return SPLITS.get(asked, asked)
    there = sorted(filter(None, _splits(found)))
    if "test" in there or not there:
        return "test" if there else None
    if len(there) > 1:
        raise UserError(f"{found.root} has judgements of {', '.join(there)}; name one with --split.")
    return there[0]


def _of(found: Found, split: str | None) -> Found:
    """The documents or queries of a split; all of them where no file is of it."""
    return found.of(split) if split in _splits(found) else found


def _splits(found: Found) -> set[str | None]:
    return {split_of(os.path.relpath(file.path, found.root)) for file in found.files}


def _entries(table: Table, optional: Sequence[str]) -> Iterator[Entry]:
    key = next((name for name in IDS if name in table.columns), IDS[0])
    blank = 0
    for row in table.rows((key, TEXT), optional, check=partial(_no_entry, key, set())):
        said = [str(row.values[name]) for name in optional if row.values[name] is not None]
        text = " ".join([*said, str(row.values[TEXT])]).strip()
        if text:
            yield Entry(str(row.values[key]), text, row.where)
        else:
            blank += 1
    table.empty = blank


def _no_entry(key: str, known: set[str], values: Values) -> str | None:
    """Why a record is no document or query; its id is known from then on."""
    own = values[key]
    if not isinstance(own, str | int) or own == "":
        return f"the {key} is {own!r}, and an id is a word or a whole number"
    if not isinstance(values[TEXT], str):
        return f"the {TEXT} is no text"
    if str(own) in known:
        return f"the {key} {own!r} occurs twice"
    known.add(str(own))
    return None


def _no_judgement(values: Values) -> str | None:
    """Why a record is no judgement."""
    *ids, score = (values[name] for name in JUDGEMENT)
    if not all(isinstance(own, str | int) and own != "" for own in ids):
        return f"the {JUDGEMENT[0]} or {JUDGEMENT[1]} is no id"
    return None if math.isfinite(as_number(score)) else f"the score is {score!r}, and a score is a number"
