"""Several collections of records, drawn side by side in shares that every batch keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.data.records import InBlocks, Records, read_in
from selfsup.data.sampler import draw
from selfsup.seeding import derive

Indices = npt.NDArray[np.int64]


class Mixture:
    """Collections whose records are numbered one collection behind the other.

    Which one a position belongs to, and which of its records, is a function of (seed, position). Of any n positions in
    a row each has share · n, rounded up or down, and goes through epochs of its own, in an order of its own; that of
    the first is what it is alone.

    Args:
        parts: collections of records of one kind.
        shares: of each, above 0; together 1.
    """

    def __init__(self, parts: Sequence[Records], shares: Sequence[float]) -> None:
        self.parts, self.shares = parts, shares
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, indices: npt.NDArray[np.integer]) -> dict[str, Tensor]:
        """Records by number (n,), as their collections read them in their first pass."""
        return self.read_in(np.zeros_like(indices), indices)

    def read_in(self, epochs: npt.NDArray[np.integer], indices: npt.NDArray[np.integer]) -> dict[str, Tensor]:
        """The same in the passes `epochs` (n,), each of its own collection."""
        whose = np.searchsorted(self.starts, indices, "right") - 1
        order = np.argsort(whose, kind="stable")
        pieces = [
            read_in(self.parts[part], epochs[whose == part], indices[whose == part] - self.starts[part])
            for part in np.unique(whose)
        ]
        back = torch.from_numpy(np.argsort(order))
        return {name: torch.cat([piece[name] for piece in pieces])[back] for name in pieces[0]}

    def draw(self, seed: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """As `selfsup.data.sampler.draw`, of all collections."""
        places = np.arange(start, stop, dtype=np.int64)
        epochs, records = np.empty_like(places), np.empty_like(places)
        left = np.arange(len(places))  # which of the places are not given to a collection yet
        for part in reversed(range(len(self.parts))):
            chosen, own = self._chosen(seed, part, places)
            if chosen.any():
                first, last = int(own[chosen][0]), int(own[chosen][-1]) + 1
                of_part = derive(seed, "source", part) if part else seed
                drawn = _draw(self.parts[part], of_part, first, last)
                epochs[left[chosen]], records[left[chosen]] = drawn[0], drawn[1] + self.starts[part]
            left, places = left[~chosen], (places - own)[~chosen]
        return epochs, records

    def _chosen(self, seed: int, part: int, places: Indices) -> tuple[npt.NDArray[np.bool_], Indices]:
        """Whether places (n,) of those that this collection and the ones before it share are its own, and how many
        before each of them are: the integers that share · place + a number of the seed passes."""
        share = self.shares[part] / sum(self.shares[: part + 1])
        if part == 0:
            return np.ones(len(places), np.bool_), places
        phase = derive(seed, "mixture", part) * 2.0**-63
        before, behind = (np.floor((places + step) * share + phase).astype(np.int64) for step in (0, 1))
        return behind > before, before


def drawn(records: Records, seed: int, start: int, stop: int) -> tuple[Indices, Indices]:
    """Epochs and numbers (n,) of the records at positions [start, stop) of the endless sequence of epochs."""
    if isinstance(records, Mixture):
        return records.draw(seed, start, stop)
    return _draw(records, seed, start, stop)


def _draw(records: Records, seed: int, start: int, stop: int) -> tuple[Indices, Indices]:
    return draw(seed, start, stop, len(records), records.block if isinstance(records, InBlocks) else None)
