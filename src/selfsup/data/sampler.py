"""The order of the records: a pure function of (seed, epoch, position), never a list that is shuffled."""

from __future__ import annotations

import numpy as np

from selfsup.seeding import derive, mix

ROUNDS = 4


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


def draw(seed: int, start: int, stop: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The records at positions [start, stop) of the endless sequence of epochs.

    Returns:
        epochs (n,) and record indices (n,); every record comes once per epoch.
    """
    positions = np.arange(start, stop, dtype=np.int64)
    epochs = positions // size
    records = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        records[here] = permute(positions[here] % size, size, seed, int(epoch))
    return epochs, records
