"""Encoded images with random access: what a source of any kind comes down to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from threading import Condition
from typing import NamedTuple

from selfsup.data import arrow_files
from selfsup.data.columns import require_column
from selfsup.data.discovery import File
from selfsup.data.formats import malformed
from selfsup.data.image_captions import Captions
from selfsup.data.image_files import END, MOST_BYTES, Encoded, formats
from selfsup.data.streams import COMPRESSIONS
from selfsup.errors import Damaged
from selfsup.files import opened

KINDS = (
    "images",
    "archives",
    "tables",
    "lists",
)  # of files, in the order in which a folder is searched for them
# Extensions of further images, with what Pillow calls the format, where it can be read.
OPTIONAL = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF"}
# Names under which a column of paths goes, the likeliest first.
PATH_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "filepath", "image", "img")
# Names under which a column of classes goes, the likeliest first.
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "cls")
SHARE = 8  # of the free memory, one part in so many may hold images
MOST_TEXT = 1 << 20  # bytes of a file of captions or of properties of one image
CHUNK = 64  # images that a thread takes at a time
FORMAT = 1  # of what is kept about images; a change makes it anew

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Columns:
    """What is read of a source, by the names of its columns, extensions or keys.

    Attributes:
        content: of the images or their paths; None is the one that is found.
        label: of the classes; None is the one that is found, if any.
        captions: all that hold captions; () is the one that is found, if any, and with None no captions are read.
    """

    content: str | None = None
    label: str | None = None
    captions: tuple[str, ...] | None = None


class Span(NamedTuple):
    """The bytes of an image within a file."""

    path: str
    start: int
    size: int

    def read(self, most: int = MOST_BYTES) -> bytes:
        """All of them, where they are no more than so many.

        Raises:
            OSError: they are more, or lie in no regular file.
        """
        if self.size > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", self.path)
        with opened(self.path) as file:
            file.seek(self.start)
            return file.read(self.size)

    def ends(self) -> tuple[bytes, bytes]:
        """The first `END` bytes, and the last as far as they follow those."""
        with opened(self.path) as file:
            file.seek(self.start)
            head = file.read(min(END, self.size))
            rest = max(0, min(END, self.size - END))
            file.seek(self.start + self.size - rest)
            return head, file.read(rest)


@dataclass(frozen=True)
class Store:
    """Encoded images, read at random and by several threads at once.

    Attributes:
        read: an image by its number. Raises BadImage or OSError.
        span: where it lies on the disk, where its bytes lie there as they are. Raises as `read` does.
        place: what messages call it.
        labels: of each image, as the source has them: numbers, names or None; None where the source has no labels.
        classes: names of the numbers, where the source gives them.
        captions: of each image; None where there are none, or none were asked for.
        stamp: what changes whenever the images may have; None where only reading them tells.
        damaged: files that cannot be read at all, each with the reason.
        left_out: what lies at the source and is not read, in words.
    """

    name: str
    count: int
    read: Callable[[int], Encoded]
    place: Callable[[int], str]
    labels: Sequence[object] | None = None
    classes: tuple[str, ...] | None = None
    span: Callable[[int], Span] | None = None
    stamp: Callable[[], Iterable[object]] | None = None
    captions: Captions | None = None
    damaged: Sequence[tuple[str, str]] = ()
    left_out: tuple[str, ...] = ()


def of_spans(
    name: str,
    count: int,
    span: Callable[[int], Span],
    place: Callable[[int], str],
    labels: Sequence[object] | None,
    stamp: Callable[[], Iterable[object]],
    captions: Captions | None,
    damaged: Sequence[tuple[str, str]] = (),
) -> Store:
    return Store(
        name,
        count,
        lambda index: span(index).read(),
        place,
        labels,
        span=span,
        stamp=stamp,
        captions=captions,
        damaged=damaged,
    )


def folders(paths: Sequence[str]) -> list[str] | None:
    """The name of the folder that each path lies in, where there are several and none lies above the others."""
    folders = [os.path.dirname(path) for path in paths]
    distinct = set(map(os.path.abspath, set(folders)))
    if len(distinct) < 2 or os.path.commonpath(distinct) in distinct:
        return None
    return [os.path.basename(folder) for folder in folders]


def label_column(where: str, columns: Sequence[str], wanted: str | None) -> str | None:
    """The column of classes: the one wanted, which must be there, else one with a usual name."""
    if wanted is not None:
        require_column(where, columns, wanted)
        return wanted
    return next((name for name in LABEL_COLUMNS if name in columns), None)


def named(columns: Sequence[str]) -> str:
    """The first columns, as far as a sentence has room for them."""
    return shorten(", ".join(map(str, columns)), 200, placeholder=" …")


def file_at(path: str | Path) -> File:
    """A regular file, looked up.

    Raises:
        OSError: there is none.
    """
    with opened(path) as file:
        status = os.fstat(file.fileno())
    return File(os.fspath(path), status.st_size, status.st_mtime_ns)


@cache
def extensions() -> dict[str, str]:
    """The kind of a file, by its extension."""
    images = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
    further = (extension for extension, name in OPTIONAL.items() if name in formats())
    archives = (".tar", ".tgz", ".tbz2", ".txz", ".tzst")
    lists = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
    packed = {f".tar{ending}": "archives" for ending in COMPRESSIONS} | {
        f"{name}{ending}": "lists" for name in lists for ending in COMPRESSIONS
    }
    return {
        **dict.fromkeys((*images, *further), "images"),
        **dict.fromkeys(archives, "archives"),
        **dict.fromkeys(arrow_files.SUFFIXES, "tables"),
        **dict.fromkeys(lists, "lists"),
        **packed,
    }


def readable() -> str:
    """The kinds of files that are read, in words."""
    plain = (name for name in extensions() if not name.endswith(COMPRESSIONS))
    return (
        f"images from {', '.join(plain)} (archives and lists also as {', '.join(COMPRESSIONS)}), and directories of "
        "datasets.save_to_disk and Lance"
    )


def kind_of(name: str) -> str | None:
    """The kind of a file, by its extension."""
    stem, extension = os.path.splitext(name.lower())
    return extensions().get(extension) or extensions().get(os.path.splitext(stem)[1] + extension)


class Damage:
    """Files that cannot be read, which end the reading unless everything may fail, as of texts."""

    def __init__(self, failures: float) -> None:
        self._failures = failures
        self.found: list[tuple[str, str]] = []

    @contextmanager
    def allowed(self, path: str) -> Iterator[None]:
        """Note in place of raising that a file is damaged."""
        try:
            yield
        except Damaged as error:
            if self._failures < 1:
                raise
            self.found.append((path, malformed(path, error).reason))


class Room:
    """Memory that threads take for a while: one that needs more than all of it waits until it has it for itself."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait for so many bytes, and hold them during the block."""
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


ROOM = Room(
    (1 << 27) * max(4, os.cpu_count() or 1)
)  # what all that is decoded or read at the same time may take


def for_all(count: int, work: Callable[[int], None], progress: Progress) -> None:
    """Call `work` with every number below `count`, in threads."""

    def chunk(start: int) -> int:
        for number in range(start, min(start + CHUNK, count)):
            work(number)
        return min(start + CHUNK, count)

    with ThreadPoolExecutor() as threads:
        try:
            for done in threads.map(chunk, range(0, count, CHUNK)):
                progress(done, count)
        finally:
            threads.shutdown(cancel_futures=True)
