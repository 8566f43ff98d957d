"""The columns of a source beside its text, as a library stores them so that SQL can filter by them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any

import pyarrow as pa

from selfsup.errors import UserError
from selfsup.inference.items import Item, LeftOut

INTEGER, REAL = re.compile(r"-?(0|[1-9]\d{0,17})"), re.compile(r"-?\d+\.\d+([eE][-+]?\d+)?")
# What LanceDB adds to what it finds.
ADDED = ("_distance", "_score", "_relevance_score", "_rowid", "_rowaddr")


@dataclass(frozen=True)
class Column:
    """A column of the library that comes from the source."""

    name: str
    kind: pa.DataType

    def convert(self, value: object, where: str) -> Any:
        """A value as the library stores it. Raises UserError where it is of another kind."""
        kind = kind_of(value)
        if kind is None:
            return None
        if self.kind == pa.string():
            return as_string(value)
        if _common({kind, self.kind}) != self.kind:
            raise UserError(
                f"The library's column {self.name} holds {self.kind} and {where} has {value!r}; mend the data, "
                "rename its column, or make a new library."
            )
        return value if kind == pa.bool_() else (int if self.kind == pa.int64() else float)(str(value))


@dataclass
class Kinds:
    """The kinds of values in each column of a source."""

    seen: dict[str, set[pa.DataType]] = field(default_factory=dict)
    named: dict[str, None] = field(default_factory=dict)  # all columns, also those without a value to store

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items as they are, each looked at."""
        for item in items:
            self.named |= dict.fromkeys(item.values)
            for name, value in item.values.items():
                kind = kind_of(value)
                if kind is not None:
                    self.seen.setdefault(name, set()).add(kind)
            yield item

    def columns(self, there: Mapping[str, pa.DataType], own: Iterable[str]) -> dict[str, Column]:
        """Where each column of the source goes, beside or into the columns that a library has already.

        A name becomes one that SQL takes without quotes and that no other column has, nor the library's `own`, upper
        and lower case alike.
        """
        known = {name.lower(): name for name in there}
        taken = {*own, *ADDED}
        columns = {}
        for name, kinds in self.seen.items():
            fit = re.sub(r"\W|^(?=\d)|^$", "_", name)
            while fit.lower() in taken:
                fit += "_"
            taken.add(fit.lower())
            fit = known.get(fit.lower(), fit)
            columns[name] = Column(fit, there.get(fit, _common(kinds)))
        return columns

    def noted(self, left_out: LeftOut, columns: Mapping[str, Column]) -> LeftOut:
        """With what became of the columns: those that are stored, under which names, and those that are not."""
        stored = [name if name == c.name else f"{name} as {c.name}" for name, c in columns.items()]
        bare = [name for name in self.named if name not in columns]
        told = {"stored": ", ".join(stored), "not stored": ", ".join(bare)}
        return left_out.beside({name: text for name, text in told.items() if text})


def kind_of(value: object) -> pa.DataType | None:
    """What a value is stored as; None where there is nothing to store.

    A string that reads as a number counts as one, for CSV files write numbers so; one with leading zeros does not.
    """
    if value is None or value == "" or isinstance(value, bytes):
        return None
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    if isinstance(value, str) and INTEGER.fullmatch(value):
        return pa.int64()
    if isinstance(value, float) or (isinstance(value, str) and REAL.fullmatch(value)):
        return pa.float64()
    return pa.string()


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    """What values of several kinds are stored as."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()


def as_string(value: object) -> str:
    """Times in ISO 8601, what is nested as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False, default=str)
