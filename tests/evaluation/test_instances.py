"""instances: two views of each image find each other; against a plain count of the views that are embedded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawings import write_drawings
from tiny_vision import save_tiny_vision

import selfsup
from selfsup.errors import UserError
from selfsup.inference.opening import load_image_model
from selfsup.inference.pictures import open_pictures


def test_views_of_an_image_find_each_other(drawings: Path, tmp_path: Path) -> None:
    place = save_tiny_vision(tmp_path / "vision")
    score = selfsup.evaluate(place, data=str(drawings), protocol="instances", precision="fp32", seed=3)
    model = load_image_model(place)
    pairs = open_pictures(str(drawings), model.size).pairs(3)
    first, second = (
        model.embed([item.content for item in side], "fp32").astype(np.float64) for side in (pairs.first, pairs.second)
    )
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    similar = first @ second.T
    own = np.diag(similar)[:, None]
    earlier = np.arange(len(own)) < np.arange(len(own))[:, None]
    ranks = 1 + ((similar > own + 1e-5) | (earlier & (similar >= own - 1e-5))).sum(1)
    assert score.value == pytest.approx(100 * (1 / ranks).mean(), rel=1e-3)
    assert score.n == score.details["candidates"] == len(own)
    few = selfsup.evaluate(place, data=str(drawings), protocol="instances", records=10)
    assert (few.n, few.records, few.records_in_all) == (10, 10, len(own))


def test_one_image_cannot_be_mistaken(tmp_path: Path) -> None:
    place, alone = save_tiny_vision(tmp_path / "vision"), write_drawings(tmp_path / "one", 1, 20)
    with pytest.raises(UserError, match="nothing can be mistaken for the only one"):
        selfsup.evaluate(place, data=str(alone), protocol="instances")
