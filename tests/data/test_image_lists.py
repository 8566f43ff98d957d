"""What lists, a folder's own metadata, COCO's captions, tables and data frames say of images."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, noise, write

from selfsup.data.images import open_images, sources
from selfsup.data.images.sources import holds_images
from selfsup.data.pairs import open_pairs
from selfsup.errors import UserError

PICTURES = [noise(8, 9, number) for number in range(4)]
DATA = [encoded(picture) for picture in PICTURES]


@pytest.fixture
def folder(tmp_path):
    for number, data in enumerate(DATA):
        write(tmp_path / "photos" / f"{number}.png", data)
    return tmp_path / "photos"


def holds(found, numbers):
    assert len(found) == len(numbers)
    for index, number in enumerate(numbers):
        np.testing.assert_array_equal(found.pixels(index), PICTURES[number])


# -- lists ---------------------------------------------------------------------------------------------------


def test_a_json_array_of_records_is_a_list(folder):
    rows = [{"file_name": f"{number}.png", "caption": f"text {number}", "label": number % 2} for number in range(3)]
    (folder / "list.json").write_text(json.dumps(rows, indent=1))
    found = open_pairs(folder / "list.json")
    holds(found, range(3))
    assert list(found.captions) == [(f"text {number}",) for number in range(3)]
    assert found.labels.tolist() == [0, 1, 0]
    assert holds_images(folder / "list.json")


def test_lists_may_be_compressed(folder):
    with pa.CompressedOutputStream(str(folder / "list.csv.gz"), "gzip") as file:
        file.write(b"path\n1.png\n")
    holds(open_images(folder / "list.csv.gz"), [1])


def test_classes_and_captions_that_are_no_utf_8(folder):
    (folder / "list.csv").write_bytes(b"path,label,caption\n0.png,h\xffn,good\n1.png,dog,b\xffd\n")
    found = open_images(folder / "list.csv")
    assert found.classes == ("dog", "h\ufffdn")
    texts = pa.array([b"h\xffn", b"dog"]).view(pa.string())
    captions = pa.ListArray.from_arrays(pa.array([0, 2, 3]), pa.array([b"good", b"b\xffd", b"fine"]).view(pa.string()))
    pq.write_table(pa.table({"image": DATA[:2], "label": texts, "caption": captions}), folder.parent / "a.parquet")
    found = open_pairs(folder.parent / "a.parquet")
    assert found.classes == ("dog", "h\ufffdn")
    assert list(found.captions) == [("good",), ("fine",)]


def test_a_column_of_paths_beside_one_of_images(folder):
    paths = [str(folder / f"{number}.png") for number in (2, 3)]
    pq.write_table(pa.table({"image": DATA[:2], "where": paths, "text": ["a", "b"]}), folder.parent / "a.parquet")
    for column, images in ((None, True), ("image", True), ("where", True), ("text", False), ("gone", False)):
        assert holds_images(folder.parent / "a.parquet", column) == images
    holds(open_images(folder.parent / "a.parquet"), [0, 1])
    holds(open_images(folder.parent / "a.parquet", column="where"), [2, 3])


def test_how_columns_are_read_is_told(folder):
    (folder / "list.csv").write_text("id,path,label,caption\n1,0.png,a,x\n")
    assert open_images(folder / "list.csv").notes == {"column": "'path' (not read: id, caption)"}
    assert open_pairs(folder / "list.csv").notes == {"column": "'path' (not read: id)"}
    table = pa.table({"id": [1, 2], "image": DATA[:2], "thumb": DATA[2:]})
    pq.write_table(table, folder.parent / "a.parquet")
    for source in (folder.parent / "a.parquet", table):
        assert open_images(source).notes == {"column": "'image' (not read: id, thumb)"}
        assert open_images(source, column="thumb").notes == {"column": "'thumb' (not read: id, image)"}
    (folder / "x.pdf").write_text("x")
    assert set(open_images(folder).notes) == {"left out"}


# -- a folder's own metadata ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_of_a_folder(folder, kind):
    rows = [{"file_name": f"{number}.png", "text": f"text {number}", "label": "ab"[number % 2]} for number in (2, 0, 1)]
    rows.append({"file_name": "gone.png", "text": "gone", "label": "a"})
    rows.append({"file_name": "../../etc/passwd.png", "text": "out", "label": "a"})
    frame = pd.DataFrame(rows)
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    found = open_pairs(folder, failures=0.5)
    holds(found, [0, 1, 2])  # the last has no caption
    assert list(found.captions) == [("text 0",), ("text 1",), ("text 2",)]
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 1, 0]
    assert "images that a list names and that are not there: 2" in found.skipped.left_out[0]
    assert open_images(folder, label="text").classes == ("text 0", "text 1", "text 2")
    with pytest.raises(UserError, match="has no column 'nothing'"):
        open_images(folder, label="nothing")
    plain = open_images(folder)
    holds(plain, range(4))
    assert plain.captions is None


def test_metadata_in_folders_below(folder):
    write(folder / "more" / "x.png", PICTURES[0])
    (folder / "more" / "metadata.jsonl").write_text('{"file_name": "x.png", "caption": ["a", "b"]}')
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "caption": ["c"]}')
    found = open_pairs(folder, failures=0.9)
    assert list(found.captions) == [("c",), ("a", "b")]


def test_captions_beside_images_where_metadata_have_none(folder):
    (folder / "metadata.csv").write_text("file_name,width\n0.png,8\n")
    (folder / "0.txt").write_text("beside")
    assert list(open_pairs(folder, failures=0.9).captions) == [("beside",)]


# -- COCO ----------------------------------------------------------------------------------------------------


def coco(numbers=range(4)):
    return {
        "info": {"year": 2017},
        "images": [{"id": 10 + number, "file_name": f"{number}.png"} for number in numbers],
        "annotations": [
            {"id": n, "image_id": 10 + number, "caption": f"{word} {number}"}
            for n, (number, word) in enumerate((number, word) for number in numbers for word in ("one", "two"))
        ],
    }


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "place", ["photos/captions.json", "captions_train.json", "annotations/captions_train2017.json"]
)
def test_captions_of_coco(folder, place, indent):
    path = folder.parent / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco((1, 3, 0)), indent=indent))
    expected = [(f"one {number}", f"two {number}") for number in (1, 3, 0)]
    given = open_pairs(path)
    holds(given, (1, 3, 0))
    assert list(given.captions) == expected
    found = open_pairs(folder, failures=0.5)
    holds(found, (0, 1, 3))
    assert list(found.captions) == [expected[2], expected[0], expected[1]]
    holds(open_images(folder), range(4))


def test_coco_that_names_what_is_not_there(folder):
    whole = coco()
    whole["images"][1]["file_name"] = "/etc/passwd.png"
    whole["images"][2]["file_name"] = "../../2.png"  # it is looked for by its name, in the folder alone
    (folder / "captions.json").write_text(json.dumps(whole))
    found = open_pairs(folder / "captions.json", failures=0.5)
    holds(found, (0, 2, 3))
    assert found.skipped.names == (f"{folder / 'passwd.png'}: No such file or directory",)


@pytest.mark.parametrize("change", [{"images": 1}, {"annotations": [{}]}, {"images": [{"id": [], "file_name": "x"}]}])
def test_coco_that_is_damaged(folder, change):
    (folder / "captions.json").write_text(json.dumps(coco() | change))
    with pytest.raises(UserError, match="no captions in COCO's layout"):
        open_pairs(folder / "captions.json")
    with pytest.raises(UserError, match="no captions in COCO's layout"):
        open_pairs(folder)


# -- tables --------------------------------------------------------------------------------------------------

COLUMNS = {
    "binary_view": pa.array(DATA, pa.binary_view()),
    "large_binary": pa.array(DATA, pa.large_binary()),
    "dictionary": pa.array(DATA).dictionary_encode(),
    "struct": pa.array([{"bytes": data, "path": "x.png"} for data in DATA]),
    "struct of views": pa.StructArray.from_arrays([pa.array(DATA, pa.binary_view())], ["bytes"]),
    "struct of a dictionary": pa.StructArray.from_arrays([pa.array(DATA).dictionary_encode()], ["bytes"]),
    "paths": pa.array([f"photos/{number}.png" for number in range(4)]),
    "dictionary of paths": pa.array([f"photos/{number}.png" for number in range(4)]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_columns_of_any_type(folder, kind, ending):
    table = pa.table({"id": list(range(4)), "image": COLUMNS[kind], "text": pa.array(list("abca")).dictionary_encode()})
    path = folder.parent / f"table.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_file if ending == "feather" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as out:
            out.write_table(table)
    found = open_pairs(path)
    holds(found, range(4))
    assert list(found.captions) == [("a",), ("b",), ("c",), ("a",)]
    assert open_images(path, label="text").classes == ("a", "b", "c")


def test_labels_and_class_names_that_are_damaged(tmp_path):
    texts = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"\xff", b"a", b"b"]).buffers())
    for described in (
        b"[",
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": {"a": 1}}}}}',
        b"[" * 9999,
    ):
        table = pa.table({"image": DATA, "label": texts}, metadata={"huggingface": described})
        pq.write_table(table, tmp_path / "a.parquet")
        assert open_images(tmp_path / "a.parquet").classes == ("a", "b", "�")


def test_a_damaged_table_of_several(tmp_path):
    for name in "abc":
        pq.write_table(pa.table({"image": DATA}), tmp_path / f"{name}.parquet")
    content = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"b\.parquet cannot be read"):
        open_images(tmp_path, failures=0.9)
    found = open_images(tmp_path, failures=1.0)  # what embeds, searches and measures goes on
    holds(found, [*range(4), *range(4)])
    assert found.skipped.count == 1
    assert found.place(4) == f"{tmp_path / 'c.parquet'}, row 1"
    with pytest.raises(UserError, match="nothing is left"):
        open_images(tmp_path / "b.parquet", failures=1.0)


def test_saved_and_lance_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    lancedb = pytest.importorskip("lancedb")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = {"image": [{"bytes": data, "path": None} for data in DATA], "label": [0, 1, 1, 0]}
    saved = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(tmp_path / "saved")
    found = open_images(tmp_path / "saved" / "train")
    holds(found, range(4))
    assert found.classes == ("x", "y")
    assert len(open_images(tmp_path / "saved")) == 5
    assert len(open_images(tmp_path / "saved", split="training")) == 4
    table = pa.table({"image": pa.array(DATA, pa.large_binary()), "caption": list("abcd")})
    lancedb.connect(tmp_path / "db").create_table("photos", table)
    for source in (tmp_path / "db" / "photos.lance", tmp_path / "db"):
        found = open_pairs(source)
        holds(found, range(4))
        assert list(found.captions) == [("a",), ("b",), ("c",), ("d",)]


# -- from Python ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pd.DataFrame, pa.table], ids=["pandas", "arrow"])
def test_data_frames(folder, make):
    frame = make({"image": DATA, "caption": list("abcd"), "label": [0, 1, 0, 1]})
    found = open_pairs(frame)
    holds(found, range(4))
    assert list(found.captions) == [("a",), ("b",), ("c",), ("d",)]
    assert found.labels.tolist() == [0, 1, 0, 1]
    paths = make({"id": [1, 2], "file": [str(folder / "2.png"), str(folder / "3.png")]})
    holds(open_images(paths), [2, 3])
    assert holds_images(frame)
    assert holds_images(paths)
    assert not holds_images(make({"text": ["a"]}))
    with pytest.raises(UserError, match="has no column of images, only text"):
        open_images(make({"text": ["a"]}))


def test_data_frames_of_what_arrow_cannot_hold():
    with pytest.raises(UserError, match="give the images as bytes or paths"):
        open_images(pd.DataFrame({"image": [object()]}))


def test_the_kinds_of_a_folder_that_are_not_read_are_told(folder):
    (folder / "list.csv").write_text("path\n0.png\n")
    (told,) = open_images(folder).skipped.left_out
    assert "lists beside images: 1" in told
    assert sources.KINDS == ("images", "archives", "tables", "lists")
