"""Which files a path stands for, of which kind they are, and how they are opened: for texts and images alike.

A path is a file, a folder, a pattern (`*`, `?`, `[…]`, `**`, and `{a,b}` or `{000..011}`), or a folder that is one data
set (see `is_dataset`). Folders are read recursively; hidden files and folders are passed over. Links are followed, each
folder is read once, and none that lies above the one that was named. What is left out is counted, and the first of each
kind named. Only regular files are read.

All readers of data go through `entries` (the names in a folder), `file_at` (a file's size and time of change), `opened`
(its bytes as a stream) and `mapped` (its bytes in memory, where they lie); another kind of place would begin there.
"""

from __future__ import annotations

import fnmatch
import itertools
import lzma
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from selfsup.errors import Damaged, UserError
from selfsup.files import opened as opened  # which readers take from here

EXPANSION, SMALL = 100, 1 << 30  # what a file may unpack to: times its bytes on the disk, and in any case
MOST_PATTERNS = 100_000  # that braces may stand for
# What the parts of a data set are called on the hub, in names of files and folders.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}

SPLITS_FILE = "dataset_dict.json"  # names the folders beside it, each one data set
CORPUS = "selfsup-corpus.json"  # stands in a folder that is a prepared corpus, see selfsup.data.corpora

# The kind of a file, by its extension: these are the images that every Pillow reads, and those that some do.
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
KINDS = {
    **dict.fromkeys(IMAGES, "images"),
    **dict.fromkeys((".txt", ".md"), "texts"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".csv", ".tsv"), "lists"),
    **dict.fromkeys((".parquet", ".arrow", ".feather"), "tables"),
    ".tar": "archives",
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
COMPRESSED = ("texts", "lists", "archives")  # the kinds that may be
_ARCHIVES = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}  # tar, in one extension

_MAGIC = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d{1,9}\.\.\d{1,9})\}")  # the innermost ones


class File(NamedTuple):
    """A file, or a folder that is one data set, as it was found."""

    path: str
    size: int
    changed: int  # nanoseconds

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> File:
        return cls(path, status.st_size, status.st_mtime_ns)

    @property
    def kind(self) -> str | None:
        """Its kind; a folder that is one data set is a table."""
        return "tables" if os.path.isdir(self.path) else kind_of(self.path)


@dataclass
class Found:
    """What a path stands for."""

    root: str  # the folder that was named, or that of a pattern
    files: list[File] = field(default_factory=list)  # ordered by the parts of their paths
    # How many, and the first, by what they are.
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    def leave_out(self, what: str, path: str) -> None:
        """Count something that is not read."""
        number, first = self.left_out.get(what, (0, path))
        self.left_out[what] = (number + 1, first)

    def told(self) -> str:
        """What is left out, in words; empty where nothing is."""
        counted = ((what, number, first) for what, (number, first) in self.left_out.items())
        return "; ".join(f"{what}: {n:,} ({first}{' and others' * (n > 1)})" for what, n, first in counted)

    def of(self, split: str | None) -> Found:
        """Without the files of other parts of a data set; those whose name says nothing stay. `training` is train where
        there is one, else all; None and `all` are all. Raises UserError: there is none of that part."""
        if split in (None, "all"):
            return self
        parts = {file: split_of(os.path.relpath(file.path, self.root)) for file in self.files}
        if split == "training" and "train" not in parts.values():
            return self
        split = "train" if split == "training" else split
        if split not in parts.values():
            there = ", ".join(sorted({name for name in parts.values() if name})) or "none"
            raise UserError(f"{self.root} has no {split} split (found by their names: {there}).")
        chosen = replace(self, files=[], left_out=dict(self.left_out))
        for file, part in parts.items():
            if part in (None, split):
                chosen.files.append(file)
            else:
                chosen.leave_out(f"files of the {part} split", file.path)
        return chosen


def split_of(path: str) -> str | None:
    """The part of a data set that a relative path names: by a folder, else by a word in the name of the file."""
    *folders, name = path.lower().split(os.sep)
    named = {SPLITS[word] for word in re.split(r"[^a-z]+", name) if word in SPLITS}
    of_file = named.pop() if len(named) == 1 else None
    return next((SPLITS[folder] for folder in folders if folder in SPLITS), of_file)


def find(path: str | Path, reads: Callable[[str], bool], readable: str) -> Found:
    """The files that a path stands for, of those that `reads` says are of a readable kind; `readable` names these kinds
    in words. Raises UserError: nothing there, or nothing readable."""
    name = os.path.expanduser(path)
    if "\0" in name:
        raise UserError(f"{name!r} is no path, since it holds a null character: check the name.")
    if os.path.isfile(name) and not reads(name):
        raise UserError(f"{name} is of no readable kind: selfsup reads {readable}.")
    there = os.path.lexists(name)
    # Of a pattern, the folder that all of its matches lie in.
    found = Found(name if there else os.path.dirname(re.split(r"[*?\[{]", name)[0]) or os.curdir)
    for place in [name] if there else _matching(name, found):
        _add(place, reads, found)
    found.files = sorted(set(found.files), key=lambda file: file.path.split(os.sep))
    if not found.files:
        left_out = found.told() and f" (left out: {found.told()})"
        raise UserError(f"{name} holds no file of a readable kind: selfsup reads {readable}{left_out}.")
    return found


def is_prepared(source: object) -> bool:
    """Whether a source names a folder that is a prepared corpus, or what can be nothing else: a place of a URL."""
    if not isinstance(source, str | Path):
        return False
    return is_remote(source) or os.path.isfile(os.path.join(os.path.expanduser(source), CORPUS))


def is_remote(source: str | Path) -> bool:
    """Whether a source is named by a URL."""
    return "://" in str(source)


def is_dataset(names: Iterable[str]) -> bool:
    """Whether a folder with these names in it is one data set: of `datasets.save_to_disk`, or of Lance."""
    within = set(names)
    return {"state.json", "dataset_info.json"} <= within or {"_versions", "data"} <= within


# -- kinds ---------------------------------------------------------------------------------------------------


def extensions(path: str | Path) -> tuple[str, str]:
    """The kind of content and the compression, as lower-case extensions: `a.CSV.gz` gives ('.csv', '.gz')."""
    stem, last = os.path.splitext(os.path.basename(path).lower())
    if last in _ARCHIVES:
        return ".tar", _ARCHIVES[last]
    return (os.path.splitext(stem)[1], last) if last in COMPRESSIONS else (last, "")


def kind_of(name: str | Path) -> str | None:
    """The kind of a file, by its extension; None for one of no kind that is read."""
    extension, compression = extensions(name)
    kind = KINDS.get(extension)
    return None if compression and kind not in COMPRESSED else kind


def readable(noun: str, kinds: Sequence[str], but: Container[str] = ()) -> str:
    """The files of some kinds in words, without some extensions."""
    names = [name for name, kind in KINDS.items() if kind in kinds and name not in but]
    packed = [kind for kind in kinds if kind in COMPRESSED]
    saved = "directories of datasets.save_to_disk and Lance"
    also = f"{', '.join(packed)} also as {', '.join(COMPRESSIONS)}"
    return f"{noun} from {', '.join(names)} ({also}), and {saved}"


# -- opening -------------------------------------------------------------------------------------------------


def entries(folder: str) -> list[str]:
    """The names in a folder; raises OSError."""
    return os.listdir(folder)


def file_at(path: str | Path) -> File:
    """A regular file, looked up; raises OSError where there is none."""
    with opened(path) as file:
        return File.of(os.fspath(path), os.fstat(file.fileno()))


def mapped(path: str | Path) -> Any:
    """The bytes of a regular file where they lie, as a buffer of Arrow; raises OSError where there is none."""
    file_at(path)  # of a pipe or a device, Arrow would read for ever
    with pa.memory_map(os.fspath(path)) as file:
        return file.read_buffer()


@contextmanager
def reading(path: str | Path, *kinds: type[Exception]) -> Iterator[None]:
    """Damaged, in one sentence, for what the disk or a damaged file causes, and for further kinds of errors."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowException, *kinds) as error:
        said = (isinstance(error, OSError) and error.strerror) or str(error)
        reason = " ".join(said.split())[:200] or type(error).__name__
        raise Damaged(f"{path} cannot be read ({reason}): repair it or leave it out.") from error


def most_unpacked(packed: int) -> int:
    """Bytes that a file of so many may unpack to."""
    return max(SMALL, EXPANSION * packed)


# -- folders -------------------------------------------------------------------------------------------------


def _add(place: str, reads: Callable[[str], bool], found: Found) -> None:
    """Add a file, or what lies in a folder and in the folders in it."""
    if not os.path.isdir(place):
        _add_file(place, reads, found)
        return
    for folder, names in _folders(place, found):
        if CORPUS in names:
            found.leave_out("prepared corpora, which train alone reads", folder)
            continue
        if is_dataset(names):
            found.files.append(File.of(folder, os.stat(folder)))
            continue
        for path in (os.path.join(folder, name) for name in names):
            if not os.path.isdir(path):
                _add_file(path, reads, found)


def _folders(top: str, found: Found) -> Iterator[tuple[str, list[str]]]:
    """A folder and all in it, each once, with the names in it that are not hidden; none lies in a data set. Folders
    behind links come last, so that a folder goes by its own name where it has one here."""
    folders, links = [top], deque[str]()
    above = set(map(str, Path(os.path.realpath(top)).parents))
    read: set[str] = set()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        here = os.path.realpath(folder)
        if here in above:
            found.leave_out("links to a folder above", folder)
        elif here not in read:
            read.add(here)
            names = [name for name in _names(folder, found) if name[0] != "." and name != SPLITS_FILE]
            yield folder, names
            closed = CORPUS in names or is_dataset(names)
            for path in [] if closed else (os.path.join(folder, name) for name in names):
                if os.path.isdir(path):
                    (links if os.path.islink(path) else folders).append(path)


def _names(folder: str, found: Found) -> list[str]:
    try:
        return sorted(entries(folder))
    except OSError:
        found.leave_out("folders that may not be read", folder)
        return []


def _add_file(path: str, reads: Callable[[str], bool], found: Found) -> None:
    try:
        status = os.stat(path)
    except OSError:
        found.leave_out("links to nothing", path)
        return
    if not stat.S_ISREG(status.st_mode):
        found.leave_out("pipes, sockets and devices", path)
    elif not reads(path):
        ending = os.path.splitext(path)[1].lower()
        found.leave_out(f"{ending} files" if ending else "files without an extension", path)
    else:
        found.files.append(File.of(path, status))


# -- patterns ------------------------------------------------------------------------------------------------


def _matching(pattern: str, found: Found) -> Iterator[str]:
    """What a pattern stands for; each one that its braces stand for has to match something."""
    patterns = list(itertools.islice(_without_braces(pattern), MOST_PATTERNS + 1))
    if len(patterns) > MOST_PATTERNS:
        most = f"more than {MOST_PATTERNS:,} patterns"
        raise UserError(f"{pattern} stands for {most}: use * in place of braces.")
    for single in patterns:
        matches = list(_below("", single.split(os.sep), found))
        if not matches and _MAGIC.search(single):
            raise UserError(f"No file matches {single}: check the pattern.")
        if not matches:
            remedy = "check the path (a hub data set is hub:user/name)"
            raise UserError(f"There is no file or folder {single}: {remedy}.")
        yield from matches


def _without_braces(pattern: str) -> Iterator[str]:
    """`a{1,2}` as `a1` and `a2`, `{08..10}` as 08, 09 and 10."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    for choice in _choices(braces[1]):
        yield from _without_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _choices(within: str) -> Iterable[str]:
    first, dots, last = within.partition("..")
    if not dots or not (first + last).isdigit():
        return within.split(",")
    width = len(first) if first.startswith("0") else 0
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))


def _below(folder: str, parts: list[str], found: Found) -> Iterator[str]:
    """What lies in a folder under a path of patterns; `**` stands for all folders in it, and itself."""
    if not parts:
        yield folder
        return
    part, *rest = parts
    if part == "**":
        for deeper, _ in _folders(folder or os.curdir, found):
            deeper = deeper if folder else os.path.relpath(deeper).removeprefix(os.curdir)
            yield from _below(deeper, rest, found)
        return
    names = [part]
    if _MAGIC.search(part):
        listed = _names(folder or os.curdir, found) if os.path.isdir(folder or os.curdir) else []
        names = [name for name in fnmatch.filter(listed, part) if part[0] == "." or name[0] != "."]
    for name in names:
        place = os.path.join(folder, name) if name else folder or os.sep
        if os.path.lexists(place):
            yield from _below(place, rest, found)
