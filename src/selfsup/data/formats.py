"""Files of text and of records, each as a `Part`: it shows its columns and first rows, and streams its rows.

Only the columns that are asked for are read where the format allows it. A `.txt` or `.md` file is one row with the
column `text`, also within a tar archive.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from selfsup.data.archives import text_members
from selfsup.data.arrow_files import open_arrow, open_row_group, row_groups
from selfsup.data.arrow_records import table_part
from selfsup.data.csv_records import csv_part
from selfsup.data.discovery import extensions, kind_of, reading
from selfsup.data.json_records import json_records
from selfsup.data.parts import DOCUMENT, Part, record_part, text_part
from selfsup.data.streams import as_text, decompressed, read_document, too_long
from selfsup.data.tally import malformed
from selfsup.errors import Damaged
from selfsup.files import checksum

UNDECODABLE = 0.1  # at most, of the bytes of a text file, whatever share may fail: what has more is no text


def file_part(path: Path, failures: float) -> Part:
    """A file, or data set; of its bytes a text may have the share `failures` undecodable, up to `UNDECODABLE`."""
    name, (extension, compression) = str(path), extensions(path)
    undecodable = min(failures, UNDECODABLE)
    kind = "tables" if path.is_dir() else kind_of(path)
    if kind == "tables":
        return table_part(name, lambda: open_arrow(path))
    if kind == "texts":
        return text_part(name, lambda: [(name, _read_text(path, compression, undecodable))], whole_file=True)
    if kind == "archives":
        return text_part(name, lambda: text_members(path, undecodable), whole_file=True)
    opened = partial(as_text, path, compression)
    if extension in (".csv", ".tsv"):
        return csv_part(name, opened, "\t" if extension == ".tsv" else ",")
    return record_part(name, lambda: json_records(name, opened, one_per_line=extension != ".json"))


def pieces_of(part: Part) -> list[tuple[Part, int]]:
    """What of a file can be read apart, each as a part with its bytes: the groups of rows of a parquet file whose
    columns are known, of others all."""
    path, whole = Path(part.name), [(part, os.path.getsize(part.name) if os.path.isfile(part.name) else 0)]
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return whole
    try:
        groups = row_groups(path)
    except Damaged:  # which says so itself when its rows are read
        return whole
    before = itertools.accumulate((rows for rows, _ in groups), initial=0)
    return [
        (table_part(part.name, partial(open_row_group, path, number), first, part), size)
        for number, ((_, size), first) in enumerate(zip(groups, before, strict=False))
    ] or whole


def _read_text(path: Path, compression: str, failures: float) -> object:
    """The whole file as one document."""
    try:
        if not compression and os.path.getsize(path) > DOCUMENT:
            return too_long()
        with decompressed(path, compression) as stream:
            return read_document(stream, failures)
    except Damaged as error:
        return malformed(str(path), error)


def fingerprint_of_files(files: Sequence[Path], column: str | None) -> str:
    """Of the files' bytes in order, how each is read, and the column where a file has columns."""
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        checksums = list(pool.map(_checksum, files))
    tabular = any(file.is_dir() or kind_of(file) in ("lists", "tables") for file in files)
    content = [(extensions(file), digest) for file, digest in zip(files, checksums, strict=True)]
    return hashlib.blake2b(repr((content, column if tabular else None)).encode(), digest_size=16).hexdigest()


def _checksum(path: Path) -> str:
    with reading(path):
        if path.is_dir():
            inner = sorted(file for file in path.rglob("*") if file.is_file())
            return repr([(str(file.relative_to(path)), checksum(file)) for file in inner])
        return checksum(path)


def fingerprint_of_values(values: Iterable[object]) -> str:
    """Of the values in order and their types."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        data = value.encode(errors="surrogatepass") if isinstance(value, str) else repr(value).encode()
        digest.update(f"{type(value).__name__} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()
