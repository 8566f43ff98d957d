"""A searchable library of a source: made, and kept up to date.

A text that is longer than the model's window is indexed in passages, each a record. A record's content is compared by
hash with those in the library, so only what is new or has changed is embedded. Contents and vectors are streamed; the
ids of the library, with their hashes, stand in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfsup.arguments import checked
from selfsup.data.cutting import Cutter
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.base import EmbeddingModel
from selfsup.inference.columns import Column, Kinds
from selfsup.inference.items import CHUNK, Collection, Item, LeftOut, Vectors, chunks, digest, shifted, silent, survey
from selfsup.inference.library import Library
from selfsup.inference.opening import open_embedder
from selfsup.inference.passages import Passage, Size, cutter_for, described, listed
from selfsup.inference.texts import Text
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
    removed: int  # passages that the former version of a document had
    embedded: int  # contents that were not in the library
    left_out: LeftOut  # what of the source is not in the library, or not wholly, as embedded ones that were truncated
    index: dict[str, Any] | None  # LanceDB's, with its measured `recall@10`; None where the search is exact

    def to_json(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "left_out"}
        return own | self.left_out.to_json() | {"library": str(self.library)}

    def rows(self) -> dict[str, str]:
        """What to tell of it, and what there is of each."""
        changes = f"{self.added:,} added, {self.updated:,} updated, {self.unchanged:,} unchanged"
        changes += f", {self.removed:,} of former versions removed" if self.removed else ""
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
    passages: Size | None = None,
    overlap: int | None = None,
    batch: int = CHUNK,
    failures: float = 1.0,
    device: str = "auto",
    dimension: int | None = None,
    progress: Progress | None = None,
) -> Indexed:
    """Bring a library up to date with a source: add new records, replace changed ones, leave the others.

    Long texts are cut into passages as by `selfsup.embed`. Of a document that has changed, those passages that it no
    longer has are removed, at the end. Documents and records that the source does not hold stay. An interrupted call is
    made again and goes on: what was put stays put. The other columns of the source are stored too, numbers as numbers
    (also where a CSV file writes them), names made fit for SQL, so that `search` can filter by them; columns of bytes
    are left out.

    Args:
        run, data, column, id_column, failures, progress: as those of `selfsup.embed`; the library remembers the run.
        out: the library, a directory whose name ends in `.lance`.
        passages, overlap: as those of `selfsup.embed`; None is as the library has it, or auto for a new one.
        batch: records that are embedded and put together.
        dimension: keep the first so many numbers of each vector; a library that is there goes on with its own.

    Raises:
        UserError: no such model, data or column; an id occurs twice; the library was made by another model, with
            another dimension or of other passages, or a column of it holds another kind of value.
    """
    path, progress = expanded(out), progress or silent
    there = Library.open(path) if Library.exists(path) else None
    if there is None:
        Library.require_free(path)
    model = open_embedder(run, device, _dimension(there, dimension))
    if there is not None:
        there.admit(model)
    description = model.description()
    collection = model.read(data, column, failures=failures, progress=progress)
    cutter = _cutter(there, model, collection, passages, overlap)
    description |= {"passages": described(cutter)}
    source = listed(collection, cutter)
    kinds = Kinds()
    total, _ = survey(kinds.watch(source.items(id_column, with_values=True)), progress)
    with Library.held(path, description) as library:
        library.require_model(description)
        library.require_passages(description["passages"])
        columns = kinds.columns(library.kinds, library.own)
        library.widen({c.name: c.kind for c in columns.values() if c.name not in library.kinds})
        update = _Update(library, model, columns)
        for items in chunks(update.changed(source.items(id_column, with_values=True)), batch):
            update.put(items, shifted(progress, update.done, total))
        removed = update.tidy()
        library.settle(worded=issubclass(source.kind, Text))
    return Indexed(
        path, library.count(), update.added, update.updated, update.unchanged, removed, update.embedded,
        kinds.noted(LeftOut.of([source], update.truncated), columns).beside(model.notes(DOCUMENT)),
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


def _cutter(
    library: Library | None, model: EmbeddingModel, collection: Collection, passages: Size | None, overlap: int | None
) -> Cutter | None:
    """What cuts documents as is asked for, else as a library that is there has it; raises a UserError where it was cut
    otherwise."""
    if library is None:
        return cutter_for(model, collection, passages or "auto", overlap)
    if passages is None and overlap is None:
        made = library.passages or {}
        return cutter_for(model, collection, made.get("tokens", "none"), made.get("overlap"))
    cutter = cutter_for(model, collection, passages or "auto", overlap)
    library.require_passages(described(cutter))
    return cutter


class _Update:
    """The difference between a source and a library, put into the library."""

    def __init__(self, library: Library, model: EmbeddingModel, columns: Mapping[str, Column]) -> None:
        self.added = self.updated = self.unchanged = self.embedded = self.truncated = self.unread = 0
        self._library = library
        self._model = model
        self._columns = columns
        self._known = library.hashes()
        self._holders = {content: key for key, (content, _) in self._known.items()}
        self._former = library.documents()
        self._gone: set[str] = set()

    @property
    def done(self) -> int:
        return self.added + self.updated + self.unchanged + self.unread

    def changed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those that the library does not hold, or not like this."""
        for item in items:
            if isinstance(item, Passage):
                self._gone |= self._former.pop(item.document, set())
                self._gone.discard(item.id)
            if self._known.get(item.id) == (_content_hash(item), _values_hash(item)):
                self.unchanged += 1
            else:
                yield item

    def put(self, items: list[Item], progress: Progress) -> None:
        """Add or replace; only a content of which the library holds no vector is embedded, and only once."""
        contents = [_content_hash(item) for item in items]
        new = {content: item for content, item in zip(contents, items, strict=True) if self._holder(content) is None}
        found = self._embedded(new, progress) | self._held(dict.fromkeys(contents).keys() - new.keys())
        kept = [number for number, content in enumerate(contents) if content in found]
        self.unread += len(items) - len(kept)
        items, contents = [items[number] for number in kept], [contents[number] for number in kept]
        if items:
            self._library.put(self._rows(items), np.stack([found[content] for content in contents]))
        added = sum(item.id not in self._known for item in items)
        self.added += added
        self.updated += len(items) - added
        for item, content in zip(items, contents, strict=True):
            self._known[item.id] = (content, _values_hash(item))
            self._holders[content] = item.id

    def tidy(self) -> int:
        """Remove what was a passage of a document and is none any more; how many."""
        self._library.remove(sorted(self._gone))
        return len(self._gone)

    def _holder(self, content: str) -> str | None:
        """The id of a record with a content, which its vector stands beside."""
        key = self._holders.get(content)
        return key if key is not None and self._known[key][0] == content else None

    def _embedded(self, new: Mapping[str, Item], progress: Progress) -> dict[str, Vectors]:
        """The vectors of what can be read of new contents."""
        if not new:
            return {}
        read, vectors = self._model.embed_items(list(new.values()), progress=progress, prompt=DOCUMENT)
        self.truncated += self._model.truncated
        self.embedded += len(vectors)
        return dict(zip(itertools.compress(new, read), vectors, strict=True))

    def _held(self, contents: Iterable[str]) -> dict[str, Vectors]:
        """The vectors of contents that the library holds."""
        holders = {content: self._holder(content) or "" for content in contents}
        return dict(zip(holders, self._library.vectors(list(holders.values())), strict=True)) if holders else {}

    def _rows(self, items: list[Item]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [None] * len(items) for name in self._library.kinds}
        for name, column in self._columns.items():
            rows[column.name] = [column.convert(item.values.get(name), item.source) for item in items]
        named = {name: [getattr(item, name) for item in items] for name in ("id", "text", "source", *items[0].placed)}
        hashes = {"content_hash": [_content_hash(item) for item in items]}
        return rows | named | hashes | {"values_hash": [_values_hash(item) for item in items]}


def _content_hash(item: Item) -> str:
    return digest(item.identity)


def _values_hash(item: Item) -> str:
    content = repr((item.source, sorted(item.values.items(), key=lambda pair: pair[0])))
    return digest(content.encode(errors="surrogatepass"))
