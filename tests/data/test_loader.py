"""Batches: the same records in the same order, whatever number of processes and threads reads them."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.data.loader import AHEAD, Loader, in_order, split
from selfsup.data.records import Batch
from selfsup.data.sampler import draw


class Numbers:
    """Records that hold their own index; reading takes a time that varies, and may fail at one index."""

    def __init__(self, size: int, slow: bool = False, broken: int | None = None) -> None:
        self.size, self.slow, self.broken = size, slow, broken
        self.reads = 0

    def __len__(self) -> int:
        return self.size

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        self.reads += 1
        if self.slow:
            time.sleep(float(indices[0] % 3) / 1000)
        if self.broken is not None and self.broken in indices:
            raise OSError(f"record {self.broken} cannot be read")
        return {"number": torch.from_numpy(indices)}


def read(loader: Loader, first: int, steps: int) -> list[list[Batch]]:
    with closing(loader.steps(first)) as batches:
        return list(islice(batches, steps))


def order(steps: list[list[Batch]]) -> list[list[tuple[int, int, int]]]:
    """Per step: (epoch, record, what was read) in order."""
    return [
        [
            place
            for batch in batches
            for place in zip(batch.epochs.tolist(), batch.records.tolist(), batch.data["number"].tolist(), strict=True)
        ]
        for batches in steps
    ]


def plain_order(size: int, seed: int, batch: int, steps: int) -> list[list[tuple[int, int, int]]]:
    epochs, records = (values.tolist() for values in draw(seed, 0, batch * steps, size))
    places = list(zip(epochs, records, records, strict=True))
    return [places[start : start + batch] for start in range(0, batch * steps, batch)]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("batch", "micro_batch"), [(8, 8), (8, 3), (7, 2), (5, 1)])
def test_one_order_for_any_processes_and_threads(workers: int, ranks: int, batch: int, micro_batch: int) -> None:
    parts = [
        order(read(Loader(Numbers(19, slow=True), 4, batch, micro_batch, workers, rank, ranks), 0, 6))
        for rank in range(ranks)
    ]
    joined = [[place for part in parts for place in part[step]] for step in range(6)]
    assert joined == plain_order(19, 4, batch, 6)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 9), micro_batch=st.integers(1, 9), first=st.integers(0, 12), workers=st.integers(0, 2))
def test_starting_at_a_step_equals_skipping_to_it(batch: int, micro_batch: int, first: int, workers: int) -> None:
    loader = Loader(Numbers(11), 0, batch, micro_batch, workers)
    assert order(read(loader, first, 4)) == order(read(loader, 0, first + 4))[first:]


def test_micro_batches_are_as_large_as_said() -> None:
    steps = read(Loader(Numbers(19), 4, 8, 3, 0), 0, 2)
    assert [[len(batch) for batch in batches] for batches in steps] == [[3, 3, 2], [3, 3, 2]]
    assert all(batch.seed == 4 for batches in steps for batch in batches)


@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(1, 9))
def test_shares_are_contiguous_and_nearly_equal(start: int, length: int, size: int) -> None:
    parts = [split(start, start + length, rank, size) for rank in range(size)]
    assert [place for part in parts for place in part] == list(range(start, start + length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_ends_the_threads(workers: int) -> None:
    batches = Loader(Numbers(19), 0, 4, 2, workers).steps(0)
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_reading_reaches_the_caller(workers: int) -> None:
    loader = Loader(Numbers(12, broken=5), 0, 2, 1, workers)
    good = next(step for step, places in enumerate(plain_order(12, 0, 2, 6)) if 5 in [p[1] for p in places])
    batches = loader.steps(0)
    for _ in range(good):
        next(batches)
    with pytest.raises(OSError, match="record 5 cannot be read"):
        next(batches)
    assert not loader_threads()


def test_reading_ahead_is_bounded() -> None:
    records = Numbers(1000)
    workers, micro_batches = 2, 2
    with closing(Loader(records, 0, 4, 2, workers).steps(0)) as batches:
        next(batches)
        time.sleep(0.1)
        assert micro_batches < records.reads <= (AHEAD * workers + 1) * micro_batches


@pytest.mark.parametrize("batch", [1, 3, 4, 50])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_in_order_deals_the_same_batches_to_any_processes(batch: int, ranks: int) -> None:
    alone = [b.records.tolist() for b in in_order(Numbers(40), 17, 0, batch)]
    dealt = [[b.records.tolist() for b in in_order(Numbers(40), 17, 0, batch, r, ranks)] for r in range(ranks)]
    assert sorted(part for parts in dealt for part in parts) == sorted(alone)
    assert all(dealt[number % ranks][number // ranks] == part for number, part in enumerate(alone))


@given(size=st.integers(1, 200), data=st.data())
def test_in_order_spreads_over_all_records(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    batches = list(in_order(Numbers(size), count, 9, 7))
    records = np.concatenate([batch.records for batch in batches])
    assert records.tolist() == [n * size // count for n in range(count)]
    assert len(set(records.tolist())) == count
    assert all(batch.seed == 9 and not batch.epochs.any() for batch in batches)
    assert torch.cat([batch.data["number"] for batch in batches]).tolist() == records.tolist()
