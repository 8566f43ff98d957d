"""The order of the records: a pure function of (seed, epoch, position), never a list that is shuffled.

Records that lie in blocks are read block by block. An epoch has its own order of the blocks; then records are permuted
twice, within groups of half a window of blocks, and within groups of the same length that begin half a group earlier.
So the borders of one are in the middle of the other, a record stands less than a window away from its block, and
reading goes on by whole blocks.
"""

from __future__ import annotations

import numpy as np

from selfsup.seeding import derive, mix

ROUNDS = 4
WINDOW = 16  # blocks, an even number: a record comes fewer than so many before or behind its own block


def permute(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """The record at each position of an epoch: a bijection of range(size) that holds no table. A balanced Feistel
    network over the next even number of bits (Luby and Rackoff 1988), walked until the value falls into range(size)
    again. Positions and records are (n,) int64 in range(size)."""
    half = max(3, ((size - 1).bit_length() + 1) // 2)  # on halves of two bits four rounds do not mix well
    mask = np.uint64((1 << half) - 1)
    keys = [np.uint64(derive(seed, "order", epoch, round_)) for round_ in range(ROUNDS)]
    values = np.asarray(positions, dtype=np.uint64).copy()
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= size
    return values.astype(np.int64)


def permute_in_blocks(positions: np.ndarray, size: int, block: int, seed: int, epoch: int) -> np.ndarray:
    """The same for records that lie in blocks of `block`, of which the last one may be shorter: each record comes near
    the others of its block (see above). Where a window holds all of them, it is `permute`."""
    if size <= WINDOW * block:
        return permute(positions, size, seed, epoch)
    group = WINDOW // 2 * block
    places = np.asarray(positions, dtype=np.int64)
    for layer, shift in enumerate((group // 2, 0)):
        places = _permute_groups(places, size, group, shift, derive(seed, "window", layer), epoch)
    return _block_by_block(places, size, block, seed, epoch)


def _permute_groups(places: np.ndarray, size: int, group: int, shift: int, seed: int, epoch: int) -> np.ndarray:
    """Places (n,) in range(size), permuted within groups of `group`; the first group is shorter by `shift`."""
    numbers = (places + shift) // group
    moved = np.empty_like(places)
    for number in map(int, np.unique(numbers)):
        here = numbers == number
        first, last = max(0, number * group - shift), min(size, (number + 1) * group - shift)
        moved[here] = first + permute(places[here] - first, last - first, derive(seed, "group", number), epoch)
    return moved


def _block_by_block(places: np.ndarray, size: int, block: int, seed: int, epoch: int) -> np.ndarray:
    """The records at places (n,), where the blocks come one behind the other in the order of the epoch. What is left
    behind the last whole block comes between two of the others."""
    whole, rest = divmod(size, block)
    gap = derive(seed, "rest", epoch) % (whole + 1) * block
    behind = places >= gap + rest
    of_rest = (places >= gap) & ~behind
    own = np.where(of_rest, 0, places - rest * behind)  # among the whole blocks
    records = permute(own // block, whole, seed, epoch) * block + own % block
    return np.where(of_rest, whole * block + places - gap, records)


def draw(seed: int, start: int, stop: int, size: int, block: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The records at positions [start, stop) of the endless sequence of epochs.

    Args:
        block: how many of the records lie in a block; all, where it is not said.

    Returns:
        epochs (n,) and record indices (n,); every record comes once per epoch.
    """
    positions = np.arange(start, stop, dtype=np.int64)
    epochs = positions // size
    records = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        records[here] = permute_in_blocks(positions[here] % size, size, block or size, seed, int(epoch))
    return epochs, records
