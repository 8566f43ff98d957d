"""Files: opened where they are regular ones, within a bound; written wholly or not at all; and their checksums."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from selfsup.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

LOCK = ".lock"  # the file in a directory that whoever holds it has locked; it stays when the lock is gone
WINDOWS = sys.platform == "win32"
# A pipe would wait for somebody to write; Windows has none among its files, but would change the ends of lines.
WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

MANIFEST = "manifest.json"  # in a directory: the size and checksum of every other file of it
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
TEMPORARY = re.compile(r"\..+\.selfsup-([0-9a-f]{8})-(\d+)-(\d+)-\d+")  # machine, process, its start
_numbers = itertools.count()


def expanded(path: str | Path) -> Path:
    """A path as a user gives it (`~` is their home directory); raises a UserError where it is something else."""
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{path!r:.80} is no path; give one as text, such as 'runs/mine'.")
    return Path(os.path.expanduser(path))


@contextmanager
def opened(path: str | Path) -> Iterator[BufferedReader]:
    """A regular file, open for reading; raises an OSError with its reason where it is none, or cannot be opened."""
    if "\0" in os.fspath(path):
        raise OSError(errno.EINVAL, "its name holds a null character", repr(path))
    descriptor = os.open(path, os.O_RDONLY | WITHOUT_WAITING)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    with open(descriptor, "rb") as file:
        yield file


def whole(path: str | Path) -> bytes:
    """All of a regular file, however large; raises an OSError where it is none: a pipe would be waited for."""
    with opened(path) as file:
        return file.read()


def read_bytes(path: str | Path, most: int) -> bytes:
    """All of a regular file; raises an OSError, and reads nothing, where it has more than so many bytes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(most + 1)  # it may grow meanwhile
        if max(size, len(data)) > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
        return data


def inside(root: str | Path, name: str) -> str:
    """The path of what a name in a folder's metadata stands for; raises an OSError where it leads out of the folder."""
    here = os.path.realpath(root)
    place = os.path.realpath(os.path.join(here, name.replace("\0", "")))
    if "\0" in name or os.path.commonpath([here, place]) != here:
        raise OSError(errno.EACCES, "it leads out of its folder", repr(name))
    return place


def require_free(*places: str | Path | None) -> None:
    """Raise a UserError where something lies already, before work is done for it."""
    for place in places:
        if place is not None and os.path.lexists(expanded(place)):
            raise UserError(f"{place} exists already; give another name.")


@contextmanager
def writable(directory: Path, remedy: str) -> Iterator[None]:
    """Raise a UserError with what helps where there is no space or right to write below a directory."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename and not Path(str(error.filename)).is_relative_to(directory)
        if error.errno not in FULL + CLOSED or elsewhere:
            raise
        problem = "there is no space left on the device" if error.errno in FULL else error.strerror
        raise UserError(f"{directory} cannot be written ({problem}); {remedy}") from error


def checksum(path: Path) -> str:
    """BLAKE2b of a file's content, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


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
    """Keep other processes from holding a directory during the block; raises a UserError where one holds it.

    The lock is the system's (flock, on Windows LockFile), so it goes with its process. Over NFS it reaches other
    machines where the server keeps locks.
    """
    try:
        lock = FileLock(directory / LOCK).acquire(blocking=False)
    except Timeout:
        raise UserError(refusal) from None
    with lock:
        yield


@functools.cache
def _machine() -> str:
    """What tells machines apart, and containers, whose numbers of processes mean nothing to each other."""
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return hashlib.blake2b(f"{platform.node()} {space}".encode(), digest_size=4).hexdigest()


def _started(process: psutil.Process) -> int:
    """When a process started, in seconds; Linux counts them from a clock that may be set, which is taken off."""
    return round(process.create_time() - (psutil.boot_time() if sys.platform == "linux" else 0))


def _is_gone(number: int, started: int) -> bool:
    """Whether a process of this machine has ended; another one may have its number by now."""
    try:
        process = psutil.Process(number)
        return abs(_started(process) - started) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def remove_leftovers(directory: Path) -> None:
    """Remove what processes of this machine that have ended left unfinished in a directory."""
    for path in directory.iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if match and match[1] == _machine() and _is_gone(int(match[2]), int(match[3])):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove what may be a file, a directory, or gone, as far as the system lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def temporary_name(path: Path) -> Path:
    """A free name beside `path` that says which process made it; what others left there when they died goes."""
    with suppress(OSError):
        remove_leftovers(path.parent)
    number = os.getpid()
    owner = f"{_machine()}-{number}-{_started(psutil.Process(number))}-{next(_numbers)}"
    return path.with_name(f".{path.name}.selfsup-{owner}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` whose file becomes `path` when the block ends without an error.

    Raises an OSError where `path` is a device, a pipe or a directory: none of them is replaced.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "It is no regular file", str(path))
    temporary = temporary_name(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """As `whole_file`; raises a UserError where something lies there before the block, or after it."""
    require_free(path)
    with whole_file(path) as temporary:
        yield temporary
        require_free(path)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader (or a crash) sees either the old content or the new one."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_new(path: str | Path, content: str | bytes) -> None:
    """Write a file that is not there yet: wholly or not at all."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with new_file(expanded(path)) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; give another name.") from None


def separate(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors on the CPU, each in memory of its own: a safetensors file knows no shared weights."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in module.state_dict().items()}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in the layout that Hugging Face's loaders expect, with more in its header if given.

    Raises an OSError where the system refuses; safetensors has an error of its own for it, which hides the number.
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
def whole_directory(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary directory beside `path` that becomes `path` when the block ends without an error: one that is made
    here, or `temporary`, which others write in too.

    A crash leaves only a temporary name behind, which nobody reads. Raises a FileExistsError where `path` came to exist
    meanwhile; that stays.
    """
    if temporary is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        _rename_to_free_name(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename_to_free_name(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def write_manifest(directory: Path) -> None:
    """Write down the size and checksum of every file in a directory, so that `damage` finds what changes."""
    files = {
        str(file.relative_to(directory)): {"size": file.stat().st_size, "checksum": checksum(file)}
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    (directory / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")


def damage(directory: Path, needed: Collection[str] = ()) -> str | None:
    """What is wrong with a directory, judged by its manifest, which must name what is `needed`; None for a whole one.

    Every file is read, at about 1 GB/s where the disk is as fast.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not manifest or not set(needed) <= manifest.keys():
            return "its manifest is incomplete"
        for name, entry in manifest.items():
            if (directory / name).stat().st_size != entry["size"]:
                return f"{name} has the wrong size"
            if checksum(directory / name) != entry["checksum"]:
                return f"{name} has the wrong content"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "its manifest cannot be read"
    return None


def remove_made(directory: Path, names: Collection[str]) -> bool:
    """Remove a directory of files of these names, unless it holds more; whether it is gone."""
    if {path.name for path in directory.iterdir()} - set(names):
        return False
    dying = temporary_name(directory)
    directory.rename(dying)
    shutil.rmtree(dying, ignore_errors=True)
    return True
