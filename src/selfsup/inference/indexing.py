"""A searchable library of a source: made, and kept up to date.

Whole records are indexed; a text that is longer than the model's window is found by its beginning, and counted. A
record's content is compared by hash with the one in the library, so only what is new or has changed is embedded.
Contents and vectors are streamed; the ids of the library, with their hashes, stand in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import not_
from pathlib import Path
from typing import Any

import numpy as np

from selfsup.arguments import checked
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.base import EmbeddingModel
from selfsup.inference.columns import Column, Kinds
from selfsup.inference.items import CHUNK, Item, LeftOut, chunks, digest, shifted, silent, survey
from selfsup.inference.library import Library
from selfsup.inference.opening import open_embedder
from selfsup.models.features import DOCUMENT
from selfsup.report import Progress


@dataclass(frozen=True)
class Indexed:
    """What `index` did."""

    library: Path
    records: int  # in the library now
    added: int  # of the source, as are the next three
    updated: int
    unchanged: int
    embedded: int  # those added and updated that had a new content
    left_out: LeftOut  # what of the source is not in the library, or not wholly, as embedded ones that were truncated
    index: dict[str, Any] | None  # LanceDB's, with its measured `recall@10`; None where the search is exact

    def to_json(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "left_out"}
        return own | self.left_out.to_json() | {"library": str(self.library)}

    def rows(self) -> dict[str, str]:
        """What to tell of it, and what there is of each."""
        changes = f"{self.added:,} added, {self.updated:,} updated, {self.unchanged:,} unchanged"
        told = {"library": f"{self.library}, {self.records:,} records: {changes}"}
        told["search"] = "exact"
        if self.index is not None:
            told["search"] = (
                f"{self.index['index']}, recall@10 {self.index['recall@10']:.3f} beside the exact search "
                f"({self.index['queries']} records as queries)"
            )
        return told | self.left_out.rows()


@checked
def index(
    run: str | Path,
    data: object,
    out: str | Path,
    *,
    column: str | None = None,
    id_column: str | None = None,
    batch: int = CHUNK,
    failures: float = 1.0,
    device: str = "auto",
    dimension: int | None = None,
    progress: Progress | None = None,
) -> Indexed:
    """Bring a library up to date with a source: add new records, replace changed ones, leave the others.

    Records of the library that the source does not hold stay. An interrupted call is made again and goes on: what
    was put stays put. The other columns of the source are stored too, numbers as numbers (also where a CSV file
    writes them), names made fit for SQL, so that `search` can filter by them; columns of bytes are left out.

    Args:
        run, data, column, id_column, failures, progress: as those of `selfsup.embed`; the library remembers the run.
        out: the library, a directory whose name ends in `.lance`.
        batch: records that are embedded and put together.
        dimension: keep the first so many numbers of each vector; a library that is there goes on with its own.

    Raises:
        UserError: no such model, data or column; an id occurs twice; the library was made by another model or with
            another dimension, or a column of it holds another kind of value.
    """
    path, progress = expanded(out), progress or silent
    there = Library.open(path) if Library.exists(path) else None
    if there is None:
        Library.require_free(path)
    model = open_embedder(run, device, _dimension(there, dimension))
    if there is not None:
        there.admit(model)
    described = model.description()
    collection = model.read(data, column, failures=failures, progress=progress)
    kinds = Kinds()
    total, _ = survey(kinds.watch(collection.items(id_column, with_values=True)), id_column, progress)
    with Library.held(path, described) as library:
        library.require_model(described)
        columns = kinds.columns(library.kinds)
        library.widen({c.name: c.kind for c in columns.values() if c.name not in library.kinds})
        update = _Update(library, model, columns)
        for items in chunks(update.changed(collection.items(id_column, with_values=True)), batch):
            update.put(items, shifted(progress, update.done, total))
        library.settle()
    return Indexed(
        path, library.count(), update.added, update.updated, update.unchanged, update.embedded,
        kinds.noted(LeftOut.of([collection], update.truncated), columns).beside(model.notes(DOCUMENT)),
        library.description.get("index"),
    )  # fmt: skip


def _dimension(library: Library | None, dimension: int | None) -> int | None:
    """The dimension that is asked for; raises a UserError where a library that is there has another one."""
    if library is None:
        return dimension
    if dimension in (None, library.dimension):
        return None  # which the library knows
    raise UserError(
        f"{library.path} holds vectors of {library.dimension} numbers, so --dimension cannot be {dimension}; leave it "
        "out, or make a new library."
    )


class _Update:
    """The difference between a source and a library, put into the library."""

    def __init__(self, library: Library, model: EmbeddingModel, columns: Mapping[str, Column]) -> None:
        self.added = self.updated = self.unchanged = self.embedded = self.truncated = self.unread = 0
        self._library = library
        self._model = model
        self._columns = columns
        self._known = library.hashes()

    @property
    def done(self) -> int:
        return self.added + self.updated + self.unchanged + self.unread

    def changed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those that the library does not hold, or not like this."""
        for item in items:
            if self._known.get(item.id) == (_content_hash(item), _values_hash(item)):
                self.unchanged += 1
            else:
                yield item

    def put(self, items: list[Item], progress: Progress) -> None:
        """Add or replace; only a content that the library does not hold is embedded."""
        held = [self._known.get(item.id, ("", ""))[0] == _content_hash(item) for item in items]
        old, new = list(itertools.compress(items, held)), list(itertools.compress(items, map(not_, held)))
        parts = []
        if new:
            read, vectors = self._model.embed_items(new, progress=progress, prompt=DOCUMENT)
            self.unread += len(new) - len(vectors)
            self.truncated += self._model.truncated
            new = list(itertools.compress(new, read))
            parts.append(vectors)
        if old:
            parts.append(self._library.vectors([item.id for item in old]))
        if new or old:
            self._library.put(self._rows(new + old), np.concatenate(parts))
        added = sum(item.id not in self._known for item in new)
        self.added += added
        self.updated += len(new) + len(old) - added
        self.embedded += len(new)

    def _rows(self, items: list[Item]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [None] * len(items) for name in self._library.kinds}
        for name, column in self._columns.items():
            rows[column.name] = [column.convert(item.values.get(name), item.source) for item in items]
        return rows | {
            "id": [item.id for item in items],
            "text": [item.text for item in items],
            "source": [item.source for item in items],
            "content_hash": [_content_hash(item) for item in items],
            "values_hash": [_values_hash(item) for item in items],
        }


def _content_hash(item: Item) -> str:
    return digest(item.identity)


def _values_hash(item: Item) -> str:
    content = repr((item.source, sorted(item.values.items(), key=lambda pair: pair[0])))
    return digest(content.encode(errors="surrogatepass"))
