"""Files of text and of records: how they are found, and how each format is read, row by row.

A file is a `Part`: it shows its columns and first rows, and streams its rows, reading only the columns that
are asked for where the format allows it. A `.txt` or `.md` file is one row with the column `text`.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from selfsup.errors import UserError
from selfsup.files import checksum

SAMPLED_ROWS = 100  # records looked at to find the columns
BATCH_ROWS = 256  # parquet rows in memory at a time
TEXT = "text"  # the column of what has no columns of its own
UNDECODABLE = 0.1  # at most, of the bytes of a text file, whatever share may fail: what has more is no text

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


@dataclass(frozen=True)
class Malformed:
    """Stands in for a record, or for one of its values, that cannot be read."""

    reason: str


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


def file_part(path: Path, failures: float) -> Part:
    """A file of a readable kind; of its bytes a text may have the share `failures` undecodable, up to `UNDECODABLE`."""
    kind = cast(str, _kind(path))
    if kind == "text":
        part = text_part(str(path), lambda: [(str(path), _read_text(path, failures))])
        return replace(part, whole_file=True)
    sample, rows = {
        "json": (_json_sample, _json_rows),
        "csv": (_csv_sample, _csv_rows),
        "parquet": (_parquet_sample, _parquet_rows),
    }[kind]
    return Part(str(path), partial(sample, path), partial(rows, path))


def text_part(name: str, texts: Callable[[], Iterable[tuple[str, object]]]) -> Part:
    """Records that are nothing but a text: (where it stands, the text)."""

    def rows(_: Sequence[str] | None) -> Rows:
        return ((where, {TEXT: text}) for where, text in texts())

    return Part(name, lambda: ([TEXT], []), rows, TEXT)


# -- files ---------------------------------------------------------------------------------------------------


def find_files(path: Path) -> list[Path]:
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
        files = distinct(
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


def distinct(files: Iterator[Path]) -> list[Path]:
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
def reading(path: Path | str) -> Iterator[None]:
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
    with reading(path):
        compression = _COMPRESSIONS.get(_extensions(path)[1])
        with pa.input_stream(str(path), compression=compression, buffer_size=1 << 20) as stream:
            yield cast("IO[bytes]", stream)


@contextmanager
def _opened_as_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Lines end at `\\n` alone; an undecodable byte becomes a lone surrogate, which `checked` finds."""
    with _opened(path) as stream:
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


# -- records -------------------------------------------------------------------------------------------------


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


def _read_text(path: Path, failures: float) -> object:
    """The whole file as one document."""
    with _opened(path) as stream:
        data = stream.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Malformed("the file is UTF-16, save it as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError:
        undecodable = len(re.findall("[\udc80-\udcff]", data.decode(errors="surrogateescape")))
    if undecodable > min(failures, UNDECODABLE) * len(data):
        return Malformed(f"{undecodable} of its {len(data)} bytes are not UTF-8")
    return Repaired(data.decode(errors="replace"), undecodable)


def _json_records(path: Path) -> Rows:
    """(place, record) for each line that is not blank."""
    with _opened_as_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                yield where, Malformed("the line is not JSON (one object per line is read)")
                continue
            yield where, record if isinstance(record, dict) else Malformed("the line is not a JSON object")


def _json_sample(path: Path) -> Sample:
    records = (record for _, record in _json_records(path) if isinstance(record, dict))
    rows = list(itertools.islice(records, SAMPLED_ROWS))
    return list(dict.fromkeys(itertools.chain.from_iterable(rows))), rows


def _json_rows(path: Path, columns: Sequence[str] | None) -> Rows:
    return ((where, selected(record, columns)) for where, record in _json_records(path))


def selected(record: Values | Malformed, columns: Sequence[str] | None) -> Values | Malformed:
    """The columns asked for of a record in memory."""
    if columns is None or isinstance(record, Malformed):
        return record
    return {name: record.get(name, Malformed(f"there is no {name!r}")) for name in columns}


@contextmanager
def _csv_reader(path: Path) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)  # a document is longer than the library's 128 KiB; the limit is global
    with _opened_as_text(path) as file:
        try:
            yield csv.reader(file, delimiter="\t" if _extensions(path)[0] == ".tsv" else ",")
        except csv.Error as error:
            raise UserError(f"{path} is no readable CSV ({error}): repair it or leave it out.") from error


def _csv_sample(path: Path) -> Sample:
    with _csv_reader(path) as reader:
        header: list[str] = next(reader, [])
        rows = [row for row in itertools.islice(reader, SAMPLED_ROWS) if row]
        return header, [dict(zip(header, row, strict=False)) for row in rows]


def _csv_rows(path: Path, columns: Sequence[str] | None) -> Rows:
    with _csv_reader(path) as reader:
        header: list[str] = next(reader, [])
        places = {
            name: header.index(name) for name in (header if columns is None else columns) if name in header
        }
        for row in reader:
            if row:
                yield (
                    f"{path}, line {reader.line_num}",
                    {
                        name: row[place] if place < len(row) else Malformed(f"the row ends before {name!r}")
                        for name, place in places.items()
                    },
                )


def _parquet_sample(path: Path) -> Sample:
    with reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        texts = [field.name for field in schema if is_text(str(field.type))]
        batch = next(file.iter_batches(SAMPLED_ROWS, columns=texts), None)
        return schema.names, [] if batch is None else _rows_of_batch(batch)


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Rows:
    with reading(path), pq.ParquetFile(path) as file:
        if file.metadata.num_rows == 0:
            return
        batches = file.iter_batches(BATCH_ROWS, columns=columns)
        for number, values in enumerate(itertools.chain.from_iterable(map(_rows_of_batch, batches)), 1):
            yield f"{path}, row {number}", values


def _rows_of_batch(batch: Any) -> list[Values]:
    decoded = {name: _decoded(batch.column(name)) for name in batch.schema.names}
    return [{name: values[row] for name, values in decoded.items()} for row in range(batch.num_rows)]


def is_text(kind: str | None) -> bool:
    """Whether an Arrow type, by its name, holds text."""
    return kind in ("string", "large_string", "string_view") or (kind or "").startswith(
        "dictionary<values=string"
    )


def _decoded(array: Any) -> list[object]:
    """An Arrow array's values; text is decoded here, since Arrow would raise for the whole batch at once."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not is_text(str(array.type)):
        return cast("list[object]", array.to_pylist())
    values = array.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode(errors="surrogateescape") for value in values]


# -- fingerprints --------------------------------------------------------------------------------------------


def fingerprint_of_files(files: Sequence[Path], column: str | None) -> str:
    """Of the files' bytes in order, how each is read, and the column where a file has columns."""
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        checksums = list(pool.map(_checksum, files))
    tabular = any(_kind(file) != "text" for file in files)
    content = [(_extensions(file), digest) for file, digest in zip(files, checksums, strict=True)]
    return hashlib.blake2b(repr((content, column if tabular else None)).encode(), digest_size=16).hexdigest()


def _checksum(path: Path) -> str:
    with reading(path):
        return checksum(path)


def fingerprint_of_values(values: Sequence[object] | Iterator[object]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        data = value.encode(errors="surrogatepass") if isinstance(value, str) else repr(value).encode()
        digest.update(f"{type(value).__name__} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()
