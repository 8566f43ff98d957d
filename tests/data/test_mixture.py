"""Several collections drawn side by side: shares of every batch, a pure function of the position, each in its order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.data.loader import Loader, in_order
from selfsup.data.mixture import ROUND, Mixture, quotas, turns
from selfsup.data.sampler import draw
from selfsup.errors import UserError
from selfsup.seeding import derive


class Numbers:
    """Records that say whose they are."""

    def __init__(self, size: int, own: int) -> None:
        self.size, self.own = size, own

    def __len__(self) -> int:
        return self.size

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        numbers = torch.from_numpy(indices)
        return {"number": numbers, "own": torch.full_like(numbers, self.own)}


def mixture(sizes: list[int], shares: Sequence[float]) -> Mixture:
    return Mixture([Numbers(size, own) for own, size in enumerate(sizes)], shares)


WEIGHTS = st.lists(st.integers(1, 400), min_size=1, max_size=7)


@settings(max_examples=15, deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 99), start=st.integers(0, 10**9), length=st.integers(1, 500))
def test_any_stretch_has_its_shares(weights: list[int], seed: int, start: int, length: int) -> None:
    mixed = mixture([70 + 10 * n for n in range(len(weights))], weights)
    _, records = mixed.draw(seed, start, start + length)
    found = Counter(mixed.read(records)["own"].tolist())
    for own, weight in enumerate(weights):
        wanted = weight / sum(weights) * length
        assert abs(found[own] - wanted) <= 2 + length / ROUND  # each of its ends rounds once, and the round


@settings(max_examples=10, deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 10**12))
def test_any_whole_round_has_its_shares_to_a_record(weights: list[int], start: int) -> None:
    mixed = mixture([50] * len(weights), weights)
    _, records = mixed.draw(0, start, start + ROUND)
    found = Counter(mixed.read(records)["own"].tolist())
    assert all(abs(found[own] - weight / sum(weights) * ROUND) < 1 for own, weight in enumerate(weights))


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=8).map(tuple))
def test_of_the_first_places_each_part_has_its_share_rounded(counts: tuple[int, ...]) -> None:
    whose, before = turns(counts)
    size = sum(counts)
    seen = [0] * len(counts)
    for place in range(size):
        assert before[place] == seen[whose[place]]
        seen[whose[place]] += 1
        for part, count in enumerate(counts):
            low, rest = divmod((place + 1) * count, size)
            assert low <= seen[part] <= low + (rest > 0)
    assert tuple(seen) == counts


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, total=st.integers(1, 20_000))
def test_quotas_round_and_add_up(weights: list[int], total: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    found = quotas(shares, total)
    assert sum(found) == total
    assert all(abs(number - share * total) < 1 + 1e-6 for number, share in zip(found, shares, strict=True))


@settings(max_examples=15, deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    start=st.integers(0, 2 * ROUND),
    length=st.integers(1, 300),
)
def test_the_order_is_what_taking_one_record_after_the_other_gives(
    weights: list[int], seed: int, start: int, length: int
) -> None:
    sizes = [17, 5, 23, 40][: len(weights)]
    mixed = mixture(sizes, weights)
    whose, _ = turns(quotas(mixed.shares, ROUND))
    taken, expected = [0] * len(sizes), []
    for place in range(start + length):
        part = int(whose[place % ROUND])
        if place >= start:
            own = derive(seed, "source", part) if part else seed
            epoch, record = draw(own, taken[part], taken[part] + 1, sizes[part])
            expected.append((int(epoch[0]), sum(sizes[:part]) + int(record[0])))
        taken[part] += 1
    epochs, records = mixed.draw(seed, start, start + length)
    assert list(zip(epochs.tolist(), records.tolist(), strict=True)) == expected


def test_a_share_that_no_round_holds_is_refused() -> None:
    with pytest.raises(UserError, match=r"tiny has 1e-05 of the mixture, less than one record in 10,000; give"):
        Mixture([Numbers(5, 0), Numbers(5, 1)], [0.99999, 0.00001], ["most", "tiny"])


def test_a_mixture_within_a_mixture_is_drawn_as_itself() -> None:
    inner = mixture([11, 7], [0.5, 0.5])
    outer = Mixture([inner, Numbers(5, 2)], [0.75, 0.25])
    epochs, records = outer.draw(3, 0, 400)
    own = outer.read(records)["own"].numpy()
    within = own < 2
    alone = inner.draw(3, 0, int(within.sum()))
    assert np.array_equal(epochs[within], alone[0])
    assert np.array_equal(records[within], alone[1])
    assert (own == 2).sum() == 100


def test_a_look_reads_each_collection_by_itself() -> None:
    mixed = mixture([40, 3, 20], [0.5, 0.4, 0.1])
    batches = list(in_order(mixed, 20, 0, 4))
    owns = [batch.data["own"].tolist() for batch in batches]
    assert all(len(set(own)) == 1 for own in owns)
    assert Counter(own for each in owns for own in each) == {0: 10, 1: 3, 2: 2}  # there are no more of the second
    dealt = [batch.data["number"].tolist() for rank in range(2) for batch in in_order(mixed, 20, 0, 4, rank, 2)]
    assert sorted(dealt) == sorted(batch.data["number"].tolist() for batch in batches)


SHARES = st.sampled_from([[0.9, 0.1], [0.5, 0.5], [0.01, 0.99], [0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3]])


@settings(max_examples=40, deadline=None)
@given(shares=SHARES, seed=st.integers(0, 99), stop=st.integers(1, 400))
def test_each_collection_goes_through_its_own_epochs(shares: list[float], seed: int, stop: int) -> None:
    sizes = [17, 5, 23][: len(shares)]
    mixed = mixture(sizes, shares)
    epochs, records = mixed.draw(seed, 0, stop)
    read = mixed.read(records)
    for own, size in enumerate(sizes):
        mine = (read["own"] == own).numpy()
        places = list(zip(epochs[mine].tolist(), read["number"].numpy()[mine].tolist(), strict=True))
        whole = len(places) // size
        assert sorted(places[: whole * size]) == [(e, n) for e in range(whole) for n in range(size)]
    first = (read["own"] == 0).numpy()
    assert np.array_equal(records[first], draw(seed, 0, int(first.sum()), sizes[0])[1])


def test_any_position_by_itself() -> None:
    mixed = mixture([11, 7, 5], [0.5, 0.3, 0.2])
    together = mixed.draw(3, 40, 90)
    alone = [mixed.draw(3, place, place + 1) for place in range(40, 90)]
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert found.tolist() == np.concatenate(parts).tolist()
    assert mixed.draw(4, 40, 90)[1].tolist() != together[1].tolist()


@pytest.mark.parametrize(("micro_batch", "workers", "ranks"), [(3, 0, 1), (8, 2, 1), (2, 1, 2)])
def test_batches_are_the_same_however_they_are_read(micro_batch: int, workers: int, ranks: int) -> None:
    def order(micro_batch: int, workers: int, ranks: int) -> list[tuple[int, int]]:
        loaders = [Loader(mixture([13, 6], [0.75, 0.25]), 1, 8, micro_batch, workers, r, ranks) for r in range(ranks)]
        steps = [loader.steps(2) for loader in loaders]
        batches = [batch for _ in range(5) for own in steps for batch in next(own)]
        for own in steps:
            own.close()
        return [(int(n), int(o)) for b in batches for n, o in zip(b.data["number"], b.data["own"], strict=True)]

    found = order(micro_batch, workers, ranks)
    assert found == order(8, 0, 1)
    assert {Counter(own for _, own in found[n : n + 8])[1] for n in range(0, 40, 8)} == {2}


def test_numbers_of_records_differ_between_collections() -> None:
    """So that what is drawn for them does, too."""
    mixed = mixture([4, 4], [0.5, 0.5])
    read = mixed.read(np.array([5, 0, 7, 1]))
    assert read["number"].tolist() == [1, 0, 3, 1]
    assert read["own"].tolist() == [1, 0, 1, 0]
    assert set(mixed.draw(0, 0, 8)[1].tolist()) == set(range(8))


class CutAnew(Numbers):
    """Records that say which pass they are read in."""

    def read_in(self, epochs: np.ndarray, indices: np.ndarray) -> dict[str, Tensor]:
        return {**self.read(indices), "number": torch.from_numpy(100 * epochs + indices)}


def test_records_that_are_others_in_each_pass_are_read_in_their_own() -> None:
    mixed = Mixture([CutAnew(7, 0), Numbers(5, 1)], [0.5, 0.5])
    for loader in (Loader(mixed, 0, 4, 2, 0), Loader(CutAnew(7, 0), 0, 4, 2, 0)):
        for step in range(20):
            for place in loader.places(step):
                batch = loader.read(place)
                for number, own, epoch, record in zip(
                    batch.data["number"].tolist(), batch.data["own"].tolist(), batch.epochs, batch.records, strict=True
                ):
                    assert number == (record - 7 if own else 100 * epoch + record)
