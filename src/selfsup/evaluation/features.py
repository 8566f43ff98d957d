"""What the protocols of representations share: the records of a source, and a model's features of them.

The protocols themselves compute with arrays. What is special to texts, how they are read and embedded, is in the last
part of this file.

Labelled data without a test part of its own is split by record: one belongs to the test part where the BLAKE2b hash
of its text, as a fraction of all hashes, lies below a fifth. So copies of a record are on one side, and a
record stays on its side when others come.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selfsup.data.tables import Row, Table, open_table
from selfsup.errors import UserError
from selfsup.evaluation.base import Features, Floats, Labels, Request, Score, mean_interval
from selfsup.machine import find_device

Label = str | int
Tested = npt.NDArray[np.bool_]  # which records belong to the test part

LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "intent",
    "sentiment",
)  # usual names, likeliest first
SENTENCES = ("sentence1", "sentence2")
SIMILARITY = "score"
TEST = 0.2  # share of the test part where none is named
SAMPLED_ROWS = 100  # looked at to find the columns of pairs

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
    """Features of pairs of sentences, first and second (n, d), and the similarity (n,) that people saw."""

    first: Features
    second: Features
    scores: Floats
    name: str


def accuracy(
    protocol: str, request: Request, split: Split, answers: Labels, details: dict[str, Any]
) -> Score:
    """The share of right answers (m,) in percent, beside that of the commonest class of the bank."""
    right = 100.0 * (answers == split.test_labels)
    majority = int(np.bincount(split.bank_labels).argmax())
    return Score(
        protocol=protocol,
        value=float(right.mean()),
        unit="% right",
        n=len(right),
        interval=mean_interval(right, request.seed),
        chance=100 * float((split.test_labels == majority).mean()),
        seed=request.seed,
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


# -- texts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, the class of each, and the name of their source."""

    texts: list[str]
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

    def split(self, tested: Tested, features: Features, name: str) -> Split:
        """The parts that `tested` (n,) tells apart, of features (n, d), under a name."""
        numbers = self.numbers
        return Split(
            features[~tested], numbers[~tested], features[tested], numbers[tested], self.classes, name
        )


def embed(request: Request, texts: Sequence[str]) -> Features:
    """The model's features (n, dimension) of texts; a text that occurs twice is embedded once.

    The arithmetic is fp32, so that a figure does not depend on the hardware.

    Raises:
        UserError: some are not finite.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    place(request)
    features: Features = request.model.embed(list(places), precision="fp32", progress=request.progress)
    if not np.isfinite(features).all():
        raise UserError(
            f"{request.directory} gives features that are not finite numbers: its training has diverged; "
            "train it anew with a lower learning rate."
        )
    return features[[places[text] for text in texts]]


def place(request: Request) -> None:
    """Move the request's model to where it is to compute."""
    device = find_device(request.device)
    for module in (request.model.encoder, request.model.masked):
        if module is not None:
            module.to(device)


def open_split(request: Request) -> Split:
    """Features and classes of the data of a request, and of its test data or test part.

    Raises:
        UserError: no data, text or classes; a part is empty; the bank has one class only, or none of the test's.
    """
    data = read_labelled(request, need_data(request))
    if request.test is None:
        tested, name = test_part(data)
        return data.split(tested, embed(request, data.texts), name)
    test = read_labelled(request, request.test)
    _require_classes(data.labels, data.name)
    if not set(data.labels) & set(test.labels):
        raise UserError(
            f"{test.name} has no class of {data.name} ({test.labels[0]!r} is none of those, such as "
            f"{data.labels[0]!r}); name the column of the class with --label."
        )
    both = LabelledTexts(data.texts + test.texts, data.labels + test.labels, data.name)
    tested = np.arange(len(both.texts)) >= len(data.texts)
    return both.split(tested, embed(request, both.texts), test.name)


def test_part(data: LabelledTexts) -> tuple[Tested, str]:
    """Which records (n,) belong to the test part of data that has none of its own, and the name of that part.

    Raises:
        UserError: a part is empty, or the bank has one class only.
    """
    tested = np.array([in_test(text.encode()) for text in data.texts])
    if tested.all() or not tested.any():
        raise UserError(
            f"{data.name} is too small to be split into a bank and a test part ({len(data.texts)} records); "
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


def read_labelled(request: Request, source: object) -> LabelledTexts:
    """All texts of a source with their classes."""
    table = open_table(source)
    column = request.label or _find_label(table)
    texts: list[str] = []
    labels: list[Label] = []
    for text, row in table.documents(request.column, columns=[column]):
        texts.append(text)
        labels.append(_class_of(row, column))
    report_skipped(table)
    return LabelledTexts(texts, labels, table.name)


def read_texts(request: Request) -> tuple[list[str], str]:
    """The distinct texts of a source, both sentences of pairs, and the source's name.

    Raises:
        UserError: there are less than two.
    """
    table = open_table(need_data(request))
    if request.column is None and set(SENTENCES) <= set(table.columns):
        found: Iterator[str] = (str(row.values[name]) for row in table.rows(SENTENCES) for name in SENTENCES)
    else:
        found = (text for text, _ in table.documents(request.column))
    texts = list(dict.fromkeys(found))
    report_skipped(table)
    if len(texts) < 2:
        raise UserError(f"{table.name} holds one distinct text only; give two or more to compare.")
    return texts, table.name


def open_pairs(request: Request) -> Pairs:
    """Features of the pairs of sentences of a request's data, and their scores.

    Raises:
        UserError: no data; no two columns of text or no column of numbers; a score that is no number; all are equal.
    """
    table = open_table(need_data(request))
    one, other, similarity = _pair_columns(table)
    rows = list(table.rows((one, other, similarity)))
    report_skipped(table)
    scores = np.array([_number_of(row, similarity) for row in rows])
    if scores.min() == scores.max():
        raise UserError(
            f"All {len(rows)} pairs of {table.name} have the same {similarity}, so nothing can follow it; "
            "give pairs that are more and less similar."
        )
    features = embed(request, [str(row.values[name]) for name in (one, other) for row in rows])
    return Pairs(features[: len(rows)], features[len(rows) :], scores, table.name)


def need_data(request: Request) -> object:
    """The data of a request; raises UserError where none is named."""
    if request.data is None:
        raise UserError("This protocol needs records to measure on; name a source with --data.")
    return request.data


def _find_label(table: Table) -> str:
    names = {name.lower(): name for name in reversed(table.columns)}
    for usual in LABELS:
        if usual in names:
            return names[usual]
    raise UserError(
        f"{table.name} has no column of classes by a usual name ({', '.join(LABELS)}), only "
        f"{', '.join(table.columns)}; name it with --label."
    )


def _class_of(row: Row, column: str) -> Label:
    value = row.values[column]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str | int):
        return value
    raise UserError(
        f"{row.where}: {column!r} is {value!r}, and a class is a whole number or a word; name another --label."
    )


def _pair_columns(table: Table) -> tuple[str, str, str]:
    """The columns of the two sentences and of their score: by their usual names, else the only ones of their kind."""
    rows = list(itertools.islice(table.rows(), SAMPLED_ROWS))
    kinds = {name: _kind([row.values.get(name) for row in rows]) for name in table.columns}
    texts = [name for name, kind in kinds.items() if kind == "text"]
    numbers = [name for name, kind in kinds.items() if kind == "number"]
    texts = list(SENTENCES) if set(SENTENCES) <= set(texts) else texts
    numbers = [SIMILARITY] if SIMILARITY in numbers else numbers
    if len(texts) != 2 or len(numbers) != 1:
        raise UserError(
            f"{table.name} is not seen to hold scored pairs of sentences (its columns: {', '.join(table.columns)}); "
            f"call them {', '.join(SENTENCES)} and {SIMILARITY}."
        )
    return texts[0], texts[1], numbers[0]


def _kind(values: list[object]) -> str | None:
    """Whether the values of a column are numbers or texts."""
    if all(math.isfinite(_as_number(value)) for value in values):
        return "number"
    return "text" if all(isinstance(value, str) for value in values) else None


def _number_of(row: Row, column: str) -> float:
    number = _as_number(row.values[column])
    if not math.isfinite(number):
        raise UserError(
            f"{row.where}: {column!r} is {row.values[column]!r}, and a score is a number; mend it or take it out."
        )
    return number


def _as_number(value: object) -> float:
    """A number, or a word that stands for one (in CSV all values are words); NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return math.nan


def report_skipped(table: Table) -> None:
    """Say which records of the last pass over a table were left out, if any were."""
    skipped = table.skipped
    if skipped.count:
        log.warning(
            "%d of %d records of %s cannot be read and are left out: %s",
            skipped.count,
            skipped.seen,
            table.name,
            "; ".join(skipped.names),
        )
