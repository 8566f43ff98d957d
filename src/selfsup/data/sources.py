"""Text sources: everything documents can be read from, behind one streaming, re-readable interface.

`open_text` takes a path to a file, a folder or a pattern of files, a list of `Path` objects, `sample:` and `hub:`
names, and from Python a `list[str]`, whose strings are documents (not paths), a list of dicts, whose items are records,
a `datasets.Dataset`, a data frame, an Arrow table, and any object of the `TextSource` protocol. A `.txt` or `.md` file
is one document, a record of any other kind of file too; docs/formats.md lists the kinds.

Text is UTF-8. A byte order mark at the start of a file is dropped; line breaks stay as they are (`\\r\\n`
too). What is longer than `DOCUMENT` (a text file) or `RECORD` (a line, row or value) counts as unreadable.
"""

from __future__ import annotations

from collections.abc import Iterator

from selfsup.data.tables import Table, TextColumns, TextSource, open_table
from selfsup.data.tally import Skipped

__all__ = ["TextCollection", "TextSource", "open_text"]


class TextCollection:
    """A `TextSource` that drops empty documents, and skips and counts bad records.

    Bad are: undecodable UTF-8 bytes, a malformed JSON line, a record without the column, a null, what is too long. A
    text file is one record: where at most the share `failures` of its bytes cannot be decoded (and no more than
    `selfsup.data.formats.UNDECODABLE`), it is kept with U+FFFD in their place, else it is bad. For too many bad records
    see `Table`; `skipped` and `empty` describe the last complete pass over `documents()`.
    """

    def __init__(self, table: Table, column: str | None) -> None:
        self.name = table.name
        self._table = table
        self._column = column

    def documents(self) -> Iterator[str]:
        """All readable documents with at least one character that is not white space."""
        return (document for document, _ in self._table.documents(self._column))

    @property
    def skipped(self) -> Skipped:
        return self._table.skipped

    @skipped.setter
    def skipped(self, skipped: Skipped) -> None:  # of a pass that was made earlier, where the text is kept
        self._table.skipped = skipped

    @property
    def empty(self) -> int:
        return self._table.empty

    def columns(self) -> TextColumns:
        """The columns that the texts are read from."""
        return self._table.text_columns(self._column)

    @property
    def split(self) -> str | None:
        """The part of a data set that was chosen by the names of its files, where there are others."""
        return self._table.origin.split

    @property
    def notes(self) -> dict[str, str]:
        """What to tell of how the source is read: its column, its split, and what of its files is left out."""
        return self._table.notes(self._column)

    def fingerprint(self) -> str:
        """32 hex digits that depend on the content and the column that is read, not on where it lies."""
        return self._table.origin.fingerprint(self._column)


def open_text(
    source: object, column: str | None = None, failures: float = 0.01, split: str | None = None
) -> TextCollection:
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
    if isinstance(source, TextCollection):
        return source
    return TextCollection(open_table(source, failures, split), column)
