"""Images in tar archives, in WebDataset's layout or any other, read where they lie."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from selfsup.data.archives import archive_at, compression_of
from selfsup.data.cache import kept_file, kept_table
from selfsup.data.columns import LABEL_COLUMNS, Wanted, names_image
from selfsup.data.discovery import File
from selfsup.data.images.captions import Captions, captions_by_name, captions_in, captions_in_file
from selfsup.data.images.decoding import BadImage
from selfsup.data.images.stores import FORMAT, MOST_TEXT, Span, Store, folders
from selfsup.data.origins import Origin
from selfsup.data.parts import Values
from selfsup.data.streams import PIECE, decompressed
from selfsup.data.tally import Tally
from selfsup.report import Progress

FIRST = 1000  # members that tell whether an archive is one of images
LONG = 1 << 30  # bytes: whoever goes through archives of more should do it once

_PLACE = {"archive": pa.int32(), "name": pa.string(), "start": pa.int64(), "size": pa.int64()}
_MEMBERS = pa.schema(_PLACE | {"label": pa.string(), "captions": pa.large_list(pa.large_string())})


def open_archives(origin: Origin, wanted: Wanted, tally: Tally, progress: Progress) -> Store:
    """The images in tar files, read where they lie; what lies where is kept for archives that take long to go through.

    An image is a record, but for one with two extensions (`a.seg.png`) beside one with a single (`a.jpg`), unless
    the columns name its extension. Its class is in the file of the same name with `.cls`, or in the JSON of its
    `.json`, or else the name of its folder; its captions are in a file of the same name or in that JSON. Where one name
    comes several times, each is an image.
    """
    files, paths = origin.files, dict[int, str]()
    for number, file in enumerate(files):
        with tally.allowed(file.path):
            paths[number] = _plain(file)

    def build() -> Any:
        rows: list[Values] = []
        for number, path in paths.items():
            with tally.allowed(files[number].path):
                rows += _images(path, number, wanted)
        return pa.Table.from_pylist(rows, _MEMBERS)

    short = tally.failures == 1 or sum(file.size for file in files) < LONG
    table = build() if short else kept_table("images", ("archives", FORMAT, wanted, *files), build)
    parts, starts, sizes = (table.column(field).to_numpy() for field in ("archive", "start", "size"))
    names, labels = (table.column(field).to_pylist() for field in ("name", "label"))
    if wanted.label is None and not any(labels):
        labels = folders(names)

    def span(index: int) -> Span:
        if sizes[index] < 0:
            raise BadImage("it is a link or no regular file")
        return Span(paths[parts[index]], int(starts[index]), int(sizes[index]))

    return Store(
        origin.name,
        len(names),
        lambda index: f"{files[parts[index]].path}, {names[index]}",
        span,
        labels=labels,
        captions=None if wanted.captions is None else Captions.of(table.column("captions").to_pylist()),
        stamp=lambda: (wanted.content, *files),
    )


def holds_images(path: str) -> bool:
    """Whether an image is among the first members of an archive."""
    with archive_at(path) as members:
        return any(names_image(member.name) for member, _ in itertools.islice(members, FIRST))


def _plain(file: File) -> str:
    """The path of an archive, of a compressed one that of its copy in the cache: its members are read at random."""
    compression = compression_of(file.path)
    if not compression:
        return file.path

    def unpack(target: Path) -> None:
        with decompressed(Path(file.path), compression) as stream, target.open("wb") as sink:
            while piece := stream.read(PIECE):
                sink.write(piece)

    return str(kept_file("images", "archive.tar", ("archive", FORMAT, file), unpack))


def _images(path: str, number: int, wanted: Wanted) -> Iterator[Values]:
    """The images of an archive as rows of `_MEMBERS`."""
    for key, record in _records(path):
        described = _described(record)
        label = _label_of(record, described, wanted.label)
        for extension in _image_extensions(record, wanted.content):
            place, name = record[extension], _valid(f"{key}.{extension}")
            captions = _captions_of(record, described, extension, wanted.captions)
            row = (number, name, place.start, place.size, None if label is None else _valid(label), captions)
            yield dict(zip(_MEMBERS.names, row, strict=True))


def _records(path: str) -> list[tuple[str, dict[str, Span]]]:
    """The members of an archive by their names up to the first dot, and in those by the rest of them. A name that comes
    again begins a record of its own."""
    records: list[tuple[str, dict[str, Span]]] = []
    latest: dict[str, dict[str, Span]] = {}
    for name, span in _members(path):
        folder, file = os.path.split(name)
        key, _, extension = file.partition(".")
        key = os.path.join(folder, key)
        record = latest.get(key)
        if record is None or extension in record:
            record = latest[key] = {}
            records.append((key, record))
        record[extension] = span
    return records


def _members(path: str) -> Iterator[tuple[str, Span]]:
    """The name and the bytes of each file of an archive; of what is no regular file, a size below zero."""
    with archive_at(path) as members:
        for member, _ in members:
            if not member.isdir() and not os.path.basename(member.name).startswith("."):
                regular = member.isreg() and not member.issparse()
                yield member.name, Span(path, member.offset_data, member.size if regular else -1)


def _valid(text: str) -> str:
    """A text in valid UTF-8, as Arrow keeps it."""
    return text.encode(errors="backslashreplace").decode()


def _content(span: Span) -> bytes:
    """Of a file beside an image; of one that is too long nothing."""
    return span.read(MOST_TEXT) if 0 <= span.size <= MOST_TEXT else b""


def _image_extensions(record: dict[str, Span], column: str | None) -> list[str]:
    if column is not None:
        return [column] if column in record else []
    images = [extension for extension in record if names_image(f"_.{extension}")]
    return [extension for extension in images if "." not in extension][:1] or images


def _described(record: dict[str, Span]) -> Values:
    """What the JSON of a record says."""
    with suppress(ValueError, RecursionError):
        values = json.loads(_content(record["json"])) if "json" in record else {}
        return values if isinstance(values, dict) else {}
    return {}


def _label_of(record: dict[str, Span], described: Values, label: str | None) -> str | None:
    if label is None and "cls" in record:
        return _content(record["cls"]).decode(errors="replace").strip()
    names = LABEL_COLUMNS if label is None else (label,)
    return next((str(described[name]) for name in names if described.get(name) is not None), None)


def _captions_of(
    record: dict[str, Span], described: Values, image: str, wanted: Sequence[str] | None
) -> list[str] | None:
    """The captions of the image with an extension; those of `a.1.jpg` may be in `a.1.txt` as well as in `a.txt`."""
    within = image.rpartition(".")[0]

    def read(name: str) -> list[str]:
        member = record.get(f"{within}.{name}") or record.get(name)
        return captions_in_file(_content(member)) if member else captions_in(described.get(name))

    return None if wanted is None else captions_by_name(wanted, read)
