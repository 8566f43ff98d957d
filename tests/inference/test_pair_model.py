"""Two towers in use: what a source is to them, their vectors, and search, probes and parquet files with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_alike
from PIL import Image
from tiny_clip import DIMENSION, save_table, save_tiny_clip
from tiny_vision import picture, save_photos

import selfsup
from selfsup.data.images.sources import holds_images
from selfsup.errors import UserError
from selfsup.evaluation.probe import Probe
from selfsup.inference.clip import PairModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as, load_encoder
from selfsup.inference.pictures import Pictures
from selfsup.inference.texts import Texts
from selfsup.inference.vision import ImageModel

TEXTS = ["a photo of a cat", "the red ship", "three dog in snow"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def model(directory: Path) -> PairModel:
    return PairModel.load(directory)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, a table of them with captions, lists, an archive, texts."""
    place = tmp_path_factory.mktemp("sources")
    save_table(place / "pairs.parquet", place / "photos", range(3))
    (place / "list.csv").write_text("file,caption\nphotos/red/00.png,a red photo\n")
    (place / "texts.csv").write_text("path,text\nnotes.txt,a cat\n")
    (place / "texts.jsonl").write_text('{"text": "a cat"}\n')
    (place / "note.txt").write_text("a cat")
    (place / "archive.tar").write_bytes(b"\0" * 10240)
    pq.write_table(pa.table({"text": TEXTS}), place / "texts.parquet")
    listed = pa.table({"file": ["photos/red/00.png"], "caption": ["a red photo"]})
    pq.write_table(listed, place / "listed.parquet")
    pq.write_table(listed.slice(1), place / "empty.parquet")
    with pa.OSFile(str(place / "listed.arrow"), "wb") as sink, pa.ipc.new_file(sink, listed.schema) as writer:
        writer.write_table(listed)
    (place / "folder").mkdir()
    (place / "folder" / "note.md").write_text("a dog")
    return place


# -- what a source is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "column", "images"),
    [
        ("photos", None, True),
        ("photos/red/00.png", None, True),
        ("photos/*/0*.png", None, True),
        ("pairs.parquet", None, True),
        ("pairs.parquet", "image", True),
        ("pairs.parquet", "caption", False),
        ("texts.parquet", None, False),
        ("listed.parquet", "file", True),
        ("listed.parquet", "caption", False),
        ("listed.arrow", "file", True),
        ("list.csv", None, True),
        ("list.csv", "file", True),
        ("list.csv", "caption", False),
        ("texts.csv", None, False),
        ("texts.jsonl", None, False),
        ("note.txt", None, False),
        ("folder", None, False),
    ],
)
def test_a_source_on_the_disk(name: str, column: str | None, images: bool, model: PairModel, place: Path) -> None:
    for source in (str(place / name), place / name, [place / name]):
        opened = model.read(source, column)
        assert isinstance(opened, Pictures if images else Texts)
        assert list(opened.items())


def test_a_table_without_rows_names_no_images(place: Path) -> None:
    assert not holds_images(place / "empty.parquet", "file")
    assert not holds_images(place / "listed.parquet", "nothing")


@pytest.mark.parametrize(
    ("source", "images"),
    [
        (["a cat", "the dog"], False),
        ([{"text": "a cat"}], False),
        ([picture("red", 0)], True),
        (np.stack([picture("red", 0)[:16, :16]] * 2), True),
        ([Image.fromarray(picture("red", 0))], True),
        ("sample:emoji", True),
        ("sample:shakespeare", False),
    ],
)
def test_a_source_from_python(source: Any, images: bool, model: PairModel) -> None:
    assert isinstance(model.read(source), Pictures if images else Texts)


def test_images_and_texts_are_not_mixed(model: PairModel, place: Path) -> None:
    """Neither by a list of both nor by a folder of images among texts, which would be embedded as its name."""
    for source in (["a cat", "dog.jpg"], ["a cat", str(place / "photos")]):
        with pytest.raises(UserError, match="give images or texts alone"):
            model.read(source)
    assert isinstance(model.read([str(place / "photos")]), Pictures)


def test_paths_as_words_are_images(model: PairModel, place: Path) -> None:
    opened = model.read([str(place / "photos/red/00.png"), str(place / "photos/blue/01.png")])
    assert isinstance(opened, Pictures)
    assert model.read(opened) is opened
    with pytest.raises(UserError, match=r"There is no file or folder missing\.png"):
        model.read(["missing.png"])


def test_a_data_set_of_python(model: PairModel) -> None:
    columns = {"image": [Image.fromarray(picture("red", 0))], "text": ["a cat"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    both = datasets.Dataset.from_dict(columns, features=features)
    assert isinstance(model.read(both), Pictures)
    assert isinstance(model.read(both, "text"), Texts)
    assert isinstance(model.read(datasets.Dataset.from_dict({"text": TEXTS})), Texts)


def test_what_is_not_there_is_told(model: PairModel, place: Path) -> None:
    with pytest.raises(UserError, match="There is no file or folder"):
        model.read(place / "missing")
    with pytest.raises(UserError, match=r"archive\.tar holds no text"):
        list(model.read(place / "archive.tar").items())
    with pytest.raises(UserError, match="has no column 'name'"):
        list(model.read(place / "pairs.parquet", "name").items())
    with pytest.raises(UserError, match="A dict is no text source"):
        model.read({})


# -- vectors -------------------------------------------------------------------------------------------------


def test_images_and_texts_mixed(model: PairModel) -> None:
    pictures = [picture(colour, 1) for colour in ("red", "green", "blue")]
    seen: list[tuple[int, int]] = []
    mixed = [TEXTS[0], pictures[0], TEXTS[1], pictures[1], pictures[2], TEXTS[2]]
    found = model.embed(mixed, "fp32", lambda done, total: seen.append((done, total)))
    assert (found.shape, found.dtype) == ((6, DIMENSION), np.float32)
    assert_alike(found[[1, 3, 4]], model.image.embed(pictures, "fp32"))
    assert_alike(found[[0, 2, 5]], model.text.embed(TEXTS, "fp32"))
    assert seen == [(0, 6), (3, 6), (3, 6), (6, 6)]
    assert model.embed([]).shape == (0, DIMENSION)


def test_what_was_cut_and_what_cannot_be_read_is_counted(model: PairModel, tmp_path: Path) -> None:
    from selfsup.data.images import collection

    folder = save_photos(tmp_path / "photos", each=1)
    file = folder / "green" / "00.png"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "SMALL", 0)  # only headers are looked at
        stored = [item.content for item in model.read(folder, failures=0.5).items()]
    vectors = model.embed(["a cat", *stored, "cat " * 50])
    assert (model.unread, model.truncated) == ([2], 1)
    assert np.flatnonzero(np.isnan(vectors).all(1)).tolist() == [2]
    model.embed(["a cat"])
    assert (model.unread, model.truncated) == ([], 0)


def test_the_fingerprint_heeds_both_towers(model: PairModel, tmp_path: Path) -> None:
    other = PairModel.load(save_tiny_clip(tmp_path / "other", seed=5))
    crossed = [
        PairModel(model.image, other.text, model.similarity),
        PairModel(other.image, model.text, model.similarity),
    ]
    assert len({each.fingerprint for each in (model, other, *crossed)}) == 4
    assert PairModel(model.image, model.text, model.similarity).fingerprint == model.fingerprint


def test_which_kind_it_is(directory: Path) -> None:
    assert isinstance(selfsup.load(directory), PairModel)
    assert isinstance(load_encoder(directory), PairModel)
    assert isinstance(load_as(directory, PairModel), PairModel)
    for kind, tower in ((EncoderModel, "text"), (ImageModel, "image")):
        with pytest.raises(UserError, match=rf"an image-text model; .* such as its {tower} tower .*/{tower}"):
            load_as(directory, kind)
        with pytest.raises(UserError, match=r"holds an? (image|text) encoder; give the run of an image-text model"):
            load_as(directory / tower, PairModel)


# -- search --------------------------------------------------------------------------------------------------


def nearest(library: np.ndarray, query: np.ndarray) -> list[int]:
    cosines = library @ query / np.linalg.norm(library, axis=1) / np.linalg.norm(query)
    return np.argsort(-cosines).tolist()


def test_photos_by_words_and_by_an_image(directory: Path, model: PairModel, place: Path) -> None:
    library = place / "photos.lance"
    made = selfsup.index(directory, place / "photos", library)
    assert (made.records, made.embedded) == (9, 9)
    items = list(model.read(place / "photos").items())
    vectors = model.embed([item.content for item in items], "fp32")
    searcher = selfsup.Searcher(library)
    for text in TEXTS:
        hits = searcher(text, top=9)
        assert [hit.id for hit in hits] == [items[n].id for n in nearest(vectors, model.embed([text], "fp32")[0])]
    found = searcher(image=place / "photos/red/01.png", top=1)[0]
    assert found.id.endswith("photos/red/01.png")
    assert found.score == pytest.approx(1, abs=1e-4)
    assert selfsup.index(directory, place / "photos", library).unchanged == 9


def test_captions_of_a_table_that_has_images_too(directory: Path, model: PairModel, place: Path) -> None:
    library = place / "captions.lance"
    made = selfsup.index(directory, place / "pairs.parquet", library, column="caption")
    assert made.records == 9
    hits = selfsup.search(library, "the red photo", top=3)
    assert {hit.text for hit in hits} == {"the red photo"}
    vectors = model.embed(["the red photo", "the green photo", "the blue photo"], "fp32")
    wanted = nearest(vectors, model.embed([picture("green", 0)], "fp32")[0])[0]
    by_image = selfsup.search(library, image=picture("green", 0), top=1)[0]
    assert by_image.text == f"the {('red', 'green', 'blue')[wanted]} photo"


def test_one_library_of_both(directory: Path, place: Path) -> None:
    library = place / "both.lance"
    selfsup.index(directory, place / "photos", library)
    made = selfsup.index(directory, place / "texts.parquet", library)
    assert (made.records, made.added) == (12, 3)
    texts = {hit.text for hit in selfsup.search(library, "a cat", top=12)}
    assert texts == {"", *TEXTS}


def test_vectors_in_a_file(directory: Path, model: PairModel, place: Path, tmp_path: Path) -> None:
    selfsup.embed(directory, place / "pairs.parquet", tmp_path / "images.parquet")
    images = pq.read_table(tmp_path / "images.parquet")
    assert images.column_names == ["id", "source", "vector"]
    description = json.loads(images.schema.metadata[b"selfsup"])
    assert description["pooling"] == "mean of images, mean of texts"
    selfsup.embed(directory, place / "pairs.parquet", tmp_path / "texts.parquet", column="caption")
    texts = pq.read_table(tmp_path / "texts.parquet")
    assert texts.column_names == ["id", "text", "vector"]
    found = np.stack(texts.column("vector").to_numpy())
    np.testing.assert_allclose(found, model.embed(texts.column("text").to_pylist(), "fp32"), atol=1e-2, rtol=0.05)


# -- probes --------------------------------------------------------------------------------------------------


def test_a_probe_of_images_classifies_images(
    directory: Path, tmp_path: Path, selfsup_command: Callable[..., Any]
) -> None:
    photos = save_photos(tmp_path / "photos", 10)
    probe = Probe.fit(directory, photos)
    assert probe.classes == ("blue", "green", "red")
    probe.save(tmp_path / "probe")
    fresh = save_photos(tmp_path / "fresh", 2, start=20)
    answer = selfsup_command(
        "classify", directory, fresh / "red/20.png", fresh / "blue/21.png", "--probe", tmp_path / "probe"
    )
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [line["label"] for line in lines] == ["red", "blue"]


def test_a_probe_of_texts_classifies_texts(directory: Path, tmp_path: Path) -> None:
    records = [
        {"text": f"a {noun} {number}", "label": noun}
        for noun in ("cat", "ship")
        for number in ("zero", "one", "two", "three")
    ] * 3
    probe = Probe.fit(directory, records)
    answers = probe.classify(directory, ["photo of a ship", "photo of a cat"])
    assert [answer.label for answer in answers] == ["ship", "cat"]
