"""Several collections of records, drawn side by side in shares that every stretch of a run keeps.

Positions come in rounds of `ROUND`. In each a collection has the same whole number of them, its share of the round;
whose each one is stands in one small table. So the collection at any position, and which of its own records comes
there, is arithmetic: any process, thread or resumed run computes any part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.data.records import InBlocks, Records, read_in
from selfsup.data.sampler import draw
from selfsup.errors import UserError
from selfsup.seeding import derive

Indices = npt.NDArray[np.int64]
Places = npt.NDArray[np.integer[Any]]

ROUND = 10_000  # places: shares are kept to a ten-thousandth
APART = 33  # bits: more than the places in any collection take


class Mixture:
    """Collections whose records are numbered one collection behind the other.

    Which one a place belongs to, and which of its records, is a function of (seed, place). Of any `ROUND` places in a
    row each has share · `ROUND`, rounded up or down; of the first n, for every n, its part of these · n, likewise. Each
    goes through epochs of its own, in an order of its own; that of the first is what it is alone.

    Args:
        parts: collections of records of one kind.
        shares: of each, above 0, whose sum is taken for the whole.
        names: of each, for messages and figures.
        together: the records of all under the same numbers, where they are read by one; else each part reads its own.
        once: records in what counts as one pass; by default as many as there are.

    Raises:
        UserError: a share is so small that a round holds no record of it.
    """

    def __init__(
        self,
        parts: Sequence[Records],
        shares: Sequence[float],
        names: Sequence[str] = (),
        together: Records | None = None,
        once: float | None = None,
    ) -> None:
        self.parts, self.together = parts, together
        self.shares = [share / sum(shares) for share in shares]
        self.names = list(names) or [f"part {number}" for number in range(1, len(parts) + 1)]
        self.starts = np.cumsum([0, *map(len, parts)])
        self.once = len(self) if once is None else once
        counts = quotas(self.shares, ROUND)
        if 0 in counts:
            name, share = next((n, s) for n, s, count in zip(self.names, self.shares, counts, strict=True) if not count)
            raise UserError(
                f"{name} has {share:.2g} of the mixture, less than one record in {ROUND:,}; give it a larger weight, "
                "or leave it out."
            )
        self._counts = np.array(counts)
        self._whose, self._before = turns(counts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, indices: Places) -> dict[str, Tensor]:
        """Records by number (n,), as their collections read them in their first pass."""
        return self.read_in(np.zeros_like(indices), indices)

    def read_in(self, epochs: Places, indices: Places) -> dict[str, Tensor]:
        """The same in the passes `epochs` (n,), each of its own collection."""
        if self.together is not None:
            return read_in(self.together, epochs, indices)
        whose = np.searchsorted(self.starts, indices, "right") - 1
        order = np.argsort(whose, kind="stable")
        pieces = [self._of_part(part, epochs[whose == part], indices[whose == part]) for part in np.unique(whose)]
        back = torch.from_numpy(np.argsort(order))
        return {name: torch.cat([piece[name] for piece in pieces])[back] for name in pieces[0]}

    def _of_part(self, part: int, epochs: Places, indices: Places) -> dict[str, Tensor]:
        """Records of one collection. Places, which tell what in a collection lies near, are moved apart."""
        start = int(self.starts[part])
        found = read_in(self.parts[part], epochs, indices - start)
        return found | {"places": found["places"] + (start << APART)} if "places" in found else found

    def draw(self, seed: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """As `selfsup.data.sampler.draw`, of all collections."""
        rounds, places = np.divmod(np.arange(start, stop, dtype=np.int64), ROUND)
        whose = self._whose[places]
        own = rounds * self._counts[whose] + self._before[places]  # the place among those of its collection
        epochs, records = np.empty_like(own), np.empty_like(own)
        for part in map(int, np.unique(whose)):
            mine = whose == part
            first, last = int(own[mine][0]), int(own[mine][-1])
            of_part = derive(seed, "source", part) if part else seed
            passes, numbers = drawn(self.parts[part], of_part, first, last + 1)
            epochs[mine], records[mine] = passes, numbers + self.starts[part]
        return epochs, records


def quotas(shares: Sequence[float], total: int) -> tuple[int, ...]:
    """Whole numbers that are shares of a total, each rounded up or down so that their sum is the total: what the lower
    ones leave goes to the largest remainders (Hamilton's method)."""
    exact = [share * total for share in shares]
    counts = [int(number) for number in exact]
    order = sorted(range(len(exact)), key=lambda part: (counts[part] - exact[part], part))
    for part in order[: total - sum(counts)]:
        counts[part] += 1
    return tuple(counts)


@lru_cache
def turns(counts: tuple[int, ...]) -> tuple[Indices, Indices]:
    """Whose each place of a round is, and how many places before it there are its own; both (places,).

    Of a part with n of R places number j comes at one of those from ⌊jR/n⌋ to ⌈(j+1)R/n⌉ − 1, the most urgent first.
    So of the first places of a round, however many, each part has n/R, rounded up or down (Baruah et al. 1996,
    "Proportionate progress: a notion of fairness in resource allocation").
    """
    size, done = sum(counts), [0] * len(counts)
    whose, before = np.empty(size, np.int64), np.empty(size, np.int64)
    begins: list[list[int]] = [[] for _ in range(size)]  # the parts whose next one may come from a place on
    begins[0] = list(range(len(counts)))
    begun: list[tuple[int, int]] = []  # before which place the next one of a part has to come, and the part
    for place in range(size):
        for part in begins[place]:
            heappush(begun, (-(-(done[part] + 1) * size // counts[part]), part))
        _, part = heappop(begun)
        whose[place], before[place] = part, done[part]
        done[part] += 1
        if done[part] < counts[part]:
            begins[max(place + 1, done[part] * size // counts[part])].append(part)
    return whose, before


def drawn(records: Records, seed: int, start: int, stop: int) -> tuple[Indices, Indices]:
    """Epochs and numbers (n,) of the records at positions [start, stop) of the endless sequence of epochs."""
    if isinstance(records, Mixture):
        return records.draw(seed, start, stop)
    return draw(seed, start, stop, len(records), records.block if isinstance(records, InBlocks) else None)


def parts_of(records: Any) -> list[tuple[float, Any]]:
    """The collections of a mixture, each behind its share; of records that are none, themselves."""
    return list(zip(records.shares, records.parts, strict=True)) if isinstance(records, Mixture) else [(1.0, records)]


def mean_length(texts: Any) -> float:
    """Tokens of a record that is a text, in the mean; of a mixture, as it is drawn."""
    return float(sum(share * part.mean_length for share, part in parts_of(texts)))


def truncated(texts: Any) -> int:
    """How many records lose their end."""
    return int(sum(part.truncated for _, part in parts_of(texts)))


def looked_at(records: Records, count: int) -> list[tuple[float, Records, int]]:
    """How many of `count` records each collection has of a look at them: its share, as far as it has so many, and at
    least one. Each stands behind the share that its figures have in those of all."""
    if not isinstance(records, Mixture):
        return [(1.0, records, count)]
    numbers = quotas(records.shares, count)
    return [
        (share, part, max(1, min(number, len(part))))
        for share, part, number in zip(records.shares, records.parts, numbers, strict=True)
    ]
