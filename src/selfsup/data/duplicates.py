"""Texts that say nearly the same, found by MinHash (Broder 1997): the share of places at which the signatures of two
texts are equal estimates the Jaccard similarity of their sets of shingles, which are runs of words.

Only texts whose signatures are equal in all places of a band are compared. With 16 bands of 8 places each, of two texts
that share 80 % of their shingles 95 % are, of two that share half of them 6 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from selfsup.errors import UserError

WORDS = 5  # of a shingle, as for FineWeb (Penedo et al. 2024)
BANDS, ROWS = 16, 8
NEAR = 0.8  # share of equal places from which two texts are near duplicates
AT_ONCE = 1 << 10  # texts, and pairs of them

Signatures = npt.NDArray[np.uint32]


def require_library() -> Any:
    """The library that makes signatures; raises a UserError where it is not there."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise UserError("Near duplicates are found by the rensa library: pip install 'selfsup[duplicates]'.") from None
    return RMinHash


def signatures(texts: Iterable[str], seed: int) -> Iterator[Signatures]:
    """Of texts, in batches (n, BANDS · ROWS)."""
    library, left = require_library(), iter(texts)
    while batch := list(islice(left, AT_ONCE)):
        rows = library.digests_from_token_sets([shingles(text) for text in batch], BANDS * ROWS, seed)
        yield np.array(rows, np.uint32)


def shingles(text: str) -> list[str]:
    """The runs of words of a text, in small letters; all of one that is shorter than a run."""
    words = text.lower().split()
    return [" ".join(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1))]


def near_earlier(found: Signatures) -> npt.NDArray[np.bool_]:
    """bool (n,): whether each text, by its signature (n, BANDS · ROWS), is a near duplicate of an earlier one: of the
    first one that has a band with it, or of the last one before it."""
    near = np.zeros(len(found), np.bool_)
    for band in np.split(found, BANDS, axis=1):
        _, which = np.unique(band, axis=0, return_inverse=True)
        order = np.argsort(which, kind="stable")
        alike = which[order][1:] == which[order][:-1]
        later = order[1:][alike]
        begins = np.maximum.accumulate(np.where(np.r_[True, ~alike], np.arange(len(order)), 0))
        for earlier in (order[:-1][alike], order[begins[1:][alike]]):
            near[later[_equal(found, earlier, later) >= NEAR]] = True
    return near


def _equal(found: Signatures, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The share of equal places of the texts at `first` and `second`, both (m,)."""
    starts = range(0, len(first), AT_ONCE)
    pairs = ((found[first[start : start + AT_ONCE]], found[second[start : start + AT_ONCE]]) for start in starts)
    return np.concatenate([np.zeros(0), *((one == other).mean(1) for one, other in pairs)])
