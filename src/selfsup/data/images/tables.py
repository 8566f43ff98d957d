"""Images in columns: of tables on the disk, of the data sets of the hub, and of data frames."""

from __future__ import annotations

import bisect
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
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
from selfsup.data.origins import Origin
from selfsup.data.tally import Tally
from selfsup.errors import Damaged
from selfsup.files import read_bytes
from selfsup.machine import free_memory
from selfsup.report import Progress


class _Batch(NamedTuple):
    """Rows of a table: its name in messages, the folder of its paths, the rows before these, and a record batch."""

    name: str
    folder: str
    before: int
    rows: Any


def open_tables(origin: Origin, wanted: Wanted, tally: Tally, progress: Progress) -> Store:
    """Rows of tables: where they lie mapped, else in memory where there is room, else unpacked once into the cache."""
    tables, files = [], origin.files
    for file in files:
        with tally.allowed(file.path):
            tables.append((file, open_arrow(Path(file.path))))
    if not tables:
        return Store(origin.name, 0, str)
    first = tables[0][1]
    chosen = image_columns(str(first.path), sample_of_table(first), wanted)
    _require_kinds(first, chosen)
    room = free_memory(torch.device("cpu")) // SHARE
    batches: list[_Batch] = []
    for number, (file, table) in enumerate(tables):
        with tally.allowed(file.path):
            _require_kinds(table, chosen)
            rows = _within(room, file, table, chosen.all)
            batches += _batches(file.path, str(table.path.parent), rows)
            room -= 0 if table.mapped else sum(batch.nbytes for batch in rows)
        progress(number + 1, len(files))
    stamp = [chosen.images, *((file, table.rows, table.size) for file, table in tables)]
    return replace(_store(origin.name, first, chosen, batches), stamp=lambda: stamp)


def open_table(name: str, table: ArrowFile, wanted: Wanted) -> Store:
    """A table from Python: a data frame, which is kept, or a data set, whose images are read one by one."""
    chosen = image_columns(name, sample_of_table(table), wanted)
    _require_kinds(table, chosen)
    columns = chosen.all if table.at is None else chosen.beside
    store = _store(name, table, chosen, _batches(name, "", table.batches(columns) if columns else []))
    if (at := table.at) is None:
        return store
    return replace(
        store,
        count=table.rows,
        place=lambda index: f"{name}, row {index + 1}",
        content=lambda index: _content(at(chosen.images, index), ""),
    )


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


def _batches(name: str, folder: str, batches: Iterable[Any]) -> list[_Batch]:
    held = list(batches)
    before = itertools.accumulate((rows.num_rows for rows in held), initial=0)
    return [_Batch(name, folder, *rows) for rows in zip(before, held, strict=False)]


def _store(name: str, table: ArrowFile, chosen: Chosen, batches: Sequence[_Batch]) -> Store:
    """The images in batches: bytes, paths, or the hub's struct of both."""
    starts = list(itertools.accumulate((batch.rows.num_rows for batch in batches), initial=0))

    def find(index: int) -> tuple[_Batch, int]:
        number = bisect.bisect_right(starts, index) - 1
        return batches[number], index - starts[number]

    def place(index: int) -> str:
        batch, row = find(index)
        return f"{batch.name}, row {batch.before + row + 1}"

    def content(index: int) -> bytes:
        batch, row = find(index)
        return _content(batch.rows.column(chosen.images)[row], batch.folder)

    def values(columns: Sequence[str]) -> Iterator[list[object]]:
        selected = (batch.rows.select(columns) for batch in batches)
        return (list(row.values()) for rows in selected for row in rows_of_batch(rows))

    captions = ([text for value in row for text in captions_in(value)] for row in values(chosen.captions))
    return Store(
        name,
        starts[-1],
        place,
        content=content,
        labels=[value for (value,) in values([chosen.label])] if chosen.label else None,
        classes=_class_names(table.schema, chosen.label),
        captions=Captions.of(captions) if chosen.captions else None,
        column=chosen.told(table.schema.names),
    )


def _within(room: int, file: File, table: ArrowFile, columns: list[str]) -> list[Any]:
    """All batches of a table in memory; where so many bytes do not hold them, mapped from a copy in the cache."""
    held = []
    for batch in table.batches(columns):
        held.append(batch)
        room -= 0 if table.mapped else batch.nbytes
        if room < 0:
            return _unpacked(file, table, columns)
    return held


def _unpacked(file: File, table: ArrowFile, columns: list[str]) -> list[Any]:
    def unpack(target: Path) -> None:
        schema = pa.schema([table.schema.field(column) for column in columns])
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in table.batches(columns):
                writer.write_batch(batch)

    key = ("unpacked", FORMAT, columns, file, table.size)
    return list(open_arrow(kept_file("images", "columns.arrow", key, unpack)).batches(columns))


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
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None
