"""Text sources: everything documents can be read from, behind one streaming, re-readable interface.

`open_text` takes a path to a file, a folder or a pattern of files, a list of `Path` objects, `sample:` and `hub:`
names, and from Python a `list[str]`, whose strings are documents (not paths), a list of dicts, whose items are records,
a `datasets.Dataset`, a data frame, an Arrow table, and any object of the `TextSource` protocol. A `.txt` or `.md` file
and a document from Python is one row with the column `text`; docs/formats.md lists the kinds. CSV values are strings.

Text is UTF-8. A byte order mark at the start of a file is dropped; line breaks stay as they are (`\\r\\n`
too). What is longer than `DOCUMENT` (a text file) or `RECORD` (a line, row or value) counts as unreadable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar, runtime_checkable

from selfsup.data.arrow_records import table_part
from selfsup.data.columns import described, require_column, text_column
from selfsup.data.discovery import kind_of, readable
from selfsup.data.formats import file_part, fingerprint_of_files, fingerprint_of_values
from selfsup.data.origins import Medium, Origin, no_source, origin_of
from selfsup.data.parts import Malformed, Part, Values, as_text, checked, is_blank, record_part, text_part, value_at
from selfsup.data.tally import NAMED, Skipped, Tally, require_share
from selfsup.errors import Damaged, UserError

KINDS = ("texts", "lists", "tables", "archives")  # of files
TEXTS = Medium(
    "text",
    lambda name: kind_of(name) in KINDS,
    readable("text", KINDS),
    "a path, a non-empty list of documents, of records or of Path objects, a datasets.Dataset, a data frame, an Arrow "
    "table, or an object with name, documents() and fingerprint()",
)

Check = Callable[[Values], str | None]
T = TypeVar("T")


@runtime_checkable
class TextSource(Protocol):
    """What a source of a user's own must offer."""

    @property
    def name(self) -> str:
        """What messages and the plan call it."""

    def documents(self) -> Iterator[str]:
        """All documents, streamed, in the same order each time."""

    def fingerprint(self) -> str:
        """A hash that changes when the documents do."""


class TextColumns:
    """Which columns the texts of a source are read from, in words; parts that are damaged, or in which there is nothing
    to choose, have none. Columns `beside` are read for something else."""

    def __init__(self, parts: Sequence[Part], wanted: str | None, beside: Collection[str]) -> None:
        self._parts: Counter[tuple[str, str]] = Counter()
        for part in parts:
            with suppress(Damaged):
                if part.text is None and (column := text_column(part, wanted)):
                    others = [name for name in part.sample().names if name == column or name not in beside]
                    self._parts[column, described(column, others)] += 1

    @property
    def name(self) -> str | None:
        """The column, where it is the same in all parts."""
        names = {name for name, _ in self._parts}
        return names.pop() if len(names) == 1 else None

    def told(self) -> str:
        """The columns in words, such as `'body' (not read: id, url)`."""
        if len(self._parts) <= 1:
            return "".join(told for _, told in self._parts)
        first = [f"{told} in {number:,} files" for (_, told), number in self._parts.most_common(NAMED)]
        return "; ".join(first) + (" and others" if len(self._parts) > NAMED else "")


class Row(NamedTuple):
    """A record of a table: its place, such as `books.jsonl, line 3`, its part, and its values by column."""

    where: str
    part: Part
    values: Values

    @property
    def source(self) -> str:
        """The file, or the name of the object from Python."""
        return self.part.name


@dataclass(eq=False)
class Table:
    """Records with several columns, one of which holds a text: its `documents` make it a `TextSource`.

    Bad are: undecodable UTF-8 bytes, a malformed JSON line, a record without the column, a null, what is too long. A
    text file is one record: where at most the share `failures` of its bytes cannot be decoded (and no more than
    `selfsup.data.formats.UNDECODABLE`), it is kept with U+FFFD in their place, else it is bad. When more than the share
    `failures` of the records are bad, or all, a pass ends in a UserError; with 1, whole files may be damaged too.
    """

    name: str
    parts: Sequence[Part]
    column: str | None  # of the text; None is the one that is found in each file
    failures: float
    _fingerprint: Callable[[str | None], str]
    split: str | None = None  # the part of a data set that its files are chosen by, where there are others
    left_out: Sequence[str] = ()  # the files and folders that are not read, in words
    skipped: Skipped = field(default_factory=Skipped)  # bad records of the last complete pass
    empty: int = 0  # records of it whose text was blank
    _beside: Collection[str] = ()  # columns that the last pass read beside the text

    @classmethod
    def of(cls, source: object, column: str | None, failures: float, split: str | None) -> Self:
        """A source that is opened; nothing is read yet. See `open_text`."""
        require_share(failures)
        if isinstance(source, TextSource):
            own = _part_of_documents(source.name, source.documents)
            return cls(source.name, [own], column, failures, lambda _: source.fingerprint())
        origin = origin_of(source, TEXTS, split)
        if not origin.found:
            part = _part_of_items(source, origin)
            return cls(part.name, [part], column, failures, partial(_fingerprint_of_texts, part))
        files = sorted({Path(file.path) for file in origin.files})
        parts = [file_part(file, failures) for file in files]
        fingerprint = partial(fingerprint_of_files, files)
        return cls(origin.name, parts, column, failures, fingerprint, origin.split, origin.left_out)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order in which they are met; the first rows of a JSON file stand for it."""
        columns: dict[str, None] = {}
        for part in self.parts:
            with suppress(Damaged):  # which says so itself when its rows are read
                columns |= dict.fromkeys(part.sample().names)
        return tuple(columns)

    @property
    def text_columns(self) -> TextColumns:
        """The columns that the texts are read from."""
        return TextColumns(self.parts, self.column, self._beside)

    @property
    def notes(self) -> dict[str, str]:
        """What to tell of how the source is read: its column, its split, and what of its files is left out."""
        told = {
            "column": self.text_columns.told(),
            "split": self.split or "",
            "left out": "; ".join([*self.left_out, *self.skipped.left_out]),
        }
        return {name: text for name, text in told.items() if text}

    def fingerprint(self) -> str:
        """32 hex digits that depend on the content and the column that is read, not on where it lies."""
        return self._fingerprint(self.column)

    def documents(self) -> Iterator[str]:
        """All readable documents with at least one character that is not white space."""
        return (text for text, _ in self.texts())

    def grouped(self) -> Iterator[tuple[str, str]]:
        """All documents, each with the text that its group goes by, which is its own: those of one group fall on one
        side of a split, and are one to a teacher."""
        return ((document, document) for document in self.documents())

    def rows(
        self, columns: Sequence[str] | None = None, optional: Sequence[str] | None = (), check: Check | None = None
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

        def read(part: Part, tally: Tally) -> Iterator[tuple[str, Row | Malformed]]:
            return _records(part, columns, optional, check, tally)

        yield from self._readable(read)
        if self.skipped.seen == 0:
            raise UserError(f"{self.name} holds no records: point at data with at least one.")

    def texts(
        self, columns: Sequence[str] = (), optional: Sequence[str] | None = (), check: Check | None = None
    ) -> Iterator[tuple[str, Row]]:
        """All records with a text that is not blank, each with that text, whatever its column is called.

        Args:
            columns, optional, check: what the rows hold, as in `rows`; the text is among it only if it is named there.

        Raises:
            UserError: a file lacks a column, too many records are bad, there is no text.
        """
        self._beside = self.columns if optional is None else (*columns, *optional)
        empty = 0
        for text, row in self._readable(self._with_texts(columns, optional, check)):
            if is_blank(text):
                empty += 1
            else:
                yield text, row
        self.empty = empty
        if self.skipped.seen == self.skipped.count + empty:
            raise no_text(self.name, self.skipped, empty)

    def texts_of(self, parts: slice, tally: Tally) -> Iterator[str]:
        """The texts of some of the parts, blank ones too, counted in a tally that whoever has those of all judges."""
        read = self._with_texts((), (), None)
        for part in self.parts[parts]:
            yield from (text for text, _ in _readable_of(part, read, tally))

    def _with_texts(
        self, columns: Sequence[str], optional: Sequence[str] | None, check: Check | None
    ) -> Callable[[Part, Tally], Iterator[tuple[str, tuple[str, Row] | Malformed]]]:
        """What reads a part's records, each behind its text."""

        def read(part: Part, tally: Tally) -> Iterator[tuple[str, tuple[str, Row] | Malformed]]:
            name = text_column(part, self.column)
            hidden = name not in columns and name not in (optional or ())
            for where, row in _records(part, [name, *columns], optional, check, tally):
                yield where, row if isinstance(row, Malformed) else _with_text(row, name, hidden)

        return read

    def _readable(self, read: Callable[[Part, Tally], Iterator[tuple[str, T | Malformed]]]) -> Iterator[T]:
        """One pass over what is read of all parts; what is Malformed is counted."""
        tally = Tally(self.name, self.failures)
        for part in self.parts:
            yield from _readable_of(part, read, tally)
        self.skipped = tally.close()


def _readable_of(
    part: Part, read: Callable[[Part, Tally], Iterator[tuple[str, T | Malformed]]], tally: Tally
) -> Iterator[T]:
    """What is read of a part; what is Malformed is counted."""
    with tally.allowed(part.name):
        for where, value in read(part, tally):
            tally.count(where, value)
            if not isinstance(value, Malformed):
                yield value


def open_text(source: object, column: str | None = None, failures: float = 0.01, split: str | None = None) -> Table:
    """Open any text source (see the module's description); nothing but its start is read yet.

    Args:
        source: path, folder, glob, `sample:` or `hub:` name, `list[Path]` (files), `list[str]` (documents),
            a list of dicts (records), `datasets.Dataset` or an object of the `TextSource` protocol; an
            opened source comes back as it is.
        column: the column that holds the text, or a dotted path into nested records; by default it is found in each
            file, see `selfsup.data.columns.text_column`.
        failures: the share of bad records, from 0 to 1, above which reading stops.
        split: the part of a data set to read, by the names of files: `train`, `validation`, `test`; or `training`,
            which is train where there is one, else all. By default, or with `all`, all are read.

    Raises:
        UserError: nothing there, nothing readable, no such column (some only when the documents are read).
    """
    return source if isinstance(source, Table) else Table.of(source, column, failures, split)


def _part_of_items(source: object, origin: Origin) -> Part:
    if (table := origin.table) is not None:
        return table_part(origin.name, lambda: table)
    items = origin.items
    kinds = {type(item) for item in items} if isinstance(items, list | tuple) else set()
    if {str} <= kinds <= {str, type(None), float}:  # with gaps, as pandas has them
        return _part_of_documents(f"the list of {len(items)} documents", lambda: items)
    if kinds and all(issubclass(kind, dict) for kind in kinds):
        name = f"the list of {len(items)} records"
        return record_part(name, lambda: _numbered("record", items))
    raise no_source(source, TEXTS)


def _part_of_documents(name: str, documents: Callable[[], Iterable[object]]) -> Part:
    return text_part(name, lambda: _numbered("document", documents()))


def _numbered(noun: str, items: Iterable[T]) -> Iterator[tuple[str, T]]:
    return ((f"{noun} {number}", item) for number, item in enumerate(items, 1))


def _fingerprint_of_texts(part: Part, wanted: str | None) -> str:
    column = text_column(part, wanted)
    rows = (row for _, row in part.rows([column]))
    return fingerprint_of_values(row if isinstance(row, Malformed) else row[column] for row in rows)


def _records(
    part: Part, columns: Sequence[str], optional: Sequence[str] | None, check: Check | None, tally: Tally
) -> Iterator[tuple[str, Row | Malformed]]:
    """A part's records with a value for each column asked for, None where they lack an optional one."""
    there, rows, *_ = part.sample()
    for name in columns if rows or part.text else ():  # without a record, only malformed ones can come
        require_column(part.name, there, name)
    read = None if optional is None else list(dict.fromkeys([*columns, *optional]))
    for where, record in part.rows(read):
        values = record if isinstance(record, Malformed) else _complete(record, columns, read, tally)
        if check and not isinstance(values, Malformed) and (problem := check(values)):
            values = Malformed(problem)
        yield where, values if isinstance(values, Malformed) else Row(where, part, values)


def _with_text(row: Row, name: str, hidden: bool) -> tuple[str, Row] | Malformed:
    """A record behind the text in one of its columns, and without that column where it is hidden."""
    value = row.values.pop(name) if hidden else row.values[name]
    text = value if isinstance(value, str) else as_text(value)  # a text is checked already
    return text if isinstance(text, Malformed) else (text, row)


def _complete(record: Values, columns: Sequence[str], read: Sequence[str] | None, tally: Tally) -> Values | Malformed:
    values: Values = {}
    for name in dict.fromkeys([*columns, *record]) if read is None else read:
        value = value_at(record, name)
        if name not in columns and (value is None or isinstance(value, Malformed)):
            values[name] = None
            continue
        value = checked(name, tally.mended(value))
        if isinstance(value, Malformed):
            return value
        values[name] = value
    return values


def no_text(name: str, skipped: Skipped, empty: int) -> UserError:
    unreadable = f", {skipped.count} unreadable: {'; '.join(skipped.names)}" if skipped.count else ""
    left_out = f"; left out are {'; '.join(skipped.left_out)}" if skipped.left_out else ""
    return UserError(
        f"{name} holds no text ({skipped.seen} records, {empty} of them empty{unreadable}{left_out}): "
        "point at data with at least one document that is not blank."
    )
