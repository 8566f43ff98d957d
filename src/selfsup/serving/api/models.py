"""The models that are served: under which name, by which thread, and for what."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.base import EmbeddingModel, Model
from selfsup.inference.clip import PairModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load
from selfsup.inference.search import Searcher
from selfsup.machine import find_device, free_memory
from selfsup.models.directories import find_model
from selfsup.serving.api.batching import Batch, Job, Jobs, Worker, Writing

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
SHARE = 4  # of the free memory, the part that all texts in the making may take: 1 / SHARE

M = TypeVar("M", bound=Model)


class Unknown(UserError):
    """There is no model of a name, or none that can do what is asked for."""


@dataclass(frozen=True)
class Served(Generic[M]):
    """A model under its name.

    Attributes:
        created: when its files were made, in seconds of Unix.
        worker: the thread that it belongs to, which writes where it is a decoder, and does jobs elsewhere.
    """

    name: str
    model: M
    created: int
    worker: Worker[Any]


class Models:
    """All models that are served, and a library. Raises UserError where one cannot be opened, or two have one name."""

    def __init__(self, words: Sequence[str], library: str | Path | None, device: str, precision: str) -> None:
        places: dict[str, str] = {}
        for word in words:
            name, place = named(word)
            if name in places:
                raise UserError(f"Two models are called {name}; name one of them: other={place}.")
            places[name] = place
        self.served = [_opened(name, place, device, precision, len(places)) for name, place in places.items()]
        self.library = None if library is None else str(library)
        self.searcher = None if library is None else _searcher(library, self.served, device)
        self.searching = None if library is None else Worker[Job](Jobs())

    def any(self, name: str) -> Served[Any]:
        return self._found(name, Model, "is there", lambda model: True)

    def writing(self, name: str | None) -> Served[LanguageModel]:
        return self._found(name, LanguageModel, "writes texts", lambda model: True)

    def embedding(self, name: str | None) -> Served[EmbeddingModel]:
        return self._found(name, EmbeddingModel, "makes vectors", lambda model: True)  # type: ignore[type-abstract]

    def filling(self, name: str | None) -> Served[EncoderModel]:
        return self._found(name, EncoderModel, "fills in words", lambda model: model.masked is not None)

    def describing(self, name: str | None) -> Served[PairModel]:
        return self._found(name, PairModel, "compares images with texts", lambda model: True)

    def _found(self, name: str | None, kind: type[M], what: str, fits: Callable[[M], bool]) -> Served[M]:
        """The model of a name or, without one, the first that fits. Raises Unknown where there is none."""
        known = [one for one in self.served if name in (None, one.name)]
        if not known:
            names = ", ".join(one.name for one in self.served)
            raise Unknown(f"There is no model {name!r:.100} here; there are {names}.")
        for one in known:
            if isinstance(one.model, kind) and fits(one.model):
                return one
        if name is None:
            raise Unknown(f"No model here {what}; serve one that does.")
        raise UserError(f"{name} is {known[0].model.kind} and none that {what}; ask another one.")

    def close(self) -> None:
        """End the threads; what is not done is told so."""
        for worker in [one.worker for one in self.served] + ([self.searching] if self.searching else []):
            worker.close()


def named(word: str) -> tuple[str, str]:
    """The name and the place of a model, of NAME=PATH or of a path, whose last part is the name. Raises UserError where
    that is no name."""
    name, equals, place = word.partition("=")
    if not equals or os.path.lexists(expanded(word)):
        name, place = Path(os.path.abspath(expanded(word))).name, word
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r:.100} is no name for a model; give NAME=PATH, a name of letters, digits, . _ : and -."
        )
    return name, place


def _opened(name: str, place: str, device: str, precision: str, count: int) -> Served[Any]:
    directory = find_model(place)
    model = load(place)
    where = find_device(device)
    model.to(where)
    if isinstance(model, LanguageModel):
        worker: Worker[Any] = Worker[Writing](Batch(model, precision, free_memory(where) // SHARE // count))
    else:
        worker = Worker[Job](Jobs())
    return Served(name, model, int(directory.stat().st_mtime), worker)


def _searcher(library: str | Path, served: Sequence[Served[Any]], device: str) -> Searcher:
    """With the model that made the library, wherever that is now."""
    from selfsup.inference.library import Library

    made = Library.open(expanded(library)).description["model_fingerprint"]
    moved = (one.model.path for one in served if one.model.fingerprint == made)
    return Searcher(library, next(moved, None), device)
