"""Tar archives, gone through once and forwards; names in them are names alone, nothing is opened by them."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from selfsup.data.discovery import KINDS, opened, reading
from selfsup.data.parts import DOCUMENT, Ignored
from selfsup.data.streams import PIECE, decompressed, read_document, too_long
from selfsup.errors import Damaged

COMPRESSED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"(\xb5/\xfd": ".zst"}  # by first bytes

Content = Callable[[], IO[bytes] | None]


def compression_of(path: str | Path) -> str:
    """What a file is compressed with, by its first bytes, whatever it is called; nothing for a plain one."""
    with reading(path), opened(path) as file:
        head = file.read(6)
    return next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), "")


@contextmanager
def archive_at(path: str | Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, Content]]]:
    """The members of an archive in their order, each with what opens its bytes until the next one is asked for. Raises
    Damaged: it cannot be read, or one of its headers lies."""
    try:
        with decompressed(Path(path), compression_of(path)) as stream:
            yield _members(stream)
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise Damaged(f"{path} cannot be read as a tar archive ({error}): repair or unpack it.") from error


def text_members(path: Path, failures: float) -> Iterator[tuple[str, object]]:
    """The text files in an archive: (place, text); of their bytes the share `failures` may be no text."""
    with archive_at(path) as members:
        for member, content in members:
            yield f"{path}, {member.name}", _text_of(member, content, failures)


def _text_of(member: tarfile.TarInfo, content: Content, failures: float) -> object:
    ending = os.path.splitext(member.name)[1].lower()
    if member.isdir():
        return Ignored("folders in archives")
    if not member.isreg():
        return Ignored("links and devices in archives")
    if KINDS.get(ending) != "texts":
        return Ignored(f"{ending or 'other'} files in archives")
    stream = content()
    return too_long() if stream is None or member.size > DOCUMENT else read_document(stream, failures)


def _members(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, Content]]:
    forward: Any = _Forward(stream)
    archive, end = tarfile.TarFile(fileobj=forward), -1
    while (member := archive.next()) is not None:
        if archive.offset <= end:
            raise tarfile.ReadError("a member has a negative size")
        end = archive.offset
        vars(archive)["members"].clear()  # which would hold millions
        yield member, partial(archive.extractfile, member)
    if any(forward.last):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"what follows byte {archive.offset:,} is no member")


class _Forward:
    """A stream as tarfile reads it, which only ever goes on, and in small pieces but for headers that lie."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._place = stream, 0
        self.last = b""

    def tell(self) -> int:
        return self._place

    def read(self, size: int) -> bytes:
        if size > PIECE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        data = b""
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        self._place += len(data)
        self.last = data
        return data

    def seek(self, place: int) -> None:
        if self._stream.seekable():
            self._place = self._stream.seek(place)
        while self._place < place and self.read(min(PIECE, place - self._place)):
            pass
