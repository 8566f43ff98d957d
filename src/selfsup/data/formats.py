"""Files of text and of records: which there are, and how each format is read, row by row.

A file is a `Part`: it shows its columns and first rows, and streams its rows, reading only the columns that
are asked for where the format allows it. A `.txt` or `.md` file is one row with the column `text`, also within a tar
archive.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from selfsup.data.arrow_files import ArrowFile, open_arrow
from selfsup.data.csv_records import csv_part
from selfsup.data.json_records import json_records
from selfsup.data.parts import (
    DOCUMENT,
    RECORD,
    SAMPLED_ROWS,
    Ignored,
    Malformed,
    Part,
    Rows,
    Sample,
    Values,
    head_of,
    record_part,
    sample_of,
    selected,
    text_part,
)
from selfsup.data.streams import (
    COMPRESSIONS,
    PIECE,
    as_text,
    decompressed,
    read_document,
    reading,
    too_long,
)
from selfsup.errors import Damaged
from selfsup.files import checksum

UNDECODABLE = 0.1  # at most, of the bytes of a text file, whatever share may fail: what has more is no text

_KINDS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "arrow",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".tar": "archive",
}
_ARCHIVES = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}  # tar, in one extension
READABLE = (
    f"text from {', '.join(_KINDS)} (all but .parquet, .arrow and .feather also as {', '.join(COMPRESSIONS)}), and "
    "directories of datasets.save_to_disk and Lance"
)


def file_part(path: Path, failures: float) -> Part:
    """A file, or data set; of its bytes a text may have the share `failures` undecodable, up to `UNDECODABLE`."""
    name, (extension, compression) = str(path), _extensions(path)
    undecodable = min(failures, UNDECODABLE)
    kind = _kind(path)
    if kind == "text":
        part = text_part(name, lambda: [(name, _read_text(path, undecodable))])
        return replace(part, whole_file=True)
    if kind == "archive":
        return replace(text_part(name, lambda: _members(path, undecodable)), whole_file=True)
    opened = partial(as_text, path, compression)
    if kind == "json":
        return record_part(name, lambda: json_records(name, opened, one_per_line=extension != ".json"))
    if kind == "csv":
        return csv_part(name, opened, "\t" if extension == ".tsv" else ",")
    return table_part(name, lambda: open_arrow(path))


def is_readable(name: str) -> bool:
    """Whether a file of that name is of a readable kind."""
    extension, compression = _extensions(Path(name))
    kind = _KINDS.get(extension)
    return kind is not None and not (kind == "arrow" and compression)


def _extensions(path: Path) -> tuple[str, str]:
    """The kind of content and the compression, as lower-case extensions: `a.CSV.gz` gives ('.csv', '.gz')."""
    last = path.suffix.lower()
    if last in _ARCHIVES:
        return ".tar", _ARCHIVES[last]
    if last in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), last
    return last, ""


def _kind(path: Path) -> str:
    return "arrow" if path.is_dir() else _KINDS[_extensions(path)[0]]


# -- texts ---------------------------------------------------------------------------------------------------


def _read_text(path: Path, failures: float) -> object:
    """The whole file as one document."""
    compression = _extensions(path)[1]
    try:
        if not compression and os.path.getsize(path) > DOCUMENT:
            return too_long()
        with decompressed(path, compression) as stream:
            return read_document(stream, failures)
    except Damaged as error:
        return malformed(str(path), error)


def malformed(name: str, error: Damaged) -> Malformed:
    """What stands in for a whole file that cannot be read."""
    return Malformed(str(error).removeprefix(f"{name} ").removesuffix("."))


def _members(path: Path, failures: float) -> Iterator[tuple[str, object]]:
    """The text files in a tar archive, in their order. Names in it are names alone: nothing is opened by them."""
    with decompressed(path, _extensions(path)[1]) as stream, _damage_of_archives(path):
        forward = _Forward(stream)
        archive = tarfile.TarFile(fileobj=cast(Any, forward))
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            yield f"{path}, {member.name}", _member(archive, member, failures)
        if any(forward.last):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"damaged behind {archive.offset:,} bytes")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, failures: float) -> object:
    ending = os.path.splitext(member.name)[1].lower()
    if member.isdir():
        return Ignored("folders in archives")
    if not member.isreg():
        return Ignored("links and devices in archives")
    if _KINDS.get(ending) != "text":
        return Ignored(f"{ending or 'other'} files in archives")
    if member.size > DOCUMENT:
        return too_long()
    return read_document(cast("IO[bytes]", archive.extractfile(member)), failures)


@contextmanager
def _damage_of_archives(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise Damaged(f"{path} cannot be read as a tar archive ({error}): repair or unpack it.") from error


class _Forward:
    """A stream as tarfile reads it, which only ever goes on, and in small pieces but for headers that lie."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._place = stream, 0
        self.last = b""

    def tell(self) -> int:
        return self._place

    def read(self, size: int) -> bytes:
        if size > PIECE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        data = b""
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        self._place += len(data)
        self.last = data
        return data

    def seek(self, place: int) -> None:
        if self._stream.seekable():
            self._place = self._stream.seek(place)
        while self._place < place and self.read(min(PIECE, place - self._place)):
            pass


# -- tables --------------------------------------------------------------------------------------------------


def table_part(name: str, opened: Callable[[], ArrowFile]) -> Part:
    """A table of Arrow, in a file or in memory."""

    def sample() -> Sample:
        table = opened()
        texts = [field.name for field in table.schema if _may_hold_text(field.type)]
        batch = next(table.batches(texts), None) if texts else None
        if batch is not None:
            return table.schema.names, sample_of(("", row) for row in _rows_of_batch(batch))[1]
        return table.schema.names, [{}] * min(table.rows, SAMPLED_ROWS)

    def rows(columns: Sequence[str] | None) -> Rows:
        table = opened()
        names = table.schema.names
        heads = (
            None if columns is None else [head for name in columns if (head := head_of(name, names)) in names]
        )
        batches = table.batches(None if heads is None else list(dict.fromkeys(heads)))
        for number, row in enumerate(itertools.chain.from_iterable(map(_rows_of_batch, batches)), 1):
            yield f"{name}, row {number}", selected(row, columns)

    return Part(name, sample, rows)


def _rows_of_batch(batch: Any) -> list[Values]:
    decoded = {name: _decoded(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    return [{name: values[row] for name, values in decoded.items()} for row in range(batch.num_rows)]


def is_text(kind: str | None) -> bool:
    """Whether an Arrow type, by its name, holds text."""
    plain = (kind or "").removeprefix("dictionary<values=").partition(",")[0]
    return plain in ("string", "large_string", "string_view")


def _may_hold_text(kind: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _may_hold_text(kind.storage_type)
    return is_text(str(kind)) or (
        pa.types.is_struct(kind) and any(_may_hold_text(field.type) for field in kind)
    )


def _decoded(array: Any) -> list[object]:
    """An Arrow array's values, Malformed where one is too long or has no value in Python.

    Text is decoded here, since Arrow would raise for the whole batch at once; the values of a dictionary once, however
    often they occur.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        values = _decoded(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if pa.types.is_struct(array.type):
        fields = {
            field.name: _decoded(values) for field, values in zip(array.type, array.flatten(), strict=True)
        }
        whole = [{name: values[row] for name, values in fields.items()} for row in range(len(array))]
        return [
            row if there else None for row, there in zip(whole, array.is_valid().to_pylist(), strict=True)
        ]
    of_text = is_text(str(array.type))
    array = array.cast(_BYTES[str(array.type)]) if of_text else array
    if array.nbytes <= RECORD:
        with suppress(*_UNREADABLE):
            return (
                [_text(value) for value in array.to_pylist()]
                if of_text
                else cast("list[object]", array.to_pylist())
            )
    return [_value(array, row, of_text) for row in range(len(array))]


_BYTES = {"string": pa.binary(), "large_string": pa.large_binary(), "string_view": pa.binary_view()}


_UNREADABLE = (ValueError, OverflowError, pa.ArrowException)


def _value(array: Any, row: int, of_text: bool) -> object:
    if array.slice(row, 1).nbytes > RECORD:
        return Malformed(f"a value has more than {RECORD:,} bytes")
    try:
        value = array[row].as_py()
    except _UNREADABLE as error:
        return Malformed(f"a value cannot be read ({' '.join(str(error).split())})")
    return _text(value) if of_text else value


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="surrogateescape")


# -- fingerprints --------------------------------------------------------------------------------------------


def fingerprint_of_files(files: Sequence[Path], column: str | None) -> str:
    """Of the files' bytes in order, how each is read, and the column where a file has columns."""
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        checksums = list(pool.map(_checksum, files))
    tabular = any(_kind(file) not in ("text", "archive") for file in files)
    content = [(_extensions(file), digest) for file, digest in zip(files, checksums, strict=True)]
    return hashlib.blake2b(repr((content, column if tabular else None)).encode(), digest_size=16).hexdigest()


def _checksum(path: Path) -> str:
    with reading(path):
        if path.is_dir():
            inner = sorted(file for file in path.rglob("*") if file.is_file())
            return repr([(str(file.relative_to(path)), checksum(file)) for file in inner])
        return checksum(path)


def fingerprint_of_values(values: Sequence[object] | Iterator[object]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        data = value.encode(errors="surrogatepass") if isinstance(value, str) else repr(value).encode()
        digest.update(f"{type(value).__name__} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()
