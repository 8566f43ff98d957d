"""What is embedded and by what: records as items, whatever they hold, and the models that turn them into vectors.

A kind of item is what one kind of model can read: a text (`texts.py`), an image (`pictures.py`). A model says how it
reads a source (`EmbeddingModel.read`) and gets the contents of items back to embed them; nothing between the two knows
what a content is.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from selfsup.data.tally import NAMED, Skipped
from selfsup.report import Progress

Vectors = npt.NDArray[np.floating]
Label = str | int
T = TypeVar("T")

CHUNK = 4096  # items embedded together: enough to sort into batches of even length, and seconds or minutes to lose
CHARACTERS = 1 << 26  # in one chunk, however few its texts: they stand in memory


@dataclass(frozen=True)
class Item(ABC):
    """A record to embed."""

    noun: ClassVar[str]  # what messages call it
    asked: ClassVar[str]  # how a search is asked by one
    shown: ClassVar[str]  # the column that stands beside its vector, and the attribute that it holds
    placed: ClassVar[tuple[str, ...]] = ()  # likewise those that say where it stands in its document

    id: str  # the value of the id column, else the place of the record
    content: Any  # what the model embeds
    source: str  # that place, with the absolute path of a file
    values: dict[str, object]  # the other columns of the record

    @property
    @abstractmethod
    def text(self) -> str:
        """What it says in words; empty for what has none."""

    @property
    @abstractmethod
    def identity(self) -> bytes:
        """What tells its content from any other one."""


@dataclass(frozen=True)
class ScoredPairs:
    """Items that belong together, first and second, and to what degree, (n,)."""

    first: Sequence[Item]
    second: Sequence[Item]
    scores: npt.NDArray[np.float64]


class Counted(Protocol):
    """A source that counts what it leaves out."""

    @property
    def notes(self) -> dict[str, str]:
        """How it is read, in words, by what they are about: its column, its split, what else lies there."""

    @property
    def skipped(self) -> Skipped:
        """Bad records of the last complete pass."""

    @property
    def empty(self) -> int:
        """Blank ones."""


class Listed(Counted, Protocol):
    """A source as items, again with each pass."""

    kind: ClassVar[type[Item]]  # what its items are
    name: str

    def items(self, id_column: str | None = None, with_values: bool = False) -> Iterator[Item]:
        """All that can be read, in a fixed order. Raises UserError where a value of the id column occurs twice."""


class Collection(Listed, Protocol):
    """A source as a model reads it."""

    def labelled(self) -> Iterator[tuple[Item, Label]]:
        """The same, each with its class; raises UserError where there are no classes."""

    def parts(self) -> Iterator[Item]:
        """All that can be embedded by itself, in a fixed order: where a record holds a pair, both of it."""

    def pairs(self, seed: int) -> ScoredPairs:
        """What belongs together; what has to be drawn for it is drawn by the seed."""


def distinct_items(items: Iterable[Item]) -> dict[bytes, Item]:
    """The first item of each content, by identity, in order."""
    found: dict[bytes, Item] = {}
    for item in items:
        found.setdefault(item.identity, item)
    return found


def digest(content: bytes) -> str:
    """BLAKE2b of a content, 32 hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def absolute(where: str, file: str) -> str:
    """A place with the absolute path of its file, which is the same wherever a command runs."""
    path, rest = _path_of(file, os.getcwd()), where.removeprefix(file)
    if path is None:
        return where
    return os.path.abspath(where) if rest == where or os.sep in rest else path + rest


@lru_cache(maxsize=1 << 10)
def _path_of(file: str, here: str) -> str | None:
    """The absolute path of a file as a command knows it that runs in a directory; None where it is no file."""
    return os.path.abspath(file) if os.path.isfile(file) else None


def chunks(items: Iterator[Item], most: int, characters: int = CHARACTERS) -> Iterator[list[Item]]:
    """Consecutive items, at most so many together and at most so many characters of text (but at least one)."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        if chunk and (len(chunk) == most or size + len(item.text) > characters):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += len(item.text)
    if chunk:
        yield chunk


def survey(items: Iterator[Item], progress: Progress) -> tuple[int, str]:
    """Read a source once before work on it begins: the number of its items, and a fingerprint of ids and contents."""
    count = 0
    hashed = hashlib.blake2b(digest_size=16)
    for count, item in enumerate(items, 1):
        for value in (item.id.encode(), item.identity):
            hashed.update(f"{len(value)} ".encode() + value)
        if count % 1000 == 0:
            progress(count, None)
    return count, hashed.hexdigest()


@dataclass(frozen=True)
class LeftOut:
    """What is not, or not wholly, in a result that is made of a source, and how that was read."""

    reading: dict[str, str] = field(default_factory=dict)  # the notes of the source, see `Counted`
    truncated: int = 0  # items that are longer than the model's window, of which it read the beginning
    skipped: int = 0  # records that cannot be read
    empty: int = 0  # blank records
    replaced_bytes: int = 0  # of texts, that are not UTF-8 and were read as U+FFFD
    skipped_names: tuple[str, ...] = ()  # the first of the skipped records, each with the reason

    @classmethod
    def of(cls, collections: Iterable[Counted], truncated: int = 0) -> LeftOut:
        """Of the last pass over collections, from which so many items were truncated."""
        collections = list(collections)
        counted = [collection.skipped for collection in collections]
        names = [name for skipped in counted for name in skipped.names]
        return cls(
            _together([collection.notes for collection in collections]),
            truncated,
            skipped=sum(skipped.count for skipped in counted),
            empty=sum(collection.empty for collection in collections),
            replaced_bytes=sum(skipped.replaced_bytes for skipped in counted),
            skipped_names=tuple(names[:NAMED]),
        )

    def beside(self, notes: Mapping[str, str]) -> LeftOut:
        """The same with more to tell of how it was read."""
        return replace(self, reading={**self.reading, **notes})

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"skipped_names": list(self.skipped_names)}

    def rows(self) -> dict[str, str]:
        """What to tell of it, and what there is of each."""
        more = "; …" if self.skipped > len(self.skipped_names) else ""
        told = {
            "truncated": (self.truncated, "longer than the model's window and embedded by their beginning"),
            "skipped": (self.skipped, f"records that cannot be read: {'; '.join(self.skipped_names)}{more}"),
            "empty": (self.empty, "records without text"),
            "replaced": (self.replaced_bytes, "bytes of text that are not UTF-8, read as U+FFFD"),
        }
        return self.reading | {name: f"{count:,} {meaning}" for name, (count, meaning) in told.items() if count}


def _together(notes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The notes of several sources, each told once."""
    names = dict.fromkeys(name for of_one in notes for name in of_one)
    return {name: "; ".join(dict.fromkeys(n[name] for n in notes if name in n)) for name in names}


class Answers(list[T]):
    """What was found of each readable record of a source, in its order; `left_out` is what of the source is not among
    them, or was not read wholly."""

    def __init__(self, answers: Iterable[T], left_out: LeftOut) -> None:
        super().__init__(answers)
        self.left_out = left_out


def silent(done: int, total: int | None) -> None:
    """Progress that nobody looks at."""


def shifted(progress: Progress, done: int, total: int) -> Progress:
    """Progress within a chunk, as progress in all."""
    return lambda within, _: progress(done + within, total)
