"""Images from every source: what is found, counted, labelled, split and read."""

import csv
import json
import logging
import os
import threading

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import archive, encoded, noise, png, smooth, write
from PIL import Image

from selfsup.data.images import ImageRecords, Unreadable, archives, collection, open_images, split_images, tables
from selfsup.data.images.decoding import END, decode
from selfsup.data.images.stores import Span
from selfsup.data.loader import Loader
from selfsup.data.sources import open_text
from selfsup.errors import UserError

PICTURES = [noise(8 + k % 3, 10, k) for k in range(6)]
NAMES = ["cat", "dog", "hen"]


@pytest.fixture
def folder(tmp_path):
    """Six pictures in three folders, and what is no image."""
    for number, picture in enumerate(PICTURES):
        write(tmp_path / "photos" / NAMES[number % 3] / f"{number}.png", picture)
    write(tmp_path / "photos" / "notes.txt", b"text")
    write(tmp_path / "photos" / ".hidden" / "x.png", PICTURES[0])
    write(tmp_path / "photos" / "cat" / "._3.png", b"")
    return tmp_path / "photos"


def refused(source, *words, **options):
    with pytest.raises(UserError) as caught:
        open_images(source, **options)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def holds(found, pictures):
    assert len(found) == len(pictures)
    for index, picture in enumerate(pictures):
        np.testing.assert_array_equal(found.pixels(index), picture)


BY_FOLDER = [0, 3, 1, 4, 2, 5]  # the order of the paths


# -- sources -------------------------------------------------------------------------------------------------


def test_folders_are_classes(folder):
    found = open_images(folder)
    holds(found, [PICTURES[number] for number in BY_FOLDER])
    assert found.classes == ("cat", "dog", "hen")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.labels.dtype == np.int64
    assert found.name == str(folder)
    assert found.place(1) == str(folder / "cat" / "3.png")
    assert found.sizes.tolist() == [list(PICTURES[number].shape[:2]) for number in BY_FOLDER]
    assert (found.skipped.count, found.skipped.seen, found.duplicates) == (0, 6, 0)
    assert open_images(found) is found


def test_parts_of_a_data_set_share_their_classes(folder):
    for part in ("train", "test"):
        for name in ("b", "a"):
            write(folder / "nested" / part / name / "x.png", PICTURES[0])
    found = open_images(folder / "nested")
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 1, 0, 1]


def test_flat_folders_have_no_classes(folder):
    assert open_images(folder / "cat").labels is None
    assert open_images(folder / "cat").classes == ()
    write(folder / "above.png", PICTURES[0])
    assert open_images(folder).labels is None


def test_globs_and_lists_of_paths(folder):
    holds(open_images(str(folder / "*" / "[0-2].png")), PICTURES[:3])
    holds(open_images(folder / "c*"), [PICTURES[0], PICTURES[3]])
    holds(open_images([folder / "hen" / "2.png", folder / "cat"]), [PICTURES[2], PICTURES[0], PICTURES[3]])
    holds(open_images(folder / "dog" / "1.png"), PICTURES[1:2])


def test_links_are_followed_but_not_back_up(folder):
    (folder / "cat" / "loop").symlink_to(folder)
    (folder / "cat" / "9.png").symlink_to(folder / "dog" / "1.png")
    holds(open_images(folder / "cat"), [PICTURES[0], PICTURES[3], PICTURES[1]])
    linked = folder.parent / "linked"
    linked.mkdir()
    (linked / "hen").symlink_to(folder / "hen")
    assert len(open_images(linked)) == len(open_images(folder / "hen"))


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_lists_of_paths_are_relative_to_themselves(folder, kind):
    rows = [{"id": k, "file": f"{NAMES[k % 3]}/{k}.png", "label": NAMES[k % 3]} for k in range(6)]
    rows[5]["file"] = str(folder / rows[5]["file"])
    path = folder / f"list{kind}"
    with path.open("w", newline="") as file:
        if kind == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, rows[0], delimiter="," if kind == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    found = open_images(path)
    holds(found, PICTURES)
    assert found.classes == ("cat", "dog", "hen")
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.place(4) == str(folder / "dog" / "4.png")
    assert open_images(path, label="id").classes == ("0", "1", "2", "3", "4", "5")
    refused(path, "has no column 'nothing'", column="nothing")
    refused(path, "has no column 'nothing'", label="nothing")
    holds(open_images(folder), [PICTURES[number] for number in BY_FOLDER])  # the list is not read beside the images


def test_the_column_of_paths_is_found_by_its_content(tmp_path):
    write(tmp_path / "a.png", PICTURES[0])
    (tmp_path / "list.csv").write_text("id,where\n1,a.png\n")
    holds(open_images(tmp_path / "list.csv"), PICTURES[:1])
    (tmp_path / "list.csv").write_text("id,where\n1,nothing\n")
    refused(tmp_path / "list.csv", "no column of image paths", "id, where")


def test_lists_name_what_is_missing(folder):
    path = folder / "list.csv"
    path.write_text("path,label\ncat/0.png,1\nnothing.png,2\n,3\ncat/3.png,\n")
    found = open_images(path, failures=0.5)
    holds(found, [PICTURES[0], PICTURES[3]])
    assert found.labels.tolist() == [0, -1]
    assert found.classes == ("1",)
    assert [name.split("/")[-1] for name in found.skipped.names] == [
        "nothing.png: No such file or directory",
        "list.csv, record 3: it has no path",
    ]


def parquet(path, kind="struct", labels=None, metadata=None, pictures=PICTURES, **options):
    data = [encoded(picture) for picture in pictures]
    column = {
        "struct": pa.array([{"bytes": d, "path": None} for d in data]),
        "binary": pa.array(data, pa.binary()),
        "large": pa.array(data, pa.large_binary()),
    }[kind]
    columns = {"id": list(range(len(data))), "image": column}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize("kind", ["struct", "binary", "large"])
def test_parquet(tmp_path, kind):
    path = parquet(tmp_path / "train.parquet", kind, row_group_size=4)
    found = open_images(path)
    holds(found, PICTURES)
    assert found.labels is None
    assert found.place(4) == f"{path}, row 5"
    holds(open_images(path, column="image"), PICTURES)
    refused(path, "'id'", "int64", column="id")
    refused(path, "no column 'x'", column="x")


def test_labels_of_tables(tmp_path):
    numbers = parquet(tmp_path / "numbers.parquet", labels=[10, 9, None, 10, 2, 9])
    found = open_images(numbers)
    assert found.classes == ("2", "9", "10")
    assert found.labels.tolist() == [2, 1, -1, 2, 0, 1]
    names = parquet(tmp_path / "names.parquet", labels=["b", "a", "", "b", "c", "a"])
    assert open_images(names).classes == ("a", "b", "c")
    assert open_images(names).labels.tolist() == [1, 0, -1, 1, 2, 0]
    several = parquet(tmp_path / "several.parquet", labels=[[1, 2]] * 6)
    assert open_images(several).labels is None
    assert open_images(several, label="id").classes == ("0", "1", "2", "3", "4", "5")


def test_names_of_classes_from_the_hub(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["x", "y", "z"]}, "other": [{"_type": "Value"}]}
    path = parquet(
        tmp_path / "a.parquet",
        labels=[2, 0, -1, 7, 2, 0],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    found = open_images(path)
    assert found.classes == ("x", "y", "z")
    assert found.labels.tolist() == [2, 0, -1, -1, 2, 0]


def test_several_tables_are_one_source(tmp_path):
    parquet(tmp_path / "d" / "1.parquet", pictures=PICTURES[:2])
    second = parquet(tmp_path / "d" / "2.parquet", pictures=PICTURES[2:])
    found = open_images(tmp_path / "d")
    holds(found, PICTURES)
    assert found.place(2) == f"{second}, row 1"
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "d" / "3.parquet")
    refused(tmp_path / "d", "3.parquet has no column 'image'")
    refused(tmp_path / "d" / "3.parquet", "no column of images", "text")


def test_tables_of_paths_and_of_nothing(tmp_path):
    write(tmp_path / "cat.png", PICTURES[0])
    rows = [{"bytes": None, "path": "cat.png"}, {"bytes": encoded(PICTURES[1]), "path": "no.png"}, None]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    found = open_images(tmp_path / "a.parquet", failures=0.5)
    holds(found, PICTURES[:2])
    assert found.skipped.names == (f"{tmp_path / 'a.parquet'}, row 3: it is null",)
    pq.write_table(pa.table({"image": ["cat.png"]}), tmp_path / "b.parquet")
    holds(open_images(tmp_path / "b.parquet", column="image"), PICTURES[:1])


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow(tmp_path, new):
    table = pq.read_table(parquet(tmp_path / "a.parquet", labels=NAMES * 2))
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    found = open_images(tmp_path / "a.arrow")
    holds(found, PICTURES)
    assert found.classes == tuple(NAMES)


def test_large_tables_are_unpacked_once(tmp_path, monkeypatch, cache):
    path = parquet(tmp_path / "a.parquet", row_group_size=4, labels=NAMES * 2)
    expected = open_images(path)
    monkeypatch.setattr(tables, "free_memory", lambda device: 0)
    before = set((cache / "images").glob("*/columns.arrow")) if (cache / "images").exists() else set()
    for _ in range(2):
        found = open_images(path)
        holds(found, PICTURES)
        assert found.place(5) == f"{path}, row 6"
        assert found.labels.tolist() == expected.labels.tolist()
        assert found.fingerprint() == expected.fingerprint()
        assert len(set((cache / "images").glob("*/columns.arrow")) - before) == 1


def test_damaged_tables(tmp_path):
    path = parquet(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    refused(path, str(path), "cannot be read")
    (tmp_path / "a.arrow").write_bytes(b"nothing")
    refused(tmp_path / "a.arrow", "a.arrow", "cannot be read")


def test_archives_in_webdataset_layout(tmp_path):
    for shard in range(2):
        members = {}
        for number in range(3 * shard, 3 * shard + 3):
            members[f"{number}.png"] = encoded(PICTURES[number])
            members[f"{number}.seg.png"] = encoded(PICTURES[0])
            members[f"{number}.cls"] = f"{number % 3}\n".encode()
            members[f"{number}.txt"] = b"a picture"
        archive(tmp_path / f"train-{shard}.tar", members)
    found = open_images(tmp_path / "train-*.tar")
    holds(found, PICTURES)
    assert found.classes == ("0", "1", "2")
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.place(4) == f"{tmp_path / 'train-1.tar'}, 4.png"
    holds(open_images(tmp_path, column="seg.png"), [PICTURES[0]] * 6)
    refused(tmp_path, "holds no images", column="jpg")


def test_labels_in_the_json_of_an_archive(tmp_path):
    members = {}
    for number, text in enumerate([b'{"label": 7, "name": "x"}', b"{", b"[]", b'{"name": "y"}']):
        members |= {f"a/{number}.png": encoded(PICTURES[number]), f"a/{number}.json": text}
    path = archive(tmp_path / "a.tar", members)
    assert open_images(path).classes == ("7",)
    assert open_images(path).labels.tolist() == [0, -1, -1, -1]
    assert open_images(path, label="name").classes == ("x", "y")


def test_archives_of_folders(tmp_path):
    names = [f"top/{NAMES[k % 3]}/IMG.{k}.png" for k in range(6)]  # one key to WebDataset, yet six images
    path = archive(tmp_path / "a.tar", dict(zip(names, map(encoded, PICTURES), strict=True)))
    found = open_images(path)
    holds(found, [PICTURES[number] for number in BY_FOLDER])
    assert found.classes == tuple(NAMES)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_damaged_archives(tmp_path):
    path = archive(tmp_path / "a.tar", {"a.png": encoded(noise(80, 80))})
    data = path.read_bytes()
    path.write_bytes(data[:5000])
    refused(path, "a.tar cannot be read")
    path.write_bytes(b"\x1f\x8b" + data)
    refused(path, "a.tar cannot be read")


def test_long_archives_are_gone_through_once(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.tar", {f"{k}.png": encoded(picture) for k, picture in enumerate(PICTURES)})
    monkeypatch.setattr(archives, "LONG", 0)
    holds(open_images(path), PICTURES)
    monkeypatch.setattr(archives, "_members", None)
    holds(open_images(path), PICTURES)


def hub_data(tmp_path):
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "n": datasets.Value("int64")}
    )
    rows = {
        "picture": [{"bytes": encoded(p), "path": None} for p in PICTURES[:5]]
        + [{"bytes": None, "path": str(write(tmp_path / "5.png", PICTURES[5]))}],
        "label": [0, 1, 2, 0, 1, 2],
        "n": list(range(6)),
    }
    return datasets.Dataset.from_dict(rows, features)


def test_data_sets(tmp_path, monkeypatch):
    data = hub_data(tmp_path)
    found = open_images(data)
    holds(found, PICTURES)
    assert found.classes == tuple(NAMES)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    holds(open_images(data.select([4, 2])), [PICTURES[4], PICTURES[2]])
    assert open_images(data.select([4, 2])).labels.tolist() == [1, 2]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    holds(open_images("hub:user/name"), PICTURES)
    assert open_images("hub:user/name").place(1) == "hub:user/name, row 2"
    data.save_to_disk(tmp_path / "saved")
    holds(open_images(tmp_path / "saved"), PICTURES)


def test_objects_from_python():
    for source in (PICTURES, [Image.fromarray(p) for p in PICTURES], [encoded(p) for p in PICTURES]):
        found = open_images(source)
        holds(found, PICTURES)
        assert found.name == "the list of 6 images"
        assert found.place(2) == "image 3"
    stack = np.stack([noise(5, 6, k) for k in range(4)])
    holds(open_images(stack), stack)
    assert open_images(PICTURES).fingerprint() == open_images([Image.fromarray(p) for p in PICTURES]).fingerprint()


def test_the_bundled_sample():
    found = open_images("sample:emoji")
    assert len(found) == 1644
    assert found.stack.shape == (1644, 64, 64, 3)
    assert len(found.classes) == 9
    assert set(found.labels.tolist()) == set(range(9))
    names = list(open_text("sample:emoji").documents())
    assert len(set(names)) == 1644
    cherries = found.pixels(names.index("cherries"))
    assert found.classes[found.labels[names.index("cherries")]] == "Food & Drink"
    reddest = cherries.reshape(-1, 3)[(cherries[..., 0] > 2.0 * cherries[..., 1].astype(int)).ravel()]
    assert len(reddest) > 400
    assert (cherries[0, 0] > 240).all()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing/here", ["no file or folder nothing/here"]),
        ("nothing/*.png", ["No file matches"]),
        ("sample:shakespeare", ["no readable kind"]),
        ("sample:nothing", ["emoji"]),
        ([], ["is no image source"]),
        (7, ["A int is no image source"]),
        (["a.png"], ["Image 1", "is a str", "Path"]),
        ([noise(3, 3), None], ["Image 2", "NoneType"]),
        ([np.zeros((3, 3))], ["1 of 1", "float64"]),
    ],
)
def test_what_is_no_source(source, words):
    refused(source, *words)


def test_folders_without_images(tmp_path, folder):
    refused(tmp_path / "photos" / "notes.txt", "no readable kind")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no file of a readable kind")
    refused(folder, "no columns", column="image")
    refused(folder, "no columns", label="label")
    mixed = parquet(tmp_path / "a.parquet")
    refused([mixed, folder / "cat" / "0.png"], "mixes images and tables")
    refused(folder, "between 0 and 1", failures=1.5)


# -- what cannot be read -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """Eight images, of which one is empty, one truncated and one a bomb."""
    for number in range(8):
        write(tmp_path / "bad" / f"{number}.jpg", encoded(smooth(40, 50, number), "JPEG"))
    write(tmp_path / "bad" / "2.jpg", b"")
    write(tmp_path / "bad" / "4.jpg", encoded(noise(40, 50), "JPEG")[:900])
    write(tmp_path / "bad" / "6.jpg", png((30000, 30000, 8, 2), [b""]))
    return tmp_path / "bad"


def test_bad_images_are_left_out_and_named(damaged):
    found = open_images(damaged, failures=0.5)
    assert [found.place(i)[-5] for i in range(len(found))] == ["0", "1", "3", "5", "7"]
    assert len(found.hashes) == len(found.sizes) == 5
    assert (found.skipped.count, found.skipped.seen) == (3, 8)
    assert [name.split("/")[-1] for name in found.skipped.names] == [
        "2.jpg: it is empty",
        "4.jpg: it is truncated",
        "6.jpg: it has more pixels than the 134 million that are decoded",
    ]
    message = refused(damaged, "3 of 8", "0.25", "2.jpg: it is empty", failures=0.25)
    assert "\n" not in message


@pytest.fixture
def large(monkeypatch):
    """Every collection counts as one that is too large to be decoded when it is opened."""
    monkeypatch.setattr(collection, "SMALL", 0)


def test_large_collections_find_bad_images_when_they_read(damaged, large, caplog):
    found = open_images(damaged, failures=0.5)
    assert found.stack is None
    assert len(found) == 6  # the truncated one has a header
    with caplog.at_level(logging.WARNING), pytest.raises(Unreadable, match=r"4\.jpg cannot be read \(it is truncated"):
        found.pixels(3)
    assert "4.jpg" in caplog.text
    caplog.clear()
    with pytest.raises(Unreadable):
        found.pixels(3)
    assert not caplog.text  # named once
    assert (found.skipped.count, found.skipped.seen) == (3, 8)
    assert "4.jpg: it is truncated" in found.skipped.names[-1]
    assert open_images(damaged, failures=0.3).skipped.count == 2
    with pytest.raises(UserError, match="3 of 8"):
        open_images(damaged, failures=0.3).pixels(3)


def test_records_replace_what_turns_out_to_be_bad(damaged, large):
    found = open_images(damaged, failures=0.5)
    records = ImageRecords(found, np.array([5, 3, 0, 3]), 40)
    read = records.read(np.arange(4))["pixels"].permute(0, 2, 3, 1).numpy()
    for row, index in zip(
        read, [5, 0, 0, 5], strict=True
    ):  # the next readable one of the indices, from the start again
        np.testing.assert_array_equal(row, found.pixels(index))
    with pytest.raises(UserError, match="None of the images"):
        ImageRecords(found, np.array([3]), 40).read(np.array([0]))


def test_files_that_vanish(folder, large):
    found = open_images(folder, failures=0.2)
    os.unlink(folder / "cat" / "0.png")
    with pytest.raises(Unreadable, match="No such file"):
        found.pixels(0)


def test_nothing_readable(tmp_path):
    write(tmp_path / "a.png", b"")
    refused(tmp_path, "1 of 1 records", "a.png: it is empty", failures=1)


# -- memory and scale ----------------------------------------------------------------------------------------


def test_pixels_are_the_same_with_and_without_memory(tmp_path, monkeypatch):
    for number in range(3):
        write(tmp_path / f"{number}.jpg", encoded(smooth(90, 120, number), "JPEG"))
    held = open_images(tmp_path)
    assert held.stack.shape == (3, 90, 120, 3)
    monkeypatch.setattr(collection, "free_memory", lambda device: 0)
    read = open_images(tmp_path)
    assert read.stack is None
    for index in range(3):
        for least in (None, 20, 40, 90):
            np.testing.assert_array_equal(held.pixels(index, least), read.pixels(index, least))
    for least in (20, 90):
        first, second = (ImageRecords(each, np.arange(3), least).read(np.array([2, 0])) for each in (held, read))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_large_collections_decode_at_scale(tmp_path, large, monkeypatch):
    write(tmp_path / "a.jpg", encoded(smooth(400, 600), "JPEG"))
    found = open_images(tmp_path)
    np.testing.assert_array_equal(found.pixels(0, 50), decode((tmp_path / "a.jpg").read_bytes(), 50))
    assert found.pixels(0, 50).shape == (50, 75, 3)
    assert found.pixels(0).shape == (400, 600, 3)
    records = ImageRecords(found, np.array([0]), 50)
    first = records.read(np.array([0, 0]))
    assert first["sizes"].tolist() == [[50, 75]] * 2
    os.unlink(tmp_path / "a.jpg")
    assert torch.equal(records.read(np.array([0, 0]))["pixels"], first["pixels"])  # kept while there is room
    monkeypatch.setattr(collection, "free_memory", lambda device: 0)
    with pytest.raises(UserError):
        ImageRecords(found, np.array([0]), 50).read(np.array([0]))


# -- records -------------------------------------------------------------------------------------------------


def test_records_of_one_size():
    stack = np.stack([noise(8, 12, k) for k in range(5)])
    records = ImageRecords(open_images(stack), np.array([4, 0, 2]), 8)
    assert len(records) == 3
    read = records.read(np.array([2, 0, 2]))
    np.testing.assert_array_equal(read["pixels"].permute(0, 2, 3, 1).numpy(), stack[[2, 4, 2]])
    assert read["sizes"].tolist() == [[8, 12]] * 3
    assert read["pixels"].dtype == torch.uint8
    assert read["sizes"].dtype == torch.int64


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6), st.integers(1, 50))
def test_records_of_many_sizes_are_padded(shapes, least):
    pictures = [noise(height, width, k) for k, (height, width) in enumerate(shapes)]
    found = open_images(pictures)
    read = ImageRecords(found, np.arange(len(pictures)), least).read(np.arange(len(pictures))[::-1])
    expected = [decode(picture, least) for picture in pictures[::-1]]
    height, width = (max(p.shape[side] for p in expected) for side in (0, 1))
    assert read["pixels"].shape == (len(pictures), 3, height, width)
    for row, size, picture in zip(read["pixels"], read["sizes"].tolist(), expected, strict=True):
        assert size == list(picture.shape[:2])
        np.testing.assert_array_equal(row[:, : size[0], : size[1]].permute(1, 2, 0).numpy(), picture)
        assert int(row.sum()) == int(picture.astype(np.int64).sum())


def test_any_number_of_loading_threads_reads_the_same(damaged, large):
    def batches(workers):
        records = ImageRecords(open_images(damaged, failures=0.5), np.arange(6), 30)
        steps = Loader(records, 0, 4, 2, workers).steps(0)
        try:
            return [batch.data for _ in range(5) for batch in next(steps)]
        finally:
            steps.close()

    for first, second in zip(batches(0), batches(3), strict=True):
        assert torch.equal(first["pixels"], second["pixels"])
        assert torch.equal(first["sizes"], second["sizes"])


# -- identity and split --------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_content_and_order(folder, tmp_path):
    known = open_images(folder).fingerprint()
    assert len(known) == 32
    moved = folder.rename(tmp_path / "moved")
    assert open_images(moved).fingerprint() == known
    pictures = [PICTURES[number] for number in BY_FOLDER]
    assert open_images(parquet(tmp_path / "a.parquet", pictures=pictures)).fingerprint() == known
    assert open_images(parquet(tmp_path / "a.parquet")).fingerprint() != known
    write(moved / "cat" / "0.png", noise(8, 10, 99))
    assert open_images(moved).fingerprint() != known


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_duplicates_fall_on_one_side(content, share):
    found = open_images([noise(2, 2, seed) for seed in content])
    assert found.duplicates == len(content) - len(set(content))
    if len(set(content)) == 1:
        with pytest.raises(UserError, match="one image only"):
            split_images(found, share)
        return
    training, held_out = split_images(found, share)
    assert sorted([*training, *held_out]) == list(range(len(content)))
    assert not {content[i] for i in training} & {content[i] for i in held_out}
    assert len(training)
    assert len(held_out)


def test_shares():
    found = open_images(np.arange(2000, dtype=np.uint32).view(np.uint8).reshape(2000, 2, 2))
    training, held_out = split_images(found, 0.1)
    assert 150 < len(held_out) < 250
    assert len(training) + len(held_out) == 2000
    more = open_images(np.arange(3000, dtype=np.uint32).view(np.uint8).reshape(3000, 2, 2))
    assert set(held_out) <= set(split_images(more, 0.1)[1])  # images that are added move none
    assert len(split_images(found, 0)[1]) == 0
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match="held-out share"):
            split_images(found, share)


# -- the kept index ------------------------------------------------------------------------------------------


def test_the_index_of_many_images_is_kept(folder, monkeypatch, cache, caplog):
    monkeypatch.setattr(collection, "LONG", 1)
    monkeypatch.setattr(collection, "SMALL", 0)
    write(folder / "hen" / "6.png", b"")
    seen = []
    look_at = collection._look_at
    monkeypatch.setattr(collection, "_look_at", lambda *place: seen.append(place[1]) or look_at(*place))
    before = set((cache / "images").glob("*")) if (cache / "images").exists() else set()
    first = open_images(folder, failures=0.5)
    assert sorted(seen) == list(range(7))
    second = open_images(folder, failures=0.5)
    assert len(seen) == 7
    assert second.fingerprint() == first.fingerprint()
    assert second.skipped == first.skipped
    assert second.sizes.tolist() == first.sizes.tolist()
    (kept,) = set((cache / "images").glob("*")) - before
    table = kept / "table.parquet"
    table.write_bytes(table.read_bytes()[:-9] + b"?" + table.read_bytes()[-8:])  # of its size, in the footer
    with caplog.at_level(logging.WARNING):
        assert open_images(folder, failures=0.5).fingerprint() == first.fingerprint()
    assert "damaged" in caplog.text
    assert len(seen) == 14
    write(folder / "cat" / "0.png", PICTURES[4])
    assert open_images(folder, failures=0.5).fingerprint() != first.fingerprint()
    assert len(seen) == 21


def test_a_cache_that_cannot_be_written(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(collection, "LONG", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SELFSUP_CACHE", str(tmp_path / "file"))
    refused(folder, "SELFSUP_CACHE")


def test_large_files_are_known_by_their_ends(tmp_path, large, monkeypatch):
    data = encoded(noise(300, 400))
    assert len(data) > 2 * END
    write(tmp_path / "a.png", data)
    write(tmp_path / "b.tif", encoded(noise(300, 400, 1), "TIFF", compression="tiff_lzw"))  # its header is at its end
    read_wholly = []
    read = Span.read
    monkeypatch.setattr(Span, "read", lambda span: read_wholly.append(span.path[-5:]) or read(span))
    found = open_images(tmp_path)
    assert read_wholly == ["b.tif"]
    assert found.sizes.tolist() == [[300, 400]] * 2
    assert found.hashes[0] == open_images([data]).hashes[0]


def test_progress(folder):
    told = []
    open_images(folder, progress=lambda done, total: told.append((done, total)))
    assert told == [(6, 6), (6, 6)]


def test_threads_read_one_collection(tmp_path, large):
    for number in range(8):
        write(tmp_path / f"{number}.png", noise(50, 60, number))
    found = open_images(tmp_path)
    failures = []

    def read():
        for index in range(8):
            if not np.array_equal(found.pixels(index), noise(50, 60, index)):
                failures.append(index)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
