"""Images in columns: of parquet and Arrow files, and of the data sets of the hub."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from selfsup.data.cache import kept_file
from selfsup.data.formats import BATCH_ROWS, is_text, reading
from selfsup.data.image_captions import Captions, caption_columns, captions_in
from selfsup.data.image_files import BadImage
from selfsup.data.image_stores import FORMAT, SHARE, Columns, File, Progress, Store, kind_of, label_column
from selfsup.data.sources import require_column
from selfsup.errors import UserError
from selfsup.machine import free_memory

IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "webp", "pixels", "bytes")  # usual names


def open_tables(name: str, files: list[File], columns: Columns, progress: Progress) -> Store:
    """Rows of parquet files, in memory where there is room or else unpacked once into the cache; and of Arrow files."""
    first = Path(files[0].path)
    schema = schema_of(first)
    wanted, labelled, captioned = _found(str(first), schema, columns)
    names = list(dict.fromkeys([wanted, *([labelled] if labelled else []), *captioned]))
    tables = _read(files, names, progress)
    starts = list(itertools.accumulate(map(len, tables), initial=0))
    chunks = [
        (chunk, Path(file.path).parent)
        for file, table in zip(files, tables, strict=True)
        for chunk in table.column(wanted).chunks
    ]

    def place(index: int) -> str:
        part = bisect.bisect_right(starts, index) - 1
        return f"{files[part].path}, row {index - starts[part] + 1}"

    labels = [value for table in tables for value in table.column(labelled).to_pylist()] if labelled else None
    return Store(
        name,
        starts[-1],
        _Column(chunks).read,
        place,
        labels=labels,
        classes=_class_names(schema, labelled),
        stamp=lambda: (wanted, *files),
        captions=_captions(zip((file.path for file in files), tables, strict=True), captioned),
    )


def _found(where: str, schema: Any, columns: Columns) -> tuple[str, str | None, Sequence[str]]:
    """The columns of images, of classes and of captions."""
    wanted = _image_column(where, schema, columns.content)
    labelled = label_column(where, schema.names, columns.label)
    texts = [field.name for field in schema if _holds_text(field.type)]
    return wanted, labelled, caption_columns(where, schema.names, texts, (wanted, labelled), columns.captions)


def _read(files: list[File], columns: list[str], progress: Progress) -> list[Any]:
    """The columns of each file, as Arrow tables."""
    room = free_memory(torch.device("cpu")) // SHARE
    fits = sum(_unpacked_size(file, columns) for file in files) <= room
    tables = []
    for number, file in enumerate(files):
        for column in columns:
            require_column(file.path, schema_of(Path(file.path)).names, column)
        path = Path(file.path)
        if not fits and _is_parquet(path):
            path = kept_file(
                "images", ".arrow", ("unpacked", FORMAT, columns, file), partial(_unpack, path, columns)
            )
            progress(number + 1, len(files))
        with reading(path):
            whole = pq.read_table(path, columns=columns) if _is_parquet(path) else _reader(path).read_all()
            tables.append(whole.select(columns))
    return tables


def _unpacked_size(file: File, columns: list[str]) -> int:
    """Bytes that the columns take in memory; an Arrow file is mapped and takes none."""
    path = Path(file.path)
    if not _is_parquet(path):
        return 0
    with reading(path), pq.ParquetFile(path) as parquet:
        groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
    parts = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)


def _unpack(path: Path, columns: list[str], target: Path) -> None:
    """Write columns of a parquet file, whose rows only come in groups, so that each can be read by itself."""
    with reading(path), pq.ParquetFile(path) as parquet:
        schema = pa.schema([parquet.schema_arrow.field(column) for column in columns])
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=columns):
                writer.write_batch(batch.select(columns))


class _Column:
    """A column of images in Arrow's memory: bytes, paths, or the hub's struct of both; paths lie in given folders."""

    def __init__(self, chunks: list[tuple[Any, Path]]) -> None:
        self._parts = [(*_fields(chunk), folder) for chunk, folder in chunks]
        self._starts = list(itertools.accumulate((len(chunk) for chunk, _ in chunks), initial=0))

    def read(self, index: int) -> bytes:
        part = bisect.bisect_right(self._starts, index) - 1
        contents, paths, folder = self._parts[part]
        row = index - self._starts[part]
        content = None if contents is None else contents[row].as_py()
        if content is not None:
            return cast(bytes, content)
        path = None if paths is None else paths[row].as_py()
        if path is None:
            raise BadImage("it is null")
        return Path(folder, path).read_bytes()


def _fields(chunk: Any) -> tuple[Any, Any]:
    """The bytes and the paths of a chunk, None for the one it lacks."""
    if pa.types.is_struct(chunk.type):
        fields = dict(zip((field.name for field in chunk.type), chunk.flatten(), strict=True))
        return fields.get("bytes"), fields.get("path")
    return (chunk, None) if _is_binary(chunk.type) else (None, chunk)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image(kind: Any) -> bool:
    return _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def has_images(schema: Any, column: str | None = None) -> bool:
    """Whether a column of an Arrow schema, or the one named, holds images."""
    return any(_is_image(field.type) for field in schema if column in (None, field.name))


def _image_column(where: str, schema: Any, wanted: str | None) -> str:
    if wanted is not None:
        require_column(where, schema.names, wanted)
        kind = schema.field(wanted).type
        of_paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not _is_image(kind) and not of_paths:
            raise UserError(f"The column {wanted!r} of {where} holds {kind}, no images: name another one.")
        return wanted
    images = [field.name for field in schema if _is_image(field.type)]
    if images:
        return next((usual for usual in IMAGE_COLUMNS if usual in images), images[0])
    raise UserError(
        f"{where} has no column of images, only {', '.join(schema.names)}: name the column to read."
    )


def _is_list(kind: Any) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def _holds_text(kind: Any) -> bool:
    """Whether a type is of texts or of lists of texts."""
    return is_text(str(kind)) or (_is_list(kind) and is_text(str(kind.value_type)))


def _captions(tables: Iterable[tuple[str, Any]], columns: Sequence[str]) -> Captions | None:
    """The captions in all rows of tables, each of which goes by a name."""

    def rows() -> Iterator[list[str]]:
        for where, table in tables:
            values = [_texts(where, column, table.column(column)) for column in columns]
            for row in zip(*values, strict=True):
                yield [caption for value in row for caption in captions_in(value)]

    return Captions.of(rows()) if columns else None


def _texts(where: str, name: str, column: Any) -> list[object]:
    """The values of a column, texts as bytes, since Arrow would raise for one that is not UTF-8."""
    if not _holds_text(column.type):
        raise UserError(f"The column {name!r} of {where} holds {column.type}, no captions: name another one.")
    content = pa.large_binary()
    values = column.cast(pa.large_list(content) if _is_list(column.type) else content)
    return cast("list[object]", values.to_pylist())


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """The names that the hub's metadata give the numbers of a label column."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(label)
    named = isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    return tuple(feature["names"]) if named else None


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def schema_of(path: Path) -> Any:
    """The Arrow schema of a parquet or Arrow file."""
    with reading(path):
        return pq.read_schema(path) if _is_parquet(path) else _reader(path).schema


def names_images(path: Path, column: str) -> bool:
    """Whether the first value of a column of a parquet or Arrow file is the name of an image file."""
    if column not in schema_of(path).names:
        return False
    with reading(path):
        if _is_parquet(path):
            rows = next(pq.ParquetFile(path).iter_batches(1, columns=[column]), None)
        else:
            rows = _reader(path).read_all().select([column])
        value = rows[column][0].as_py() if rows else None
    return isinstance(value, str) and kind_of(value) == "images"


def _reader(path: Path) -> Any:
    """An Arrow file, or the stream that the datasets library writes, mapped into memory."""
    memory = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(memory)
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(memory)


def open_dataset(name: str, dataset: Any, columns: Columns) -> Store:
    """A `datasets.Dataset`, whose images it keeps encoded or as paths."""
    schema = dataset.features.arrow_schema
    wanted, labelled, captioned = _found(name, schema, columns)
    rows = dataset.select_columns([wanted]).with_format("arrow")

    def read(index: int) -> bytes:
        return _Column([(rows[index].column(wanted).chunk(0), Path())]).read(0)

    texts = dataset.select_columns(list(captioned)).with_format("arrow")[:] if captioned else None

    return Store(
        name,
        len(dataset),
        read,
        lambda index: f"{name}, row {index + 1}",
        labels=dataset.with_format(None)[labelled][:] if labelled else None,
        classes=_class_names(schema, labelled),
        captions=_captions([(name, texts)], captioned),
    )
