"""What is embedded, and by what: all of embedding, indexing and search that knows what a text is.

A record longer than the model's window is embedded by its beginning, as far as the window reaches, and counted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selfsup.data.tables import Row, Table
from selfsup.errors import UserError

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
        id: the value of the id column, else the place of the record.
        source: that place, with the absolute path of a file.
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
    """Where a record stands, with the absolute path of a file, which is the same wherever a command runs."""
    return os.path.abspath(row.where) if os.path.isfile(row.source) else row.where


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


def survey(items: Iterator[Item], id_column: str | None, progress: Progress) -> tuple[int, str]:
    """Read a source once before work on it begins: the number of its items, and a fingerprint of ids and texts.

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
        for value in (item.id.encode(), item.text.encode()):
            digest.update(f"{len(value)} ".encode() + value)
        if count % 1000 == 0:
            progress(count, None)
    return count, digest.hexdigest()


def left_out(truncated: int, skipped: int, empty: int) -> dict[str, str]:
    """What to tell of texts that are not there, or not wholly."""
    told = {
        "truncated": (truncated, "longer than the model's window and embedded by their beginning"),
        "skipped": (skipped, "records that cannot be read"),
        "empty": (empty, "records without text"),
    }
    return {name: f"{count:,} {meaning}" for name, (count, meaning) in told.items() if count}


def silent(done: int, total: int | None) -> None:
    """Progress that nobody looks at."""


def shifted(progress: Progress, done: int, total: int) -> Progress:
    """Progress within a chunk, as progress in all."""
    return lambda within, _: progress(done + within, total)


class Embedder:
    """A model that turns items into vectors.

    Attributes:
        path: absolute, of the run or model directory.
        pooling: how the vector of an item comes from the model's hidden states.
        dimension: of the vectors.
        fingerprint: 32 hex digits that change with anything that may change a vector.
        truncated: items of the last call that the window was too short for.
    """

    def __init__(self, model: EncoderModel, path: str | Path) -> None:
        self.path = os.path.abspath(path)
        self.pooling: str = model.features.pooling
        self.dimension = model.dimension
        self.fingerprint = _fingerprint(model)
        self.truncated = 0
        self._model = model

    def __call__(self, items: Sequence[Item], progress: Callable[[int, int], None] | None = None) -> Vectors:
        """(n, dimension), not normalised, in the order of the items.

        Raises:
            UserError: a vector holds a number that is not finite.
        """
        vectors = self._model.embed([item.text for item in items], progress=progress)
        if not np.isfinite(vectors).all():
            raise UserError(
                f"{self.path} gives vectors that are not finite numbers: its training has diverged; train it anew "
                "with a lower learning rate."
            )
        self.truncated = self._model.truncated
        return vectors

    def query(self, text: str) -> Vectors:
        """(dimension,)."""
        vector: Vectors = self([Item("", text, "", {})])[0]
        return vector

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
        UserError: there is none, or it is one that does not embed, or no such device.
    """
    from selfsup.machine import find_device
    from selfsup.run import load_encoder

    model = load_encoder(path)
    model.encoder.to(find_device(device))
    return Embedder(model, path)


def _fingerprint(model: EncoderModel) -> str:
    from selfsup.inference.probe import fingerprint

    parts = (fingerprint(model), model.tokenizer.fingerprint, model.encoder.config.window)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
