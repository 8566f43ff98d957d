"""A library asked for what is nearest to a query, and records taken out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from selfsup.arguments import checked
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.hits import Hit
from selfsup.inference.items import Item, Vectors
from selfsup.inference.library import PLACED, Library
from selfsup.inference.opening import open_embedder
from selfsup.inference.texts import Text

RANK_CONSTANT = 60  # of reciprocal ranks
RANKED = 100  # of each order that are joined, at least, so that the first hits are the same for any number of hits
DEPTH = 10  # records that are looked at for each that is shown, where one is chosen among them
FIGURES = ("_distance", "_score")


def delete(library: str | Path, ids: str | Iterable[object]) -> int:
    """Remove records by id, one or several, of a document all its passages; how many are left. Raises UserError where
    there is no such library, or no such record in it, and then nothing is removed."""
    with Library.held(expanded(library)) as opened:
        opened.delete([ids] if isinstance(ids, str) else [str(key) for key in ids])
        return opened.count()


@checked
def search(
    library: str | Path,
    query: str | None = None,
    *,
    image: object = None,
    top: int = 10,
    where: str | None = None,
    hybrid: bool = False,
    per_document: int = 1,
    rerank: str | Path | None = None,
    candidates: int = 100,
    model: str | Path | None = None,
    device: str = "auto",
) -> list[Hit]:
    """The records that answer a query best, best first; see `Searcher` for several queries.

    With `rerank`, the directory of a cross-encoder, it reads as many as `candidates` of them, each together with the
    query, and the best of these come first.
    """
    searcher = Searcher(library, model, device)
    find = partial(searcher, query, where=where, image=image, hybrid=hybrid, per_document=per_document)
    if rerank is None:
        return find(top)
    if query is None:
        raise UserError("A cross-encoder reads words, and the query is none; give words, or leave out --rerank.")
    from selfsup.inference.cross_encoder import CrossEncoderModel
    from selfsup.inference.reranking import reranked

    reader = CrossEncoderModel.open(rerank, device)
    return reranked(find(max(top, candidates)), query, reader)[:top]


class Searcher:
    """A library with the model that made it, ready for queries. Raises UserError where there is no such library or
    model, or it is another one.

    Args:
        model: where the model is now; None is where it was when the library was made.
    """

    def __init__(self, library: str | Path, model: str | Path | None = None, device: str = "auto") -> None:
        self.library = Library.open(expanded(library))
        place = expanded(model or self.library.description["model"])
        if model is None and not place.exists():
            raise UserError(
                f"The model of {library} is no longer at {place}; say where it is with --model (made with pooling "
                f"{self.library.description['pooling']}, fingerprint {self.library.description['model_fingerprint']})."
            )
        self._model = open_embedder(place, device)
        self.library.admit(self._model)
        self._own = self.library.own  # which is read from the disk each time

    @checked
    def __call__(
        self,
        query: str | None = None,
        top: int = 10,
        where: str | None = None,
        *,
        image: object = None,
        hybrid: bool = False,
        per_document: int = 1,
    ) -> list[Hit]:
        """The `top` records nearest to a query among those that fulfil the SQL condition `where`.

        What to look for are words or, in their place, an image: its path, its pixels (H, W, 3), or a PIL image. A
        hybrid search looks for the words themselves too, and joins both orders by their ranks. Of one document
        at most `per_document` passages are found as long as others fill the list. Raises UserError where there is not
        one query, or one that the model cannot read, for no hits, and for a condition that cannot be used.
        """
        item = _asked(query, image)
        if hybrid and not item.text:
            raise UserError("A hybrid search looks for words too; give words, or leave out --hybrid.")
        vector = self._model.query(item)
        find = self._joined if hybrid else self._nearest
        found: list[Hit] = []
        for depth in self._depths(top, hybrid):
            found = find(vector, item.text, depth, where)
            if len(_leading(found, per_document)) >= top or len(found) < depth:
                break
        return _spread(found, top, per_document)

    def _depths(self, top: int, hybrid: bool) -> list[int]:
        """How many records are looked at: of passages more than are shown, and more again where the first are of too
        few documents."""
        records = max(1, self.library.count())
        first = max(RANKED, DEPTH * top)
        depths = (first, DEPTH * first) if hybrid or self.library.passages else (top,)
        return sorted({min(depth, records) for depth in depths})

    def _nearest(self, vector: Vectors, _: str, depth: int, where: str | None) -> list[Hit]:
        return [self._hit(row, 1 - row["_distance"]) for row in self.library.search(vector, depth, where)]

    def _joined(self, vector: Vectors, words: str, depth: int, where: str | None) -> list[Hit]:
        """The nearest and those that hold the words, by the sum of their reciprocal ranks."""
        found = {
            "vectors": self.library.search(vector, depth, where),
            "words": self.library.worded(words, depth, where),
        }
        rows = {row["id"]: row for ranked in found.values() for row in ranked}
        orders = {name: [row["id"] for row in ranked] for name, ranked in found.items()}
        ranks = {name: {key: rank for rank, key in enumerate(order, 1)} for name, order in orders.items()}
        scores = reciprocal_ranks(list(orders.values()))
        best = sorted(scores, key=lambda key: -scores[key])
        return [self._hit(rows[k], scores[k], {name: rank.get(k) for name, rank in ranks.items()}) for k in best]

    def _hit(self, row: dict[str, Any], score: float, ranks: dict[str, int | None] | None = None) -> Hit:
        values = {name: value for name, value in row.items() if name not in (*self._own, *FIGURES)}
        placed = {name: row[name] for name in PLACED if name in self._own}
        return Hit(score, row["id"], row["text"], row["source"], values, **placed, ranks=ranks)


def reciprocal_ranks(orders: Sequence[Sequence[str]]) -> dict[str, float]:
    """The score of each id that stands in one of some orders, best first in each: Σ 1 / (60 + rank), over the orders
    that hold it (Cormack et al. 2009, "Reciprocal Rank Fusion outperforms Condorcet", the formula of section 2)."""
    scores: dict[str, float] = {}
    for order in orders:
        for rank, key in enumerate(order, 1):
            scores[key] = scores.get(key, 0.0) + 1 / (RANK_CONSTANT + rank)
    return scores


def _leading(hits: Sequence[Hit], per_document: int) -> list[Hit]:
    """The first hits of each document, in their order."""
    seen: Counter[str] = Counter()
    leading = []
    for hit in hits:
        document = hit.document or hit.id
        seen[document] += 1
        if seen[document] <= per_document:
            leading.append(hit)
    return leading


def _spread(hits: Sequence[Hit], top: int, per_document: int) -> list[Hit]:
    """At most `top` of some hits, in their order: the first ones of each document before any further one."""
    leading = {hit.id for hit in _leading(hits, per_document)}
    chosen = sorted(range(len(hits)), key=lambda number: hits[number].id not in leading)[:top]
    return [hits[number] for number in sorted(chosen)]


def _asked(query: str | None, image: object) -> Item:
    """A query as an item, by which a model's own kind of record is looked for."""
    if (query is None) == (image is None):
        raise UserError("Say what to look for, either in words or by an image (--image FILE).")
    if query is None:
        from selfsup.inference.pictures import open_picture

        return open_picture(image)
    if not query.strip():
        raise UserError("The query is empty; say what to look for.")
    return Text("", query, "", {})
