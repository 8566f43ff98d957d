"""Vectors of two libraries that are the same but for rounding, whatever their length and the order of additions."""

from __future__ import annotations

from typing import Any

import torch

from selfsup.models.parity import Difference

SHARE = 2e-5  # of the length of a vector


def assert_same_vectors(theirs: Any, ours: Any) -> None:
    found = Difference.between(torch.as_tensor(theirs), torch.as_tensor(ours))
    assert found.share < SHARE, found
