"""Which records of a source are held out, by the hash of their content."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def hold_out(hashes: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """bool (records,): those whose hash, as a fraction of 2^64, lies below the share; so duplicates fall on one side.
    Where that leaves a side empty, the smallest hash is held out (or all but the largest)."""
    chosen: npt.NDArray[np.bool_] = hashes / 2.0**64 < share
    if share and not chosen.any():
        chosen[:] = hashes == hashes.min()
    elif chosen.all():
        chosen[:] = hashes != hashes.max()
    return chosen
