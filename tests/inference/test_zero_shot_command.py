"""What images show, by words: probabilities against plain numpy, the command, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_alike
from PIL import Image
from tiny_clip import SIGMOID, SOFTMAX, save_tiny_clip
from tiny_encoder import save_tiny
from tiny_vision import picture, save_photos

import selfsup
from selfsup.errors import UserError
from selfsup.inference.clip import PairModel
from selfsup.inference.zero_shot import class_vectors

LABELS = ["red cat", "the blue ship", "snow"]
TEMPLATES = ["a photo of a {}", "{} in snow", "{}"]


@pytest.fixture(scope="module", params=[SOFTMAX, SIGMOID], ids=lambda similarity: similarity.loss)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "model", request.param)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def expected_vectors(model: PairModel, names: list[str], templates: list[str]) -> np.ndarray:
    rows = []
    for name in names:
        texts = unit(model.text.embed([text.replace("{}", name) for text in templates], "fp32").astype("f8"))
        rows.append(unit(texts.mean(0)))
    return np.stack(rows)


def expected(model: PairModel, pictures: list[np.ndarray], templates: list[str]) -> np.ndarray:
    cosines = unit(model.image.embed(pictures, "fp32").astype("f8")) @ expected_vectors(model, LABELS, templates).T
    logits = model.similarity.scale * cosines + model.similarity.bias
    if model.similarity.loss == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("templates", [["{}"], TEMPLATES])
def test_probabilities_are_those_of_the_formula(directory: Path, templates: list[str]) -> None:
    pictures = [picture("red", 0), picture("blue", 3)]
    answers = selfsup.zero_shot(directory, pictures, LABELS, templates=templates)
    for answer, row in zip(answers, expected(PairModel.load(directory), pictures, templates), strict=True):
        assert answer.probabilities == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-4)
        assert list(answer.probabilities) == [LABELS[place] for place in np.argsort(-row)]
        assert answer.label == LABELS[int(row.argmax())]


def test_a_class_is_the_mean_direction_of_its_texts(directory: Path) -> None:
    model = PairModel.load(directory)
    found = class_vectors(model, [[label] for label in LABELS], TEMPLATES).numpy()
    assert_alike(found, expected_vectors(model, LABELS, TEMPLATES))
    # Not the direction of the mean: a long vector weighs no more than a short one.
    plain = model.text.embed([text.replace("{}", LABELS[0]) for text in TEMPLATES], "fp32").mean(0)
    assert np.abs(found[0] - unit(plain)).max() > 1e-4


def test_a_class_of_several_names_is_the_mean_direction_of_their_texts(directory: Path) -> None:
    model = PairModel.load(directory)
    found = class_vectors(model, [[LABELS[0]], list(LABELS[1:])], TEMPLATES).numpy()
    texts = [template.replace("{}", label) for label in LABELS[1:] for template in TEMPLATES]
    both = unit(unit(model.text.embed(texts, "fp32").astype("f8")).mean(0))
    assert_alike(found[1], both)
    assert_alike(found[:1], expected_vectors(model, LABELS[:1], TEMPLATES))


def test_the_name_alone_is_the_default(directory: Path) -> None:
    shown = [picture("green", 1)]
    assert selfsup.zero_shot(directory, shown, LABELS) == selfsup.zero_shot(directory, shown, LABELS, templates=["{}"])


def test_the_command(directory: Path, tmp_path: Path, selfsup_command: Callable[..., Any]) -> None:
    photos = save_photos(tmp_path / "photos", 2)
    files = [photos / "red" / "00.png", photos / "blue" / "01.png"]
    pictures = [np.asarray(Image.open(file)) for file in files]
    words = ("zero-shot", directory, *files, "--labels", *LABELS, "--templates", *TEMPLATES)
    rows = expected(PairModel.load(directory), pictures, TEMPLATES)
    found = json.loads(selfsup_command(*words, "--json").out)["images"]
    assert [one["image"] for one in found] == [str(file) for file in files]
    for one, row in zip(found, rows, strict=True):
        assert one["probabilities"] == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-4)
        assert one["label"] == LABELS[int(row.argmax())]
    repeated = [word for label in LABELS for word in ("--labels", label)]
    same = selfsup_command("zero-shot", directory, *repeated, "--json", *files, "--templates", *TEMPLATES)
    assert json.loads(same.out)["images"] == found
    lines = selfsup_command(*words).out.splitlines()
    assert len(lines) == 1 + 2 * len(LABELS)
    for start, row in zip((1, 4), rows, strict=True):
        best = int(row.argmax())
        assert LABELS[best] in lines[start]
        assert lines[start].rstrip().endswith(f"{row[best]:.1%}")


def test_images_of_a_column(directory: Path, tmp_path: Path, selfsup_command: Callable[..., Any]) -> None:
    files = sorted(save_photos(tmp_path / "photos", 1).rglob("*.png"))
    rows = [{"image": files[0].read_bytes(), "second": file.read_bytes(), "text": "a photo"} for file in files]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    words = ("zero-shot", directory, tmp_path / "a.parquet", "--labels", *LABELS, "--json")
    chosen = json.loads(selfsup_command(*words, "--column", "second").out)["images"]
    expected = json.loads(selfsup_command("zero-shot", directory, *files, *words[3:]).out)["images"]
    assert [one["probabilities"] for one in chosen] == [one["probabilities"] for one in expected]
    default = json.loads(selfsup_command(*words).out)["images"]
    assert len({json.dumps(one["probabilities"]) for one in default}) == 1


def test_only_the_likeliest_of_many_are_printed(
    directory: Path, tmp_path: Path, selfsup_command: Callable[..., Any]
) -> None:
    file = save_photos(tmp_path / "photos", 1) / "red" / "00.png"
    labels = [f"label {number}" for number in range(9)]
    assert len(selfsup_command("zero-shot", directory, file, "--labels", *labels).out.splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{run}", "{photo}", "--labels", "a cat", "a cat"), "labels that differ"),
        (("{run}", "{photo}", "--labels", " "), "not blank"),
        (("{run}", "{photo}", "--labels", "cat", "--templates", "a photo"), "Each template needs {}"),
        (("{run}", "missing.png", "--labels", "cat"), "no file or folder missing.png"),
        (("{run}", "{photo}", "{broken}", "--labels", "cat", "--failures", "0.4"), "1 of 2 records"),
        (("{run}", "{broken}", "--labels", "cat"), "1 of 1 records"),
        (("{texts}", "{photo}", "--labels", "cat"), "holds a text encoder; give the run of an image-text model"),
        (("{run}", "{photo}"), "'--labels'"),
        (("{run}", "--labels", "cat"), "'IMAGES...'"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], message: str, directory: Path, tmp_path: Path, selfsup_command: Callable[..., Any]
) -> None:
    photo = save_photos(tmp_path / "photos", 1) / "red" / "00.png"
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:90])
    texts = save_tiny(tmp_path / "texts")
    places = {"{run}": directory, "{photo}": photo, "{broken}": broken, "{texts}": texts}
    answer = selfsup_command("zero-shot", *(places.get(word, word) for word in words))
    assert (answer.code, answer.out) == (2, ""), answer
    assert message in answer.error
    assert answer.error.count("\n") == 1


def test_features_that_are_not_finite_are_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairModel, "embed", lambda self, contents, **_: np.full((len(contents), 12), np.nan))
    with pytest.raises(UserError, match="not finite"):
        selfsup.zero_shot(directory, [picture("red", 0)], LABELS)
