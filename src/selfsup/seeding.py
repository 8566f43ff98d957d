"""Randomness as a function of where you are, not of what came before.

Every random draw is seeded from (run seed, purpose, place), where the place is made of things that do not
change with the hardware: epoch, step, global record index, view. No generator state is carried or saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str, *place: int) -> int:
    """A 63-bit seed that depends on nothing but its arguments (BLAKE2b of their text)."""
    text = ":".join([str(seed), purpose, *map(str, place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *place: int, device: str = "cpu") -> torch.Generator:
    """A torch generator that stands at the given place."""
    return torch.Generator(device).manual_seed(derive(seed, purpose, *place))


@contextmanager
def seeded(seed: int, purpose: str, *place: int) -> Iterator[None]:
    """Run a block (a network's dropout) under torch's global generator set to the given place, then restore it."""
    state = torch.get_rng_state()
    torch.manual_seed(derive(seed, purpose, *place))
    try:
        yield
    finally:
        torch.set_rng_state(state)
