"""Which records of a source are held out, by the hash of their content."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def hash_of(text: str) -> int:
    """What decides on which side a text falls: 64 bits of its BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hold_out(hashes: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """bool (records,): those whose hash, as a fraction of 2^64, lies below the share; so duplicates fall on one side.
    Where that leaves a side empty, the smallest hash is held out (or all but the largest)."""
    chosen: npt.NDArray[np.bool_] = hashes / 2.0**64 < share
    if share and not chosen.any():
        chosen[:] = hashes == hashes.min()
    elif chosen.all():
        chosen[:] = hashes != hashes.max()
    return chosen
