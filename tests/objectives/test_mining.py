"""Hard negatives: against a plain search, on random vectors; in blocks and by several processes the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from selfsup.distributed import Processes
from selfsup.inference import geometry
from selfsup.inference.items import silent
from selfsup.objectives.mining import Column, Mined, mine

COUNT = 3


def plain(queries: Tensor, passages: Tensor, own: Tensor, columns: Sequence[Column], hardest: float) -> list[list[int]]:
    """One query after the other, by every passage: what is alike, what is too near, then a sort."""
    found = []
    for number, query in enumerate(queries.double()):
        alike = {int(own[number])}
        for column in columns:
            pairs = zip(column.labels.tolist(), column.passages.tolist(), strict=True)
            alike |= {passage for label, passage in pairs if label == column.queries[number]}
        similar = (passages.double() @ query).tolist()
        true = similar[int(own[number])]
        bound = true * (hardest if true > 0 else 2 - hardest)
        fit = [place for place in range(len(passages)) if place not in alike and similar[place] < bound]
        found.append(sorted(fit, key=lambda place: -similar[place])[:COUNT])
    return found


def drawn(seed: int, count: int, many: int, labels: int) -> tuple[Any, ...]:
    """Queries, passages, which is whose, and two columns in which some share a label."""
    random = np.random.default_rng(seed)
    vectors = [F.normalize(torch.from_numpy(random.standard_normal((n, 5))).float()) for n in (count, many)]
    own = random.integers(many, size=count)
    first = Column(np.arange(count), np.arange(count), own)
    more = random.integers(many, size=2 * many)
    second = Column(random.integers(labels, size=count), random.integers(labels, size=2 * many), more)
    return *vectors, torch.from_numpy(own), [first, second]


def listed(mined: Mined) -> list[list[int]]:
    return [[place for place in row if place >= 0] for row in mined.passages.tolist()]


@given(seed=st.integers(0, 1000), count=st.integers(1, 20), many=st.integers(COUNT, 30), hardest=st.floats(0.5, 1.0))
def test_it_finds_what_a_plain_search_finds(seed: int, count: int, many: int, hardest: float) -> None:
    queries, passages, own, columns = drawn(seed, count, many, 9)
    mined = mine(queries, passages, own, columns, COUNT, hardest, Processes.alone(), silent)
    assert listed(mined) == plain(queries, passages, own, columns, hardest)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = drawn(1, 50, 30, 9)
    done: list[tuple[int, int | None]] = []
    whole = mine(*given, COUNT, 0.95, Processes.alone(), silent)
    monkeypatch.setattr(geometry, "CELLS", 7 * 30)
    parts = mine(*given, COUNT, 0.95, Processes.alone(), lambda *counts: done.append(counts))
    assert listed(parts) == listed(whole)
    assert parts.passed_over == whole.passed_over
    assert done == [(min(7 * n, 50), 50) for n in range(1, 9)]


class OneOf:
    """A process of several, alone: what it would give the others is kept."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


@pytest.mark.parametrize("size", [2, 3, 12])
def test_processes_share_the_queries(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has blocks of its own, of the same similarities, in the order of the queries; some may have none."""
    monkeypatch.setattr(geometry, "CELLS", 7 * 30)
    given = drawn(2, 50, 30, 9)
    whole = mine(*given, COUNT, 0.95, Processes.alone(), silent)
    parts = [mine(*given, COUNT, 0.95, OneOf(rank, size), silent) for rank in range(size)]
    assert torch.cat([part.passages for part in parts]).equal(whole.passages)
    assert sum(part.passed_over for part in parts) == whole.passed_over


def test_what_is_too_near_is_passed_over_and_counted() -> None:
    """The own passage has a similarity of 0.8; of the others two have more than 0.95 of that, one is alike."""
    angles = torch.tensor([0.8, 0.9, 0.77, 0.75, 0.99, -0.5]).arccos()
    passages = torch.stack([angles.cos(), angles.sin()], 1)
    alike = Column(np.array([0]), np.array([0, 0]), np.array([0, 4]))
    query, own = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    mined = mine(query, passages, own, [alike], COUNT, 0.95, Processes.alone(), silent)
    assert mined.passages.tolist() == [[3, 5, -1]]
    assert mined.passed_over == 2
    assert (mined.own, mined.found) == (pytest.approx(0.8), pytest.approx(0.125))


def test_of_a_model_that_has_collapsed_there_is_nothing_to_find() -> None:
    ones = torch.ones(4, 1)
    own = Column(np.arange(4), np.arange(4), np.arange(4))
    mined = mine(ones, ones, torch.arange(4), [own], COUNT, 0.95, Processes.alone(), silent)
    assert mined.passages.unique().tolist() == [-1]
    assert mined.passed_over == 12
