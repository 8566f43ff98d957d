"""Where images lie, encoded: files, tables, tar archives, data sets and Python objects, read at random."""

from __future__ import annotations

import bisect
import glob
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from selfsup.data.formats import Malformed, Values, file_part, reading
from selfsup.data.image_files import BadImage, Encoded
from selfsup.data.sources import load_from_hub, require_column, sample_file
from selfsup.errors import UserError

KINDS = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"), "images"),
    ".tar": "tar",
    **dict.fromkeys((".parquet", ".arrow"), "tables"),
    **dict.fromkeys((".csv", ".tsv", ".jsonl"), "lists"),
}
# Names under which these columns go, the likeliest first.
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "webp", "pixels", "bytes")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "filepath", "image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "cls")


class File(NamedTuple):
    """A file as it was found."""

    path: str
    size: int
    changed: int  # nanoseconds


@dataclass(frozen=True)
class Store:
    """Encoded images, read at random and by several threads at once.

    Attributes:
        read: an image by its number. Raises BadImage or OSError.
        place: what messages call it.
        labels: of each image, as the source has them: numbers, names or None; None where the source has no labels.
        classes: names of the numbers, where the source gives them.
        stamp: what changes whenever the images may have, in memory or on the disk; None where only reading tells.
    """

    name: str
    count: int
    read: Callable[[int], Encoded]
    place: Callable[[int], str]
    labels: Sequence[object] | None = None
    classes: tuple[str, ...] | None = None
    stamp: Callable[[], object] | None = None


def find_store(source: object, column: str | None, label: str | None, failures: float) -> Store:
    """What a source of images stands for; see `open_images`."""
    if isinstance(source, np.ndarray | list | tuple) and len(source):
        if all(isinstance(item, Path) for item in source):
            files = list(itertools.chain.from_iterable(_find(cast(Path, path)) for path in source))
            name = f"{source[0]} and {len(source) - 1} more" if source[1:] else str(source[0])
            return _of_files(name, sorted(set(files)), column, label, failures)
        return _of_objects(cast("Sequence[Any]", source))
    if isinstance(source, str) and source.startswith("sample:"):
        return _of_files(source, [_file(sample_file(source))], column, label, failures)
    if isinstance(source, str) and source.startswith("hub:"):
        return _of_dataset(source, load_from_hub(source), column, label)
    if isinstance(source, str | Path) and str(source):
        return _of_files(str(source), _find(Path(source).expanduser()), column, label, failures)
    if "datasets" in sys.modules and isinstance(source, sys.modules["datasets"].Dataset):
        return _of_dataset("the data set given from Python", source, column, label)
    raise UserError(
        f"A {type(source).__name__} is no image source: give a path, a non-empty list of PIL images, of uint8 arrays "
        "or of Path objects, or a datasets.Dataset."
    )


# -- files ---------------------------------------------------------------------------------------------------


def _find(path: Path) -> list[File]:
    """The readable files that a path, folder or glob stands for, sorted by path."""
    if path.is_file():
        if path.suffix.lower() not in KINDS:
            raise UserError(f"{path} is of no readable kind: selfsup reads images from {', '.join(KINDS)}.")
        return [_file(path)]
    if path.is_dir():
        found = sorted(_below(str(path)))
    elif any(sign in str(path) for sign in "*?["):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not matches:
            raise UserError(f"No file matches {path}: check the pattern.")
        found = sorted(
            {file for match in matches for file in (_below(str(match)) if match.is_dir() else [_file(match)])}
        )
    else:
        raise UserError(
            f"There is no file or folder {path}: check the path (a hub data set is hub:user/name)."
        )
    for kind in dict.fromkeys(
        KINDS.values()
    ):  # the first kind that is there: lists may describe the images beside them
        if files := [file for file in found if _kind(file) == kind]:
            return files
    raise UserError(f"{path} holds no file of a readable kind: selfsup reads images from {', '.join(KINDS)}.")


def _below(folder: str) -> Iterator[File]:
    """All files in a folder and the folders in it but hidden ones."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)
            elif entry.is_file() and _kind_of(entry.name):
                status = entry.stat()
                yield File(entry.path, status.st_size, status.st_mtime_ns)


def _file(path: Path) -> File:
    status = path.stat()
    return File(str(path), status.st_size, status.st_mtime_ns)


def _kind_of(name: str) -> str | None:
    return KINDS.get(os.path.splitext(name)[1].lower())


def _kind(file: File) -> str | None:
    return _kind_of(file.path)


def _of_files(name: str, files: list[File], column: str | None, label: str | None, failures: float) -> Store:
    kinds = {_kind(file) for file in files}
    if None in kinds:
        raise UserError(f"{name} holds no images; selfsup reads them from {', '.join(KINDS)}.")
    if len(kinds) > 1:
        raise UserError(f"{name} mixes {' and '.join(sorted(map(str, kinds)))}: give files of one kind.")
    kind = kinds.pop()
    if kind == "images":
        return _of_images(name, files)
    if kind == "tables":
        return _of_tables(name, files, column, label)
    if kind == "lists":
        return _of_lists(name, files, column, label, failures)
    return _of_archives(name, files, label)


def _of_images(name: str, files: list[File]) -> Store:
    """Files, of which the folder that one lies in is its class, where they lie in several and none above the others."""
    folders = [os.path.dirname(file.path) for file in files]
    distinct = set(folders)
    nested = len(distinct) > 1 and os.path.commonpath(distinct) not in distinct
    return Store(
        name,
        len(files),
        lambda index: _content(files[index].path),
        lambda index: files[index].path,
        labels=[os.path.basename(folder) for folder in folders] if nested else None,
        stamp=lambda: files,
    )


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


# -- lists of paths --------------------------------------------------------------------------------------------


def _of_lists(name: str, files: list[File], column: str | None, label: str | None, failures: float) -> Store:
    paths: list[str] = []
    labels: list[object] = []
    labelled = None
    for file in files:
        part = file_part(Path(file.path), failures)
        columns, rows = part.sample()
        wanted = _path_column(part.name, columns, rows, column)
        labelled = _label_column(part.name, columns, label)
        folder = os.path.dirname(file.path)
        for _, row in part.rows([wanted, *([labelled] if labelled else [])]):
            value = row if isinstance(row, Malformed) else row[wanted]
            paths.append(os.path.join(folder, value) if isinstance(value, str) else "")
            labels.append(None if labelled is None or isinstance(row, Malformed) else row.get(labelled))

    def read(index: int) -> bytes:
        if not paths[index]:
            raise BadImage("has no path")
        return _content(paths[index])

    return Store(
        name,
        len(paths),
        read,
        lambda index: paths[index] or f"{name}, record {index + 1}",
        labels=labels if labelled else None,
        stamp=lambda: (files, [os.stat(path)[6:9] if os.path.exists(path) else None for path in paths]),
    )


def _path_column(where: str, columns: Sequence[str], rows: Sequence[Values], wanted: str | None) -> str:
    if wanted is not None:
        require_column(where, columns, wanted)
        return wanted
    for name in PATH_COLUMNS:
        if name in columns:
            return name
    for name in columns:
        if rows and isinstance(rows[0].get(name), str) and _kind_of(str(rows[0][name])) == "images":
            return name
    raise UserError(
        f"{where} has no column of image paths, only {', '.join(columns)}: name the column to read."
    )


def _label_column(where: str, columns: Sequence[str], wanted: str | None) -> str | None:
    if wanted is not None:
        require_column(where, columns, wanted)
        return wanted
    return next((name for name in LABEL_COLUMNS if name in columns), None)


# -- parquet and Arrow -----------------------------------------------------------------------------------------


def _of_tables(name: str, files: list[File], column: str | None, label: str | None) -> Store:
    """Rows of parquet files, held in memory where they fit or else unpacked once into the cache; and of Arrow files."""
    paths = [Path(file.path) for file in files]
    with reading(name):
        schema = _schema(paths[0])
        wanted = _image_column(str(paths[0]), schema, column)
        labelled = _label_column(str(paths[0]), schema.names, label)
        names = [wanted, *([labelled] if labelled else [])]
        for path in paths[1:]:
            for needed in names:
                require_column(str(path), _schema(path).names, needed)
        tables = [_read_table(path, names) for path in paths]
    column_chunks = [chunk for table in tables for chunk in table.column(wanted).chunks]
    images = _Column(
        column_chunks,
        [path.parent for path, table in zip(paths, tables, strict=True) for _ in table.column(wanted).chunks],
    )
    starts = list(itertools.accumulate((len(table) for table in tables), initial=0))

    def place(index: int) -> str:
        part = bisect.bisect_right(starts, index) - 1
        return f"{paths[part]}, row {index - starts[part] + 1}"

    labels = None
    if labelled:
        labels = list(itertools.chain.from_iterable(table.column(labelled).to_pylist() for table in tables))
    return Store(
        name,
        starts[-1],
        images.read,
        place,
        labels=labels,
        classes=_class_names(schema, labelled),
        stamp=lambda: (files, wanted),
    )


class _Column:
    """A column of images in Arrow's memory: bytes, paths, or the hub's struct of both."""

    def __init__(self, chunks: list[Any], folders: list[Path]) -> None:
        self._folders = folders
        self._starts = list(itertools.accumulate((len(chunk) for chunk in chunks), initial=0))
        self._fields = [_fields(chunk) for chunk in chunks]

    def read(self, index: int) -> bytes:
        part = bisect.bisect_right(self._starts, index) - 1
        content, path = (
            None if field is None else field[index - self._starts[part]].as_py()
            for field in self._fields[part]
        )
        if content is not None:
            return cast(bytes, content)
        if path is None:
            raise BadImage("is null")
        return _content(os.path.join(self._folders[part], path))


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


def _image_column(where: str, schema: Any, wanted: str | None) -> str:
    if wanted is not None:
        require_column(where, schema.names, wanted)
        kind = schema.field(wanted).type
        if not _is_image(kind) and not pa.types.is_string(kind):
            raise UserError(f"The column {wanted!r} of {where} holds {kind}, no images: name another one.")
        return wanted
    images = [field.name for field in schema if _is_image(field.type)]
    if images:
        return next((usual for usual in IMAGE_COLUMNS if usual in images), images[0])
    raise UserError(
        f"{where} has no column of images, only {', '.join(schema.names)}: name the column to read."
    )


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """The names that the hub's metadata give the numbers of a label column."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(label, {})
    return tuple(feature["names"]) if feature.get("_type") == "ClassLabel" and "names" in feature else None


def _schema(path: Path) -> Any:
    if path.suffix.lower() == ".parquet":
        return pq.read_schema(path)
    with _arrow_reader(path) as reader:
        return reader.schema


def _read_table(path: Path, columns: list[str]) -> Any:
    if path.suffix.lower() == ".parquet":
        return pq.read_table(path, columns=columns)
    return _arrow_reader(path).read_all().select(columns)


def _arrow_reader(path: Path) -> Any:
    """An Arrow file, or the stream that the datasets library writes, mapped into memory."""
    memory = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(memory)
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(memory)


# -- data sets and Python --------------------------------------------------------------------------------------


def _of_dataset(name: str, dataset: Any, column: str | None, label: str | None) -> Store:
    schema = dataset.features.arrow_schema
    wanted = _image_column(name, schema, column)
    labelled = _label_column(name, schema.names, label)
    rows = dataset.select_columns([wanted]).with_format("arrow")

    def read(index: int) -> bytes:
        return _Column(rows[index].column(wanted).chunks, [Path()]).read(0)

    return Store(
        name,
        len(dataset),
        read,
        lambda index: f"{name}, row {index + 1}",
        labels=dataset.with_format(None)[labelled][:] if labelled else None,
        classes=_class_names(schema, labelled),
    )


def _of_objects(images: Sequence[Any]) -> Store:
    name = f"the list of {len(images)} images"
    for number, image in enumerate(images, 1):
        if not isinstance(image, Image.Image | np.ndarray | bytes):
            raise UserError(
                f"Image {number} of {name} is a {type(image).__name__}: give PIL images, uint8 arrays or bytes."
            )
    return Store(name, len(images), lambda index: images[index], lambda index: f"image {index + 1}")


# -- archives --------------------------------------------------------------------------------------------------


def _of_archives(name: str, files: list[File], label: str | None) -> Store:
    raise NotImplementedError
