"""What a source is made of: parts, each a table of typed rows, and what stands where something cannot be read.

A row has its values by column: texts, bytes, numbers, lists and records, or the `Span` of a file. Texts, images, their
captions and classes are columns of such rows; which ones is decided in `selfsup.data.columns`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Sample(NamedTuple):
    """All columns, the first readable rows as far as they may be text, and the columns of two kinds."""

    names: list[str]
    rows: list[Values]
    texts: Sequence[str] = ()  # columns of texts or of lists of texts
    images: Sequence[str] | None = None  # columns of the bytes of images, by their type; None without types


@dataclass(frozen=True)
class Part:
    """A file, or all of an object from Python.

    Attributes:
        rows: the records in order, with the columns asked for (all for None); one that a record lacks is Malformed.
    """

    name: str  # in messages
    sample: Callable[[], Sample]
    rows: Callable[[Sequence[str] | None], Rows]
    text: str | None = None  # the column of the text, where there is nothing to choose
    whole_file: bool = False  # whether a record is a whole text file


def text_part(name: str, texts: Callable[[], Iterable[tuple[str, object]]], whole_file: bool = False) -> Part:
    """Records that are nothing but a text: (where it stands, the text)."""

    def rows(_: Sequence[str] | None) -> Rows:
        return ((where, {TEXT: text}) for where, text in texts())

    return Part(name, lambda: Sample([TEXT], []), rows, TEXT, whole_file)


def record_part(name: str, records: Callable[[], Rows]) -> Part:
    """Records in memory or in a file that has to be read with all their columns: (where it stands, the record)."""

    def rows(columns: Sequence[str] | None) -> Rows:
        return ((where, selected(record, columns)) for where, record in records())

    return Part(name, lambda: sample_of(records()), rows)


def sample_of(rows: Rows) -> Sample:
    """The columns and values of the first readable rows, as many as are looked at. Raises Damaged: there is damage
    before the first of them; what comes later shows when the rows are read."""
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
    names = list(dict.fromkeys(name for record in records for name in record))
    texts = [name for name in names if any(_has_text(row.get(name)) for row in records)]
    return Sample(names, records, texts)


def _has_text(value: object) -> bool:
    return any(isinstance(item, str) and not is_blank(item) for item in as_list(value))


def as_list(value: object) -> Sequence[object]:
    """The values in a list, or a value alone as one."""
    return value if isinstance(value, list | tuple) else [value]


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
            yield from paths_of(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def checked(name: str, value: object) -> object:
    """The value of a column, Malformed where it is null or not valid UTF-8."""
    if value is None:
        return Malformed(f"the {name} is null")
    return value if _is_utf8(value) else Malformed(f"the {name} is not valid UTF-8")


def _is_utf8(value: object) -> bool:
    """Whether all texts in a value are; of a damaged one, half characters are left."""
    if isinstance(value, str):
        try:
            return value.isascii() or bool(value.encode())
        except UnicodeEncodeError:
            return False
    if isinstance(value, dict):
        return all(map(_is_utf8, (*value, *value.values())))
    return not isinstance(value, list) or all(map(_is_utf8, value))


def as_text(value: object) -> str | Malformed:
    """A value as a text, bytes read as UTF-8."""
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    value = checked(TEXT, value)
    return value if isinstance(value, str | Malformed) else Malformed(f"the text is a {type(value).__name__}")


def as_number(value: object) -> float:
    """A number, or a word that stands for one (in CSV all values are words); NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return math.nan


def is_blank(text: str) -> bool:
    """Whether a text holds nothing but white space."""
    return not text or text.isspace()
