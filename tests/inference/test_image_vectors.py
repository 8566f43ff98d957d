"""Vectors of images: in a file, in a library that is searched by an image, and under a probe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from PIL import Image
from tiny_encoder import save_tiny
from tiny_vision import COLOURS, WIDTH, picture, save_photos, save_tiny_vision

import selfsup
from selfsup.data.images import collection
from selfsup.errors import UserError
from selfsup.evaluation.probe import Probe
from selfsup.inference.items import LeftOut
from selfsup.inference.vision import ImageModel

Command = Callable[..., Answer]
EACH, BATCH = 5, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vision(tmp_path_factory.mktemp("vision") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("images") / "photos", EACH)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the model, call by call."""
    calls: list[int] = []
    original = ImageModel.embed

    def spy(self: ImageModel, images: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(len(images))
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(ImageModel, "embed", spy)
    return calls


def places(photos: Path) -> list[str]:
    return [str(photos / colour / f"{number:02}.png") for colour in COLOURS for number in range(EACH)]


def vectors_of(photos: Path, model: Path) -> np.ndarray:
    opened = selfsup.load(model)
    return np.concatenate([opened.embed([Image.open(place)]) for place in places(photos)])


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


# -- a file --------------------------------------------------------------------------------------------------


def test_the_file_holds_each_image_with_its_vector(model: Path, photos: Path, tmp_path: Path) -> None:
    made = selfsup.embed(model, photos, tmp_path / "x.parquet", batch=BATCH)
    assert (made.records, made.dimension, made.left_out) == (15, WIDTH, LeftOut())
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["id", "source", "vector"]
    assert table.column("id").to_pylist() == table.column("source").to_pylist() == places(photos)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), WIDTH)
    found = np.array(table.column("vector").to_pylist())
    np.testing.assert_allclose(found, vectors_of(photos, model), atol=1e-5)
    description = json.loads(table.schema.metadata[b"selfsup"])
    assert (description["pooling"], description["dimension"], description["records"]) == ("mean", WIDTH, 15)


def test_an_interrupted_embedding_goes_on(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: list[int]
) -> None:
    class Killed(BaseException):
        pass

    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    selfsup.embed(model, photos, whole, batch=BATCH)
    for chunk in range(1, 4):
        with monkeypatch.context() as patch:
            spied = ImageModel.embed

            def dying(self: ImageModel, *a: Any, chunk: int = chunk, spied: Any = spied, **k: Any) -> Any:
                if len(embedded) == chunk:
                    raise Killed
                return spied(self, *a, **k)

            patch.setattr(ImageModel, "embed", dying)
            embedded.clear()
            with pytest.raises(Killed):
                selfsup.embed(model, photos, out, batch=BATCH)
        embedded.clear()
        seen: list[tuple[int, int | None]] = []
        selfsup.embed(
            model, photos, out, batch=BATCH, progress=lambda done, total, seen=seen: seen.append((done, total))
        )
        assert embedded == [4, 4, 4, 3][chunk:]
        assert seen[-1] == (15, 15)
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()


def test_images_found_damaged_are_left_out(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("blue/01.png", "red/04.png"):
        damage(tmp_path / "photos" / name)
    monkeypatch.setattr(collection, "SMALL", 0)  # as a large collection, of which only headers are looked at
    made = selfsup.embed(model, tmp_path / "photos", tmp_path / "x.parquet", batch=BATCH, failures=0.2)
    assert (made.records, made.left_out.skipped) == (13, 2)
    left = [place for place in places(tmp_path / "photos") if not place.endswith(("blue/01.png", "red/04.png"))]
    assert pq.read_table(tmp_path / "x.parquet").column("id").to_pylist() == left
    assert "blue/01.png cannot be read" in caplog.text
    indexed = selfsup.index(model, tmp_path / "photos", tmp_path / "x.lance", batch=1, failures=0.2)
    assert (indexed.records, indexed.added, indexed.left_out.skipped) == (13, 13, 2)
    with pytest.raises(UserError, match=r"\.png"):
        selfsup.embed(model, tmp_path / "photos", tmp_path / "y.parquet", failures=0.01)


def test_small_collections_are_looked_at_before(model: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "red" / "04.png").write_bytes(b"")
    made = selfsup.embed(model, tmp_path / "photos", tmp_path / "x.parquet", failures=0.1)
    assert (made.records, made.left_out.skipped) == (14, 1)
    assert "1 records that cannot be read" in made.rows()["skipped"]


# -- a library -----------------------------------------------------------------------------------------------


def rows(path: Path) -> dict[str, dict[str, Any]]:
    found = lancedb.connect(path.parent).open_table(path.stem).search().to_arrow().to_pylist()
    return {row["id"]: row for row in found}


def test_images_are_found_by_an_image(model: Path, photos: Path, tmp_path: Path) -> None:
    library = tmp_path / "photos.lance"
    assert selfsup.index(model, photos, library).added == 15
    query = picture("green", 77)
    hits = selfsup.search(library, image=query, top=5)
    found, asked = vectors_of(photos, model), selfsup.load(model).embed([query])[0]
    cosine = found @ asked / np.linalg.norm(found, axis=1) / np.linalg.norm(asked)
    order = np.argsort(-cosine)[:5]
    assert [hit.source for hit in hits] == [places(photos)[i] for i in order]
    np.testing.assert_allclose([hit.score for hit in hits], cosine[order], atol=1e-3)
    assert hits[0].values == {"label": "green"}
    assert hits[0].text == ""
    only = selfsup.search(library, image=query, where="label <> 'green'")
    assert {hit.values["label"] for hit in only} == {"red", "blue"}
    itself = photos / "red" / "03.png"
    (hit,) = selfsup.Searcher(library)(image=itself, top=1)
    assert (hit.id, round(hit.score, 3)) == (str(itself), 1.0)


def test_only_what_changed_is_embedded(model: Path, photos: Path, tmp_path: Path, embedded: list[int]) -> None:
    folder, library = tmp_path / "photos", tmp_path / "x.lance"
    shutil.copytree(photos, folder)
    assert selfsup.index(model, folder, library).embedded == 15
    before = rows(library)
    assert selfsup.index(model, folder, library).unchanged == 15
    assert embedded == [15]
    shutil.copy(folder / "red" / "02.png", folder / "blue" / "02.png")
    (folder / "red" / "00.png").unlink()
    (folder / "red" / "01.png").rename(folder / "green" / "new.png")
    made = selfsup.index(model, folder, library)
    assert (made.records, made.added, made.updated, made.unchanged, made.embedded) == (16, 1, 1, 12, 0)
    after = rows(library)
    changed = after[str(folder / "blue" / "02.png")]
    assert changed["vector"] == pytest.approx(before[str(folder / "red" / "02.png")]["vector"], abs=1e-5)
    assert after[str(folder / "red" / "00.png")] == before[str(folder / "red" / "00.png")]


def test_a_model_is_asked_by_what_it_reads(model: Path, photos: Path, tmp_path: Path) -> None:
    selfsup.index(model, photos, tmp_path / "images.lance")
    texts = save_tiny(tmp_path / "texts")
    selfsup.index(texts, ["a storm", "the sea"], tmp_path / "texts.lance")
    for library, asked, message in (
        ("images", {"query": "red"}, "holds an image encoder, which reads no text; give an image, --image FILE"),
        ("texts", {"image": photos / "red" / "00.png"}, "holds a text encoder, which reads no image; give words"),
        ("images", {}, "either in words or by an image"),
        ("images", {"query": "red", "image": photos / "red" / "00.png"}, "either in words or by an image"),
        ("images", {"image": photos}, "holds 15 images"),
    ):
        with pytest.raises(UserError, match=message):
            selfsup.search(tmp_path / f"{library}.lance", **asked)
    for change in (
        lambda: selfsup.index(model, photos, tmp_path / "texts.lance"),
        lambda: selfsup.index(texts, ["a"], tmp_path / "images.lance"),
    ):
        with pytest.raises(UserError, match="another model"):
            change()


# -- a probe -------------------------------------------------------------------------------------------------


def test_a_probe_of_images(model: Path, tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 12)
    probe = Probe.fit(model, photos)
    assert probe.classes == tuple(COLOURS)
    assert probe.records == 36
    assert probe.estimate.value > 90
    probe.save(tmp_path / "probe")
    new = save_photos(tmp_path / "new", 3, start=50)
    answers = Probe.load(tmp_path / "probe").classify(model, new)
    assert [(answer.record, answer.label) for answer in answers] == [
        (str(new / colour / f"{number}.png"), colour) for colour in COLOURS for number in range(50, 53)
    ]
    pixels = [picture(colour, 99) for colour in COLOURS]
    assert [answer.label for answer in probe.classify(model, pixels)] == list(COLOURS)
    other = save_tiny_vision(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="another model"):
        probe.classify(other, new)


# -- the commands --------------------------------------------------------------------------------------------


def test_the_commands(
    model: Path, photos: Path, tmp_path: Path, selfsup_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    answer = selfsup_command("embed", model, "--data", "photos", "--out", tmp_path / "x.parquet")
    assert "15 vectors of 16 numbers" in " ".join(answer.out.split()), answer
    answer = selfsup_command("embed", model, "--data", "photos", "--out", tmp_path / "y.parquet", "--id", "key")
    assert (answer.code, answer.out) == (2, "")
    assert "Images go by their place" in answer.error
    library = tmp_path / "x.lance"
    answer = selfsup_command("index", model, "--data", "photos", "--out", library, "--json")
    assert json.loads(answer.out)["added"] == 15
    answer = selfsup_command("search", library, "--image", "photos/red/03.png", "--top", 2)
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[:2] == [["score", "source"], ["1.000", "photos/red/03.png"]]
    assert len(lines) == 3
    answer = selfsup_command("search", library, "--image", "photos/red/03.png", "--json", "--top", 1)
    found = json.loads(answer.out)
    assert (found["image"], found["hits"][0]["id"]) == ("photos/red/03.png", str(photos / "red" / "03.png"))
    answer = selfsup_command("probe", model, "--data", "photos", "--out", tmp_path / "p")
    assert answer.code == 0, answer
    answer = selfsup_command("classify", model, "--probe", tmp_path / "p", "photos/red/03.png", "photos/blue/01.png")
    said = {Path(line["record"]): line["label"] for line in map(json.loads, answer.out.splitlines())}
    assert said == {photos / "red" / "03.png": "red", photos / "blue" / "01.png": "blue"}
