"""Randomness is a function of where you are."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from selfsup.seeding import derive, generator, seeded

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
    seeds = [
        derive(s, p, *place)
        for s in range(8)
        for p in ("order", "mask")
        for place in ((), (0,), (0, 1), (10,))
    ]
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


def test_a_seeded_block_that_fails_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    try:
        with seeded(0, "dropout", 4):
            torch.rand(4)
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
