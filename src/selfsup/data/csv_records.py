"""Records in CSV and TSV: rows of fields under a header.

The separator is the one of `,` `;` tab `|` that divides header and first rows best. With tabs there is no quoting: a
line is a row, quotation marks belong to the text; only a field that a program has put into quotation marks is taken out
of them, which shows by every mark within it being doubled, or by all fields of the header being in quotation marks.
Elsewhere fields may be quoted and go over several lines; where the quoting of a row is wrong, its first line stands
by itself.
"""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

from selfsup.data.parts import RECORD, Malformed, Part, Rows, Sample, sample_of
from selfsup.data.streams import PIECE, lines
from selfsup.errors import Damaged

SEPARATORS = (",", ";", "\t", "|")
LOOKED_AT = 20  # rows that tell the separator

Open = Callable[[str], AbstractContextManager[io.TextIOWrapper]]
Row = list[str] | Malformed
Line = str | Malformed


class _Layout(NamedTuple):
    """How a file is laid out: its separator, what ends a line, and the names of its columns."""

    separator: str
    end: str
    header: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        return [_unquoted(name, self.separator == "\t") for name in self.header]

    def rows(self, texts: Iterable[Line]) -> Iterator[tuple[int, Row]]:
        """Rows that are not blank, each with the number of its last line."""
        if self.separator != "\t":
            yield from _quoted_rows(texts, self.separator, len(self.header))
            return
        always = bool(self.header) and all(map(_is_quoted, self.header))
        for number, line in enumerate(texts, 1):
            if isinstance(line, Malformed):
                yield number, line
            elif line := line.rstrip("\r\n"):
                yield number, [_unquoted(field, always) for field in line.split("\t")]


def csv_part(name: str, opened: Open, separator: str) -> Part:
    """A file of rows under a header; `opened` is given what ends its lines, `separator` is the usual of its kind."""

    def sample() -> Sample:
        layout = _layout(name, opened, separator)
        return sample_of(_rows(name, layout, opened, None))._replace(names=layout.names)

    def rows(columns: Sequence[str] | None) -> Rows:
        return _rows(name, _layout(name, opened, separator), opened, columns)

    return Part(name, sample, rows)


def _rows(name: str, layout: _Layout, opened: Open, columns: Sequence[str] | None) -> Rows:
    header = layout.names
    places = {name: place for place, name in reversed(list(enumerate(header)))}
    wanted = header if columns is None else columns
    with opened(layout.end) as file:
        for number, row in itertools.islice(layout.rows(lines(file, layout.end)), 1, None):
            if isinstance(row, list) and any(row[len(header) :]):
                row = Malformed(f"the row has {len(row)} fields and the header {len(header)}")
            yield (
                f"{name}, line {number}",
                row if isinstance(row, Malformed) else {column: _field(row, places, column) for column in wanted},
            )


def _field(row: list[str], places: dict[str, int], column: str) -> str | Malformed:
    if (place := places.get(column)) is None:
        return Malformed(f"there is no {column!r}")
    return row[place] if place < len(row) else Malformed(f"the row ends before {column!r}")


def _layout(name: str, opened: Open, usual: str) -> _Layout:
    with opened("\n") as file:
        head = file.read(PIECE)
    end = "\n" if "\n" in head or "\r" not in head else "\r"
    first = head.split(end)
    texts = [line + end for line in (first[:LOOKED_AT] if len(first) > 1 else first)]
    layouts = [_divided(texts, separator, end) for separator in (usual, *SEPARATORS)]
    layout = max(layouts, key=lambda layout: _fit(layout, texts))
    if "\0" in "".join(layout.header):
        raise Damaged(f"{name} cannot be read: its header holds bytes that are zero, save it as UTF-8.")
    names = [column for column in layout.names if column]
    if twice := next((column for column in names if names.count(column) > 1), None):
        raise Damaged(f"{name} has several columns called {twice!r}: give them different names.")
    return layout


def _divided(texts: Sequence[str], separator: str, end: str) -> _Layout:
    layout = _Layout(separator, end)
    return layout._replace(header=next((row for _, row in layout.rows(texts) if isinstance(row, list)), ()))


def _fit(layout: _Layout, texts: Sequence[str]) -> tuple[bool, float, int]:
    """How well a separator divides the first lines: into as many fields as the header has, and into many."""
    width = len(layout.header)
    rows = [row for _, row in layout.rows(texts)][1:]
    alike = sum(isinstance(row, list) and len(row) == width for row in rows)
    return (True, alike / max(1, len(rows)), width) if width > 1 else (False, 0.0, width)


def _is_quoted(field: str) -> bool:
    """Whether a field is in quotation marks, and those within it are doubled."""
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', "")


def _unquoted(field: str, always: bool) -> str:
    """A field out of the quotation marks that a program put it into: it does so always, or where it has to."""
    if not _is_quoted(field) or not (always or '""' in field[1:-1]):
        return field
    return field[1:-1].replace('""', '"')


def _quoted_rows(texts: Iterable[Line], separator: str, width: int) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)  # rows have a bound already; the limit is global
    coming, waiting, number = iter(texts), deque[Line](), 0
    taken: list[Line] = []
    begun = partial(csv.reader, delimiter=separator, strict=True)
    reader = begun(_taken(coming, waiting, taken))
    while True:
        taken.clear()
        row: Row | None = None
        try:
            row = next(reader)
            if len(taken) > 1 and width and (len(row) < width or any(row[width:])):
                row = None
        except StopIteration:
            return
        except csv.Error:
            pass
        if row is None:
            waiting.extendleft(reversed(taken[1:]))
            del taken[1:]
            row, reader = _by_itself(taken[0], separator), begun(_taken(coming, waiting, taken))
        number += len(taken)
        if row:
            yield number, row


def _taken(coming: Iterator[Line], waiting: deque[Line], taken: list[Line]) -> Iterator[str]:
    """The lines of rows, those that wait before those that come; raises csv.Error where one is bad, or where those of
    a row, which are put into `taken`, are too long."""
    left = RECORD
    while (line := waiting.popleft() if waiting else next(coming, None)) is not None:
        left = left if taken else RECORD
        taken.append(line)
        if isinstance(line, Malformed):
            raise csv.Error(line.reason)
        left -= len(line)
        if left < 0:
            raise csv.Error("the row is too long")
        yield line


def _by_itself(line: Line, separator: str) -> Row:
    """The fields of a single line, whatever its quotation marks promise."""
    if isinstance(line, Malformed):
        return line
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])
    except csv.Error as error:
        return Malformed(f"the line is no CSV ({error})")
