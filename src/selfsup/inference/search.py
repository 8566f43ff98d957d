"""A library asked for what is nearest to a query, and records taken out of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selfsup.arguments import checked
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.hits import Hit
from selfsup.inference.items import Item
from selfsup.inference.library import OWN, Library
from selfsup.inference.opening import open_embedder
from selfsup.inference.texts import Text


def delete(library: str | Path, ids: str | Iterable[object]) -> int:
    """Remove records by id, one or several; how many are left. Raises UserError where there is no such library, or
    no such record in it, and then nothing is removed."""
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
    model: str | Path | None = None,
    device: str = "auto",
) -> list[Hit]:
    """The records nearest to a query, nearest first; see `Searcher` for several queries."""
    return Searcher(library, model, device)(query, top, where, image=image)


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

    @checked
    def __call__(
        self, query: str | None = None, top: int = 10, where: str | None = None, *, image: object = None
    ) -> list[Hit]:
        """The `top` records nearest to a query among those that fulfil the SQL condition `where`.

        What to look for are words or, in their place, an image: its path, its pixels (H, W, 3), or a PIL image. Raises
        UserError where there is not one query, or one that the model cannot read, for no hits, and for a condition
        that cannot be used.
        """
        vector = self._model.query(_asked(query, image))
        most = max(1, min(top, self.library.count()))
        return [_hit(row) for row in self.library.search(vector, most, where)]


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


def _hit(row: dict[str, Any]) -> Hit:
    values = {name: value for name, value in row.items() if name not in (*OWN, "_distance")}
    return Hit(1 - row["_distance"], row["id"], row["text"], row["source"], values)
