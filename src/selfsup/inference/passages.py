"""Documents as passages: each is an item of its own, which knows where it stands in its document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from selfsup.data.cutting import Cutter
from selfsup.data.tally import Skipped
from selfsup.errors import UserError
from selfsup.inference.base import EmbeddingModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.items import CHUNK, Collection, Item, Listed, digest
from selfsup.inference.items import chunks as batches
from selfsup.inference.texts import Text
from selfsup.models.features import DOCUMENT
from selfsup.models.static import UNLIMITED

CUT_TOGETHER = 1 << 20  # characters of documents that are cut together, so that short ones are encoded in parallel
SHARED = 8  # a passage shares this part of its tokens with the one before

Size: TypeAlias = int | str  # auto, none, or a number of tokens


@dataclass(frozen=True)
class Passage(Text):
    """A part of a document, document[start:end]; of a short one all of it."""

    placed = ("document", "start", "end")

    document: str  # its id
    start: int
    end: int

    @classmethod
    def of(cls, document: Item, start: int, end: int) -> Passage:
        """One of a document; of all of it, what that is called."""
        whole = (start, end) == (0, len(document.content))
        place = "" if whole else f", characters {start}–{end}"
        text = document.content[start:end]
        return cls(document.id + place, text, document.source + place, document.values, document.id, start, end)


class Passages:
    """The documents of a collection in passages. What a pass has found is kept, some bytes for each passage, so that
    another one need not cut again what is still the same."""

    kind: ClassVar[type[Item]] = Passage

    def __init__(self, documents: Collection, cutter: Cutter) -> None:
        self.name = documents.name
        self._documents = documents
        self._cutter = cutter
        self._found: dict[int, _Found] = {}
        self._long = self._passages = 0

    @property
    def notes(self) -> dict[str, str]:
        """How the last pass read it, and how many of its documents it cut."""
        if not self._long:
            return self._documents.notes
        cut = (
            f"{self._passages:,}, of {self._long:,} documents longer than {self._cutter.size} tokens, "
            f"at most {self._cutter.overlap} of which two share"
        )
        return self._documents.notes | {"passages": cut}

    @property
    def skipped(self) -> Skipped:
        return self._documents.skipped

    @property
    def empty(self) -> int:
        return self._documents.empty

    def items(self, id_column: str | None = None, with_values: bool = False) -> Iterator[Item]:
        """The passages of all documents, in order; raises what the collection raises."""
        long = passages = 0
        documents = self._documents.items(id_column, with_values)
        for number, batch in enumerate(batches(documents, CHUNK, CUT_TOGETHER)):
            for document, spans in zip(batch, self._cut(number, batch), strict=True):
                whole = spans.tolist() == [[0, len(document.content)]]
                long += not whole
                passages += 0 if whole else len(spans)
                yield from (Passage.of(document, start, end) for start, end in spans.tolist())
        self._long, self._passages = long, passages

    def _cut(self, number: int, batch: list[Item]) -> list[npt.NDArray[np.int64]]:
        """The spans of each document of a batch, (passages, 2)."""
        known = digest(b"".join(digest(item.identity).encode() for item in batch))
        found = self._found.get(number)
        if found is None or found.documents != known:
            spans = self._cutter([item.content for item in batch])
            ends = np.cumsum([len(each) for each in spans])
            every = np.array([span for each in spans for span in each], np.int64).reshape(-1, 2)
            found = self._found[number] = _Found(known, ends, every)
        return np.split(found.spans, found.ends[:-1])


@dataclass(frozen=True)
class _Found:
    """How a batch of documents was cut: by the digest of their contents, all spans, and where those of each end."""

    documents: str
    ends: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]


def cutter_for(model: EmbeddingModel, collection: Collection, size: Size, overlap: int | None) -> Cutter | None:
    """What cuts the documents of a collection, of which a model reads so much: None where they stay whole, as they do
    unless a text encoder reads texts, and where it reads any text to its end. `size` is in tokens, auto as many as the
    model reads; `overlap` is an eighth of them where it is None. Raises UserError where the model reads less, or there
    is nothing to cut."""
    endless = size == "auto" and isinstance(model, EncoderModel) and model.window == UNLIMITED
    if size == "none" or endless or not isinstance(model, EncoderModel) or not issubclass(collection.kind, Text):
        if overlap is not None or size not in ("auto", "none"):
            raise UserError(f"What is read of {collection.name} is embedded whole; leave out --passages and --overlap.")
        return None
    prompt = model.features.prompt(DOCUMENT)
    room = model.tokenizer.room(model.window) - len(model.tokenizer.encode(prompt))
    tokens = room if size == "auto" else int(size)
    if tokens > room:
        raise UserError(f"{model.path} reads {room} tokens of a text, so passages cannot have {tokens}; give fewer.")
    return Cutter(model.tokenizer, tokens, tokens // SHARED if overlap is None else overlap, prompt)


def described(cutter: Cutter | None) -> dict[str, int] | None:
    """What is stored of it beside the vectors."""
    return None if cutter is None else {"tokens": cutter.size, "overlap": cutter.overlap}


def listed(collection: Collection, cutter: Cutter | None) -> Listed:
    """A collection as what is embedded of it."""
    return collection if cutter is None else Passages(collection, cutter)
