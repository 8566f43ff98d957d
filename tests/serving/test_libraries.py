"""Libraries over the studio's routes: searched, drawn as maps; what lies outside of the folders stays there."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_trying import data_url, sentence
from tiny_shelf import STORIES, save_libraries, save_models
from tiny_vision import picture

pytest.importorskip("fastapi", reason="needs fastapi")
pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("lancedb", reason="needs lancedb")

from starlette.testclient import TestClient

import selfsup
from selfsup.serving.guard import Folders
from selfsup.serving.studio.app import make_app
from selfsup.serving.studio.libraries import CLASSES, MISSING, by_class, by_number, by_pca
from selfsup.serving.studio.shared import Studio


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_libraries(save_models(tmp_path_factory.mktemp("shelf")))


@pytest.fixture(scope="module")
def client(shelf: Path) -> Any:
    with TestClient(make_app(Studio(Folders.of([shelf])))) as client:
        yield client


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSUP_CACHE", str(tmp_path / "cache"))


def test_all_libraries_are_listed(client: TestClient) -> None:
    found = {each["name"]: each for each in client.get("/api/libraries").json()["libraries"]}
    assert set(found) == {"photos.lance", "rows.lance", "stories.lance"}
    assert found["stories.lance"]["records"] == len(STORIES)
    assert found["stories.lance"]["columns"].items() >= {"year": "int64", "author": "string"}.items()
    assert found["stories.lance"]["hybrid"] is True
    assert found["photos.lance"]["hybrid"] is False


@pytest.mark.parametrize("how", [{}, {"hybrid": True}, {"where": "year > 1900"}])
def test_a_search_finds_what_the_command_finds(client: TestClient, shelf: Path, how: dict[str, Any]) -> None:
    asked = {"library": "stories.lance", "query": "a storm", "top": 3, **how}
    hits = client.post("/api/search", json=asked).json()["hits"]
    expected = selfsup.search(shelf / "stories.lance", "a storm", top=3, **how)
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)


@pytest.mark.parametrize("library", ["photos.lance", "rows.lance"])
def test_a_search_by_an_image_gives_pictures(client: TestClient, shelf: Path, library: str) -> None:
    asked = {"library": library, "image": data_url(np.asarray(Image.open(shelf / "photos" / "blue" / "01.png")))}
    hits = client.post("/api/search", json=asked).json()["hits"]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
    assert all(hit["picture"] for hit in hits)
    answer = client.get("/api/picture", params={"source": hits[0]["source"]})
    assert answer.headers["content-type"] == "image/jpeg"
    shown = np.asarray(Image.open(io.BytesIO(answer.content))).reshape(-1, 3).mean(0)
    assert shown.argmax() == 2  # blue


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"library": "stories.lance"}, "Say what to look for"),
        ({"library": "stories.lance", "query": " "}, "query is empty"),
        ({"library": "stories.lance", "query": "x", "top": 100_000}, "less than or equal"),
        ({"library": "stories.lance", "query": "x", "where": "nothing ="}, "cannot be used"),
        ({"library": "stories.lance", "query": "x", "where": "1=1; DROP TABLE x"}, "cannot be used"),
        ({"library": "stories.lance", "image": data_url(picture("red", 0))}, "reads no image"),
        ({"library": "photos.lance", "query": "red", "hybrid": True}, "no index of its words"),
        ({"library": "missing.lance", "query": "x"}, "There is no library"),
        ({"library": "../else.lance", "query": "x"}, "outside of the folders"),
        ({"library": "stories.lance", "query": "x", "more": 1}, "Extra inputs"),
    ],
)
def test_a_wrong_search_is_told_in_a_sentence(client: TestClient, asked: dict[str, Any], said: str) -> None:
    assert said in sentence(client.post("/api/search", json=asked))


@pytest.mark.parametrize(
    "source",
    [
        "/etc/hostname",
        "../secret.png",
        "photos/../../x.png",
        "table.parquet, row 99",
        "table.parquet",
        "pair/config.json",
    ],
)
def test_only_pictures_inside_the_folders_are_shown(client: TestClient, source: str) -> None:
    sentence(client.get("/api/picture", params={"source": source}))


def test_a_library_that_names_a_model_elsewhere_is_refused(shelf: Path, tmp_path: Path) -> None:
    shutil.copytree(shelf / "stories.lance", tmp_path / "stories.lance")
    with TestClient(make_app(Studio(Folders.of([tmp_path])))) as client:
        asked = {"library": "stories.lance", "query": "x"}
        assert "outside of the folders" in sentence(client.post("/api/search", json=asked))


# -- maps ------------------------------------------------------------------------------------------------------


def array(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_a_map_has_a_point_for_each_record(client: TestClient, tmp_path: Path) -> None:
    told = client.get("/api/map", params={"library": "stories.lance"}).json()
    points = array(told["points"], "<f4").reshape(-1, 2)
    assert points.shape == (len(STORIES), 2)
    assert np.abs(points).max() == pytest.approx(1, abs=1e-5)
    assert told["columns"] == ["year", "author", "document", "start", "end", "source"]
    ids = client.post("/api/map/ids", json={"library": "stories.lance", "rows": [0, 1, 2, 3]}).json()["ids"]
    assert sorted(ids) == [story["key"] for story in STORIES]
    item = client.get("/api/map/item", params={"library": "stories.lance", "row": 2}).json()
    story = next(story for story in STORIES if story["key"] == ids[2])
    assert (item["id"], item["text"], item["values"]["year"]) == (story["key"], story["text"], story["year"])


def test_a_column_colours_the_points(client: TestClient) -> None:
    asked = {"library": "stories.lance", "column": "author"}
    told = client.get("/api/map/column", params=asked).json()
    assert told["legend"][0] == ["Ann", 2]
    ids = client.post("/api/map/ids", json={"library": "stories.lance", "rows": [0, 1, 2, 3]}).json()["ids"]
    authors = {story["key"]: story["author"] for story in STORIES}
    assert [told["legend"][code][0] for code in array(told["codes"], "u1")] == [authors[key] for key in ids]


@pytest.mark.parametrize(
    ("path", "asked", "said"),
    [
        ("/api/map", {"library": "missing.lance"}, "There is no library"),
        ("/api/map", {"library": "/etc/x.lance"}, "outside of the folders"),
        ("/api/map/column", {"library": "stories.lance", "column": "vector"}, "no column"),
        ("/api/map/item", {"library": "stories.lance", "row": 4}, "none of number 4"),
        ("/api/map/item", {"library": "stories.lance", "row": -1}, "greater than or equal"),
    ],
)
def test_a_wrong_map_is_told_in_a_sentence(client: TestClient, path: str, asked: dict[str, Any], said: str) -> None:
    assert said in sentence(client.get(path, params=asked))


def test_principal_components_hold_the_most_variance() -> None:
    """As the singular vectors of the centred matrix do."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50, 8)) * np.array([5, 3, 1, 1, 1, 1, 1, 1])
    points, said = by_pca(vectors)
    centred = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(left[:, :2] * sizes[:2]), atol=1e-8)
    assert said == f", {(sizes[:2] ** 2).sum() / (sizes**2).sum():.0%} of the variance"


def test_one_number_or_one_record_can_be_drawn() -> None:
    assert by_pca(np.array([[1.0], [2.0]]))[0].shape == (2, 2)
    assert by_pca(np.array([[1.0, 2.0, 3.0]]))[0].tolist() == [[0, 0]]


def test_codes_of_numbers_and_of_rare_values() -> None:
    import pyarrow as pa

    numbers = by_number(pa.array([0.0, None, 10.0, float("nan"), 5.0]))
    assert array(numbers["codes"], "u1").tolist() == [0, MISSING, MISSING - 1, MISSING, 127]
    assert (numbers["low"], numbers["high"], numbers["missing"]) == (0, 10, 2)
    classes = by_class(pa.array([str(number % 20) for number in range(30)] + [None]))
    codes = array(classes["codes"], "u1")
    assert classes["others"] == [20 - CLASSES, int((codes == CLASSES).sum())]
    assert codes[-1] == MISSING
    assert classes["missing"] == 1
    assert [count for _, count in classes["legend"]] == [int((codes == code).sum()) for code in range(CLASSES)]
