"""Zero-shot as a protocol: accuracy against plain numpy, classes by every kind of name, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from tiny_clip import save_tiny_clip
from tiny_vision import COLOURS, picture, save_photos

import selfsup
from selfsup.errors import UserError
from selfsup.evaluation import evaluate, zero_shot
from selfsup.evaluation.base import Measurement
from selfsup.evaluation.zero_shot import balanced
from selfsup.inference.clip import PairModel
from selfsup.inference.pictures import Pictures, open_pictures

EACH = 7
LABELS = np.repeat(np.arange(3), EACH)  # of the folders in their order


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "model", seed=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("images") / "photos", EACH)


def answers(model: Path, names: list[str], templates: list[str]) -> np.ndarray:
    opened = selfsup.load(model)
    assert isinstance(opened, PairModel)

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    pictures = [picture(colour, number) for colour in COLOURS for number in range(EACH)]
    images = unit(opened.image.embed(pictures, "fp32"))
    texts = [
        unit(unit(opened.text.embed([t.replace("{}", name) for t in templates], "fp32")).mean(0)) for name in names
    ]
    return (images @ np.stack(texts).T).argmax(1)


@pytest.mark.parametrize("templates", [None, ["a photo of a {}"], ["a photo of a {}", "the {} ship", "{} in snow"]])
def test_accuracy(templates: list[str] | None, model: Path, photos: Path) -> None:
    found = answers(model, ["blue", "green", "red"], templates or ["{}"])
    score = evaluate(model, data=photos, protocol="zero-shot", templates=templates)
    assert score.value == pytest.approx(100 * (found == LABELS).mean())
    assert (score.n, score.chance, score.details["classes"]) == (len(LABELS), pytest.approx(100 / 3), 3)
    assert score.details["balanced"] == pytest.approx(100 * balanced_accuracy_score(LABELS, found))
    assert score.details["templates"] == (templates or ["{}"])
    assert score.interval[0] <= score.value <= score.interval[1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_balanced_accuracy_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    found, labels = np.array(pairs).T
    classes = np.unique(labels)
    recalls = [float((found[labels == one] == one).mean()) for one in classes]
    assert balanced(found, labels) == pytest.approx(100 * np.mean(recalls))


def dataset(numbers: list[int], names: list[str] | None) -> datasets.Dataset:
    label = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    pictures = [picture(colour, number) for colour in COLOURS for number in range(EACH)]
    columns = {"image": pictures, "label": numbers}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), "label": label}))


def test_names_of_the_hub(model: Path) -> None:
    """One class of four has no image; all four are to choose from, underscores are spaces."""
    names = ["the_blue_ship", "green", "red", "snow"]
    data = dataset(LABELS.tolist(), names)
    found = answers(model, ["the blue ship", "green", "red", "snow"], ["{}"])
    score = evaluate(model, data=data, protocol="zero-shot")
    assert score.value == pytest.approx(100 * (found == LABELS).mean())
    assert score.chance == 25
    assert score.details["majority"] == "the_blue_ship"
    assert score.details["majority share"] == pytest.approx(100 / 3)
    recalls = [(found[one == LABELS] == one).mean() for one in range(3)]
    assert score.details["balanced"] == pytest.approx(100 * np.mean(recalls))


def test_a_label_may_list_several_names(model: Path) -> None:
    """A class is then the mean of their directions; a comma or slash within a name separates nothing."""
    data = dataset(LABELS.tolist(), ["ship & snow", "tench, Tinca_tinca", "AC/DC at 1,000 m & "])
    opened = selfsup.load(model)
    assert isinstance(opened, PairModel)

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    names = [["ship", "snow"], ["tench", "Tinca tinca"], ["AC/DC at 1,000 m"]]
    classes = np.stack([unit(unit(opened.text.embed(some, "fp32")).mean(0)) for some in names])
    images = unit(opened.image.embed([row["image"] for row in data], "fp32"))
    score = evaluate(model, data=data, protocol="zero-shot")
    assert score.value == pytest.approx(100 * ((images @ classes.T).argmax(1) == LABELS).mean())


def test_classes_of_one_name_are_one(model: Path, tmp_path: Path) -> None:
    """The datasets library refuses them, but a file may say so."""
    dataset(LABELS.tolist(), ["red", "green", "blue"]).to_parquet(tmp_path / "data.parquet")
    table = pq.read_table(tmp_path / "data.parquet")
    metadata = {key: value.replace(b"blue", b"red") for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "data.parquet")
    score = evaluate(model, data=tmp_path / "data.parquet", protocol="zero-shot")
    assert (score.details["classes"], score.chance) == (2, 50)
    assert score.details["majority share"] == pytest.approx(200 / 3)


def test_numbers_are_doubted(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        evaluate(model, data=dataset(LABELS.tolist(), None), protocol="zero-shot")
    assert "go by numbers (0, …)" in caplog.text


def test_the_same_vector_for_all_names_the_first_class(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PairModel, "embed", lambda self, contents, **_: np.ones((len(contents), 4), np.float32))
    score = evaluate(model, data=photos, protocol="zero-shot")
    assert score.value == pytest.approx(100 / 3)
    assert score.details["balanced"] == pytest.approx(100 / 3)


def test_a_part_of_a_collection(model: Path, photos: Path) -> None:
    opened = PairModel.load(model)
    images = open_pictures(photos, opened.image.size)._images
    part = Pictures(images, opened.image.size, np.array([0, 1, EACH, 2 * EACH]))
    score = zero_shot.measure(Measurement(model, opened, part))
    found = answers(model, ["blue", "green", "red"], ["{}"])[[0, 1, EACH, 2 * EACH]]
    assert score.value == pytest.approx(100 * (found == [0, 0, 1, 2]).mean())


def test_the_command(model: Path, photos: Path, selfsup_command: Callable[..., Any]) -> None:
    templates = ("--templates", "a photo of a {}", "{} in snow")
    answer = selfsup_command("evaluate", model, *templates, "--protocol", "zero-shot", "--data", photos, "--json")
    expected = evaluate(model, data=photos, protocol="zero-shot", templates=list(templates[1:]))
    assert json.loads(answer.out) == expected.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ["a cat", "a dog"]}, "holds texts; give images with their classes"),
        ({"data": [picture("red", 0)] * 2}, "has no classes"),
        ({"templates": ["a photo"]}, "Each template needs {}"),
        ({"templates": []}, "Each template needs {}"),
        ({"captions": ["text"]}, "zero-shot has no use for --captions"),
        ({"data": None}, "name a source with --data"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], message: str, model: Path, photos: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(model, **{"data": photos, "protocol": "zero-shot", **change})
