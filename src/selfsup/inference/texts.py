"""Texts as items: the records of a source that hold a text, their classes, and pairs of sentences.

A record longer than the model's window is embedded by its beginning, as far as the window reaches, and counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from selfsup.data.parts import as_number
from selfsup.errors import UserError
from selfsup.inference.items import Item, Label, ScoredPairs, absolute

if TYPE_CHECKING:
    from selfsup.data.parts import Values
    from selfsup.data.sources import Row, Table
    from selfsup.data.tally import Skipped

# Usual names of a column of classes, likeliest first.
LABELS = ("label", "labels", "class", "category", "target", "intent", "sentiment")
SENTENCES = ("sentence1", "sentence2")
SIMILARITY = "score"
SAMPLED_ROWS = 100  # looked at to find the columns of pairs


class Text(Item):
    """A text."""

    noun = "text"
    asked = "words to look for"
    shown = "text"

    content: str

    @property
    def text(self) -> str:
        return self.content

    @property
    def identity(self) -> bytes:
        return self.content.encode()


class Texts:
    """The texts of a source; `skipped` and `empty` describe the last complete pass.

    Args:
        source: what `selfsup.data.sources.open_text` takes; UserError where nothing of it is there and readable.
        column: the column of the text; by default it is found in each file.
        label: the column of its class; by default one with a usual name (`LABELS`).
        failures: the share of bad records, from 0 to 1, above which reading stops.
    """

    kind: ClassVar[type[Item]] = Text

    def __init__(
        self, source: object, column: str | None = None, label: str | None = None, failures: float = 0.01
    ) -> None:
        from selfsup.data.sources import open_text

        alone = isinstance(source, list | tuple) and all(isinstance(text, str) for text in source)
        if column is not None and alone:
            raise UserError(f"Texts by themselves have no columns, so {column} names none; leave it out.")
        self._table = open_text(source, column, failures)
        self._label = label
        self._pair: tuple[str, ...] = ()  # the columns of the last pass over pairs
        self.name = self._table.name

    @property
    def notes(self) -> dict[str, str]:
        """How the last pass read it, see `selfsup.data.sources.Table.notes`."""
        if self._pair:
            return {"columns": ", ".join(self._pair)}
        return self._table.notes

    @property
    def skipped(self) -> Skipped:
        return self._table.skipped

    @property
    def empty(self) -> int:
        return self._table.empty

    def items(self, id_column: str | None = None, with_values: bool = False) -> Iterator[Item]:
        """The records that hold a text, in order. Raises what `Table.texts` raises, and UserError where an id occurs
        twice."""
        needed = [] if id_column is None else [id_column]
        ids: set[str] = set()
        for text, row in self._table.texts(needed, None if with_values else ()):
            item = _item(text, row, id_column)
            if id_column is not None:  # places differ by themselves
                if item.id in ids:
                    raise UserError(
                        f"The {id_column} {item.id!r} occurs twice ({item.source} is the second): "
                        "give a column of ids that differ, or none to go by the place of each record."
                    )
                ids.add(item.id)
            yield item

    def labelled(self) -> Iterator[tuple[Item, Label]]:
        """The same, each with its class. Raises UserError where there is no column of classes, or it holds nothing
        that is one."""
        column = self._label or _find_label(self._table)
        check = partial(_no_class, column)
        for text, row in self._table.texts([column], check=check):
            yield _item(text, row), _class_of(row.values[column])

    def parts(self) -> Iterator[Item]:
        """All texts; both sentences where the records are pairs of them and no column is named."""
        if self._table.column is None and set(SENTENCES) <= set(self._table.columns):
            self._pair = SENTENCES
            for row in self._table.rows(SENTENCES):
                for name in SENTENCES:
                    yield _item(str(row.values[name]), row)
            return
        yield from self.items()

    def pairs(self, seed: int) -> ScoredPairs:
        """Pairs of sentences, and how much they mean the same to people. Raises UserError where there are no two
        columns of text or no column of numbers, where no score is a number, or all are equal."""
        table = self._table
        self._pair = one, other, similarity = _pair_columns(table)
        rows = list(table.rows((one, other, similarity), check=partial(_no_pair, (one, other), similarity)))
        scores = np.array([as_number(row.values[similarity]) for row in rows])
        if scores.min() == scores.max():
            raise UserError(
                f"All {len(rows)} pairs of {table.name} have the same {similarity}, so nothing can follow it; "
                "give pairs that are more and less similar."
            )
        first, second = ([_item(str(row.values[name]), row) for row in rows] for name in (one, other))
        return ScoredPairs(first, second, scores)


def _item(text: str, row: Row, id_column: str | None = None) -> Text:
    place = absolute(row.where, row.source)
    key = place if id_column is None else str(row.values.pop(id_column))
    return Text(key, text, place, row.values)


# -- columns -------------------------------------------------------------------------------------------------


def _find_label(table: Table) -> str:
    names = {name.lower(): name for name in reversed(table.columns)}
    for usual in LABELS:
        if usual in names:
            return names[usual]
    if not names:
        list(table.rows())  # says why there is nothing
    raise UserError(
        f"{table.name} has no column of classes by a usual name ({', '.join(LABELS)}), only "
        f"{', '.join(table.columns)}; name it with --label."
    )


def _class_of(value: object) -> Label:
    """A class, as a whole number where a table has it as a float: with one missing, pandas writes them so."""
    return int(value) if isinstance(value, float) else cast(Label, value)


def _no_class(column: str, values: Values) -> str | None:
    """Why a record has no class; raises UserError where the column holds measurements."""
    value = values[column]
    if isinstance(value, str) and not value.strip():
        return f"the {column} is empty"
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        return f"the {column} is {value!r}, and a class is a whole number or a word"
    if isinstance(value, float) and not value.is_integer():
        raise UserError(
            f"A {column!r} is {value!r}, and a class is a whole number or a word; name another column with --label."
        )
    return None


def _no_pair(sentences: Sequence[str], similarity: str, values: Values) -> str | None:
    """Why a record is no scored pair."""
    for name in sentences:
        if not isinstance(values[name], str) or not str(values[name]).strip():
            return f"the {name} is no text"
    if not math.isfinite(as_number(values[similarity])):
        return f"the {similarity} is {values[similarity]!r}, and a score is a number"
    return None


def _pair_columns(table: Table) -> tuple[str, str, str]:
    """The columns of the two sentences and of their score: by their usual names, else the only ones of their kind."""
    rows = list(itertools.islice(table.rows(), SAMPLED_ROWS))
    kinds = {name: _kind([row.values.get(name) for row in rows]) for name in table.columns}
    texts = [name for name, kind in kinds.items() if kind == "text"]
    numbers = [name for name, kind in kinds.items() if kind == "number"]
    texts = list(SENTENCES) if set(SENTENCES) <= set(table.columns) else texts
    numbers = [SIMILARITY] if SIMILARITY in table.columns else numbers
    if len(texts) != 2 or len(numbers) != 1:
        raise UserError(
            f"{table.name} is not seen to hold scored pairs of sentences (its columns: {', '.join(table.columns)}); "
            f"call them {', '.join(SENTENCES)} and {SIMILARITY}."
        )
    return texts[0], texts[1], numbers[0]


def _kind(values: list[object]) -> str | None:
    """Whether the values of a column are numbers or texts, as far as there are any."""
    values = [value for value in values if value is not None and value != "" and value == value]
    if not values:
        return None
    if all(math.isfinite(as_number(value)) for value in values):
        return "number"
    return "text" if all(isinstance(value, str) for value in values) else None
