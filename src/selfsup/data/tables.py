"""Tables: the records of any source with all their columns, streamed in a fixed order.

`open_table` takes whatever `selfsup.data.sources.open_text` takes. A `.txt` or `.md` file, and a document from
Python, is one row with the column `text`; records of JSON lines, CSV, parquet, data sets and lists of dicts have
the columns that they have there. CSV values are strings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from selfsup.data.columns import require_column
from selfsup.data.parts import Malformed, Part, Rows, Values, checked, value_at
from selfsup.data.sources import (
    Skipped,
    Source,
    Tally,
    as_text,
    column_or_none,
    columns_of,
    find_source,
    is_blank,
    no_text,
    notes,
    rows_of,
)
from selfsup.errors import Damaged, UserError

Check = Callable[[Values], str | None]


@dataclass(frozen=True)
class Row:
    """A record of a table.

    Attributes:
        where: the place of the record, such as `books.jsonl, line 3`.
        source: the file, or the name of the object from Python.
        values: by column.
    """

    where: str
    source: str
    values: Values


class Table:
    """Records with several columns; bad ones are skipped, counted and named as in `TextCollection`.

    `skipped` and `empty` (records with a blank text) describe the last complete pass.
    """

    def __init__(self, source: Source, failures: float) -> None:
        self.name = source.name
        self.skipped = Skipped()
        self.empty = 0
        self._source = source
        self._failures = failures
        self._beside: Collection[str] = ()  # columns that the last pass read beside the text

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order in which they are met; the first rows of a JSON file stand for it."""
        columns: dict[str, None] = {}
        for part in self._source.parts:
            with suppress(Damaged):  # which says so itself when its rows are read
                columns |= dict.fromkeys(part.sample()[0])
        return tuple(columns)

    def notes(self, column: str | None) -> dict[str, str]:
        """What to tell of how it is read for the texts in a column; see `selfsup.data.sources.notes`."""
        return notes(self._source, columns_of(self._source, column, self._beside), self.skipped)

    def rows(
        self,
        columns: Sequence[str] | None = None,
        optional: Sequence[str] | None = (),
        check: Check = lambda values: None,
    ) -> Iterator[Row]:
        """All readable records.

        Args:
            columns: those to read; a record without one of them, or with a null there, is bad. By default
                every column is read and none is needed.
            optional: columns to read beside them, None where a record has no value; None is all others.
            check: what is wrong with the values of a record, which makes it bad; None where nothing is.

        Raises:
            UserError: a file lacks a column, too many records are bad, there is no record.
        """
        if columns is None:
            columns, optional = (), None
        tally = Tally(self.name, self._failures)
        kept = 0
        for part in self._source.parts:
            for where, record in rows_of(part, partial(_read, part, columns, optional), tally):
                values = _complete(record, columns, optional, tally)
                if not isinstance(values, Malformed) and (problem := check(values)):
                    values = Malformed(problem)
                tally.count(where, values)
                if not isinstance(values, Malformed):
                    kept += 1
                    yield Row(where, part.name, values)
        self.skipped = tally.close()
        if kept == 0:
            unreadable = f" ({'; '.join(self.skipped.names)})" if self.skipped.names else ""
            raise UserError(f"{self.name} holds no records{unreadable}: point at data with at least one.")

    def documents(
        self,
        column: str | None = None,
        columns: Sequence[str] = (),
        optional: Sequence[str] | None = (),
        check: Check = lambda values: None,
    ) -> Iterator[tuple[str, Row]]:
        """All records with a text that is not blank, each with that text, whatever its column is called.

        Args:
            column: the column of the text; by default it is found in each file, see `open_text`.
            columns, optional, check: what the rows hold, as in `rows`; the text is among it only if it is named there.

        Raises:
            UserError: a file lacks a column, too many records are bad, there is no text.
        """
        tally = Tally(self.name, self._failures)
        self._beside = self.columns if optional is None else (*columns, *optional)
        kept = empty = 0
        for part in self._source.parts:
            name = column_or_none(part, column, tally)
            if name is None:
                continue
            needed = list(dict.fromkeys([name, *columns]))
            for where, record in rows_of(part, partial(_read, part, needed, optional), tally):
                values = _complete(record, needed, optional, tally)
                if not isinstance(values, Malformed) and (problem := check(values)):
                    values = Malformed(problem)
                text = values if isinstance(values, Malformed) else as_text(values[name])
                tally.count(where, text)
                if isinstance(values, Malformed) or isinstance(text, Malformed):
                    continue
                if is_blank(text):
                    empty += 1
                    continue
                kept += 1
                if name not in columns and name not in (optional or ()):
                    del values[name]
                yield text, Row(where, part.name, values)
        self.skipped = tally.close()
        self.empty = empty
        if kept == 0:
            raise no_text(self.name, self.skipped, empty)

    def fingerprint(self) -> str:
        """32 hex digits that depend on the content of all columns, not on where it lies."""
        return self._source.fingerprint()


def open_table(source: object, failures: float = 0.01) -> Table:
    """Open any source as a table; nothing is read yet.

    Args:
        source: what `open_text` takes, but for an opened TextCollection.
        failures: the share of bad records, from 0 to 1, above which reading stops.

    Raises:
        UserError: nothing there, or nothing readable.
    """
    return Table(find_source(source, failures), failures)


def _read(part: Part, columns: Sequence[str], optional: Sequence[str] | None) -> Rows:
    """A part's records with no more columns than asked for."""
    there, _ = part.sample()
    for name in columns if there else ():  # without a readable record, only malformed ones can come
        require_column(part.name, there, name)
    return part.rows(None if optional is None else list(dict.fromkeys([*columns, *optional])))


def _complete(
    record: Values | Malformed, columns: Sequence[str], optional: Sequence[str] | None, tally: Tally
) -> Values | Malformed:
    """A record with a value for each column, None where it lacks an optional one."""
    if isinstance(record, Malformed):
        return record
    values: Values = {}
    for name in dict.fromkeys([*columns, *(record if optional is None else optional)]):
        value = value_at(record, name)
        if name not in columns and (value is None or isinstance(value, Malformed)):
            values[name] = None
            continue
        value = checked(name, tally.mended(value))
        if isinstance(value, Malformed):
            return value
        values[name] = value
    return values
