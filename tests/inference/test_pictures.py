"""Images as items: what each is called, its class, its views, and queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_vision import COLOURS, SIZE, picture, save_photos

from selfsup.errors import UserError
from selfsup.inference.pictures import Pictures, open_picture, open_pictures
from selfsup.views import MEAN, STD, render, simclr_view


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("photos"), each=3)


def opened(photos: Path) -> Pictures:
    return open_pictures(photos, SIZE)


def test_items_go_by_their_absolute_place(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [str(photos / colour / f"{number:02}.png") for colour in COLOURS for number in range(3)]
    items = list(opened(photos).items())
    assert [item.id for item in items] == [item.source for item in items] == places
    assert {item.text for item in items} == {""}
    assert [item.values for item in items] == [{}] * 9
    monkeypatch.chdir(photos.parent)
    assert [item.id for item in open_pictures(photos.name, SIZE).items()] == places
    np.testing.assert_array_equal(items[3].content.pixels(1000), picture("green", 0))


def test_classes_are_values_and_labels(photos: Path) -> None:
    values = [item.values for item in opened(photos).items(with_values=True)]
    assert values == [{"label": colour} for colour in COLOURS for _ in range(3)]
    assert [label for _, label in opened(photos).labelled()] == [c for c in COLOURS for _ in range(3)]


def test_some_of_a_collection(photos: Path) -> None:
    whole = opened(photos)
    some = Pictures(whole._images, SIZE, np.array([7, 1]))
    assert [Path(item.id).name for item in some.items()] == ["01.png", "01.png"]
    assert [label for _, label in some.labelled()] == ["red", "blue"]
    assert open_pictures(some, SIZE) is some


def test_records_without_a_class_are_left_out(tmp_path: Path) -> None:
    files = [Image.fromarray(picture("red", number)) for number in range(3)]
    for number, file in enumerate(files):
        file.save(tmp_path / f"{number}.png")
    content = [(tmp_path / f"{number}.png").read_bytes() for number in range(3)]
    pq.write_table(pa.table({"image": content, "kind": ["a", None, "b"]}), tmp_path / "x.parquet")
    found = open_pictures(tmp_path / "x.parquet", SIZE, label="kind")
    assert [(item.source, label) for item, label in found.labelled()] == [
        (f"{tmp_path / 'x.parquet'}, row 1", "a"),
        (f"{tmp_path / 'x.parquet'}, row 3", "b"),
    ]
    with pytest.raises(UserError, match=r"has no classes.*--label"):
        next(open_pictures([picture("red", 0)], SIZE).labelled())


def test_there_are_no_ids_in_columns(photos: Path) -> None:
    with pytest.raises(UserError, match=r"column name; leave it out"):
        next(opened(photos).items("name"))


def test_what_is_equal_has_one_identity(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((photos / "red" / "00.png").read_bytes())
    identities = [item.identity for item in opened(photos).items()]
    assert len(set(identities)) == 9
    assert next(open_pictures(tmp_path, SIZE).items()).identity == identities[6]


def test_pairs_are_two_views_of_each_image(photos: Path) -> None:
    pairs = opened(photos).pairs(seed=3)
    assert pairs.scores.tolist() == [1.0] * 9
    assert len({item.identity for item in [*pairs.first, *pairs.second]}) == 18
    for number, side in enumerate((pairs.first, pairs.second)):
        for index, item in enumerate(side):
            pixels = torch.from_numpy(picture(list(COLOURS)[index // 3], index % 3)).permute(2, 0, 1)[None]
            place = (np.array([0]), np.array([index]))
            view = render(pixels.contiguous(), torch.tensor([pixels.shape[2:]]), simclr_view(SIZE), 3, *place, number)
            expected = view[0].permute(1, 2, 0).numpy() * STD + np.array(MEAN)
            found = item.content.pixels(SIZE)
            assert (found.shape, found.dtype) == ((SIZE, SIZE, 3), np.uint8)
            np.testing.assert_allclose(found / 255, expected.clip(0, 1), atol=0.6 / 255)
    again, other = opened(photos).pairs(seed=3), opened(photos).pairs(seed=4)
    for same in (True, False):
        for one, two in zip(pairs.first, (again if same else other).first, strict=True):
            assert np.array_equal(one.content.pixels(SIZE), two.content.pixels(SIZE)) == same


def test_a_query_is_one_image(photos: Path, tmp_path: Path) -> None:
    pixels = picture("green", 1)
    for query in (photos / "green" / "01.png", str(photos / "green" / "01.png"), pixels, Image.fromarray(pixels)):
        np.testing.assert_array_equal(open_picture(query).content.pixels(1000), pixels)
    (tmp_path / "broken.png").write_bytes((photos / "green" / "01.png").read_bytes()[:-100])
    for query, message in (
        (photos, "holds 9 images; look for one at a time"),
        (tmp_path / "no.png", "no file or folder"),
        (tmp_path / "broken.png", "broken.png"),
        (7, "int"),
    ):
        with pytest.raises(UserError, match=message):
            open_picture(query)


def test_words_are_paths(photos: Path) -> None:
    paths = [str(photos / "red" / "01.png"), str(photos / "blue" / "00.png")]
    assert {item.id for item in open_pictures(paths, SIZE).items()} == set(paths)


def test_a_file_that_a_list_names_twice(photos: Path, tmp_path: Path) -> None:
    names = ["red/00.png", "red/01.png", "red/00.png", "red/00.png"]
    (photos / "list.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    items = list(open_pictures(photos / "list.csv", SIZE).items())
    (photos / "list.csv").unlink()
    first = str(photos / "red" / "00.png")
    assert [item.id for item in items] == [first, str(photos / "red" / "01.png"), f"{first} (2)", f"{first} (3)"]
    assert [item.source for item in items] == [str(photos / name) for name in names]
