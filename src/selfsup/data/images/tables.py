"""Images in columns: of tables on the disk, of the data sets of the hub, and of data frames."""

from __future__ import annotations

import bisect
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from selfsup.data.arrow_files import ArrowFile, open_arrow
from selfsup.data.arrow_records import images_in, is_text, rows_of_batch, sample_of_table, texts_in
from selfsup.data.cache import kept_file
from selfsup.data.columns import Chosen, Wanted, image_columns, path_columns, require_column
from selfsup.data.discovery import File
from selfsup.data.images.captions import Captions, captions_in
from selfsup.data.images.decoding import MOST_BYTES, BadImage
from selfsup.data.images.stores import FORMAT, SHARE, Store
from selfsup.data.tally import Tally
from selfsup.errors import Damaged
from selfsup.files import read_bytes
from selfsup.machine import free_memory
from selfsup.report import Progress


class _Rows(NamedTuple):
    """Rows of a table, as record batches, with the name that messages call it by and the folder of its paths."""

    name: str
    folder: str
    batches: list[Any]

    @property
    def length(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


def open_tables(name: str, files: list[File], wanted: Wanted, tally: Tally, progress: Progress) -> Store:
    """Rows of tables: where they lie mapped, else in memory where there is room, else unpacked once into the cache."""
    tables = []
    for file in files:
        with tally.allowed(file.path):
            tables.append((file, open_arrow(Path(file.path))))
    if not tables:
        return Store(name, 0, str)
    first = tables[0][1]
    chosen = image_columns(str(first.path), sample_of_table(first), wanted)
    _require_kinds(first, chosen)
    room = free_memory(torch.device("cpu")) // SHARE
    parts: list[_Rows] = []
    for number, (file, table) in enumerate(tables):
        with tally.allowed(file.path):
            _require_kinds(table, chosen)
            batches = _batches(file, table, chosen.all, room)
            parts.append(_Rows(file.path, str(table.path.parent), batches))
            room -= 0 if table.mapped else sum(batch.nbytes for batch in batches)
        progress(number + 1, len(files))
    stamp = [chosen.images, *((file, table.rows, table.size) for file, table in tables)]
    return _store(name, first, chosen, parts, _contents(parts, chosen.images), lambda: stamp)


def open_table(name: str, table: ArrowFile, wanted: Wanted) -> Store:
    """A table from Python: a data frame, which is kept, or a data set, whose images are read one by one."""
    chosen = image_columns(name, sample_of_table(table), wanted)
    _require_kinds(table, chosen)
    if (at := table.at) is None:
        parts = [_Rows(name, "", list(table.batches(chosen.all)))]
        return _store(name, table, chosen, parts, _contents(parts, chosen.images))
    parts = [_Rows(name, "", list(table.batches(chosen.beside)) if chosen.beside else [])]
    return _store(name, table, chosen, parts, lambda index: _content(at(chosen.images, index), ""))


def holds_images(table: ArrowFile, column: str | None, paths: bool) -> bool:
    """Whether a column of a table, or the one named, holds images or, with `paths`, names image files."""
    found = [*images_in(table.schema), *(path_columns(sample_of_table(table)) if paths else [])]
    return any(column in (None, name) for name in found)


def _require_kinds(table: ArrowFile, chosen: Chosen) -> None:
    """Raise where a column is missing, or holds something else than it is read for."""
    kinds = {field.name: field.type for field in table.schema}
    for column in chosen.all:
        require_column(str(table.path), list(kinds), column)
    wrong = {name: "captions" for name in chosen.captions if name not in texts_in(table.schema)}
    if chosen.images not in images_in(table.schema) and not is_text(kinds.get(chosen.images)):
        wrong[chosen.images] = "images"
    for name, what in wrong.items():
        holds = f"{table.path} holds {kinds.get(name)}"
        raise Damaged(f"The column {name!r} of {holds}, no {what}: name another one.")


def _store(
    name: str,
    table: ArrowFile,
    chosen: Chosen,
    parts: Sequence[_Rows],
    content: Callable[[int], bytes],
    stamp: Callable[[], Sequence[object]] | None = None,
) -> Store:
    starts = list(itertools.accumulate((part.length for part in parts), initial=0))

    def place(index: int) -> str:
        part = min(bisect.bisect_right(starts, index), len(parts)) - 1
        return f"{parts[part].name}, row {index - starts[part] + 1}"

    def values(columns: Sequence[str]) -> Iterator[list[object]]:
        batches = (batch.select(columns) for part in parts for batch in part.batches)
        return (list(row.values()) for batch in batches for row in rows_of_batch(batch))

    captions = (
        [caption for value in row for caption in captions_in(value)] for row in values(chosen.captions)
    )
    return Store(
        name,
        starts[-1] if table.at is None else table.rows,
        place,
        content=content,
        labels=[value for (value,) in values([chosen.label])] if chosen.label else None,
        classes=_class_names(table.schema, chosen.label),
        captions=Captions.of(captions) if chosen.captions else None,
        stamp=stamp,
        column=chosen.told(table.schema.names),
    )


def _batches(file: File, table: ArrowFile, columns: list[str], room: int) -> list[Any]:
    held = []
    for batch in table.batches(columns):
        held.append(batch)
        room -= 0 if table.mapped else batch.nbytes
        if room < 0:
            return _unpacked(file, table, columns)
    return held


def _unpacked(file: File, table: ArrowFile, columns: list[str]) -> list[Any]:
    """All batches of a table, mapped from a copy in the cache that each row can be read of by itself."""

    def unpack(target: Path) -> None:
        schema = pa.schema([table.schema.field(column) for column in columns])
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in table.batches(columns):
                writer.write_batch(batch)

    key = ("unpacked", FORMAT, columns, file, table.size)
    return list(open_arrow(kept_file("images", "columns.arrow", key, unpack)).batches(columns))


def _contents(parts: Sequence[_Rows], column: str) -> Callable[[int], bytes]:
    """What reads the images in a column of batches: bytes, paths, or the hub's struct of both."""
    chunks = [(batch.column(column), part.folder) for part in parts for batch in part.batches]
    starts = list(itertools.accumulate((len(chunk) for chunk, _ in chunks), initial=0))

    def read(index: int) -> bytes:
        number = bisect.bisect_right(starts, index) - 1
        chunk, folder = chunks[number]
        return _content(chunk[index - starts[number]], folder)

    return read


def _content(scalar: Any, folder: str) -> bytes:
    """The bytes of an image, from a value of a column of images."""
    while isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
        scalar = scalar.value
    if scalar is None or not scalar.is_valid:
        raise BadImage("it is null")
    if isinstance(scalar, pa.StructScalar):
        fields = dict(zip((field.name for field in scalar.type), scalar.values(), strict=True))
        return _content(fields["bytes"] if fields["bytes"].is_valid else fields.get("path"), folder)
    content = scalar.as_buffer()
    if is_text(scalar.type):
        return read_bytes(os.path.join(folder, os.fsdecode(content.to_pybytes())), MOST_BYTES)
    if content.size > MOST_BYTES:
        raise BadImage(f"it has more than {MOST_BYTES:,} bytes")
    return bytes(content.to_pybytes())


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """The names that the hub's metadata give the numbers of a label column, as far as they are sound."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) or None
