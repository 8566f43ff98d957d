"""What a source of records is made of: parts, each with columns and rows, and what stands where one cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from selfsup.errors import Damaged

SAMPLED_ROWS = 100  # records looked at to find the columns
DOCUMENT = 1 << 30  # bytes that a text file may have, decompressed
RECORD = 1 << 26  # characters of a line or row, and bytes of a value in a table
DEEP = 5  # records within each other, of which paths are told
TEXT = "text"  # the column of what has no columns of its own


@dataclass(frozen=True)
class Malformed:
    """Stands in for a record, or for one of its values, that cannot be read."""

    reason: str


@dataclass(frozen=True)
class Ignored(Malformed):
    """Stands in for what is no record: it is counted by itself, under what it is."""


@dataclass(frozen=True)
class Repaired:
    """A text file with a few undecodable bytes, read with U+FFFD in their place."""

    text: str
    replaced_bytes: int


Values = dict[str, object]
Rows = Iterator[tuple[str, Values | Malformed]]  # (where the record stands, its values by column)
Sample = tuple[list[str], list[Values]]  # (all columns, the first rows as far as they may be text)


@dataclass(frozen=True)
class Part:
    """A file, or all of an object from Python.

    Attributes:
        name: what messages call it.
        sample: all columns, and the text values of the first readable rows.
        rows: the records in order, with the columns asked for (all for None); a column that a record
            lacks is Malformed there.
        text: the column of the text, where there is nothing to choose.
        whole_file: whether a record is a whole text file.
    """

    name: str
    sample: Callable[[], Sample]
    rows: Callable[[Sequence[str] | None], Rows]
    text: str | None = None
    whole_file: bool = False


def text_part(name: str, texts: Callable[[], Iterable[tuple[str, object]]]) -> Part:
    """Records that are nothing but a text: (where it stands, the text)."""

    def rows(_: Sequence[str] | None) -> Rows:
        return ((where, {TEXT: text}) for where, text in texts())

    return Part(name, lambda: ([TEXT], []), rows, TEXT)


def record_part(name: str, records: Callable[[], Rows]) -> Part:
    """Records in memory or in a file that has to be read with all their columns: (where it stands, the record)."""

    def rows(columns: Sequence[str] | None) -> Rows:
        return ((where, selected(record, columns)) for where, record in records())

    return Part(name, lambda: sample_of(records()), rows)


def sample_of(rows: Rows) -> Sample:
    """The columns and values of the first readable rows, as many as are looked at.

    Raises:
        Damaged: there is damage before the first of them; what comes later shows when the rows are read.
    """
    records: list[Values] = []
    left = RECORD
    try:
        for _, record in rows:
            if isinstance(record, dict):
                records.append(record)
                left -= sum(len(value) for value in record.values() if isinstance(value, str))
            if len(records) == SAMPLED_ROWS or left < 0:
                break
    except Damaged:
        if not records:
            raise
    return list(dict.fromkeys(name for record in records for name in record)), records


def selected(record: Values | Malformed, columns: Sequence[str] | None) -> Values | Malformed:
    """The columns asked for of a record in memory; see `value_at`."""
    if columns is None or isinstance(record, Malformed):
        return record
    return {name: value_at(record, name) for name in columns}


def value_at(record: Mapping[str, object], path: str) -> object:
    """The value of a column, or, where none has that name, of a dotted path into nested records."""
    if path in record:
        return record[path]
    inner: object = record
    for name in path.split("."):
        if not isinstance(inner, Mapping) or name not in inner:
            return Malformed(f"there is no {path!r}")
        inner = inner[name]
    return inner


def head_of(path: str, columns: Container[str]) -> str:
    """The column that a name, or a dotted path into it, stands for."""
    return path if path in columns else path.partition(".")[0]


def paths_of(record: Mapping[str, object], within: str = "") -> Iterator[tuple[str, object]]:
    """The values of a record that are none themselves, or lie deep, by dotted paths."""
    for name, value in record.items():
        if isinstance(value, dict) and within.count(".") < DEEP:
            yield from paths_of(cast(Values, value), f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def checked(name: str, value: object) -> object:
    """The value of a column, Malformed where it is null or not valid UTF-8."""
    if value is None:
        return Malformed(f"the {name} is null")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return Malformed(f"the {name} is not valid UTF-8")
    return value
