"""Randomness is a function of where you are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selfsup.seeding import derive, generator, seeded, uniform

places = st.lists(st.integers(0, 2**40), max_size=4)


@given(seed=st.integers(0), purpose=st.text(max_size=8), place=places)
def test_a_seed_depends_on_its_arguments_alone(seed: int, purpose: str, place: list[int]) -> None:
    first = derive(seed, purpose, *place)
    torch.rand(3)
    assert derive(seed, purpose, *place) == first
    assert 0 <= first < 2**63


def test_seeds_do_not_move_between_versions() -> None:
    """A run that was begun by an earlier version must go on with the same draws."""
    assert derive(0, "order", 1, 2) == 428764351967229804
    assert derive(7, "weights") == 3473394671988223749


def test_neighbouring_places_have_seeds_of_their_own() -> None:
    seeds = [derive(s, p, *place) for s in range(8) for p in ("order", "mask") for place in ((), (0,), (0, 1), (10,))]
    assert len(set(seeds)) == len(seeds)
    assert derive(1, "x", 23) != derive(1, "x", 2, 3) != derive(12, "x", 3)


def test_a_generator_stands_at_its_place() -> None:
    draws = [torch.rand(4, generator=generator(3, "mask", 1, 2)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(4, generator=generator(3, "mask", 1, 3)))


def test_a_seeded_block_leaves_no_trace() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded(0, "dropout", 4):
        inside = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(9)
    with seeded(0, "dropout", 4):
        assert torch.equal(torch.rand(4), inside)


def test_a_seeded_block_draws_what_torch_draws_from_that_seed() -> None:
    with seeded(0, "dropout", 4):
        inside = torch.rand(4), torch.nn.functional.dropout(torch.ones(64))
    torch.manual_seed(derive(0, "dropout", 4))
    assert torch.equal(inside[0], torch.rand(4))
    assert torch.equal(inside[1], torch.nn.functional.dropout(torch.ones(64)))


def test_a_seeded_block_that_fails_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(0, "dropout", 4):
        torch.rand(4)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


# -- uniform numbers for many places at once -----------------------------------------------------------------

WORD = (1 << 64) - 1


def plain_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def plain_uniform(seed: int, purpose: str, epoch: int, record: int, count: int) -> list[float]:
    """SplitMix64, one number after the other, from a state that all parts of the place have been mixed into."""
    state = plain_mix(plain_mix(derive(seed, purpose) ^ epoch) ^ record)
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        numbers.append((plain_mix(state) >> 11) / 2**53)
    return numbers


def test_the_generator_is_splitmix64() -> None:
    """The first outputs from state 0, as the reference implementation gives them (prng.di.unimi.it/splitmix64.c)."""
    found = [plain_mix((step * 0x9E3779B97F4A7C15) & WORD) for step in (1, 2, 3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


POSITIONS = st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 2**40)), min_size=1, max_size=6)


@given(seed=st.integers(0, 2**70), purpose=st.text(max_size=5), place=POSITIONS, count=st.integers(1, 9))
def test_uniform_numbers_depend_on_their_place_alone(
    seed: int, purpose: str, place: list[tuple[int, int]], count: int
) -> None:
    """Against plain integers, whatever stands beside a record, and however many numbers it needs."""
    epochs, records = (np.array(column) for column in zip(*place, strict=True))
    before = torch.get_rng_state()
    found = uniform(seed, purpose, epochs, records, count)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.dtype == np.float64
    assert found.tolist() == [plain_uniform(seed, purpose, *one, count) for one in place]
    assert ((found >= 0) & (found < 1)).all()
    assert (uniform(seed, purpose, epochs[::-1], records[::-1], count) == found[::-1]).all()
    assert (uniform(seed, purpose, epochs, records, count + 3)[:, :count] == found).all()


def numbers(rows: int = 1000, count: int = 200, **place: int) -> np.ndarray:
    """Of neighbouring records, in one pass over the data."""
    epochs = np.full(rows, place.get("epoch", 0))
    return uniform(place.get("seed", 3), "masking", epochs, np.arange(rows), count)


@pytest.mark.parametrize("along", ["records", "numbers", "epochs", "seeds"])
def test_uniform_numbers_are_uniform_along_each_direction(along: str) -> None:
    drawn = {
        "records": numbers(100_000, 1),
        "numbers": numbers(1, 100_000),
        "epochs": uniform(3, "masking", np.arange(100_000), np.zeros(100_000, np.int64), 1),
        "seeds": np.concatenate([numbers(1, 1, seed=seed) for seed in range(5000)]),
    }[along].flatten()
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4
    assert len(np.unique(drawn)) == len(drawn)


def test_neighbours_are_independent() -> None:
    """Of the same record, of the next record, epoch and seed: no correlation beyond five deviations, joint
    occurrences as often as they should be."""
    drawn = numbers()
    pairs = {
        "next number": (drawn[:, :-1], drawn[:, 1:]),
        "next record": (drawn[:-1], drawn[1:]),
        "next epoch": (drawn, numbers(epoch=1)),
        "next seed": (drawn, numbers(seed=4)),
        "records 64 apart": (drawn[:-64], drawn[64:]),
        "diagonal": (drawn[:-1, :-1], drawn[1:, 1:]),  # the record's place is no offset into one sequence
        "other diagonal": (drawn[:-1, 1:], drawn[1:, :-1]),
    }
    for name, (one, other) in pairs.items():
        count = one.size
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 5 / math.sqrt(count), name
        table, *_ = np.histogram2d(one.flatten(), other.flatten(), 8, [[0, 1], [0, 1]])
        assert stats.chisquare(table.flatten()).pvalue > 1e-5, name
