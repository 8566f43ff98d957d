"""The bytes and lines of files, decompressed piece by piece, so that nothing is taken that has no bound."""

from __future__ import annotations

import bz2
import codecs
import errno
import io
import lzma
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from selfsup.data.discovery import most_unpacked, opened, reading
from selfsup.data.parts import DOCUMENT, RECORD, Malformed, Repaired
from selfsup.errors import Damaged

PIECE = 1 << 20  # bytes read at a time
HEAD = 64  # bytes that tell UTF-16 without a byte order mark
UTF16 = "the file is UTF-16, save it as UTF-8"

_ARROW = {".gz": "gzip", ".zst": "zstd"}  # Arrow's raise on a truncated file where zstandard just ends
_PYTHON = {".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}


@contextmanager
def decompressed(path: Path, compression: str) -> Iterator[io.BufferedReader]:
    """The bytes of a regular file, out of a compression such as `.gz`, or as they are. Raises Damaged: it cannot be
    read, or unpacks to more than 1 GiB and a hundred times its size."""
    with reading(path), opened(path) as file:
        if not compression:
            yield file
            return
        most = most_unpacked(os.fstat(file.fileno()).st_size)
        if compression in _ARROW:
            unpacked = pa.input_stream(file, compression=_ARROW[compression], buffer_size=PIECE)
        else:
            unpacked = _PYTHON[compression](file)
        yield io.BufferedReader(_Bounded(unpacked, most), PIECE)


class _Bounded(io.RawIOBase):
    """A stream that raises OSError where it has more than so many bytes."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._left = stream, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.EFBIG, "it unpacks to far more than its size allows")
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def as_text(path: Path, compression: str, end: str = "\n") -> Iterator[io.TextIOWrapper]:
    """A file as text whose lines end as is said; an undecodable byte becomes a lone surrogate, which `checked` finds.
    Raises Damaged where it is UTF-16."""
    with decompressed(path, compression) as stream:
        if is_utf16(stream.peek(HEAD)[:HEAD]):
            raise Damaged(f"{path} cannot be read: {UTF16}.")
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=end)


def is_utf16(head: bytes) -> bool:
    """Whether the first bytes of a file are a byte order mark of UTF-16, or ASCII in UTF-16."""
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    one, other = head[:HEAD:2], head[1:HEAD:2]
    return marked or (len(other) > 1 and ((all(one) and not any(other)) or (all(other) and not any(one))))


def lines(file: io.TextIOWrapper, end: str = "\n") -> Iterator[str | Malformed]:
    """All lines with their ends; one that is too long is passed over piece by piece."""
    while line := file.readline(RECORD + 1):
        if len(line) <= RECORD or line.endswith(end):
            yield line
            continue
        while line and not line.endswith(end):
            line = file.readline(PIECE)
        yield Malformed(f"the line has more than {RECORD:,} characters")


def read_document(stream: IO[bytes], failures: float) -> object:
    """All of a stream as one text: as it is, Repaired, or Malformed where more than a share of its bytes is no text."""
    data = bytearray()
    while piece := stream.read(PIECE):
        data += piece
        if len(data) > DOCUMENT:
            return too_long()
    if is_utf16(bytes(data[:HEAD])):
        return Malformed(UTF16)
    if (zeros := data.count(0)) > failures * len(data):
        return Malformed(f"{zeros} of its {len(data)} bytes are zero, so it is no text")
    if data.startswith(codecs.BOM_UTF8):
        del data[: len(codecs.BOM_UTF8)]
    with suppress(UnicodeDecodeError):
        return data.decode()
    undecodable = sum(1 for _ in re.finditer("[\udc80-\udcff]", data.decode(errors="surrogateescape")))
    if undecodable > failures * len(data):
        return Malformed(f"{undecodable} of its {len(data)} bytes are not UTF-8")
    return Repaired(data.decode(errors="replace"), undecodable)


def too_long() -> Malformed:
    return Malformed(f"it has more than {DOCUMENT:,} bytes, split it into several documents")
