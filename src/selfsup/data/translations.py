"""Texts with their translations as training data: rows of a table with a column for each language, or files whose rows
say the same in turn."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from selfsup.data.columns import require_column, text_column
from selfsup.data.parts import Malformed, Part, as_text, is_blank
from selfsup.data.sources import Table
from selfsup.data.tally import Tally
from selfsup.errors import UserError

RULE = 1  # of how rows are read; another one makes other documents of the same files

_LINE_END = re.compile(r"\r\n|\n|\r")

Cell = str | None  # a text, or None where a row has none that can be read


@dataclass(eq=False)
class TranslatedTable(Table):
    """A text source whose documents are those of each row: its text, which their group goes by, and its translations.

    Each line of a text file is a row, the blank ones too. A row without a text is left out, and of the others each
    translation that is missing.

    Attributes:
        translations: columns that say the same as the text does.
        beside: sources whose rows do so in turn, each in its own text column.
    """

    translations: Sequence[str] = ()
    beside: Sequence[Table] = ()

    def grouped(self) -> Iterator[tuple[str, str]]:
        for texts in self.groups():
            yield from ((text, texts[0]) for text in texts)

    def documents(self) -> Iterator[str]:
        return (text for text, _ in self.grouped())

    def groups(self) -> Iterator[list[str]]:
        """The text of each row, and behind it its translations; raises a UserError where files have not as many rows,
        or too many records are bad."""
        seen = self.empty = 0
        tables = [_cells(self, self.translations), *(_cells(table) for table in self.beside)]
        for seen, row in enumerate(zip_longest(*tables), 1):
            if None in row:
                raise self._unequal(row.index(None), seen)
            text, *others = (cell for cells in row for cell in cells)
            if text is None:
                self.empty += 1
            else:
                yield [text, *filter(None, others)]
        if seen == self.empty:
            raise UserError(f"{self.name} holds no text ({seen} rows): point at data with at least one.")

    def _unequal(self, place: int, row: int) -> UserError:
        shorter = (self, *self.beside)[place].name
        return UserError(
            f"{shorter} has {row - 1:,} rows and what it is to be lined up with has more; give files whose rows say "
            "the same in turn."
        )

    @property
    def notes(self) -> dict[str, str]:
        languages = [*self.translations, *(table.name for table in self.beside)]
        unread = [f"{table.name}: {'; '.join(table.skipped.names)}" for table in self.beside if table.skipped.count]
        told = {"translations": ", ".join(languages), "unreadable there": "; ".join(unread)}
        return super().notes | {name: text for name, text in told.items() if text}

    def fingerprint(self) -> str:
        others = [table.fingerprint() for table in self.beside]
        content = f"translations {RULE} {super().fingerprint()} {list(self.translations)} {others}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def open_translated(
    source: object,
    columns: Sequence[str] = (),
    files: Sequence[str] = (),
    column: str | None = None,
    failures: float = 0.01,
    split: str | None = None,
) -> TranslatedTable:
    """Open any source that `open_text` takes, with its translations.

    Args:
        columns: of the source that hold translations of its text.
        files: sources whose rows translate those of the source in turn; of tables the column is the same, `column`,
            or else one that is found.
        column, failures, split: as in `open_text`.

    Raises:
        UserError: as `open_text`.
    """
    table = TranslatedTable.of(source, column, failures, split)
    table.translations = table._beside = columns
    table.beside = [Table.of(file, column, failures, split) for file in files]
    return table


def _cells(table: Table, more: Sequence[str] = ()) -> Iterator[tuple[Cell, ...]]:
    """Of every row of a source its text, and what stands in `more` columns; those that cannot be read are counted."""
    tally = Tally(table.name, table.failures)
    for part in table.parts:
        name = text_column(part, table.column)
        names = [name, *more]
        for column in more:
            require_column(part.name, part.sample().names, column)
        for where, record in part.rows(names):
            values = [record] * len(names) if isinstance(record, Malformed) else [record[each] for each in names]
            cells = [_read(value, tally) for value in values]
            tally.count(where, cells[0])
            yield from _rows(part, cells)
    table.skipped = tally.close()


def _read(value: object, tally: Tally) -> str | Malformed:
    value = tally.mended(value)
    return value if isinstance(value, Malformed) else as_text(value)


def _rows(part: Part, cells: Sequence[str | Malformed]) -> Iterator[tuple[Cell, ...]]:
    """A record as a row; a text file as one for each of its lines."""
    if not part.whole_file or isinstance(cells[0], Malformed):
        yield tuple(None if isinstance(cell, Malformed) or is_blank(cell) else cell for cell in cells)
        return
    *lines, last = _LINE_END.split(cells[0])
    for line in [*lines, last] if last else lines:
        yield (line.strip() or None,)
