"""The order of the records is a pure function: a bijection per epoch, and one that looks drawn at random."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.data.sampler import WINDOW, draw, permute, permute_in_blocks
from selfsup.seeding import derive


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_a_permutation_of_any_size(size: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(size), size, seed, epoch)
    assert sorted(order.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 255, 256, 257, 65536, 65537])
def test_sizes_around_powers_of_two(size: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, 0, 0)), np.arange(size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 10**12), data=st.data())
def test_each_position_by_itself(size: int, data: st.DataObject) -> None:
    """No table: any positions, in any order, of any size, give what they give alone, inside the size."""
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8)))
    together = permute(positions, size, 5, 2)
    assert [int(permute(np.array([p]), size, 5, 2)[0]) for p in positions] == together.tolist()
    assert ((together >= 0) & (together < size)).all()


def test_positions_are_left_alone() -> None:
    positions = np.arange(10)
    permute(positions, 10, 0, 0)
    assert positions.tolist() == list(range(10))


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {tuple(permute(np.arange(50), 50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13, 20, 60])
def test_every_record_is_as_likely_at_every_place(size: int) -> None:
    """χ² over (position, record) with (size − 1)² degrees of freedom; the bound lies 7 deviations out."""
    draws = 1500
    counts = np.zeros((size, size))
    for seed in range(draws):
        counts[np.arange(size), permute(np.arange(size), size, seed, 0)] += 1
    statistic = ((counts - draws / size) ** 2 / (draws / size)).sum()
    freedom = (size - 1) ** 2
    assert statistic < freedom + 7 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("size", [1000, 1024, 4097])
def test_neighbours_are_parted(size: int) -> None:
    """Distances between neighbours, serial correlation and fixed points as a random permutation has them."""
    order = permute(np.arange(size), size, 1, 1).astype(float)
    spread = 1 / size**0.5
    assert np.abs(np.diff(order)).mean() / size == pytest.approx(1 / 3, abs=3 * spread)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 * spread
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 5 * spread
    assert (order == np.arange(size)).sum() < 8


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 40), cuts=st.lists(st.integers(0, 80), max_size=6))
def test_draw_does_not_depend_on_how_it_is_cut(size: int, cuts: list[int]) -> None:
    whole = draw(7, 0, 80, size)
    borders = [0, *sorted(cuts), 80]
    parts = [draw(7, start, stop, size) for start, stop in pairwise(borders)]
    for which in (0, 1):
        assert np.concatenate([part[which] for part in parts]).tolist() == whole[which].tolist()


@pytest.mark.parametrize("size", [1, 7, 32])
def test_every_record_once_per_epoch(size: int) -> None:
    epochs, records = draw(3, 0, 5 * size, size)
    assert epochs.tolist() == [epoch for epoch in range(5) for _ in range(size)]
    for epoch in range(5):
        here = records[epochs == epoch]
        assert sorted(here.tolist()) == list(range(size))
        assert here.tolist() == permute(np.arange(size), size, 3, epoch).tolist()


# -- in blocks --

BLOCKS = st.tuples(st.integers(1, 2500), st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 50))


def blocks_in_order(size: int, block: int, seed: int, epoch: int) -> list[int]:
    """All records of an epoch, block by block, before any is moved."""
    whole = size // block
    order = permute(np.arange(whole), whole, seed, epoch).tolist()
    order.insert(derive(seed, "rest", epoch) % (whole + 1), whole)  # what is left behind the last whole one
    return [record for number in order for record in range(number * block, min(number * block + block, size))]


def slow_order(size: int, block: int, seed: int, epoch: int) -> list[int]:
    """The records of an epoch as lists: blocks, then groups of half a window, then groups half a group earlier."""
    if size <= WINDOW * block:
        return permute(np.arange(size), size, seed, epoch).tolist()
    records, group = blocks_in_order(size, block, seed, epoch), WINDOW // 2 * block
    for layer, shift in ((1, 0), (0, group // 2)):
        borders = [*range(-shift, size, group), size]
        moved = []
        for number, (first, last) in enumerate(pairwise(borders)):
            within = records[max(0, first) : last]
            own = derive(derive(seed, "window", layer), "group", number)
            moved += [within[place] for place in permute(np.arange(len(within)), len(within), own, epoch)]
        records = moved
    return records


@settings(max_examples=60, deadline=None)
@given(case=BLOCKS, data=st.data())
def test_blocks_against_a_plain_order(case: tuple[int, int, int, int], data: st.DataObject) -> None:
    """Every position of every epoch, all at once and by itself; and so it is a permutation."""
    size, block, seed, epoch = case
    order = permute_in_blocks(np.arange(size), size, block, seed, epoch)
    assert order.tolist() == slow_order(size, block, seed, epoch)
    assert sorted(order.tolist()) == list(range(size))
    place = data.draw(st.integers(0, size - 1))
    assert permute_in_blocks(np.array([place]), size, block, seed, epoch).tolist() == [order[place]]


@settings(max_examples=40, deadline=None)
@given(case=BLOCKS)
def test_reading_goes_on_by_whole_blocks(case: tuple[int, int, int, int]) -> None:
    """A record comes less than a window from its own block, and a stretch as long as a block is read from few."""
    size, block, seed, epoch = case
    order = permute_in_blocks(np.arange(size), size, block, seed, epoch)
    stretches = [np.unique(order[start : start + block] // block) for start in range(0, size, block)]
    assert max(map(len, stretches)) <= 3 * WINDOW // 2 + 3
    if size > WINDOW * block:
        own = np.argsort(blocks_in_order(size, block, seed, epoch))[order]
        assert np.abs(own - np.arange(size)).max() < WINDOW * block


@settings(max_examples=40, deadline=None)
@given(size=st.integers(10**6, 10**12), block=st.integers(1, 10**4), data=st.data())
def test_blocks_hold_no_table(size: int, block: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6)))
    together = permute_in_blocks(positions, size, block, 5, 2)
    assert [int(permute_in_blocks(np.array([p]), size, block, 5, 2)[0]) for p in positions] == together.tolist()
    assert ((together >= 0) & (together < size)).all()


@pytest.mark.parametrize(("size", "block"), [(40 * 8, 8), (40 * 8 + 3, 8)])
def test_blocks_come_at_any_place(size: int, block: int) -> None:
    """Over many epochs each block, the short one too, begins anywhere: its mean place is the middle."""
    epochs = 400
    places = np.stack([np.argsort(permute_in_blocks(np.arange(size), size, block, 0, e)) for e in range(epochs)])
    for first in (0, size // 2 // block * block, (size - 1) // block * block):
        own = places[:, first : first + block].mean(1)
        assert own.mean() == pytest.approx(size / 2, abs=5 * size / 12**0.5 / epochs**0.5)


def test_draw_in_blocks() -> None:
    epochs, records = draw(3, 0, 2000, 1000, block=10)
    assert epochs.tolist() == [0] * 1000 + [1] * 1000
    assert records[1000:].tolist() == permute_in_blocks(np.arange(1000), 1000, 10, 3, 1).tolist()
    assert records[:1000].tolist() != records[1000:].tolist()
