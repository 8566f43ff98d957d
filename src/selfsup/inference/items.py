"""What is embedded and by what: records as items, whatever they hold, and the models that turn them into vectors.

A kind of item is what one kind of model can read: a text (`selfsup.inference.texts`), an image
(`selfsup.inference.pictures`). A model says how it reads a
source (`EmbeddingModel.read`), and gets the contents of items back to embed them; nothing between the two knows what a
content is.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from selfsup.data.tally import NAMED, Skipped
from selfsup.errors import UserError

Progress = Callable[[int, int | None], None]
Vectors = npt.NDArray[np.float32]
Label = str | int
T = TypeVar("T")

CHUNK = 4096  # items embedded together: enough to sort into batches of even length, and seconds or minutes to lose
CHARACTERS = 1 << 26  # in one chunk, however few its texts: they stand in memory


@dataclass(frozen=True)
class Item(ABC):
    """A record to embed.

    Attributes:
        id: the value of the id column, else the place of the record.
        content: what the model embeds.
        source: that place, with the absolute path of a file.
        values: the other columns of the record.
    """

    noun: ClassVar[str]  # what messages call it
    asked: ClassVar[str]  # how a search is asked by one
    shown: ClassVar[str]  # the column that stands beside its vector, and the attribute that it holds

    id: str
    content: Any
    source: str
    values: dict[str, object]

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
    """A source that counts what it leaves out.

    Attributes:
        skipped: bad records of the last complete pass.
        empty: blank ones.
        notes: how it is read, in words, by what they are about: its column, its split, what else lies there.
    """

    @property
    def notes(self) -> dict[str, str]: ...

    @property
    def skipped(self) -> Skipped: ...

    @property
    def empty(self) -> int: ...


class Collection(Counted, Protocol):
    """A source as a model reads it, again with each pass.

    Attributes:
        kind: what its items are.
    """

    kind: ClassVar[type[Item]]
    name: str

    def items(self, id_column: str | None = None, with_values: bool = False) -> Iterator[Item]:
        """All that can be read, in a fixed order."""

    def labelled(self) -> Iterator[tuple[Item, Label]]:
        """The same, each with its class; raises UserError where there are no classes."""

    def parts(self) -> Iterator[Item]:
        """All that can be embedded by itself, in a fixed order: where a record holds a pair, both of it."""

    def pairs(self, seed: int) -> ScoredPairs:
        """What belongs together; what has to be drawn for it is drawn by the seed."""


class EmbeddingModel(Protocol):
    """A model that turns what it reads into vectors.

    Attributes:
        kind: what messages call it, with its article.
        embeds: the kinds of items it reads.
    """

    kind: ClassVar[str]
    embeds: ClassVar[tuple[type[Item], ...]]

    @property
    def truncated(self) -> int:
        """Items of the last `embed` that were not read to their end."""

    @property
    def unread(self) -> Sequence[int]:
        """The numbers of those that cannot be read at all."""

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""

    @property
    def pooling(self) -> str:
        """How hidden states become a vector, in a word."""

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change with anything that may change a vector."""

    def to(self, device: torch.device) -> object:
        """Move it to where it is to compute."""

    def read(
        self,
        source: object,
        column: str | None = None,
        *,
        label: str | None = None,
        failures: float = 0.01,
        progress: Progress | None = None,
    ) -> Collection:
        """Open a source.

        Args:
            column, label: those of the content and of its class; found by themselves where they are None.
            failures: the share of bad records, from 0 to 1, above which reading stops.
            progress: called with what is read so far, where opening takes long, and all of it.

        Raises:
            UserError: there is none that this model reads.
        """

    def embed(
        self,
        contents: Sequence[Any],
        precision: str = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> Vectors:
        """(n, dimension), not normalised; NaN for what cannot be read."""


def embed_items(
    model: EmbeddingModel,
    items: Sequence[Item],
    path: str | Path,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[npt.NDArray[np.bool_], Vectors]:
    """Which of the items (n,) can be read, and the vectors of these, (m, dimension).

    Raises:
        UserError: a vector of the model at `path` holds a number that is not finite.
    """
    vectors = model.embed([item.content for item in items], precision=precision, progress=progress)
    read = np.ones(len(items), bool)
    read[list(model.unread)] = False
    if not np.isfinite(vectors[read]).all():
        raise UserError(
            f"{path} gives vectors that are not finite numbers: its training has diverged; train it anew with a lower "
            "learning rate."
        )
    return read, vectors[read]


def absolute(where: str, file: str) -> str:
    """A place with the absolute path of its file, which is the same wherever a command runs."""
    return os.path.abspath(where) if os.path.isfile(file) else where


def chunks(items: Iterator[Item], most: int) -> Iterator[list[Item]]:
    """Consecutive items, at most so many together and at most `CHARACTERS` of text (but at least one)."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        if chunk and (len(chunk) == most or size + len(item.text) > CHARACTERS):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += len(item.text)
    if chunk:
        yield chunk


def require_count(what: str, count: object) -> None:
    """Raise a UserError where a number of things is no whole number above 0."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"{what} is {count!r}; give a whole number of 1 or more.")


def survey(items: Iterator[Item], id_column: str | None, progress: Progress) -> tuple[int, str]:
    """Read a source once before work on it begins: the number of its items, and a fingerprint of ids and contents.

    Raises:
        UserError: an id occurs twice.
    """
    count = 0
    ids: set[str] = set()
    digest = hashlib.blake2b(digest_size=16)
    for count, item in enumerate(items, 1):
        if id_column is not None:  # places differ by themselves
            if item.id in ids:
                raise UserError(
                    f"The {id_column} {item.id!r} occurs twice ({item.source} is the second): "
                    "give a column of ids that differ, or none to go by the place of each record."
                )
            ids.add(item.id)
        for value in (item.id.encode(), item.identity):
            digest.update(f"{len(value)} ".encode() + value)
        if count % 1000 == 0:
            progress(count, None)
    return count, digest.hexdigest()


@dataclass(frozen=True)
class LeftOut:
    """What is not, or not wholly, in a result that is made of a source, and how that was read.

    Attributes:
        reading: the notes of the source, see `Counted`.
        truncated: items that are longer than the model's window, of which it read the beginning.
        skipped: records that cannot be read; `skipped_names` are the first of them, each with the reason.
        empty: blank records.
        replaced_bytes: of texts, that are not UTF-8 and were read as U+FFFD.
    """

    reading: dict[str, str] = field(default_factory=dict)
    truncated: int = 0
    skipped: int = 0
    empty: int = 0
    replaced_bytes: int = 0
    skipped_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, collections: Iterable[Counted], truncated: int = 0) -> LeftOut:
        """Of the last pass over collections, from which so many items were truncated."""
        collections = list(collections)
        counted = [(collection.skipped, collection.empty) for collection in collections]
        names = itertools.chain.from_iterable(skipped.names for skipped, _ in counted)
        return cls(
            _together([collection.notes for collection in collections]),
            truncated,
            sum(skipped.count for skipped, _ in counted),
            sum(empty for _, empty in counted),
            sum(skipped.replaced_bytes for skipped, _ in counted),
            tuple(itertools.islice(names, NAMED)),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"skipped_names": list(self.skipped_names)}

    def rows(self) -> dict[str, str]:
        """What to tell of it, and what there is of each."""
        more = "; …" if self.skipped > len(self.skipped_names) else ""
        told = {
            "truncated": (
                self.truncated,
                "longer than the model's window and embedded by their beginning",
            ),
            "skipped": (
                self.skipped,
                f"records that cannot be read: {'; '.join(self.skipped_names)}{more}",
            ),
            "empty": (self.empty, "records without text"),
            "replaced": (self.replaced_bytes, "bytes of text that are not UTF-8, read as U+FFFD"),
        }
        return self.reading | {
            name: f"{count:,} {meaning}" for name, (count, meaning) in told.items() if count
        }


def _together(notes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The notes of several sources, each told once."""
    names = dict.fromkeys(name for of_one in notes for name in of_one)
    return {name: "; ".join(dict.fromkeys(n[name] for n in notes if name in n)) for name in names}


class Answers(list[T]):
    """What was found of each readable record of a source, in its order.

    Attributes:
        left_out: what of the source is not among them, or was not read wholly.
    """

    def __init__(self, answers: Iterable[T], left_out: LeftOut) -> None:
        super().__init__(answers)
        self.left_out = left_out


def silent(done: int, total: int | None) -> None:
    """Progress that nobody looks at."""


def shifted(progress: Progress, done: int, total: int) -> Progress:
    """Progress within a chunk, as progress in all."""
    return lambda within, _: progress(done + within, total)


class Embedder:
    """A model that turns items into vectors.

    Attributes:
        path: absolute, of the run or model directory.
        dimension: of the vectors.
        fingerprint: 32 hex digits that change with anything that may change a vector.
        truncated: items of the last call that the window was too short for.
    """

    def __init__(self, model: EmbeddingModel, path: str | Path) -> None:
        self.model = model
        self.path = os.path.abspath(path)
        self.dimension = model.dimension
        self.fingerprint = model.fingerprint
        self.truncated = 0

    def __call__(
        self, items: Sequence[Item], progress: Callable[[int, int], None] | None = None
    ) -> tuple[list[Item], Vectors]:
        """The items that can be read, in their order, and their vectors (n, dimension), not normalised.

        Raises:
            UserError: a vector holds a number that is not finite.
        """
        read, vectors = embed_items(self.model, items, self.path, progress=progress)
        self.truncated = self.model.truncated
        return list(itertools.compress(items, read)), vectors

    def query(self, item: Item) -> Vectors:
        """(dimension,).

        Raises:
            UserError: the model reads no such item.
        """
        if not isinstance(item, self.model.embeds):
            others = " or ".join(kind.asked for kind in self.model.embeds)
            raise UserError(
                f"{self.path} holds {self.model.kind}, which reads no {item.noun}; give {others}."
            )
        _, vectors = self([item])
        if not len(vectors):
            raise UserError(f"{item.source} cannot be read; give another one.")
        vector: Vectors = vectors[0]
        return vector

    def description(self) -> dict[str, Any]:
        """What is stored beside the vectors."""
        return {
            "model": self.path,
            "model_fingerprint": self.fingerprint,
            "pooling": self.model.pooling,
            "dimension": self.dimension,
        }
