"""The directory where prepared data are kept from one command to the next."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from selfsup.errors import UserError
from selfsup.files import whole_file

Read = TypeVar("Read")

DIGEST = 16  # bytes of the checksum that a table begins with

_log = logging.getLogger(__name__)


def cache_directory(cache: str | Path | None = None) -> Path:
    """The one given, else $SELFSUP_CACHE, else ~/.cache/selfsup."""
    return Path(cache or os.environ.get("SELFSUP_CACHE") or "~/.cache/selfsup").expanduser()


@contextmanager
def writable(directory: Path) -> Iterator[None]:
    """One sentence where the cache cannot be written; other errors of the system are not the cache's."""
    full = (errno.ENOSPC, errno.EDQUOT)
    closed = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
    try:
        yield
    except OSError as error:
        if error.errno not in (*full, *closed):
            raise
        problem = "has no space left" if error.errno in full else f"cannot be written ({error.strerror})"
        raise UserError(
            f"The cache {directory} {problem}: make room there or set SELFSUP_CACHE to another directory."
        ) from error


def kept_file(kind: str, ending: str, key: Iterable[object], write: Callable[[Path], None]) -> Path:
    """A file of the cache, written where it is not there.

    Args:
        kind: the directory in the cache.
        key: all that the content depends on.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in key:
        digest.update(f"{part!r}\n".encode(errors="surrogatepass"))
    path = cache_directory() / kind / (digest.hexdigest() + ending)
    with writable(path.parent):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                write(temporary)
    return path


def kept(
    kind: str, ending: str, key: Iterable[object], write: Callable[[Path], None], read: Callable[[Path], Read]
) -> Read:
    """What `read` finds in a file of the cache, which is written where it is not there, and anew where it is damaged.

    Args:
        kind, ending, key, write: as in `kept_file`.
        read: raises UserError for a damaged file.
    """
    parts = list(key)
    path = kept_file(kind, ending, parts, write)
    try:
        return read(path)
    except UserError:
        _log.warning("The prepared file %s is damaged: preparing it again.", path)
        path.unlink(missing_ok=True)
        return read(kept_file(kind, ending, parts, write))


def kept_table(kind: str, key: Iterable[object], build: Callable[[], Any]) -> Any:
    """An Arrow table of the cache, built where it is not there; one that is not as it was written is built anew."""

    def write(path: Path) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(build(), sink)
        content = sink.getvalue().to_pybytes()
        path.write_bytes(_digest(content) + content)

    def read(path: Path) -> Any:
        stored = path.read_bytes()
        digest, content = stored[:DIGEST], stored[DIGEST:]
        if _digest(content) != digest:
            raise UserError(f"{path} is damaged: remove it.")
        return pq.read_table(pa.BufferReader(content))

    return kept(kind, ".table", key, write, read)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()
