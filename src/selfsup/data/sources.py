"""Text sources: everything documents can be read from, behind one streaming, re-readable interface.

What `open_text` accepts:

- a path to a `.txt` or `.md` file, which is one document; to `.jsonl`, `.ndjson` or `.json` (one JSON object
  per line, a list of objects, or an object that holds such a list), `.csv` or `.tsv` (with a header line), `.parquet`,
  `.arrow` or `.feather`, where each record is one document; to a `.tar` of text files. All but parquet, Arrow and
  feather may be compressed as `.gz`, `.zst`, `.bz2` or `.xz`;
- a directory of `datasets.save_to_disk`, or of Lance;
- a folder (read recursively, hidden files and other kinds of file left out, in the order of the paths) or a
  pattern of such files, mixed too; a list of `Path` objects;
- `sample:shakespeare`, the bundled text;
- `hub:NAME[/CONFIG][:SPLIT]`, a data set of the Hugging Face hub, the only source that uses the network;
- from Python also a `list[str]`, whose strings are documents (not paths), a list of dicts, whose items are
  records, a `datasets.Dataset`, a data frame of pandas or polars, an Arrow table, and any object of the `TextSource`
  protocol.

Text is UTF-8. A byte order mark at the start of a file is dropped; line breaks stay as they are (`\\r\\n`
too). What is longer than `DOCUMENT` (a text file) or `RECORD` (a line, row or value) counts as unreadable.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import pyarrow as pa

from selfsup.data.arrow_files import BATCH_ROWS, ArrowFile
from selfsup.data.columns import described, text_column
from selfsup.data.discovery import Found, find
from selfsup.data.formats import (
    READABLE,
    file_part,
    fingerprint_of_files,
    fingerprint_of_values,
    is_readable,
    is_text,
    malformed,
    table_part,
)
from selfsup.data.parts import (
    SAMPLED_ROWS,
    TEXT,
    Ignored,
    Malformed,
    Part,
    Repaired,
    Rows,
    Sample,
    Values,
    checked,
    head_of,
    record_part,
    selected,
    text_part,
)
from selfsup.errors import Damaged, UserError
from selfsup.files import expanded

SAMPLES = {
    name: Path(__file__).parent / "samples" / file
    for name, file in {"shakespeare": "shakespeare.txt", "emoji": "emoji.parquet"}.items()
}

NAMED = 5  # skipped records that are named in messages


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


@dataclass(frozen=True)
class Skipped:
    """The records of a source that could not be read."""

    count: int = 0
    seen: int = 0  # all records, the skipped ones included
    names: tuple[str, ...] = ()  # the first few, each with file, place and reason
    replaced_bytes: int = 0  # undecodable bytes of text files that were kept, as U+FFFD
    left_out: tuple[str, ...] = ()  # what is no record, by its kind, each with how many


@dataclass(frozen=True)
class Source:
    """What a user pointed at, found but not read.

    Attributes:
        fingerprint: of all content, 32 hex digits.
        text_fingerprint: of the text in a column (None is the one that is found), 32 hex digits.
        left_out: the files and folders that are not read, in words.
        split: the part of a data set that its files are chosen by, where there are others.
    """

    name: str
    parts: Sequence[Part]
    fingerprint: Callable[[], str]
    text_fingerprint: Callable[[str | None], str]
    left_out: str = ""
    split: str | None = None


class Tally:
    """Counts the records of one pass over a source; too many bad ones end it in a UserError."""

    def __init__(self, name: str, failures: float) -> None:
        self.name = name
        self._failures = failures
        self._seen = self._bad = self._replaced = 0
        self._names: list[str] = []
        self._ignored: Counter[str] = Counter()

    def require_going_on(self, error: Damaged) -> None:
        """Raise the error of a whole file, unless everything may fail."""
        if self._failures < 1:
            raise error

    def mended(self, value: object) -> object:
        """The value itself; the bytes that had to be replaced in it are counted."""
        if not isinstance(value, Repaired):
            return value
        self._replaced += value.replaced_bytes
        return value.text

    def count(self, where: str, value: object) -> None:
        """Count a record, which is bad where its value is Malformed."""
        if isinstance(value, Ignored):
            self._ignored[value.reason] += 1
            return
        self._seen += 1
        if isinstance(value, Malformed):
            self._bad += 1
            if len(self._names) < NAMED:
                self._names.append(f"{where}: {value.reason}")

    def close(self) -> Skipped:
        """The count of a complete pass.

        Raises:
            UserError: more records are bad than may be, or all of them.
        """
        left_out = tuple(f"{what}: {number:,}" for what, number in self._ignored.items())
        skipped = Skipped(self._bad, self._seen, tuple(self._names), self._replaced, left_out)
        if too_many(skipped, self._failures):
            raise refusal(self.name, skipped, self._failures)
        return skipped


def rows_of(part: Part, rows: Callable[[], Rows], tally: Tally) -> Rows:
    """The rows of a part.

    A part that turns out to be damaged ends the reading, since nobody can say which share of the records it takes with
    it; where everything may fail, it counts as one bad record.
    """
    try:
        yield from rows()
    except Damaged as error:
        tally.require_going_on(error)
        yield part.name, malformed(part.name, error)


def column_or_none(part: Part, wanted: str | None, tally: Tally) -> str | None:
    """The column of a part that holds its text; None for one that is damaged or has none, which is counted likewise."""
    try:
        return text_column(part, wanted)
    except Damaged as error:
        tally.require_going_on(error)
        tally.count(part.name, malformed(part.name, error))
        return None


class Columns:
    """Which columns the texts of a source are read from, part by part, in words."""

    def __init__(self, beside: Collection[str] = ()) -> None:
        """`beside` are columns that are read for something else."""
        self._parts: Counter[tuple[str, str]] = Counter()
        self._beside = beside

    def add(self, part: Part, column: str) -> None:
        """Remember the column of a part; where there is nothing to choose there is nothing to say."""
        if part.text is None and column:
            others = [name for name in part.sample()[0] if name == column or name not in self._beside]
            self._parts[column, described(column, others)] += 1

    @property
    def name(self) -> str | None:
        """The column, where it is the same in all parts."""
        names = {name for name, _ in self._parts}
        return names.pop() if len(names) == 1 else None

    def told(self) -> str:
        """The columns in words, such as `'body' (not read: id, url)`."""
        first = [f"{told} in {number:,} files" for (_, told), number in self._parts.most_common(NAMED)]
        if len(self._parts) <= 1:
            return "".join(told for _, told in self._parts)
        return "; ".join(first) + (" and others" if len(self._parts) > NAMED else "")


class TextCollection:
    """A `TextSource` that drops empty documents, and skips and counts bad records.

    Bad are: undecodable UTF-8 bytes, a malformed JSON line, a record without the column, a null, what is too long. A
    text file is one record: where at most the share `failures` of its bytes cannot be decoded (and no more than
    `selfsup.data.formats.UNDECODABLE`), it is kept with U+FFFD in their place, else it is bad. When more than the
    share `failures` of all records is bad, or all of them are, `documents` ends in a UserError; with 1, whole files may
    be damaged too.

    `skipped` and `empty` describe the last complete pass over `documents()`.
    """

    def __init__(self, source: Source, column: str | None, failures: float) -> None:
        self.name = source.name
        self.skipped = Skipped()
        self.empty = 0
        self._source = source
        self._column = column
        self._failures = failures

    def documents(self) -> Iterator[str]:
        """All readable documents with at least one character that is not white space."""
        return (document for _, document in self.by_part())

    def by_part(self) -> Iterator[tuple[Part, str]]:
        """The same, each with the part it came from."""
        tally = Tally(self.name, self._failures)
        kept = empty = 0
        for part in self._source.parts:
            column = column_or_none(part, self._column, tally)
            if column is None:
                continue
            for where, record in rows_of(part, partial(part.rows, [column]), tally):
                value = record if isinstance(record, Malformed) else tally.mended(record[column])
                document = as_text(value)
                tally.count(where, document)
                if isinstance(document, Malformed):
                    continue
                if is_blank(document):
                    empty += 1
                    continue
                kept += 1
                yield part, document
        self.skipped = tally.close()
        self.empty = empty
        if kept == 0:
            raise no_text(self.name, self.skipped, empty)

    def columns(self) -> Columns:
        """The columns that the texts are read from."""
        return columns_of(self._source, self._column)

    @property
    def split(self) -> str | None:
        """The part of a data set that was chosen by the names of its files, where there are others."""
        return self._source.split

    @property
    def notes(self) -> dict[str, str]:
        """What to tell of how the source is read: its column, its split, and what of its files is left out."""
        return notes(self._source, self.columns(), self.skipped)

    def fingerprint(self) -> str:
        """32 hex digits that depend on the content and the column that is read, not on where it lies."""
        return self._source.text_fingerprint(self._column)


def columns_of(source: Source, column: str | None, beside: Collection[str] = ()) -> Columns:
    """The columns that the texts of a source are read from, others beside them; parts that are damaged have none."""
    columns = Columns(beside)
    for part in source.parts:
        with suppress(Damaged):
            columns.add(part, text_column(part, column))
    return columns


def notes(source: Source, columns: Columns, skipped: Skipped) -> dict[str, str]:
    """What to tell of how a source is read, by what it is about."""
    left_out = "; ".join(filter(None, (source.left_out, *skipped.left_out)))
    told = {"column": columns.told(), "split": source.split or "", "left out": left_out}
    return {name: text for name, text in told.items() if text}


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
    return TextCollection(find_source(source, failures, split), column, failures)


def too_many(skipped: Skipped, failures: float) -> bool:
    """Whether more records are bad than may be, or all of them."""
    return skipped.count > failures * skipped.seen or 0 < skipped.count == skipped.seen


def refusal(name: str, skipped: Skipped, failures: float) -> UserError:
    """What to say of a source with too many bad records."""
    refused = f"{skipped.count} of {skipped.seen} records of {name} cannot be read"
    reasons = "; ".join(skipped.names)
    if skipped.count == skipped.seen:
        return UserError(f"{refused}, so nothing is left; mend them: {reasons}")
    return UserError(
        f"{refused}, more than the share of {failures:g} that may be skipped; mend them or allow more failures "
        f"(--failures, of a training data.failures): {reasons}"
    )


def as_text(value: object) -> str | Malformed:
    """A value as a text, bytes read as UTF-8."""
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    value = checked(TEXT, value)
    return value if isinstance(value, str | Malformed) else Malformed(f"the text is a {type(value).__name__}")


def is_blank(text: str) -> bool:
    """Whether a text holds nothing but white space."""
    return not text or text.isspace()


def no_text(name: str, skipped: Skipped, empty: int) -> UserError:
    """What to say of a source without a document."""
    unreadable = f", {skipped.count} unreadable: {'; '.join(skipped.names)}" if skipped.count else ""
    left_out = f"; left out are {'; '.join(skipped.left_out)}" if skipped.left_out else ""
    return UserError(
        f"{name} holds no text ({skipped.seen} records, {empty} of them empty{unreadable}{left_out}): "
        "point at data with at least one document that is not blank."
    )


def find_source(source: object, failures: float, split: str | None = None) -> Source:
    """What a source stands for; see `open_text`."""
    if not 0 <= failures <= 1:
        raise UserError(f"The share of failures must lie between 0 and 1, not at {failures:g}.")
    if isinstance(source, list | tuple) and source:
        if (
            {str} <= {type(item) for item in source} <= {str, type(None), float}
        ):  # with gaps, as pandas has them
            return _documents(cast("Sequence[str]", source))
        if all(isinstance(item, dict) for item in source):
            return _records(cast("Sequence[Values]", source))
        if all(isinstance(item, Path) for item in source):
            name = f"{source[0]} and {len(source) - 1} more" if source[1:] else str(source[0])
            return _files(name, cast("Sequence[Path]", source), failures, split)
    if isinstance(source, str) and source.startswith("sample:"):
        return _files(source, [sample_file(source)], failures, None)
    if isinstance(source, str) and source.startswith("hub:"):
        return _dataset(source, load_from_hub(source))
    if isinstance(source, str | Path) and str(source):
        return _files(str(source), [expanded(source)], failures, split)
    if "datasets" in sys.modules and isinstance(source, sys.modules["datasets"].Dataset):
        return _dataset("the data set given from Python", source)
    if hasattr(source, "__arrow_c_stream__"):  # data frames of pandas and polars, tables of Arrow
        return _table(source)
    if isinstance(source, TextSource):
        return _own(source)
    if source == "":
        raise UserError("The name of the data is empty; give a path, hub:NAME or sample:NAME.")
    raise UserError(
        f"A {type(source).__name__} is no text source: give a path, a non-empty list of documents, of records "
        "or of Path objects, a datasets.Dataset, a data frame, an Arrow table, or an object with name, documents() and "
        "fingerprint()."
    )


# -- the kinds of source -------------------------------------------------------------------------------------


def _files(name: str, places: Sequence[Path], failures: float, split: str | None) -> Source:
    every = [find(place, is_readable, READABLE) for place in places]
    chosen = [of_split(found, split) for found in every]
    files = sorted({Path(file.path) for found in chosen for file in found.files})
    others = sum(len(found.files) for found in every) > sum(len(found.files) for found in chosen)

    def fingerprint(column: str | None = None) -> str:
        return fingerprint_of_files(files, column)

    return Source(
        name,
        [file_part(file, failures) for file in files],
        fingerprint,
        fingerprint,
        "; ".join(filter(None, (found.told() for found in chosen))),
        ("train" if split == "training" else split) if others else None,
    )


def of_split(found: Found, split: str | None) -> Found:
    """What is read of what was found; see `open_text` for the names of splits."""
    if split == "training":
        return found.training()
    return found if split in (None, "all") else found.of(split)


def _documents(documents: Sequence[str]) -> Source:
    def fingerprint(_: str | None = None) -> str:
        return fingerprint_of_values(documents)

    name = f"the list of {len(documents)} documents"
    return Source(name, [_part_of_documents(name, lambda: documents)], fingerprint, fingerprint)


def _own(source: TextSource) -> Source:
    part = _part_of_documents(source.name, source.documents)
    return Source(source.name, [part], source.fingerprint, lambda _: source.fingerprint())


def _part_of_documents(name: str, documents: Callable[[], Iterable[str]]) -> Part:
    return text_part(
        name, lambda: ((f"document {number}", text) for number, text in enumerate(documents(), 1))
    )


def _records(records: Sequence[Values]) -> Source:
    def rows() -> Rows:
        return ((f"record {number}", record) for number, record in enumerate(records, 1))

    return _of_records(record_part(f"the list of {len(records)} records", rows))


def _table(source: Any) -> Source:
    name = f"the {type(source).__name__} given from Python"
    try:
        table = pa.table(source)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"{name} is no table that Arrow can hold ({' '.join(str(error).split())})."
        ) from error

    def read(columns: list[str]) -> Iterator[Any]:
        return iter(table.select(columns).to_batches(BATCH_ROWS))

    opened = ArrowFile(Path(name), table.schema, table.num_rows, table.nbytes, True, read)
    return _of_records(table_part(name, lambda: opened))


def _dataset(name: str, dataset: Any) -> Source:
    def sample() -> Sample:
        texts = [key for key, feature in dataset.features.items() if is_text(getattr(feature, "dtype", None))]
        start = dataset.select(range(min(SAMPLED_ROWS, len(dataset))))
        rows = start.select_columns(texts).with_format(None).to_list() if texts else [{}] * len(start)
        return list(dataset.features), rows

    def rows(columns: Sequence[str] | None) -> Rows:
        heads = None if columns is None else {head_of(column, dataset.features) for column in columns}
        chosen = dataset.select_columns([name for name in dataset.features if heads is None or name in heads])
        batches = (_rows_of(batch) for batch in chosen.with_format(None).iter(BATCH_ROWS))
        for number, values in enumerate(itertools.chain.from_iterable(batches), 1):
            yield f"{name}, row {number}", selected(values, columns)

    return _of_records(Part(name, sample, rows))


def _rows_of(batch: dict[str, list[object]]) -> Iterator[Values]:
    return (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _of_records(part: Part) -> Source:
    """A source of one part, whose fingerprint is of its values."""

    def text_fingerprint(wanted: str | None) -> str:
        column = text_column(part, wanted)
        return fingerprint_of_values(cast(Values, record)[column] for _, record in part.rows([column]))

    return Source(
        part.name, [part], lambda: fingerprint_of_values(row for _, row in part.rows(None)), text_fingerprint
    )


def load_from_hub(source: str) -> Any:
    """The map-style data set behind `hub:NAME[/CONFIG][:SPLIT]`; the split is `train` unless given."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading {source} needs the datasets library: pip install 'selfsup[hub]'."
        ) from error
    path, _, split = source.removeprefix("hub:").partition(":")
    user, _, rest = path.partition("/")
    name, _, config = rest.partition("/")
    try:
        return datasets.load_dataset(
            "/".join(filter(None, (user, name))), config or None, split=split or "train"
        )
    except Exception as error:  # network, authorisation, an unknown name, split or config: many classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{source} cannot be loaded from the hub ({reason}); the form is hub:user/name[/config][:split]."
        ) from error


def sample_file(source: str) -> Path:
    """The file of a `sample:` name."""
    name = source.removeprefix("sample:")
    if name not in SAMPLES:
        raise UserError(f"There is no bundled sample {name!r}: choose one of {', '.join(SAMPLES)}.")
    return SAMPLES[name]
