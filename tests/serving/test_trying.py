"""What can be asked of each kind of model over the studio's routes, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_shelf import save_models
from tiny_vision import picture

pytest.importorskip("fastapi", reason="needs fastapi")
pytest.importorskip("httpx", reason="needs httpx")

from starlette.testclient import TestClient

import selfsup
from selfsup.inference.generate import LanguageModel
from selfsup.serving.guard import Folders
from selfsup.serving.studio.app import make_app
from selfsup.serving.studio.shared import Studio


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def client(shelf: Path) -> Any:
    with TestClient(make_app(Studio(Folders.of([shelf])))) as client:
        yield client


def data_url(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def messages(answer: Any) -> list[dict[str, Any]]:
    """Of a stream of events."""
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


def sentence(answer: Any) -> str:
    """What is said of a request that is refused."""
    assert 400 <= answer.status_code < 500, answer.text
    said: str = answer.json()["error"]["message"]
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("decoder", ["write"]),
        ("encoder", ["similarity", "labels", "nearest"]),
        ("seeing", ["see", "nearest"]),
        ("pair", ["labels", "similarity", "see", "nearest"]),
    ],
)
def test_the_ways_follow_from_what_a_model_is(client: TestClient, name: str, ways: list[str]) -> None:
    assert client.get("/api/try", params={"model": name}).json()["ways"] == ways


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_what_is_written_is_what_generate_writes(client: TestClient, shelf: Path, temperature: float) -> None:
    asked = {"model": "decoder", "prompt": "Once", "tokens": 20, "temperature": temperature, "seed": 3}
    pieces = messages(client.get("/api/try/write", params=asked))
    text = "".join(piece["text"] for piece in pieces)
    assert text == LanguageModel.load(shelf / "decoder").generate("Once", 20, temperature, seed=3)
    assert temperature or len(pieces) > 5  # it is told as it is written
    tokens = [token for piece in pieces for token in piece["tokens"]]
    ends = [token["place"] for token in tokens[1:]] + [len(text)]
    for token, end in zip(tokens, ends, strict=True):
        assert text[token["place"] : end] == token["token"].replace("<|unk|>", "")  # which has no text
        shares = [share for _, share in token["others"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-5
        assert dict(token["others"]).get(token["token"], token["probability"]) == pytest.approx(token["probability"])
    assert pieces[-1]["ending"] in ("stop", "length")


def test_similarity_is_the_cosine_of_the_vectors(client: TestClient, shelf: Path) -> None:
    texts = ["a storm at sea", "the ship sank", "the cat ran"]
    block = client.post("/api/try/similarity", json={"model": "encoder", "texts": texts}).json()
    vectors = selfsup.load(shelf / "encoder").embed(texts)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert block["kind"] == "matrix"
    np.testing.assert_allclose(block["values"], unit @ unit.T, atol=1e-5)


def test_labels_of_an_image_have_the_probabilities_of_zero_shot(client: TestClient, shelf: Path) -> None:
    labels, pixels = ["red", "green", "blue"], picture("red", 0)
    asked = {"model": "pair", "labels": labels, "template": "a {} photo", "image": data_url(pixels)}
    found = client.post("/api/try/labels", json=asked).json()
    expected = selfsup.zero_shot(shelf / "pair", [pixels], labels, templates=["a {} photo"])[0].probabilities
    assert found["measure"] == "probability"
    assert dict(found["scores"]) == pytest.approx(expected, abs=1e-5)


def test_labels_of_a_text_come_nearest_first(client: TestClient) -> None:
    asked = {"model": "encoder", "labels": ["the cat", "a storm at sea"], "text": "a storm at sea"}
    found = client.post("/api/try/labels", json=asked).json()
    assert found["measure"] == "cosine similarity"
    assert found["scores"][0] == ["a storm at sea", pytest.approx(1, abs=1e-5)]


def test_what_is_seen_is_what_show_says(client: TestClient, shelf: Path) -> None:
    pixels = picture("green", 1)
    found = client.post("/api/try/see", json={"model": "seeing", "image": data_url(pixels)}).json()
    expected = selfsup.show(shelf / "seeing", [pixels]).to_json()
    assert found["sections"] == expected["sections"]


TINY = data_url(np.zeros((4, 4, 3), np.uint8))
LARGE = data_url(np.zeros((6000, 6000), np.uint8))
CUT = data_url(picture("red", 0))[:-600]  # a picture without its end
CUT += "=" * (-len(CUT.partition(",")[2]) % 4)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("fill", {"model": "encoder", "text": "the [MASK]"}, "no head"),
        ("fill", {"model": "decoder", "text": "the [MASK]"}, "holds a decoder"),
        ("fill", {"model": "nowhere", "text": "x"}, "There is no"),
        ("fill", {"model": "../secret", "text": "x"}, "outside of the folders"),
        ("fill", {"model": "/etc", "text": "x"}, "outside of the folders"),
        ("fill", {"model": "encoder", "text": "x" * 30_000}, "at most"),
        ("similarity", {"model": "encoder", "texts": ["one"]}, "at least 2"),
        ("similarity", {"model": "encoder", "texts": ["x"] * 1000}, "at most 40"),
        ("similarity", {"model": "decoder", "texts": ["a", "b"]}, "holds a decoder"),
        ("labels", {"model": "pair", "labels": ["a", "b"]}, "either a text or an image"),
        ("labels", {"model": "pair", "labels": ["a", "a"], "image": TINY}, "labels that differ"),
        ("labels", {"model": "decoder", "labels": ["a"], "text": "b"}, "compares nothing"),
        ("labels", {"model": "seeing", "labels": ["a"], "image": TINY}, "holds an image encoder"),
        ("see", {"model": "encoder", "image": TINY}, "holds a text encoder"),
        ("see", {"model": "seeing", "image": "data:image/png;base64,AAAA"}, "cannot be read"),
        ("see", {"model": "seeing", "image": "http://example.org/a.png"}, "data URL"),
        ("see", {"model": "seeing", "image": LARGE}, "pixels"),
        ("see", {"model": "seeing", "image": CUT}, "cannot be read"),
        ("labels", {"model": "pair", "labels": ["a"], "image": CUT}, "cannot be read"),
        ("see", {"model": "seeing", "image": TINY, "size": 100_000}, "less than or equal"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(client: TestClient, path: str, body: dict[str, Any], said: str) -> None:
    assert said in sentence(client.post(f"/api/try/{path}", json=body))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "encoder/../../x"}, "outside of the folders"),
        ({"model": "decoder", "tokens": 100_000}, "less than or equal"),
        ({"model": "decoder", "temperature": -1}, "greater than or equal"),
        ({"model": "decoder", "temperature": 1e-9}, "temperature is"),
        ({"model": "decoder", "prompt": "x" * 5000}, "at most"),
    ],
)
def test_what_cannot_be_written_is_refused(client: TestClient, asked: dict[str, Any], said: str) -> None:
    assert said in sentence(client.get("/api/try/write", params=asked))


def test_a_model_that_does_not_write_says_so_in_the_stream(client: TestClient) -> None:
    assert "holds a text encoder" in messages(client.get("/api/try/write", params={"model": "encoder"}))[-1]["error"]


def test_a_link_does_not_lead_out_of_the_folders(client: TestClient, shelf: Path, tmp_path: Path) -> None:
    save_models(tmp_path)
    (shelf / "linked").symlink_to(tmp_path / "encoder")
    assert "outside of the folders" in sentence(client.get("/api/try", params={"model": "linked"}))
