"""Files that exist wholly or not at all, and their checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from selfsup.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

LOCK = ".lock"  # the file in a directory that whoever holds it has locked; it stays when the lock is gone
WINDOWS = sys.platform == "win32"


def checksum(path: Path) -> str:
    """BLAKE2b of a file's content, 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Ask the disk to hold a file or directory before going on (Windows keeps the entries of directories itself)."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held(directory: Path, refusal: str) -> Iterator[None]:
    """Keep other processes from holding a directory during the block; a killed process holds nothing.

    The lock is the system's (flock, on Windows LockFile), so it goes with its process. Over NFS it reaches other
    machines where the server keeps locks.

    Raises:
        UserError: another process holds it; `refusal` says so.
    """
    try:
        lock = FileLock(directory / LOCK).acquire(blocking=False)
    except Timeout:
        raise UserError(refusal) from None
    with lock:
        yield


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` whose file becomes `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader (or a crash) sees either the old content or the new one."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_free(*places: Path | None) -> None:
    """Raise a UserError where something lies already, before work is done for it."""
    for place in places:
        if place is not None and os.path.lexists(place):
            raise UserError(f"{place} exists already; give another name.")


def write_new(path: Path, content: str | bytes) -> None:
    """Write a file that is not there yet: wholly or not at all."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    require_free(path)
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; give another name.") from None


def separate(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors on the CPU, each in memory of its own: a safetensors file knows no shared weights."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in module.state_dict().items()}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in the layout that Hugging Face's loaders expect, with more in its header if given.

    Raises:
        OSError: the system refuses (safetensors has an error of its own for it, which hides the number).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from None


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that becomes `path` when the block ends without an error.

    A crash leaves only a temporary name behind, which nobody reads. Where `path` came to exist meanwhile
    (another process built the same thing), that one stays and ours is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        with suppress(FileExistsError):
            _rename_to_free_name(temporary, path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename_to_free_name(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(target) from None
        raise
