"""Images in tar archives, in WebDataset's layout or any other, read where they lie."""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from selfsup.data.arrow_files import EXPANSION, SMALL
from selfsup.data.cache import kept_file, kept_table
from selfsup.data.discovery import File
from selfsup.data.image_captions import Captions, captions_by_name, captions_in, captions_in_file
from selfsup.data.image_files import BadImage
from selfsup.data.image_stores import (
    FORMAT,
    LABEL_COLUMNS,
    MOST_TEXT,
    Columns,
    Damage,
    Span,
    Store,
    folders,
    kind_of,
    of_spans,
)
from selfsup.data.parts import Values
from selfsup.data.streams import PIECE, decompressed, reading
from selfsup.errors import Damaged
from selfsup.files import opened

COMPRESSIONS = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ": ".xz",
    b"(\xb5/\xfd": ".zst",
}  # by first bytes
FIRST = 1000  # members that tell whether an archive is one of images
LONG = 1 << 30  # bytes: whoever goes through archives of more should do it once


def open_archives(name: str, files: list[File], columns: Columns, failures: float) -> Store:
    """The images in tar files, read where they lie; what lies where is kept for archives that take long to go through.

    An image is a record, but for one with two extensions (`a.seg.png`) beside one with a single (`a.jpg`), unless
    the columns name its extension. Its class is in the file of the same name with `.cls`, or in the JSON of its
    `.json`, or else the name of its folder; its captions are in a file of the same name or in that JSON. Where one name
    comes several times, each is an image.
    """
    damage, paths = Damage(failures), [file.path for file in files]
    for number, file in enumerate(files):
        with damage.allowed(file.path):
            paths[number] = _plain(file)

    def build() -> Any:
        rows: list[Values] = []
        for number, file in enumerate(files):
            with damage.allowed(file.path):
                rows += _images(paths[number], number, columns)
        return pa.Table.from_pylist(rows, _MEMBERS)

    if failures == 1 or sum(file.size for file in files) < LONG:
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
        if sizes[index] < 0:
            raise BadImage("it is a link or no regular file")
        return Span(paths[parts[index]], int(starts[index]), int(sizes[index]))

    def place(index: int) -> str:
        return f"{files[parts[index]].path}, {names[index]}"

    return of_spans(
        name, len(names), span, place, labels, lambda: (columns.content, *files), captions, damage.found
    )


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


def _plain(file: File) -> str:
    """The path of an archive, of a compressed one that of its copy in the cache: its members are read at random."""
    compression = _compression(file.path)
    if not compression:
        return file.path

    def unpack(target: Path) -> None:
        left = max(SMALL, EXPANSION * file.size)
        with decompressed(Path(file.path), compression) as stream, target.open("wb") as sink:
            while piece := stream.read(PIECE):
                left -= len(piece)
                if left < 0:
                    raise Damaged(f"{file.path} unpacks to far more than its size allows: leave it out.")
                sink.write(piece)

    return str(kept_file("images", "archive.tar", ("archive", FORMAT, file), unpack))


def _compression(path: str) -> str:
    with reading(path), opened(path) as archive:
        head = archive.read(6)
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), "")


def holds_images(path: str) -> bool:
    """Whether an image is among the first members of an archive."""
    with (
        _damage(path),
        decompressed(Path(path), _compression(path)) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive,
    ):
        return any(kind_of(member.name) == "images" for member in itertools.islice(archive, FIRST))


def _images(path: str, number: int, columns: Columns) -> Iterator[Values]:
    """The images of an archive as rows of `_MEMBERS`."""
    for key, record in _records(path):
        described = _described(record)
        label = _label_of(record, described, columns.label)
        for extension in _image_extensions(record, columns.content):
            span = record[extension]
            yield {
                "archive": number,
                "name": _valid(f"{key}.{extension}"),
                "start": span.start,
                "size": span.size,
                "label": None if label is None else _valid(label),
                "captions": _captions_of(record, described, extension, columns.captions),
            }


def _records(path: str) -> list[tuple[str, dict[str, Span]]]:
    """The members of an archive by their names up to the first dot, and in those by the rest of them.

    A name that comes again begins a record of its own.
    """
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
    with (
        _damage(path),
        opened(path) as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as archive,
    ):
        end = -1
        while (member := archive.next()) is not None:
            if archive.offset <= end:
                raise tarfile.ReadError("a member has a negative size")
            end = archive.offset
            archive.members.clear()  # type: ignore[attr-defined]  # which would hold millions
            if not member.isdir() and not os.path.basename(member.name).startswith("."):
                regular = member.isreg() and not member.issparse()
                yield member.name, Span(path, member.offset_data, member.size if regular else -1)
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"what follows byte {archive.offset:,} is no member")


@contextmanager
def _damage(path: str) -> Iterator[None]:
    """Say what is wrong with an archive; tarfile raises many kinds for that."""
    try:
        yield
    except (tarfile.TarError, OSError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise Damaged(f"{path} cannot be read as a tar archive ({reason}): repair or unpack it.") from error


class _Member(tarfile.TarInfo):
    """What is read of a member, but for a name or other properties of more than `MOST_TEXT` bytes."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.type in tarfile.SUPPORTED_TYPES and self.size > MOST_TEXT:
            raise tarfile.ReadError("the properties of a member are too long")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


def _valid(text: str) -> str:
    """A text in valid UTF-8, as Arrow keeps it."""
    return text.encode(errors="backslashreplace").decode()


def _content(span: Span) -> bytes:
    """Of a file beside an image; of one that is too long nothing."""
    return span.read(MOST_TEXT) if 0 <= span.size <= MOST_TEXT else b""


def _image_extensions(record: dict[str, Span], column: str | None) -> list[str]:
    if column is not None:
        return [column] if column in record else []
    images = [extension for extension in record if kind_of(f"_.{extension}") == "images"]
    return [extension for extension in images if "." not in extension][:1] or images


def _described(record: dict[str, Span]) -> Values:
    """What the JSON of a record says."""
    try:
        values = json.loads(_content(record["json"])) if "json" in record else {}
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _label_of(record: dict[str, Span], described: Values, label: str | None) -> str | None:
    if label is None and "cls" in record:
        return _content(record["cls"]).decode(errors="replace").strip()
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
        return captions_in_file(_content(member)) if member else captions_in(described.get(name))

    return None if wanted is None else captions_by_name(wanted, read)
