"""Where a prepared corpus may lie, each a `selfsup.data.shards.Place`: a directory, or an object store by its URL.

What is read from an object store is kept on the disk, each piece as a file whose name is its checksum: so processes,
trainings and copies of a corpus share them, and none is believed that differs from its name. The oldest ones go where
there are too many.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from selfsup.data.cache import cache_directory
from selfsup.data.discovery import is_remote, opened
from selfsup.data.shards import AT_HAND, PIECE, Numbers, Place, digest
from selfsup.errors import UserError
from selfsup.files import expanded, temporary_name, writable

CACHE_BYTES = "SELFSUP_CACHE_BYTES"  # names the bytes of pieces that are kept, at most
KEPT = 4 << 30  # bytes of them where nothing is said
LEAST = AT_HAND * PIECE  # what a training reads from at a time
ATTEMPTS = 5
PAUSE = 0.5  # seconds before the second attempt; twice as many before each further one
SECONDS = 60.0  # for one answer

T = TypeVar("T")


def place_of(source: str | Path) -> Place:
    """The place that a path or URL names; raises a UserError where no installed library reads it."""
    return Remote(str(source)) if is_remote(source) else Folder(expanded(source))


class Folder:
    """A corpus in a directory."""

    def __init__(self, root: Path) -> None:
        self.name, self._root = str(root), root

    def whole(self, name: str, most: int) -> bytes:
        with opened(self._root / name) as file:
            return bounded(file.read(most + 1), most)

    def piece(self, name: str, start: int, stop: int, checksum: str) -> Numbers:
        with opened(self._root / name) as file:
            file.seek(start)
            return verified(file.read(stop - start), stop - start, checksum)


class Remote:
    """A corpus at a URL that fsspec opens, such as `s3://bucket/tokens`."""

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        self._system, self._root = _file_system(self.name)
        self._kept, self._most = cache_directory() / "pieces", _most_kept()

    def whole(self, name: str, most: int) -> bytes:
        return bounded(self._fetched(name, 0, most + 1), most)

    def piece(self, name: str, start: int, stop: int, checksum: str) -> Numbers:
        path = self._kept / checksum[:2] / checksum
        with writable(self._kept, "make room there or set SELFSUP_CACHE to another directory."):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent / ".lock"):  # others wait for what is on its way
                with suppress(OSError):
                    found = verified(path.read_bytes(), stop - start, checksum)
                    os.utime(path)
                    return found
                fetched = tried(lambda: verified(self._asked(name, start, stop), stop - start, checksum))
                self._keep(path, fetched)
        return fetched

    def _keep(self, path: Path, data: Numbers) -> None:
        temporary = temporary_name(path)
        try:
            temporary.write_bytes(data.data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        make_room(self._kept, self._most)

    def _fetched(self, name: str, start: int, stop: int) -> bytes:
        return tried(lambda: self._asked(name, start, stop))

    def _asked(self, name: str, start: int, stop: int) -> bytes:
        return within(SECONDS, lambda: bytes(self._system.cat_file(f"{self._root}/{name}", start=start, end=stop)))


def _file_system(url: str) -> tuple[Any, str]:
    """What reads a URL, and what it calls the place."""
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be read ({error}): pip install 'selfsup[remote]', or copy it here.") from None
    return system, str(root).rstrip("/")


def _most_kept() -> int:
    said = os.environ.get(CACHE_BYTES, str(KEPT))
    if not said.isdecimal():
        raise UserError(f"{CACHE_BYTES} is {said!r}; give a number of bytes.")
    return max(int(said), LEAST)


def make_room(folder: Path, most: int) -> None:
    """Remove the pieces in a folder that were used longest ago, while they have more than `most` bytes."""
    entries = [entry for part in os.scandir(folder) if part.is_dir() for entry in os.scandir(part.path)]
    there: list[tuple[float, int, str]] = []
    for entry in entries:
        with suppress(FileNotFoundError):
            if not entry.name.startswith("."):
                status = entry.stat()
                there.append((status.st_mtime, status.st_size, entry.path))
    held = sum(size for _, size, _ in there)
    for _, size, path in sorted(there):
        if held <= most:
            return
        with suppress(OSError):  # another process did it, or Windows keeps what is being read
            os.unlink(path)
        held -= size


def tried(call: Callable[[], T]) -> T:
    """What a call returns, tried several times, with pauses that grow; raises an OSError where it is in vain."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # of a network and its libraries: many classes
            if attempt == ATTEMPTS - 1:
                raise OSError(
                    f"tried {ATTEMPTS} times, {' '.join(str(error).split()) or type(error).__name__}"
                ) from error
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns; raises a TimeoutError where it takes longer, and leaves it to itself then."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer in {seconds:g} seconds") from None


def bounded(data: bytes, most: int) -> bytes:
    """The bytes; raises an OSError where there are more."""
    if len(data) > most:
        raise OSError(f"it has more than {most:,} bytes")
    return data


def verified(data: bytes, size: int, checksum: str) -> Numbers:
    """A piece as numbers; raises an OSError where it is shorter, or has another content."""
    if len(data) != size:
        raise OSError(f"{len(data):,} of its {size:,} bytes are there")
    if digest(data) != checksum:
        raise OSError("it has the wrong content")
    return np.frombuffer(data, np.uint8)
