"""What the protocols of representations share: the vectors of a source by class, of its distinct items, and of pairs.

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
from torch import Tensor

from selfsup.errors import UserError
from selfsup.evaluation.base import Chosen, Labels, Measurement, Score
from selfsup.inference.geometry import Floats, normalised
from selfsup.inference.items import Item, Label, Vectors, distinct_items, shifted
from selfsup.machine import find_device

TEST = 0.2  # share of the test part where none is named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Vectors by class, of a bank that is learnt from and of a test part."""

    vectors: Vectors  # of both, (n, d)
    labels: Labels  # the number of each one's class, (n,)
    tested: Chosen  # which are of the test part, (n,)
    classes: tuple[Label, ...]  # what each number among the labels stands for
    name: str  # of what is measured on

    @property
    def bank(self) -> tuple[Vectors, Labels]:
        return self.vectors[~self.tested], self.labels[~self.tested]

    @property
    def test(self) -> tuple[Vectors, Labels]:
        return self.vectors[self.tested], self.labels[self.tested]


def accuracy(measurement: Measurement, split: Split, answers: Labels, **details: Any) -> Score:
    """The share of right answers (m,) in percent, beside that of the commonest class of the bank."""
    known, labels = split.labels[~split.tested], split.labels[split.tested]
    majority = int(np.bincount(known).argmax())
    own = {"bank": len(known), "classes": len(split.classes), "majority": split.classes[majority]}
    return Score.of_mean(
        100.0 * (answers == labels),
        measurement.seed,
        unit="% right",
        chance=100 * float((labels == majority).mean()),
        data=split.name,
        details=own | details,
    )


def open_split(measurement: Measurement) -> Split:
    """The labelled data of a measurement, with its test data or test part. Raises UserError where there are no data or
    classes, a part is empty, or the bank has one class only, or none of the test's."""
    items, labels, name = _read_labelled(measurement, measurement.need_data())
    if measurement.test is None:
        tested = _test_part(items, labels, name)
        measured = f"a fifth of {name}, by hash"
    else:
        others, their_labels, measured = _read_labelled(measurement, measurement.test)
        _require_classes(labels, name)
        _require_shared(labels, name, their_labels, measured)
        _warn_of_copies(items, name, others, measured)
        tested = np.arange(len(items) + len(others)) >= len(items)
        items, labels = items + others, labels + their_labels
    read, vectors = measurement.embed(items)
    classes, numbers = numbered(itertools.compress(labels, read))
    return Split(vectors, numbers, tested[read], classes, measured)


def _read_labelled(measurement: Measurement, source: object) -> tuple[list[Item], list[Label], str]:
    """The items of a source that are measured on, the class of each, and the source's name."""
    collection = measurement.open(source)
    found = measurement.sampled(list(collection.labelled()))
    if not found:
        raise UserError(
            f"None of the records of {collection.name} has a class; give others, or name the column with --label."
        )
    return [item for item, _ in found], [label for _, label in found], collection.name


def numbered(labels: Iterable[Label]) -> tuple[tuple[Label, ...], Labels]:
    """The distinct classes in a fixed order, numbers before words, and the place of each label among them, (n,)."""
    labels = list(labels)
    classes = tuple(sorted(set(labels), key=lambda label: (isinstance(label, str), label)))
    places = {label: place for place, label in enumerate(classes)}
    return classes, np.array([places[label] for label in labels], np.int64)


def in_test(record: bytes) -> bool:
    """Whether a record belongs to the test part of data that has none of its own."""
    return int.from_bytes(hashlib.blake2b(record, digest_size=8).digest(), "big") / 2.0**64 < TEST


def _test_part(items: Sequence[Item], labels: Sequence[Label], name: str) -> Chosen:
    """Which records (n,) belong to the test part of data that has none of its own."""
    tested = np.array([in_test(item.identity) for item in items])
    if tested.all() or not tested.any():
        raise UserError(
            f"{name} is too small to be split into a bank and a test part ({len(items)} records); "
            "give more records, or name others with --test."
        )
    _require_classes(list(itertools.compress(labels, ~tested)), name)
    return tested


def _require_classes(labels: Sequence[Label], name: str) -> None:
    if len(set(labels)) < 2:
        raise UserError(
            f"{name} has one class only to learn from ({labels[0]!r}, {len(labels)} records), so there is nothing to "
            "tell apart; give records of two classes or more, or name their column with --label."
        )


def _require_shared(labels: Sequence[Label], name: str, others: Sequence[Label], test: str) -> None:
    if not set(labels) & set(others):
        raise UserError(
            f"{test} has no class of {name} ({others[0]!r} is none of those, such as "
            f"{labels[0]!r}); name the column of the class with --label."
        )


def _warn_of_copies(items: Sequence[Item], name: str, others: Sequence[Item], test: str) -> None:
    shared = {item.identity for item in items} & {item.identity for item in others}
    if shared:
        log.warning("%d records of %s are in %s too, where they tell their class.", len(shared), test, name)


class UnitVectors:
    """The vectors of items, of length 1, that are embedded by and by, so many in all: one progress tells of them."""

    def __init__(self, measurement: Measurement, total: int) -> None:
        self._measurement, self._total, self._done = measurement, total, 0

    def __call__(self, items: Sequence[Item], prompt: str) -> Tensor:
        """(n, dimension), where the model computes; before texts stands the prompt of that name."""
        progress = shifted(self._measurement.progress, self._done, self._total)
        self._done += len(items)
        _, vectors = self._measurement.embed(items, prompt, progress)
        return normalised(vectors).to(find_device(self._measurement.device))


def open_vectors(measurement: Measurement) -> tuple[Vectors, str]:
    """Vectors (n, dimension) of the distinct items of the data, both of pairs, and the data's name. Raises UserError
    where there are less than two."""
    collection = measurement.open()
    items = measurement.sampled(list(distinct_items(collection.parts()).values()))
    if len(items) < 2:
        raise UserError(f"{collection.name} holds one distinct {items[0].noun} only; give two or more to compare.")
    return measurement.embed(items)[1], collection.name


def open_pairs(measurement: Measurement) -> tuple[Vectors, Vectors, Floats, str]:
    """Vectors (n, d) of the first and of the second of what belongs together, to what degree (n,), and the data's name.
    Raises UserError where there is no data, or none of which it is known."""
    collection = measurement.open()
    pairs = collection.pairs(measurement.seed)
    drawn = measurement.chosen(len(pairs.scores))
    sides = [side[place] for side in (pairs.first, pairs.second) for place in drawn]
    read, vectors = measurement.embed(sides)
    rows = np.where(read, read.cumsum() - 1, -1).reshape(2, -1)  # of the vectors, first and second
    both = (rows >= 0).all(0)
    return vectors[rows[0, both]], vectors[rows[1, both]], pairs.scores[drawn][both], collection.name
