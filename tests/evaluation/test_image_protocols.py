"""The protocols of features on images: what is read, how it is split, views as positive pairs, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_vision import COLOURS, SIZE, picture, save_photos, save_tiny_vision

import selfsup
from selfsup.data.images import collection, open_images
from selfsup.errors import UserError
from selfsup.evaluation import IMAGE_ENCODERS, evaluate
from selfsup.evaluation.alignment import alignment, unrelated
from selfsup.evaluation.alpha_req import alpha_req
from selfsup.evaluation.base import Score
from selfsup.evaluation.features import in_test
from selfsup.evaluation.knn import knn
from selfsup.evaluation.linear import linear
from selfsup.evaluation.rankme import rankme
from selfsup.evaluation.uniformity import uniformity
from selfsup.inference.pictures import open_pictures

EACH = 20
LABELS = np.repeat(np.arange(3), EACH)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vision(tmp_path_factory.mktemp("vision") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("images") / "photos", EACH)


@pytest.fixture(scope="module")
def features(model: Path) -> np.ndarray:
    pictures = [picture(colour, number) for colour in COLOURS for number in range(EACH)]
    return selfsup.load(model).embed(pictures, precision="fp32")


def hashed_to_test(photos: Path) -> np.ndarray:
    hashes = open_images(photos).hashes
    return np.array([in_test(int(value).to_bytes(8, "little")) for value in hashes])


@pytest.mark.parametrize("protocol", IMAGE_ENCODERS)
def test_every_protocol_of_features(protocol: str, model: Path, photos: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    score = evaluate(
        model, data=photos, protocol=protocol, seed=3, progress=lambda done, total: seen.append((done, total))
    )
    low, high = score.interval
    assert low <= score.value <= high
    assert (score.protocol, score.seed) == (protocol, 3)
    count = 2 * len(LABELS) if protocol in ("alignment", "instances") else len(LABELS)
    assert seen[-1] == (count, count)
    assert score == evaluate(model, data=photos, protocol=protocol, seed=3)


@pytest.mark.parametrize(("protocol", "neighbours", "temperature"), [("knn-20", 20, 0.07), ("knn-200", 200, 0.1)])
def test_knn(
    protocol: str, neighbours: int, temperature: float, model: Path, photos: Path, features: np.ndarray
) -> None:
    test = hashed_to_test(photos)
    answers = knn(features[~test], LABELS[~test], features[test], neighbours, temperature)
    score = evaluate(model, data=photos, protocol=protocol)
    assert score.value == pytest.approx(100 * (answers == LABELS[test]).mean())
    assert (score.n, score.details["bank"], score.details["classes"]) == (test.sum(), (~test).sum(), 3)


def test_linear_with_a_test_source_and_a_label_column(model: Path, photos: Path, tmp_path: Path) -> None:
    other = save_photos(tmp_path / "other", 4, start=40)
    files = sorted(other.rglob("*.png"))
    table = {"jpg": [file.read_bytes() for file in files], "colour": [file.parent.name for file in files]}
    pq.write_table(pa.table(table), tmp_path / "test.parquet")
    bank = save_photos(tmp_path / "bank", 6)
    by_folder = evaluate(model, data=bank, test=other, protocol="linear")
    assert (by_folder.n, by_folder.details["bank"], by_folder.data) == (12, 18, str(other))
    bank_files = sorted(bank.rglob("*.png"))
    table = {"jpg": [f.read_bytes() for f in bank_files], "colour": [f.parent.name for f in bank_files]}
    pq.write_table(pa.table(table), tmp_path / "bank.parquet")
    by_column = evaluate(
        model, data=tmp_path / "bank.parquet", test=tmp_path / "test.parquet", protocol="linear", label="colour"
    )
    assert by_column.value == by_folder.value
    embed = selfsup.load(model).embed
    first, second = (
        embed([picture(colour, n) for colour in COLOURS for n in numbers], precision="fp32")
        for numbers in (range(6), range(40, 44))
    )
    answers = linear(first, np.repeat(np.arange(3), 6)).predict(second)
    assert by_folder.value == pytest.approx(100 * (answers == np.repeat(np.arange(3), 4)).mean())


@pytest.mark.parametrize(
    ("protocol", "function"), [("rankme", rankme), ("alpha-req", alpha_req), ("uniformity", uniformity)]
)
def test_label_free_protocols_take_distinct_images(
    protocol: str, function: Callable[..., float], model: Path, photos: Path, features: np.ndarray, tmp_path: Path
) -> None:
    assert evaluate(model, data=photos, protocol=protocol).value == pytest.approx(function(features), rel=1e-4)
    pictures = [picture("red", number) for number in range(30)]
    twice: Any = pictures + pictures[:10]
    score = evaluate(model, data=twice, protocol=protocol)
    assert score.n == 30
    assert score.value == pytest.approx(function(features_of(model, pictures)), rel=1e-4)


def features_of(model: Path, pictures: list[np.ndarray]) -> np.ndarray:
    return selfsup.load(model).embed(pictures, precision="fp32")


def test_alignment_is_that_of_two_views_of_each_image(model: Path, photos: Path) -> None:
    pairs = open_pictures(photos, SIZE).pairs(seed=5)
    first, second = (
        features_of(model, [item.content.pixels(SIZE) for item in side]) for side in (pairs.first, pairs.second)
    )
    score = evaluate(model, data=photos, protocol="alignment", seed=5)
    assert score.value == pytest.approx(alignment(first, second), rel=1e-5)
    assert score.chance == pytest.approx(unrelated(first, second), rel=1e-5)
    assert score.n == len(LABELS)
    assert score.value < score.chance
    assert score.value != evaluate(model, data=photos, protocol="alignment", seed=6).value


def test_images_that_cannot_be_read_are_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_photos(tmp_path / "photos", 40)
    file = folder / "green" / "07.png"
    file.write_bytes(file.read_bytes()[:-200])
    monkeypatch.setattr(collection, "SMALL", 0)  # as a large collection, of which only headers are looked at
    scores: dict[str, Score] = {name: evaluate(model, data=folder, protocol=name) for name in IMAGE_ENCODERS}
    assert scores["rankme"].n == scores["alignment"].n == 119
    assert scores["knn-20"].n + scores["knn-20"].details["bank"] == 119
    assert "07.png cannot be read" in caplog.text
    expected = [picture(c, n) for c in COLOURS for n in range(40) if (c, n) != ("green", 7)]
    assert scores["rankme"].value == pytest.approx(rankme(features_of(model, expected)), rel=1e-4)


@pytest.mark.parametrize(
    ("protocol", "given", "message"),
    [
        ("sts", {}, "holds an image encoder, for which sts is not defined; .*linear, knn-20"),
        ("pseudo-perplexity", {}, "not defined"),
        ("bits-per-byte", {}, "not defined"),
        ("knn-20", {"data": [picture("red", 1)] * 2}, "has no classes"),
        ("linear", {"data": None}, "--data"),
        ("linear", {"test": [picture("red", 1)]}, "has no classes"),
        ("rankme", {"data": [picture("red", 1)] * 3}, "one distinct image"),
        ("rankme", {"data": "nowhere"}, "nowhere"),
        ("rankme", {"data": 7}, "no image source"),
        ("rankme", {"test": "photos"}, "no use for --test"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    protocol: str, given: dict[str, Any], message: str, model: Path, photos: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(model, protocol=protocol, **{"data": photos, **given})


def test_a_test_source_of_other_classes_is_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    other = save_photos(tmp_path / "other", 2)
    for colour in COLOURS:
        (other / colour).rename(other / f"dark {colour}")
    with pytest.raises(UserError, match="has no class of"):
        evaluate(model, data=photos, test=other, protocol="knn-20")


def test_a_source_whose_classes_are_all_missing_is_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    rows = [{"image": path.read_bytes(), "label": number % 2} for number, path in enumerate(photos.rglob("*.png"))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bank.parquet")
    nothing = pa.Table.from_pylist([{"image": row["image"], "label": None} for row in rows])
    nothing = nothing.set_column(1, "label", pa.nulls(len(rows), pa.int64()))
    pq.write_table(nothing, tmp_path / "test.parquet")
    with pytest.raises(UserError, match="class"):
        evaluate(model, data=tmp_path / "bank.parquet", test=tmp_path / "test.parquet", protocol="knn-20")


def test_a_test_source_that_lies_in_the_bank_is_named(
    model: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(model, data=photos, test=photos, protocol="knn-20")
    assert "tell their class" in caplog.text
