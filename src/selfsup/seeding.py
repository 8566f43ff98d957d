"""Randomness as a function of where you are, not of what came before.

Every random draw is seeded from (run seed, purpose, place), where the place is made of things that do not
change with the hardware: epoch, step, global record index, view. No generator state is carried or saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch


def derive(seed: int, purpose: str, *place: int) -> int:
    """A 63-bit seed that depends on nothing but its arguments (BLAKE2b of their text)."""
    text = ":".join([str(seed), purpose, *map(str, place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *place: int, device: str = "cpu") -> torch.Generator:
    """A torch generator that stands at the given place."""
    return torch.Generator(device).manual_seed(derive(seed, purpose, *place))


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014) on uint64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the increment of SplitMix64


def uniform(seed: int, purpose: str, epochs: np.ndarray, records: np.ndarray, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1) for each record, (n, count): SplitMix64 from a state of its own for each.

    Equal places, which are the epochs and records, both (n,), give equal numbers, whatever stands beside them.
    """
    base = np.uint64(derive(seed, purpose))
    state = mix(mix(base ^ epochs.astype(np.uint64)) ^ records.astype(np.uint64))
    steps = GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    bits = mix(state[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextmanager
def seeded(seed: int, purpose: str, *place: int) -> Iterator[None]:
    """Run a block (a network's dropout) under torch's global generator set to the given place, then restore it."""
    state = torch.get_rng_state()
    _sow(derive(seed, purpose, *place))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _sow(seed: int) -> None:
    """As `torch.manual_seed`, for the devices that are in use. For those that are not, that one notes with each seed
    from where in the program it came, which costs a small step more than its dropout."""
    torch.default_generator.manual_seed(seed)
    torch.mps.manual_seed(seed)  # nothing, where there is none
    for accelerator in (torch.cuda, torch.xpu):
        if accelerator.is_initialized():
            accelerator.manual_seed_all(seed)
