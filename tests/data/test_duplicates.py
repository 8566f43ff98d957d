"""Near duplicates: against all pairs of texts compared by their shingles."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from selfsup.data import duplicates as module
from selfsup.data.duplicates import BANDS, NEAR, ROWS, near_earlier, require_library, shingles, signatures
from selfsup.errors import UserError


def jaccard(first: str, second: str) -> float:
    one, other = set(shingles(first)), set(shingles(second))
    return len(one & other) / len(one | other)


def texts() -> list[str]:
    """Sixty texts of 200 words; each fifth one is an earlier one in which some words differ, from none to thirty."""
    random = np.random.default_rng(0)
    made: list[str] = []
    for number in range(60):
        words = [f"w{word}" for word in random.integers(0, 5000, 200)]
        if number % 5 == 4:
            words = made[int(random.integers(0, number))].split()
            for place in random.integers(0, 200, int(random.choice([0, 1, 2, 30]))):
                words[place] = "other"
        made.append(" ".join(words))
    return made


def test_shingles() -> None:
    assert shingles("A b c D e f") == ["a b c d e", "b c d e f"]
    assert shingles("Only two") == ["only two"]


def test_against_all_pairs() -> None:
    pytest.importorskip("rensa")
    made = texts()
    found = near_earlier(np.concatenate(list(signatures(made, 0))))
    most = np.array(
        [max((jaccard(text, made[before]) for before in range(n)), default=0.0) for n, text in enumerate(made)]
    )
    assert found[most > NEAR + 0.1].all()
    assert not found[most < NEAR - 0.15].any()
    assert 3 < found.sum() < 12


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rensa")
    together = np.concatenate(list(signatures(texts(), 0)))
    monkeypatch.setattr(module, "AT_ONCE", 7)
    apart = list(signatures(texts(), 0))
    assert len(apart) == 9
    assert np.array_equal(np.concatenate(apart), together)
    assert near_earlier(together).any()


def test_signatures_by_themselves() -> None:
    """The third is the first but for one place, the fourth the second but for half of them; the rest share one band."""
    random = np.random.default_rng(0)
    found = random.integers(0, 2**32, (6, BANDS * ROWS), np.uint32)
    found[2] = found[0]
    found[2, 5] += 1
    found[3, : BANDS * ROWS // 2] = found[1, : BANDS * ROWS // 2]
    found[4:, :ROWS] = found[0, :ROWS]
    assert near_earlier(found).tolist() == [False, False, True, False, False, False]
    assert near_earlier(found[:0]).tolist() == []


def test_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UserError, match=r"pip install 'selfsup\[duplicates\]'"):
        require_library()
