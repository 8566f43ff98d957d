"""What models that turn texts or images into vectors have in common: how they are opened, moved, known and asked."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.items import Collection, Item, Vectors, digest, silent
from selfsup.machine import find_device
from selfsup.models.features import QUERY, Features, fingerprint
from selfsup.report import Progress

N = TypeVar("N", bound=nn.Module)


class Reading(TypedDict, total=False):
    """How a source is read, beside the column of its content."""

    label: str | None  # the column of the class; found by itself where it is None
    failures: float  # the share of bad records, from 0 to 1, above which reading stops; 0.01 by default
    progress: Progress  # called with what is read so far, where opening takes long, and all of it


class Model(ABC):
    """What was opened."""

    kind: ClassVar[str]  # what messages call it, with its article
    path: str = "The model"  # of the run or directory, absolute; of a model that was made what messages call it

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> Self:
        """From a model directory. Raises UserError where it cannot be opened, or is damaged."""
        model = cls._open(expanded(directory))
        model.path = os.path.abspath(expanded(directory))
        model.to(find_device(device))
        return model

    @classmethod
    @abstractmethod
    def _open(cls, directory: Path) -> Self:
        """What a directory holds."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move it to where it is to compute."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """32 hex digits that change with anything that may change what it says."""


class EmbeddingModel(Model):
    """A model that turns what it reads into vectors.

    Attributes:
        embeds: the kinds of items it reads.
        truncated: items of the last `embed` that were not read to their end.
        unread: the numbers of those that cannot be read at all.
        precision: fp32 or bf16, in which the last ones were embedded.
    """

    embeds: ClassVar[tuple[type[Item], ...]]

    def __init__(self) -> None:
        self.truncated = 0
        self.unread: list[int] = []
        self.precision = "fp32"

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Numbers in a vector."""

    @property
    @abstractmethod
    def dimensions(self) -> tuple[int, ...]:
        """Numbers that a vector was trained to be cut to; none where that is not known."""

    @abstractmethod
    def cut(self, dimension: int) -> None:
        """Keep of each vector the first numbers alone, so many of them, from now on."""

    @property
    @abstractmethod
    def pooling(self) -> str:
        """How hidden states become a vector, in a word."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @abstractmethod
    def read(self, source: object, column: str | None = None, **how: Unpack[Reading]) -> Collection:
        """Open a source, whose column of content is found by itself where it is None. Raises UserError where there is
        none that this model reads."""

    @abstractmethod
    def embed(
        self, contents: Sequence[Any], precision: str = "auto", progress: Progress = silent, prompt: str | None = None
    ) -> Vectors:
        """(n, dimension), not normalised; NaN for what cannot be read. `prompt` names what is put before each text, see
        `Features.prompt`; before an image nothing can be put."""

    def embed_items(
        self, items: Sequence[Item], precision: str = "auto", progress: Progress = silent, prompt: str | None = None
    ) -> tuple[npt.NDArray[np.bool_], Vectors]:
        """Which of the items (n,) can be read, and the vectors of these, (m, dimension). Raises UserError where a
        vector holds a number that is not finite."""
        vectors = self.embed([item.content for item in items], precision=precision, progress=progress, prompt=prompt)
        read = np.ones(len(items), bool)
        read[self.unread] = False
        if not np.isfinite(vectors[read]).all():
            raise UserError(
                f"{self.path} gives vectors that are not finite numbers: its training has diverged; train it anew with "
                "a lower learning rate."
            )
        return read, vectors[read]

    def query(self, item: Item) -> Vectors:
        """The vector (dimension,) of an item to look for, a text behind the prompt of queries. Raises UserError where
        the model reads no such item."""
        if not isinstance(item, self.embeds):
            others = " or ".join(kind.asked for kind in self.embeds)
            raise UserError(f"{self.path} holds {self.kind}, which reads no {item.noun}; give {others}.")
        _, vectors = self.embed_items([item], prompt=QUERY)
        if not len(vectors):
            raise UserError(f"{item.source} cannot be read; give another one.")
        return np.asarray(vectors[0])

    @abstractmethod
    def notes(self, prompt: str | None) -> dict[str, str]:
        """What to tell of what is put before each text, by the name of a prompt."""

    def description(self) -> dict[str, Any]:
        """What is stored beside the vectors."""
        return {
            "model": self.path,
            "model_fingerprint": self.fingerprint,
            "pooling": self.pooling,
            "dimension": self.dimension,
        }


class OneNetwork(ABC, Generic[N]):
    """Of an `EmbeddingModel` that has a single network, whose pooled hidden states its features map to vectors."""

    def __init__(self, network: N, features: Features) -> None:
        super().__init__()
        self.network: N = network.eval()
        self.features = features

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers in a pooled hidden state."""

    @property
    @abstractmethod
    def reading(self) -> tuple[object, ...]:
        """What changes a vector beside the network and its features."""

    @property
    def dimension(self) -> int:
        return self.features.dimension(self.width)

    @property
    def dimensions(self) -> tuple[int, ...]:
        return self.features.dimensions

    def cut(self, dimension: int) -> None:
        self.features = replace(self.features, kept=dimension)

    def notes(self, prompt: str | None) -> dict[str, str]:
        put = self.features.prompt(prompt)
        return {"prompt": f"{put!r} before each text"} if put else {}

    @property
    def pooling(self) -> str:
        return self.features.pooling

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def fingerprint(self) -> str:
        parts = (fingerprint(self.network, self.features), *self.reading)
        return digest(repr(parts).encode())

    def to(self, device: torch.device) -> None:
        self.network.to(device)


def require_room(tokenizer: TextTokenizer, vocabulary: int, directory: Path, network: str) -> None:
    """Raise a UserError where the tokenizer of a directory has tokens that its network does not know."""
    if tokenizer.vocabulary > vocabulary:
        raise UserError(
            f"the tokenizer in {directory} has {tokenizer.vocabulary} tokens and the {network} {vocabulary}: it "
            "belongs to another model; get a whole copy of the model"
        )
