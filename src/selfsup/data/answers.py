"""What a teacher says of texts: asked once and kept in the cache, since a text, unlike an image, has no views."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selfsup.data.cache import kept
from selfsup.data.sentences import Sentences
from selfsup.data.sources import Table
from selfsup.data.split import hash_of, hold_out
from selfsup.errors import UserError
from selfsup.report import Progress

FORMAT = 1  # of a cache entry; a change makes new entries
ASKED = 2048  # texts at a time, whose vectors are written before the next ones are asked for

Vectors = npt.NDArray[np.float32]
Teacher = Callable[[list[str]], Vectors]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """How far the vectors (n, d) of all documents lie apart; those that are there several times count as often.

    Attributes:
        center: their mean, d numbers.
        variance: the mean square of a number's distance from that: what the mean costs as the answer to everything.
        cosine: 1 − the mean cosine with the direction that all are nearest to: what that one costs.
    """

    center: list[float]
    variance: float
    cosine: float


@dataclass(frozen=True)
class Answers:
    """The vectors of all texts that were asked of, (n, d), memory-mapped, and the number of that of each document of
    the two parts of the source, (documents,), in their order."""

    vectors: Vectors
    train: Places
    validation: Places
    spread: Spread

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])


class Answered:
    """Sentences as records, each with the vector that answers it."""

    def __init__(self, sentences: Sentences, vectors: Vectors, places: Places) -> None:
        if len(sentences) != len(places):
            raise UserError("The data changed while they were read: start again when they are complete.")
        self.sentences, self.vectors, self.places = sentences, vectors, places

    def __len__(self) -> int:
        return len(self.sentences)

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """As `Sentences.read`, and `answers`: float32 (B, d)."""
        answers = np.array(self.vectors[self.places[indices]])
        return self.sentences.read(indices) | {"answers": torch.from_numpy(answers)}


def ask(text: Table, teacher: Teacher, identity: str, dimension: int, validation: float, progress: Progress) -> Answers:
    """What a teacher says of each document of a source, or of the one that its group goes by (`Table.grouped`).

    Args:
        teacher: gives the vectors (n, dimension) of n texts.
        identity: changes with anything that may change a vector.
        validation: share of the documents held out, as in `prepare_text`.
        progress: called with the bytes of text that are done, and all.

    Raises:
        UserError: there is a single text; a vector holds a number that is not finite; all are the same; the cache
            cannot be written.
    """
    choices = (FORMAT, identity, dimension, text.fingerprint(), text.failures, validation)
    key = hashlib.blake2b(repr(choices).encode(), digest_size=16).hexdigest()
    entry = kept("answers", key, lambda place: _build(place, text, teacher, dimension, validation, progress))
    vectors = np.load(entry / "vectors.npy", mmap_mode="r", allow_pickle=False)
    train, held_out = (np.load(entry / f"{part}.npy", allow_pickle=False) for part in ("train", "validation"))
    spread = json.loads((entry / "spread.json").read_text(encoding="utf-8"))
    return Answers(vectors, train, held_out, Spread(**spread))


def _build(
    directory: Path, text: Table, teacher: Teacher, dimension: int, validation: float, progress: Progress
) -> None:
    """Write an entry: vectors.npy in the order in which their texts are first met, train.npy, validation.npy,
    spread.json."""
    hashes, sizes = _scan(text)
    _, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise UserError(f"{text.name} holds one text alone, of which nothing can be learnt; give two or more.")
    places = np.argsort(np.argsort(first))[numbers]
    held_out = hold_out(hashes, validation)
    np.save(directory / "train.npy", places[~held_out])
    np.save(directory / "validation.npy", places[held_out])
    counts = np.bincount(places)
    measured = _Measured(dimension)
    with (directory / "vectors.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(first), dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        done, size = 0, int(sizes[first].sum())
        for asked in _batches(text, np.sort(first)):
            vectors = np.ascontiguousarray(teacher(asked), np.dtype("<f4"))
            if not np.isfinite(vectors).all():
                raise UserError("The teacher gives vectors that are not finite numbers; give another one.")
            measured.add(vectors, counts[: len(vectors)])
            counts = counts[len(vectors) :]
            file.write(vectors.data)
            done += sum(len(each.encode()) for each in asked)
            progress(done, size)
    spread = measured.spread()
    if not spread.variance > 0:
        raise UserError(f"The teacher says the same of all texts of {text.name}, so nothing can be learnt from it.")
    (directory / "spread.json").write_text(json.dumps(asdict(spread)), encoding="utf-8")


def _scan(text: Table) -> tuple[npt.NDArray[np.uint64], Places]:
    """The hash and the bytes of what each document's group goes by, (documents,)."""
    hashes, sizes = array("Q"), array("q")
    for _, asked in text.grouped():
        hashes.append(hash_of(asked))
        sizes.append(len(asked.encode()))
    return np.frombuffer(hashes, np.uint64), np.frombuffer(sizes, np.int64)


def _batches(text: Table, chosen: npt.NDArray[np.int64]) -> Iterator[list[str]]:
    """What the groups of the chosen documents go by, by their numbers in order, some at a time."""
    wanted, batch = iter(chosen.tolist()), list[str]()
    number = next(wanted)
    for place, (_, asked) in enumerate(text.grouped()):
        if place != number:
            continue
        batch.append(asked)
        number = next(wanted, -1)
        if len(batch) == ASKED:
            yield batch
            batch = []
    if number != -1:
        raise UserError(f"{text.name} changed while it was read: start again when it is complete.")
    if batch:
        yield batch


class _Measured:
    """Sums of vectors, for their `Spread`."""

    def __init__(self, dimension: int) -> None:
        self.count, self.squares = 0, 0.0
        self.sum, self.directions = np.zeros(dimension), np.zeros(dimension)

    def add(self, vectors: Vectors, counts: Places) -> None:
        """Vectors (n, d), each so many times."""
        wide = vectors.astype(np.float64)
        lengths = np.linalg.norm(wide, axis=1)
        self.count += int(counts.sum())
        self.squares += float(counts @ np.square(lengths))
        self.sum += counts @ wide
        self.directions += (counts / np.maximum(lengths, np.finfo(np.float64).tiny)) @ wide

    def spread(self) -> Spread:
        center = self.sum / self.count
        variance = self.squares / self.count / len(center) - float(np.square(center).mean())
        cosine = 1 - float(np.linalg.norm(self.directions)) / self.count
        return Spread(center.tolist(), max(0.0, variance), cosine)
