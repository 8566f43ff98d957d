"""Text sources: everything documents can be read from, behind one streaming, re-readable interface.

What `open_text` accepts:

- a path to a `.txt` or `.md` file, which is one document; to `.jsonl`, `.ndjson` or `.json` (one JSON object
  per line), `.csv` or `.tsv` (with a header line) or `.parquet`, where each record is one document. All but
  parquet may be compressed as `.gz` or `.zst`;
- a folder (read recursively, hidden files and other kinds of file left out, in the order of the paths) or a
  glob of such files, mixed too; a list of `Path` objects;
- `sample:shakespeare`, the bundled text;
- `hub:NAME[/CONFIG][:SPLIT]`, a data set of the Hugging Face hub, the only source that uses the network;
- from Python also a `list[str]`, whose strings are documents (not paths), a `datasets.Dataset`, and any
  object of the `TextSource` protocol.

Text is UTF-8. A byte order mark at the start of a file is dropped; line breaks stay as they are (`\\r\\n`
too).
"""

from __future__ import annotations

import codecs
import csv
import glob
import hashlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from selfsup.errors import UserError
from selfsup.files import checksum

# Names under which a text column goes, the likeliest first.
TEXT_COLUMNS = ("text", "content", "document", "body", "article", "story", "passage", "sentence", "markdown")
SAMPLES = {"shakespeare": Path(__file__).parent / "samples" / "shakespeare.txt"}

SAMPLED_ROWS = 100  # records looked at to find the text column
BATCH_ROWS = 256  # parquet rows in memory at a time
NAMED = 5  # skipped records that are named in messages

_KINDS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_READABLE = ", ".join(_KINDS) + " (all but .parquet also as .gz or .zst)"


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


@dataclass(frozen=True)
class _Malformed:
    """Stands in for the value of a record that cannot be read."""

    reason: str


@dataclass(frozen=True)
class _Repaired:
    """A text file with a few undecodable bytes, read with U+FFFD in their place."""

    text: str
    replaced_bytes: int


_Rows = Iterator[tuple[str, object]]  # (where the record stands, its value: a text if all is well)
_Sample = tuple[
    list[str], list[dict[str, object]]
]  # (all columns, the first rows as far as they may be text)


class TextCollection:
    """A `TextSource` that drops empty documents, and skips and counts bad records.

    Bad are: undecodable UTF-8 bytes, a malformed JSON line, a record without the column, a null. A text
    file is one record: where at most the share `failures` of its bytes cannot be decoded, it is kept with
    U+FFFD in their place, else it is bad. When more than the share `failures` of all records is bad,
    `documents` ends in a UserError.

    `skipped` and `empty` describe the last complete pass over `documents()`.
    """

    def __init__(
        self, name: str, rows: Callable[[], _Rows], fingerprint: Callable[[], str], failures: float
    ) -> None:
        self.name = name
        self.skipped = Skipped()
        self.empty = 0
        self._rows = rows
        self._fingerprint = fingerprint
        self._failures = failures

    def documents(self) -> Iterator[str]:
        """All readable documents with at least one character that is not white space."""
        seen = bad = empty = replaced = 0
        names: list[str] = []
        for where, value in self._rows():
            seen += 1
            if isinstance(value, _Repaired):
                replaced += value.replaced_bytes
                value = value.text
            problem = _problem(value)
            if problem:
                bad += 1
                if len(names) < NAMED:
                    names.append(f"{where}: {problem}")
                continue
            document = cast(str, value)
            if document.isspace() or not document:
                empty += 1
                continue
            yield document
        self.skipped = Skipped(bad, seen, tuple(names), replaced)
        self.empty = empty
        self._refuse(documents=seen - bad - empty)

    def fingerprint(self) -> str:
        """32 hex digits that depend on the content and the column that is read, not on where it lies."""
        return self._fingerprint()

    def _refuse(self, documents: int) -> None:
        skipped = self.skipped
        if skipped.count > self._failures * skipped.seen:
            raise UserError(
                f"{skipped.count} of {skipped.seen} records of {self.name} cannot be read, more than the "
                f"share of {self._failures:g} that may be skipped; mend them or allow more failures: "
                + "; ".join(skipped.names)
            )
        if documents == 0:
            raise UserError(
                f"{self.name} holds no text ({skipped.seen} records, {self.empty} of them empty): "
                "point at data with at least one document that is not blank."
            )


def open_text(source: object, column: str | None = None, failures: float = 0.01) -> TextCollection:
    """Open any text source (see the module's description); nothing but its start is read yet.

    Args:
        source: path, folder, glob, `sample:` or `hub:` name, `list[Path]` (files), `list[str]` (documents),
            `datasets.Dataset` or an object of the `TextSource` protocol; an opened source comes back as it
            is.
        column: the column that holds the text; by default it is found in each file: a column with a usual
            name (`TEXT_COLUMNS`, in that order), else the one with the longest mean text in the first rows.
        failures: the share of bad records, from 0 to 1, above which reading stops.

    Raises:
        UserError: nothing there, nothing readable, no such column (some only when the documents are read).
    """
    if not 0 <= failures <= 1:
        raise UserError(f"The share of failures must lie between 0 and 1, not at {failures:g}.")
    if isinstance(source, TextCollection):
        return source
    if isinstance(source, list | tuple) and source and all(isinstance(item, str) for item in source):
        return _from_documents(cast("Sequence[str]", source), failures)
    if isinstance(source, list | tuple) and source and all(isinstance(item, Path) for item in source):
        files = _distinct(itertools.chain.from_iterable(_find_files(path) for path in source))
        return _from_files(f"{source[0]} and {len(source) - 1} more" if source[1:] else str(source[0]), files,
                           column, failures)  # fmt: skip
    if isinstance(source, str) and source.startswith("sample:"):
        return _from_files(source, [_sample(source)], column, failures)
    if isinstance(source, str) and source.startswith("hub:"):
        return _from_dataset(source, _load_from_hub(source), column, failures)
    if isinstance(source, str | Path) and str(source):
        return _from_files(str(source), _find_files(Path(source).expanduser()), column, failures)
    if "datasets" in sys.modules and isinstance(source, sys.modules["datasets"].Dataset):
        return _from_dataset("the data set given from Python", source, column, failures)
    if isinstance(source, TextSource):
        return _from_source(source, failures)
    raise UserError(
        f"A {type(source).__name__} is no text source: give a path, a non-empty list of documents or of Path "
        "objects, a datasets.Dataset, or an object with name, documents() and fingerprint()."
    )


# -- the kinds of source -------------------------------------------------------------------------------------


def _from_files(name: str, files: list[Path], column: str | None, failures: float) -> TextCollection:
    def rows() -> _Rows:
        for file in files:
            if _kind(file) == "text":
                yield str(file), _read_text(file, failures)
            else:
                yield from _read_table(file, column)

    return TextCollection(name, rows, lambda: _fingerprint_of_files(files, column), failures)


def _from_documents(documents: Sequence[str], failures: float) -> TextCollection:
    def rows() -> _Rows:
        return ((f"document {number}", document) for number, document in enumerate(documents, 1))

    name = f"the list of {len(documents)} documents"
    return TextCollection(name, rows, lambda: _fingerprint_of_values(documents), failures)


def _from_source(source: TextSource, failures: float) -> TextCollection:
    def rows() -> _Rows:
        return ((f"document {number}", document) for number, document in enumerate(source.documents(), 1))

    return TextCollection(source.name, rows, source.fingerprint, failures)


def _from_dataset(name: str, dataset: Any, wanted: str | None, failures: float) -> TextCollection:
    texts = [key for key, feature in dataset.features.items() if _is_text(getattr(feature, "dtype", None))]
    start = dataset.select(range(min(SAMPLED_ROWS, len(dataset)))).select_columns(texts)
    column = _choose_column(list(dataset.features), start.with_format(None).to_list(), wanted, name)
    selected = dataset.select_columns([column]).with_format(None)

    def values() -> Iterator[object]:
        return itertools.chain.from_iterable(batch[column] for batch in selected.iter(BATCH_ROWS))

    def rows() -> _Rows:
        return ((f"{name}, row {number}", value) for number, value in enumerate(values(), 1))

    return TextCollection(name, rows, lambda: _fingerprint_of_values(values()), failures)


def _load_from_hub(source: str) -> Any:
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


def _sample(source: str) -> Path:
    name = source.removeprefix("sample:")
    if name not in SAMPLES:
        raise UserError(f"There is no bundled sample {name!r}: choose one of {', '.join(SAMPLES)}.")
    return SAMPLES[name]


# -- files ---------------------------------------------------------------------------------------------------


def _find_files(path: Path) -> list[Path]:
    """The readable files that a path, folder or glob stands for, in a fixed order."""
    if os.path.isfile(path):
        if _kind(path) is None:
            raise UserError(f"{path} is of no readable kind: selfsup reads text from {_READABLE}.")
        return [path]
    if os.path.isdir(path):
        files = _files_below(path)
    elif any(sign in str(path) for sign in "*?["):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not matches:
            raise UserError(f"No file matches {path}: check the pattern.")
        files = _distinct(
            itertools.chain.from_iterable(
                _files_below(match) if match.is_dir() else [match] for match in matches
            )
        )
    else:
        raise UserError(
            f"There is no file or folder {path}: check the path (a hub data set is hub:user/name)."
        )
    files = [file for file in files if _kind(file)]
    if not files:
        raise UserError(f"{path} holds no file of a readable kind: selfsup reads text from {_READABLE}.")
    return files


def _files_below(folder: Path) -> list[Path]:
    """All files in a folder and the folders in it but the hidden ones, sorted by path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


def _distinct(files: Iterator[Path]) -> list[Path]:
    return sorted(set(files))


def _extensions(path: Path) -> tuple[str, str]:
    """The kind of content and the compression, as lower-case extensions: `a.CSV.gz` gives ('.csv', '.gz')."""
    last = path.suffix.lower()
    if last in _COMPRESSIONS:
        return Path(path.stem).suffix.lower(), last
    return last, ""


def _kind(path: Path) -> str | None:
    extension, compression = _extensions(path)
    if extension == ".parquet" and compression:
        return None
    return _KINDS.get(extension)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the disk or a damaged file can cause into one sentence.

    A damaged file stops the reading, since nobody can say which share of the records it takes with it.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason}): repair it or leave it out.") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed; by Arrow, which raises on a truncated file where zstandard just ends."""
    with _reading(path):
        compression = _COMPRESSIONS.get(_extensions(path)[1])
        with pa.input_stream(str(path), compression=compression, buffer_size=1 << 20) as stream:
            yield cast("IO[bytes]", stream)


@contextmanager
def _opened_as_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Lines end at `\\n` alone; an undecodable byte becomes a lone surrogate, which `_problem` finds."""
    with _opened(path) as stream:
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


# -- records -------------------------------------------------------------------------------------------------


def _problem(value: object) -> str | None:
    """Why a record's value is no text, or None."""
    if isinstance(value, _Malformed):
        return value.reason
    if value is None:
        return "the text is null"
    if not isinstance(value, str):
        return f"the text is a {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "the text is not valid UTF-8"
    return None


def _read_text(path: Path, failures: float) -> object:
    """The whole file as one document."""
    with _opened(path) as stream:
        data = stream.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _Malformed("the file is UTF-16, save it as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError:
        undecodable = len(re.findall("[\udc80-\udcff]", data.decode(errors="surrogateescape")))
    if undecodable > failures * len(data):
        return _Malformed(f"{undecodable} of its {len(data)} bytes are not UTF-8")
    return _Repaired(data.decode(errors="replace"), undecodable)


def _read_table(path: Path, wanted: str | None) -> _Rows:
    """The text column of a JSON-lines, CSV or parquet file, row by row."""
    sample, values = {
        "json": (_json_sample, _json_values),
        "csv": (_csv_sample, _csv_values),
        "parquet": (_parquet_sample, _parquet_values),
    }[cast(str, _kind(path))]
    columns, rows = sample(path)
    if rows:
        wanted = _choose_column(columns, rows, wanted, str(path))
    yield from values(path, wanted or "")  # without a readable row, only malformed ones can come


def _choose_column(
    columns: Sequence[str], rows: Sequence[dict[str, object]], wanted: str | None, where: str
) -> str:
    """The text column, from the first rows; see `open_text` for the rule."""
    listed = ", ".join(columns)
    if wanted is not None:
        if wanted not in columns:
            raise UserError(f"{where} has no column {wanted!r}: choose one of {listed}.")
        return wanted
    lengths: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str):
                lengths[name] = lengths.get(name, 0) + len(value)
    usual = {name.lower(): name for name in lengths}
    for name in TEXT_COLUMNS:
        if name in usual:
            return usual[name]
    if not lengths:
        raise UserError(
            f"{where} has no text column, only {listed or 'unnamed values'}: name the column to read."
        )
    return max(lengths, key=lambda name: lengths[name])


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, object] | _Malformed]]:
    """(line number, record) for each line that is not blank."""
    with _opened_as_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                yield number, _Malformed("the line is not JSON (one object per line is read)")
                continue
            yield number, record if isinstance(record, dict) else _Malformed("the line is not a JSON object")


def _json_sample(path: Path) -> _Sample:
    records = (record for _, record in _json_records(path) if isinstance(record, dict))
    rows = list(itertools.islice(records, SAMPLED_ROWS))
    return list(dict.fromkeys(itertools.chain.from_iterable(rows))), rows


def _json_values(path: Path, column: str) -> _Rows:
    missing = _Malformed(f"there is no {column!r}")
    for number, record in _json_records(path):
        value = record.get(column, missing) if isinstance(record, dict) else record
        yield f"{path}, line {number}", value


@contextmanager
def _csv_reader(path: Path) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)  # a document is longer than the library's 128 KiB; the limit is global
    with _opened_as_text(path) as file:
        try:
            yield csv.reader(file, delimiter="\t" if _extensions(path)[0] == ".tsv" else ",")
        except csv.Error as error:
            raise UserError(f"{path} is no readable CSV ({error}): repair it or leave it out.") from error


def _csv_sample(path: Path) -> _Sample:
    with _csv_reader(path) as reader:
        header: list[str] = next(reader, [])
        rows = [row for row in itertools.islice(reader, SAMPLED_ROWS) if row]
        return header, [dict(zip(header, row, strict=False)) for row in rows]


def _csv_values(path: Path, column: str) -> _Rows:
    missing = _Malformed(f"the row ends before {column!r}")
    with _csv_reader(path) as reader:
        header: list[str] = next(reader, [])
        index = header.index(column) if column in header else 0
        for row in reader:
            if row:
                yield f"{path}, line {reader.line_num}", row[index] if index < len(row) else missing


def _parquet_sample(path: Path) -> _Sample:
    with _reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        texts = [field.name for field in schema if _is_text(str(field.type))]
        batch = next(file.iter_batches(SAMPLED_ROWS, columns=texts), None)
        if batch is None:
            return schema.names, []
        decoded = {name: _decoded(batch.column(name)) for name in texts}
        rows = range(batch.num_rows)
        return schema.names, [{name: values[row] for name, values in decoded.items()} for row in rows]


def _parquet_values(path: Path, column: str) -> _Rows:
    with _reading(path), pq.ParquetFile(path) as file:
        if file.metadata.num_rows == 0:
            return
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
            for value in _decoded(batch.column(0)):
                number += 1
                yield f"{path}, row {number}", value


def _is_text(kind: str | None) -> bool:
    """Whether an Arrow type, by its name, holds text."""
    return kind in ("string", "large_string", "string_view") or (kind or "").startswith(
        "dictionary<values=string"
    )


def _decoded(array: Any) -> list[object]:
    """An Arrow array's values; text is decoded here, since Arrow would raise for the whole batch at once."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if _is_text(str(array.type)):
        array = array.cast(pa.large_binary())
    values = array.to_pylist()
    return [value.decode(errors="surrogateescape") if isinstance(value, bytes) else value for value in values]


# -- fingerprints --------------------------------------------------------------------------------------------


def _fingerprint_of_files(files: Sequence[Path], column: str | None) -> str:
    """Of the files' bytes in order, how each is read, and the column where a file has columns."""
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        checksums = list(pool.map(_checksum, files))
    tabular = any(_kind(file) != "text" for file in files)
    content = [(_extensions(file), digest) for file, digest in zip(files, checksums, strict=True)]
    return hashlib.blake2b(repr((content, column if tabular else None)).encode(), digest_size=16).hexdigest()


def _checksum(path: Path) -> str:
    with _reading(path):
        return checksum(path)


def _fingerprint_of_values(values: Sequence[object] | Iterator[object]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        data = value.encode(errors="surrogatepass") if isinstance(value, str) else repr(value).encode()
        digest.update(f"{type(value).__name__} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()
