"""Images in columns: of tables on the disk, of the data sets of the hub, and of data frames."""

from __future__ import annotations

import bisect
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch

from selfsup.data.arrow_files import ArrowFile, checked_batches, open_arrow
from selfsup.data.cache import kept_file
from selfsup.data.columns import NAME_IT, require_column
from selfsup.data.discovery import File
from selfsup.data.formats import is_text
from selfsup.data.image_captions import Captions, caption_columns, captions_in
from selfsup.data.image_files import MOST_BYTES, BadImage
from selfsup.data.image_stores import (
    FORMAT,
    PATH_COLUMNS,
    SHARE,
    Columns,
    Damage,
    Progress,
    Store,
    kind_of,
    label_column,
    named,
)
from selfsup.errors import Damaged, UserError
from selfsup.files import read_bytes
from selfsup.machine import free_memory

IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "webp", "pixels", "bytes")  # usual names


@dataclass(frozen=True)
class _Part:
    """Rows of a table, as record batches, with the name that messages call it by and the folder of its paths."""

    name: str
    folder: str
    batches: list[Any]


@dataclass(frozen=True)
class _Found:
    """The columns of images, of classes and of captions."""

    images: str
    label: str | None
    captions: Sequence[str]

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([self.images, *([self.label] if self.label else []), *self.captions]))


def open_tables(name: str, files: list[File], columns: Columns, failures: float, progress: Progress) -> Store:
    """Rows of tables: where they lie mapped, else in memory where there is room, else unpacked once into the cache."""
    damage, tables = Damage(failures), []
    for file in files:
        with damage.allowed(file.path):
            tables.append((file, open_arrow(Path(file.path))))
    if not tables:
        return Store(name, 0, lambda _: b"", str, damaged=damage.found)
    first = tables[0][1]
    found = _find(str(first.path), first.schema, columns, lambda: _first(first))
    room = free_memory(torch.device("cpu")) // SHARE
    parts = []
    for number, (file, table) in enumerate(tables):
        with damage.allowed(file.path):
            parts.append(_Part(file.path, str(table.path.parent), _batches(file, table, found.all, room)))
            room -= 0 if table.mapped else sum(batch.nbytes for batch in parts[-1].batches)
        progress(number + 1, len(files))
    stamp: list[object] = [found.images, *((file, table.rows, table.size) for file, table in tables)]
    return replace(_store(name, first.schema, parts, found, stamp), damaged=damage.found)


def _batches(file: File, table: ArrowFile, columns: list[str], room: int) -> list[Any]:
    for column in columns:
        require_column(file.path, table.schema.names, column)
    batches = _held(table, columns, room)
    return _unpacked(file, table, columns) if batches is None else batches


def open_frame(frame: Any, columns: Columns) -> Store:
    """A data frame or a table from Python, by Arrow's interface for such."""
    name, schema, batches = _frame(frame)
    found = _find(name, schema, columns, lambda: batches[:1])
    return _store(name, schema, [_Part(name, "", batches)], found, None)


def _frame(frame: Any) -> tuple[str, Any, list[Any]]:
    """Name, schema and rows of a data frame."""
    name = "the table given from Python"
    try:
        table = pa.table(frame)
        return name, table.schema, list(checked_batches(table.to_batches()))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"{name} cannot be read as columns of Arrow ({error}): give the images as bytes or paths."
        ) from error


def _store(name: str, schema: Any, parts: list[_Part], found: _Found, stamp: list[object] | None) -> Store:
    counts = [sum(batch.num_rows for batch in part.batches) for part in parts]
    starts = list(itertools.accumulate(counts, initial=0))

    def place(index: int) -> str:
        part = bisect.bisect_right(starts, index) - 1
        return f"{parts[part].name}, row {index - starts[part] + 1}"

    batches = [(part.name, batch) for part in parts for batch in part.batches]
    images = [(batch.column(found.images), part.folder) for part in parts for batch in part.batches]
    return Store(
        name,
        starts[-1],
        _Images(images).read,
        place,
        labels=[value for _, batch in batches for value in _plain(batch.column(found.label))]
        if found.label
        else None,
        classes=_class_names(schema, found.label),
        stamp=None if stamp is None else lambda: stamp,
        captions=_captions(batches, found.captions),
    )


def _find(where: str, schema: Any, columns: Columns, first: Callable[[], list[Any]]) -> _Found:
    """The columns of images, of classes and of captions; `first` gives first rows, for what their names leave open."""
    images = _image_column(where, schema, columns.content, first)
    label = label_column(where, schema.names, columns.label)
    texts = [field.name for field in schema if _holds_text(field.type)]
    return _Found(
        images, label, caption_columns(where, schema.names, texts, (images, label), columns.captions)
    )


def _first(table: ArrowFile) -> list[Any]:
    """The texts of the first rows."""
    texts = [field.name for field in table.schema if _is_text(field.type)]
    return list(itertools.islice(table.batches(texts), 1)) if texts else []


def _held(table: ArrowFile, columns: list[str], room: int) -> list[Any] | None:
    """All batches of a table, None where they take more memory than there is room."""
    batches = []
    for batch in table.batches(columns):
        batches.append(batch)
        room -= 0 if table.mapped else batch.nbytes
        if room < 0:
            return None
    return batches


def _unpacked(file: File, table: ArrowFile, columns: list[str]) -> list[Any]:
    """All batches of a table, mapped from a copy in the cache that each row can be read of by itself."""

    def unpack(target: Path) -> None:
        schema = pa.schema([table.schema.field(column) for column in columns])
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in table.batches(columns):
                writer.write_batch(batch)

    key = ("unpacked", FORMAT, columns, file, table.size)
    path = kept_file("images", "columns.arrow", key, unpack)
    return list(open_arrow(path).batches(columns))


class _Images:
    """A column of images in Arrow's memory: bytes, paths, or the hub's struct of both; paths lie in given folders."""

    def __init__(self, chunks: list[tuple[Any, str]]) -> None:
        self._chunks = chunks
        self._starts = list(itertools.accumulate((len(chunk) for chunk, _ in chunks), initial=0))

    def read(self, index: int) -> bytes:
        part = bisect.bisect_right(self._starts, index) - 1
        chunk, folder = self._chunks[part]
        return _content(chunk[index - self._starts[part]], folder)


def _content(scalar: Any, folder: str) -> bytes:
    """The bytes of an image, from a value of a column of images."""
    while isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
        scalar = scalar.value
    if scalar is None or not scalar.is_valid:
        raise BadImage("it is null")
    if isinstance(scalar, pa.StructScalar):
        fields = dict(zip((field.name for field in scalar.type), scalar.values(), strict=True))
        content = fields["bytes"] if fields["bytes"].is_valid else fields.get("path")
        return _content(content, folder)
    content = scalar.as_buffer()
    if _is_text(scalar.type):
        return read_bytes(os.path.join(folder, os.fsdecode(content.to_pybytes())), MOST_BYTES)
    if content.size > MOST_BYTES:
        raise BadImage(f"it has more than {MOST_BYTES:,} bytes")
    return cast(bytes, content.to_pybytes())


def _values(kind: Any) -> Any:
    """The type of the values of a dictionary or of an extension, else the type itself."""
    if isinstance(kind, pa.DictionaryType):
        return _values(kind.value_type)
    return _values(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _is_text(kind: Any) -> bool:
    return str(_values(kind)) in ("string", "large_string", "string_view")


def _is_binary(kind: Any) -> bool:
    return str(_values(kind)) in ("binary", "large_binary", "binary_view")


def _is_image(kind: Any) -> bool:
    kind = _values(kind)
    if not isinstance(kind, pa.StructType):
        return _is_binary(kind)
    fields = {field.name: field.type for field in kind}
    return "bytes" in fields and (_is_binary(fields["bytes"]) or pa.types.is_null(fields["bytes"]))


def has_images(schema: Any, column: str | None = None) -> bool:
    """Whether a column of an Arrow schema, or the one named, holds images."""
    return any(_is_image(field.type) for field in schema if column in (None, field.name))


def _image_column(where: str, schema: Any, wanted: str | None, first: Callable[[], list[Any]]) -> str:
    if wanted is not None:
        if schema.names.count(wanted) != 1:
            raise Damaged(f"{where} has no column {wanted!r}: choose one of {named(schema.names)}.")
        kind = schema.field(wanted).type
        if not _is_image(kind) and not _is_text(kind):
            raise UserError(f"The column {wanted!r} of {where} holds {kind}, no images: name another one.")
        return wanted
    images = [field.name for field in schema if _is_image(field.type)] or _path_columns(schema, first())
    if images:
        return next((usual for usual in (*IMAGE_COLUMNS, *PATH_COLUMNS) if usual in images), images[0])
    raise UserError(f"{where} has no column of images, only {named(schema.names)}: {NAME_IT}.")


def _path_columns(schema: Any, first: list[Any]) -> list[str]:
    """The columns whose first value is the name of an image file."""
    return [
        field.name
        for field in schema
        for batch in first
        if _is_text(field.type) and batch.num_rows and _names_image(batch.column(field.name))
    ]


def _names_image(column: Any) -> bool:
    value = _plain(column.slice(0, 1))[0]
    return isinstance(value, str) and kind_of(value) == "images"


def names_images(path: Path, column: str) -> bool:
    """Whether the first value of a column of a table is the name of an image file."""
    table = open_arrow(path)
    return column in _path_columns(table.schema, _first(table))


def holds_images(frame: Any, column: str | None) -> bool:
    """Whether a column of a data frame or table from Python, or the one named, holds images or names image files."""
    _, schema, batches = _frame(frame)
    return has_images(schema, column) or any(
        column in (None, found) for found in _path_columns(schema, batches[:1])
    )


def _plain(column: Any) -> list[object]:
    """The values of a column; in texts, what is no UTF-8 is replaced, where Arrow would raise."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if not _is_text(column.type):
        return cast("list[object]", column.to_pylist())
    values = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode(errors="replace") for value in values]


def _is_list(kind: Any) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def _holds_text(kind: Any) -> bool:
    """Whether a type is of texts or of lists of texts."""
    return _is_text(kind) or (_is_list(kind) and is_text(str(kind.value_type)))


def _captions(batches: Iterable[tuple[str, Any]], columns: Sequence[str]) -> Captions | None:
    """The captions in all rows of batches, each of a table that goes by a name."""

    def rows() -> Iterator[list[str]]:
        for where, batch in batches:
            values = [_texts(where, column, batch.column(column)) for column in columns]
            for row in zip(*values, strict=True):
                yield [caption for value in row for caption in captions_in(value)]

    return Captions.of(rows()) if columns else None


def _texts(where: str, name: str, column: Any) -> list[object]:
    """The values of a column, texts as bytes, since Arrow would raise for one that is not UTF-8."""
    if not _holds_text(column.type):
        raise UserError(f"The column {name!r} of {where} holds {column.type}, no captions: name another one.")
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    content = pa.large_binary()
    values = column.cast(pa.large_list(content) if _is_list(column.type) else content)
    return cast("list[object]", values.to_pylist())


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


def open_dataset(name: str, dataset: Any, columns: Columns) -> Store:
    """A `datasets.Dataset`, whose images it keeps encoded or as paths."""
    schema = dataset.features.arrow_schema
    texts = [field.name for field in schema if _is_text(field.type)]
    rows = dataset.with_format("arrow")
    found = _find(name, schema, columns, lambda: rows.select_columns(texts)[:1].to_batches() if texts else [])
    images = rows.select_columns([found.images])

    def read(index: int) -> bytes:
        return _content(images[index].column(found.images)[0], "")

    captions = rows.select_columns(list(found.captions))[:].to_batches() if found.captions else []
    return Store(
        name,
        len(dataset),
        read,
        lambda index: f"{name}, row {index + 1}",
        labels=dataset.with_format(None)[found.label][:] if found.label else None,
        classes=_class_names(schema, found.label),
        captions=_captions([(name, batch) for batch in captions], found.captions),
    )
