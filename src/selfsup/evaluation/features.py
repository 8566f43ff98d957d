"""What the protocols of representations share: the records of a source, and a model's features of them.

The protocols themselves compute with arrays; what a record is and how it is read is the model's own matter
(`selfsup.inference.items`).

Labelled data without a test part of its own is split by record: one belongs to the test part where the BLAKE2b hash
of its content, as a fraction of all hashes, lies below a fifth. So copies of a record are on one side, and a
record stays on its side when others come.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selfsup.errors import UserError
from selfsup.evaluation.base import Labels, Request, Score, mean_interval
from selfsup.inference.geometry import Features, Floats
from selfsup.inference.items import Collection, Item, Label, ScoredPairs
from selfsup.machine import find_device

Chosen = npt.NDArray[np.bool_]  # which of all records, (n,)

TEST = 0.2  # share of the test part where none is named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Features and classes of a bank, which is learnt from, and of a test part.

    Attributes:
        bank: (n, d); bank_labels: (n,); test: (m, d); test_labels: (m,).
        classes: what each number among the labels stands for.
        name: of the data.
    """

    bank: Features
    bank_labels: Labels
    test: Features
    test_labels: Labels
    classes: tuple[Label, ...]
    name: str


@dataclass(frozen=True)
class Pairs:
    """Features of items that belong together, first and second (n, d), and to what degree, (n,)."""

    first: Features
    second: Features
    scores: Floats
    name: str


def accuracy(request: Request, split: Split, answers: Labels, details: dict[str, Any]) -> Score:
    """The share of right answers (m,) in percent, beside that of the commonest class of the bank."""
    right = 100.0 * (answers == split.test_labels)
    majority = int(np.bincount(split.bank_labels).argmax())
    return Score(
        value=float(right.mean()),
        unit="% right",
        n=len(right),
        interval=mean_interval(right, request.seed),
        chance=100 * float((split.test_labels == majority).mean()),
        data=split.name,
        details={
            "bank": len(split.bank),
            "classes": len(split.classes),
            "majority": split.classes[majority],
            **details,
        },
    )


def in_test(record: bytes) -> bool:
    """Whether a record belongs to the test part of data that has none of its own."""
    return int.from_bytes(hashlib.blake2b(record, digest_size=8).digest(), "big") / 2.0**64 < TEST


@dataclass(frozen=True)
class Labelled:
    """Items, the class of each, and the name of their source."""

    items: list[Item]
    labels: list[Label]
    name: str

    @property
    def classes(self) -> tuple[Label, ...]:
        """The distinct classes in a fixed order: numbers, then words."""
        return tuple(sorted(set(self.labels), key=lambda label: (isinstance(label, str), label)))

    @property
    def numbers(self) -> Labels:
        """The place of each label among the classes, (n,)."""
        places = {label: place for place, label in enumerate(self.classes)}
        return np.array([places[label] for label in self.labels], np.int64)

    def only(self, chosen: Chosen) -> Labelled:
        """Some of them."""
        items, labels = itertools.compress(self.items, chosen), itertools.compress(self.labels, chosen)
        return Labelled(list(items), list(labels), self.name)

    def split(self, tested: Chosen, features: Features, name: str) -> Split:
        """The parts that `tested` (n,) tells apart, of features (n, d), under a name."""
        numbers = self.numbers
        return Split(
            features[~tested], numbers[~tested], features[tested], numbers[tested], self.classes, name
        )


def embed(request: Request, items: Sequence[Item]) -> tuple[Chosen, Features]:
    """Which of the items (n,) can be read, and the model's features (m, dimension) of these; what occurs twice is
    embedded once.

    The arithmetic is fp32, so that a figure does not depend on the hardware.

    Raises:
        UserError: some are not finite.
    """
    distinct = distinct_items(items)
    request.model.to(find_device(request.device))
    read, features = request.model.embed_items(list(distinct.values()), "fp32", request.progress)
    request.seen.truncated += request.model.truncated
    places = {identity: place for place, identity in enumerate(itertools.compress(distinct, read))}
    found = [places.get(item.identity) for item in items]
    return np.array([place is not None for place in found]), features[[p for p in found if p is not None]]


def distinct_items(items: Iterable[Item]) -> dict[bytes, Item]:
    """The first item of each content, by identity, in order."""
    found: dict[bytes, Item] = {}
    for item in items:
        found.setdefault(item.identity, item)
    return found


def open_split(request: Request) -> Split:
    """Features and classes of the data of a request, and of its test data or test part.

    Raises:
        UserError: no data or classes; a part is empty; the bank has one class only, or none of the test's.
    """
    data = read_labelled(request, need_data(request))
    if request.test is None:
        tested, name = test_part(data)
        read, features = embed(request, data.items)
        return data.only(read).split(tested[read], features, name)
    test = read_labelled(request, request.test)
    _require_classes(data.labels, data.name)
    if not set(data.labels) & set(test.labels):
        raise UserError(
            f"{test.name} has no class of {data.name} ({test.labels[0]!r} is none of those, such as "
            f"{data.labels[0]!r}); name the column of the class with --label."
        )
    shared = {item.identity for item in data.items} & {item.identity for item in test.items}
    if shared:
        log.warning(
            "%d records of %s are in %s too, where they tell their class.", len(shared), test.name, data.name
        )
    both = Labelled(data.items + test.items, data.labels + test.labels, data.name)
    tested = np.arange(len(both.items)) >= len(data.items)
    read, features = embed(request, both.items)
    return both.only(read).split(tested[read], features, test.name)


def test_part(data: Labelled) -> tuple[Chosen, str]:
    """Which records (n,) belong to the test part of data that has none of its own, and the name of that part. Raises
    UserError where a part is empty, or the bank has one class only."""
    tested = np.array([in_test(item.identity) for item in data.items])
    if tested.all() or not tested.any():
        raise UserError(
            f"{data.name} is too small to be split into a bank and a test part ({len(data.items)} records); "
            "give more records, or name others with --test."
        )
    _require_classes(
        [label for label, is_test in zip(data.labels, tested, strict=True) if not is_test], data.name
    )
    return tested, f"a fifth of {data.name}, by hash"


def _require_classes(labels: Sequence[Label], name: str) -> None:
    if len(set(labels)) < 2:
        raise UserError(
            f"{name} has one class only to learn from ({labels[0]!r}, {len(labels)} records), so there is nothing to "
            "tell apart; give records of two classes or more, or name their column with --label."
        )


def read_labelled(request: Request, source: object) -> Labelled:
    """All items of a source with their classes."""
    collection = open_collection(request, source)
    found = list(collection.labelled())
    if not found:
        raise UserError(
            f"None of the records of {collection.name} has a class; give others, or name the column with --label."
        )
    return Labelled([item for item, _ in found], [label for _, label in found], collection.name)


def open_features(request: Request) -> tuple[Features, str]:
    """Features (n, dimension) of the distinct items of a request's data, both of pairs, and the data's name. Raises
    UserError where there are less than two."""
    collection = open_collection(request, need_data(request))
    items = list(distinct_items(collection.parts()).values())
    if len(items) < 2:
        raise UserError(
            f"{collection.name} holds one distinct {items[0].noun} only; give two or more to compare."
        )
    return embed(request, items)[1], collection.name


def open_pairs(request: Request) -> Pairs:
    """Features of what belongs together in a request's data, and to what degree.

    Raises:
        UserError: no data, or none of which it is known.
    """
    collection = open_collection(request, need_data(request))
    pairs: ScoredPairs = collection.pairs(request.seed)
    read, features = embed(request, [*pairs.first, *pairs.second])
    rows = np.where(read, read.cumsum() - 1, -1).reshape(2, -1)  # of the features, first and second
    both = (rows >= 0).all(0)
    return Pairs(features[rows[0, both]], features[rows[1, both]], pairs.scores[both], collection.name)


def open_collection(request: Request, source: object) -> Collection:
    """A source as the model of a request reads it."""
    collection: Collection = request.model.read(
        source, request.column, label=request.label, failures=request.failures, progress=request.progress
    )
    request.seen.sources.append(collection)
    return collection


def need_data(request: Request) -> object:
    """The data of a request; raises UserError where none is named."""
    if request.data is None:
        raise UserError("This protocol needs records to measure on; name a source with --data.")
    return request.data
