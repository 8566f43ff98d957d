"""What is embedded, and by what: all of embedding, indexing and search that knows what a text is.

A record longer than the model's window is embedded by its beginning, as far as the window reaches, and counted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selfsup.data.tables import Row, Table
from selfsup.errors import UserError
from selfsup.files import checksum

if TYPE_CHECKING:
    from selfsup.inference.encoder import EncoderModel

Progress = Callable[[int, int | None], None]
Vectors = npt.NDArray[np.float32]

CHUNK = 4096  # items embedded together: enough to sort into batches of even length, and seconds or minutes to lose
CHARACTERS = 1 << 26  # in one chunk, however few its texts: they stand in memory


@dataclass(frozen=True)
class Item:
    """A record to embed.

    Attributes:
        id: the value of the id column, else the place of the record with the file's absolute path.
        source: that place.
        values: the other columns of the record.
    """

    id: str
    text: str
    source: str
    values: dict[str, object]


def read_items(
    table: Table, column: str | None, id_column: str | None, with_values: bool = False
) -> Iterator[Item]:
    """The records of a table that hold a text, in order.

    Raises:
        UserError: what `Table.documents` raises.
    """
    needed = [] if id_column is None else [id_column]
    for text, row in table.documents(column, needed, None if with_values else ()):
        place = _place(row)
        key = place if id_column is None else str(row.values.pop(id_column))
        yield Item(key, text, place, row.values)


def _place(row: Row) -> str:
    return _absolute(row.source) + row.where.removeprefix(row.source)


@lru_cache(maxsize=1)  # rows of one file follow each other
def _absolute(source: str) -> str:
    """A file's absolute path, which is the same from wherever a command runs; the name of anything else."""
    return os.path.abspath(source) if os.path.isfile(source) else source


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


def survey(items: Iterator[Item], id_column: str | None, progress: Progress) -> int:
    """Read a source once before work on it begins: the number of its items.

    Raises:
        UserError: an id occurs twice.
    """
    count = 0
    ids: set[str] = set()
    for count, item in enumerate(items, 1):
        if id_column is not None:  # places differ by themselves
            if item.id in ids:
                raise UserError(
                    f"The {id_column} {item.id!r} occurs twice ({item.source} is the second): "
                    "give a column of ids that differ, or none to go by the place of each record."
                )
            ids.add(item.id)
        if count % 1000 == 0:
            progress(count, None)
    return count


def silent(done: int, total: int | None) -> None:
    """Progress that nobody looks at."""


def shifted(progress: Progress, done: int, total: int) -> Callable[[int, int], None]:
    """Progress within a chunk, as progress in all."""
    return lambda within, _: progress(done + within, total)


class Embedder:
    """A model that turns items into vectors.

    Attributes:
        path: absolute, of the run or model directory.
        fingerprint: 32 hex digits that depend on weights, tokenizer and feature definition.
        pooling: `mean` or `cls`.
        dimension: of the vectors.
    """

    def __init__(self, model: EncoderModel, path: Path, fingerprint: str) -> None:
        self.path = os.path.abspath(path)
        self.fingerprint = fingerprint
        self.pooling: str = model.features.pooling
        self.dimension = model.dimension
        self._model = model

    def __call__(self, items: Sequence[Item], progress: Callable[[int, int], None] | None = None) -> Vectors:
        """(n, dimension), in the order of the items.

        Raises:
            UserError: a vector holds a number that is not finite.
        """
        vectors = self._model.embed([item.text for item in items], progress=progress)
        if not np.isfinite(vectors).all():
            raise UserError(
                f"{self.path} gives vectors that are not finite: its weights are damaged; train it anew."
            )
        return vectors

    def query(self, text: str) -> npt.NDArray[np.float32]:
        """(dimension,)."""
        vector: Vectors = self([Item("", text, "", {})])[0]
        return vector

    def truncated(self, items: Sequence[Item]) -> int:
        """How many of the items are longer than the window, the start and end token included."""
        room = self._model.encoder.config.window - 2
        # A token stands for at least one byte (one more may open the text), so most need no counting.
        longer = (item.text for item in items if len(item.text.encode()) >= room)
        return sum(len(self._model.tokenizer.encode(text)) > room for text in longer)

    def description(self) -> dict[str, Any]:
        """What is stored beside the vectors."""
        return {
            "model": self.path,
            "model_fingerprint": self.fingerprint,
            "pooling": self.pooling,
            "dimension": self.dimension,
        }


def open_embedder(path: str | Path, device: str = "auto") -> Embedder:
    """The model of a run or of a model directory.

    Raises:
        UserError: there is none, or it is one that does not embed.
    """
    from selfsup.inference.generate import LanguageModel
    from selfsup.machine import find_device
    from selfsup.run import Run, load

    model: Any = load(path)
    if isinstance(model, LanguageModel):
        raise UserError(
            f"{path} is a language model, which has no vectors of texts; give a run of masked-lm or simcse."
        )
    model.encoder.to(find_device(device))
    run = Run(path)
    return Embedder(model, Path(path), _fingerprint(run.model_directory if run.exists else Path(path)))


def _fingerprint(directory: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "features.json", "tokenizer.json"):
        if (directory / name).is_file():
            digest.update(checksum(directory / name).encode())
    for file in sorted(directory.glob("*.safetensors")):
        digest.update(checksum(file).encode())
    return digest.hexdigest()
