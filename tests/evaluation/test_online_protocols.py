"""Protocols measured during a training on images of its own: held-out ones, never those of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_vision import save_photos

import selfsup
from selfsup.data.images import open_images, split_images
from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement
from selfsup.evaluation.knn import knn_20
from selfsup.inference.pictures import Pictures
from selfsup.report import Reporter

TINY: dict[str, Any] = {
    "model": {"preset": "vit-atto", "layers": 1, "width": 32, "heads": 1},
    "data.validation": 0.3,
    "batch": 16,
    "steps": 4,
    "precision": "fp32",
    "evaluate.every": 2,
    "evaluate.records": 16,
    "evaluate.final_records": 16,
    "optim.warmup": 1,
    "reporter": Reporter(False),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("images") / "photos", 24)


def looks(run: selfsup.Run) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line["split"] == "validation"]


def test_on_its_own_held_out_images(photos: Path, tmp_path: Path) -> None:
    protocols = ("knn-20", "linear", "alpha-req")
    run = selfsup.train("simclr", data=photos, out=tmp_path / "run", **{"evaluate.protocols": protocols}, **TINY)
    assert len(looks(run)) == 2
    for line in looks(run):
        assert set(protocols) < line.keys()
        assert {"rankme", "uniformity", "feature_std"} < line.keys()
    images = open_images(photos)
    trained, held_out = split_images(images, 0.3)
    model = selfsup.load(run.directory)
    chosen = held_out[np.arange(16) * len(held_out) // 16]
    bank, test = (Pictures(images, model.size, part) for part in (trained, chosen))
    score = knn_20(Measurement(run.directory, model, bank, test=test))
    assert (score.details["bank"], score.n) == (len(trained), 16)
    assert looks(run)[-1]["knn-20"] == pytest.approx(score.value)


def test_without_classes_all_that_needs_none_is_measured(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number, file in enumerate(sorted(save_photos(tmp_path / "photos", 12).rglob("*.png"))):
        file.rename(tmp_path / "flat" / f"{number}.png")
    flat = tmp_path / "flat"
    run = selfsup.train("simclr", data=flat, out=tmp_path / "run", **{"evaluate.protocols": ("alignment",)}, **TINY)
    assert all("alignment" in line for line in looks(run))
    with pytest.raises(UserError, match="knn-20 needs records with their classes"):
        selfsup.train("simclr", data=flat, out=tmp_path / "other", **{"evaluate.protocols": ("knn-20",)}, **TINY)
    assert not (tmp_path / "other").exists()


def test_on_data_that_is_named(photos: Path, tmp_path: Path) -> None:
    other = save_photos(tmp_path / "other", 12, start=50)
    named = {"evaluate.protocols": ("linear",), "evaluate.data": str(other)}
    run = selfsup.train("simclr", data=photos, out=tmp_path / "run", **named, **TINY)
    expected = selfsup.evaluate(run, data=other, protocol="linear").value
    assert looks(run)[-1]["linear"] == pytest.approx(expected)


def test_nothing_held_out_nothing_measured(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rankme needs records to be measured on"):
        given = {**TINY, "data.validation": 0.0, "evaluate.protocols": ("rankme",)}
        selfsup.train("simclr", data=photos, out=tmp_path / "run", **given)
