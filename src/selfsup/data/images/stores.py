"""Encoded images with random access: what a source of any kind comes down to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import NamedTuple

from selfsup.data.discovery import opened
from selfsup.data.images.captions import Captions
from selfsup.data.images.decoding import END, MOST_BYTES, Encoded
from selfsup.report import Progress

SHARE = 8  # of the free memory, one part in so many may hold images
MOST_TEXT = 1 << 20  # bytes of a file of captions or of properties of one image
CHUNK = 64  # images that a thread takes at a time
FORMAT = 1  # of what is kept about images; a change makes it anew


class Span(NamedTuple):
    """The bytes of an image within a file."""

    path: str
    start: int
    size: int

    def read(self, most: int = MOST_BYTES) -> bytes:
        """All of them; raises OSError where they are more than so many, or lie in no regular file."""
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
    """Encoded images, read at random by their numbers, by several threads at once."""

    name: str
    count: int
    place: Callable[[int], str]  # what messages call an image
    # Where its bytes lie on the disk as they are, or else the image; both raise BadImage or OSError.
    span: Callable[[int], Span] | None = None
    content: Callable[[int], Encoded] = lambda index: b""
    labels: Sequence[object] | None = None  # of each image a number, a name or None
    classes: tuple[str, ...] | None = None  # names of the numbers, where the source gives them
    captions: Captions | None = None  # None where there are none, or none were asked for
    stamp: Callable[[], Iterable[object]] | None = None  # changes with the images, where that is known
    left_out: tuple[str, ...] = ()  # what lies at the source and is not read, in words
    column: str = ""  # of the images, in words, where there was one to choose

    def read(self, index: int) -> Encoded:
        """An image by its number. Raises BadImage or OSError."""
        return self.content(index) if self.span is None else self.span(index).read()


def folders(paths: Sequence[str]) -> list[str] | None:
    """The name of the folder that each path lies in, where there are several and none lies above the others."""
    folders = [os.path.dirname(path) for path in paths]
    distinct = set(map(os.path.abspath, set(folders)))
    if len(distinct) < 2 or os.path.commonpath(distinct) in distinct:
        return None
    return [os.path.basename(folder) for folder in folders]


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


ROOM = Room((1 << 27) * max(4, os.cpu_count() or 1))  # what all that is decoded at the same time may take


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
