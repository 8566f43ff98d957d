"""Images in tar archives, in WebDataset's layout or any other, read where they lie."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from selfsup.data.cache import kept_table
from selfsup.data.formats import Values
from selfsup.data.image_captions import Captions, captions_by_name, captions_in, captions_in_file
from selfsup.data.image_stores import (
    FORMAT,
    LABEL_COLUMNS,
    Columns,
    File,
    Span,
    Store,
    folders,
    kind_of,
    of_spans,
)
from selfsup.errors import UserError

LONG = 1 << 30  # bytes: whoever goes through archives of more should do it once


def open_archives(name: str, files: list[File], columns: Columns) -> Store:
    """The images in tar files, read where they lie; what lies where is kept for archives that take long to go through.

    An image is a record, but for one with two extensions (`a.seg.png`) beside one with a single (`a.jpg`), unless
    the columns name its extension. Its class is in the file of the same name with `.cls`, or in the JSON of its
    `.json`, or else the name of its folder; its captions are in a file of the same name or in that JSON.
    """

    def build() -> Any:
        rows = [row for number, file in enumerate(files) for row in _members(file.path, number, columns)]
        return pa.Table.from_pylist(rows, _MEMBERS)

    if sum(file.size for file in files) < LONG:
        table = build()
    else:
        table = kept_table("images", ("archives", FORMAT, columns, *files), build)
    parts, starts, sizes = (table.column(field).to_numpy() for field in ("archive", "start", "size"))
    names = table.column("name").to_pylist()
    labels = table.column("label").to_pylist()
    captions = None if columns.captions is None else Captions.of(table.column("captions").to_pylist())
    if columns.label is None and not any(labels):
        labels = folders(names)

    def span(index: int) -> Span:
        return Span(files[parts[index]].path, int(starts[index]), int(sizes[index]))

    def place(index: int) -> str:
        return f"{files[parts[index]].path}, {names[index]}"

    return of_spans(name, len(names), span, place, labels, lambda: (columns.content, *files), captions)


_MEMBERS = pa.schema(
    {
        "archive": pa.int32(),
        "name": pa.string(),
        "start": pa.int64(),
        "size": pa.int64(),
        "label": pa.string(),
        "captions": pa.large_list(pa.large_string()),
    }
)


def _members(path: str, number: int, columns: Columns) -> Iterator[Values]:
    """The images of an archive as rows of `_MEMBERS`."""
    records: dict[str, dict[str, Span]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and not os.path.basename(member.name).startswith("."):
                    folder, file = os.path.split(member.name)
                    key, _, extension = file.partition(".")
                    span = Span(path, member.offset_data, member.size)
                    records.setdefault(os.path.join(folder, key), {})[extension] = span
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a tar archive without compression ({error}): repair or unpack it."
        ) from error
    for key, record in records.items():
        described = _described(record)
        label = _label_of(record, described, columns.label)
        for extension in _image_extensions(record, columns.content):
            span = record[extension]
            yield {
                "archive": number,
                "name": f"{key}.{extension}",
                "start": span.start,
                "size": span.size,
                "label": label,
                "captions": _captions_of(record, described, extension, columns.captions),
            }


def _image_extensions(record: dict[str, Span], column: str | None) -> list[str]:
    if column is not None:
        return [column] if column in record else []
    images = [extension for extension in record if kind_of(f"_.{extension}") == "images"]
    return [extension for extension in images if "." not in extension][:1] or images


def _described(record: dict[str, Span]) -> Values:
    """What the JSON of a record says."""
    try:
        values = json.loads(record["json"].read()) if "json" in record else {}
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _label_of(record: dict[str, Span], described: Values, label: str | None) -> str | None:
    if label is None and "cls" in record:
        return record["cls"].read().decode(errors="replace").strip()
    names = LABEL_COLUMNS if label is None else (label,)
    known = (described[name] for name in names if described.get(name) is not None)
    return next(map(str, known), None)


def _captions_of(
    record: dict[str, Span], described: Values, image: str, wanted: Sequence[str] | None
) -> list[str] | None:
    """The captions of the image with an extension; those of `a.1.jpg` may be in `a.1.txt` as well as in `a.txt`."""
    within = image.rpartition(".")[0]

    def read(name: str) -> list[str]:
        member = record.get(f"{within}.{name}") or record.get(name)
        return captions_in_file(member.read()) if member else captions_in(described.get(name))

    return None if wanted is None else captions_by_name(wanted, read)
