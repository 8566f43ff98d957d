"""Images with captions from every source, and as records of pixels and tokens."""

import csv
import json
import os
from itertools import chain

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import archive, encoded, noise, write
from PIL import Image

from selfsup.data import pairs
from selfsup.data.images import ImageRecords, archives, collection, open_images, split_images
from selfsup.data.images.captions import Captions, captions_in
from selfsup.data.pairs import PairRecords, open_pairs
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError

PICTURES = [noise(8, 10, k) for k in range(4)]
CAPTIONS = [("a cat",), ("a dog", "the dog runs"), ("a hen",), ("a dog",)]
FLAWED = "\xff".encode("latin-1")  # not UTF-8


def holds(found, captions=CAPTIONS, pictures=PICTURES):
    assert list(found.captions) == list(captions)
    assert len(found) == len(pictures)
    for index, picture in enumerate(pictures):
        np.testing.assert_array_equal(found.pixels(index), picture)


def refused(source, *words, **options):
    with pytest.raises(UserError) as caught:
        open_pairs(source, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def parquet(path, columns, pictures=PICTURES):
    column = [{"bytes": encoded(picture), "path": None} for picture in pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, **columns}), path)
    return path


# -- sources -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("listed", [pa.list_, pa.large_list])
def test_a_column_of_lists(tmp_path, item, listed):
    holds(open_pairs(parquet(tmp_path / "a.parquet", {"captions": pa.array(CAPTIONS, listed(item))})))


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_columns_of_texts(tmp_path, kind):
    english, french = ["cat", "dog", "hen", "fox"], [" le\tchat ", None, "la  poule", ""]
    columns = {"en": pa.array(english, kind), "fr": pa.array(french, kind), "label": [1, 2, 1, 2]}
    path = parquet(tmp_path / "a.parquet", columns)
    holds(open_pairs(path, captions=["en", "fr"]), [("cat", "le chat"), ("dog",), ("hen", "la poule"), ("fox",)])
    holds(open_pairs(path, captions="en"), [(word,) for word in english])
    found = open_pairs(path, captions=("fr",), failures=0.5)
    holds(found, [("le chat",), ("la poule",)], PICTURES[::2])
    assert found.labels.tolist() == [0, 0]
    assert found.skipped.names == tuple(f"{path}, row {row}: it has no caption" for row in (2, 4))
    refused(path, "2 of 4", "row 2: it has no caption", captions=["fr"])
    refused(path, "no column 'de'", captions=["en", "de"])
    refused(path, "'label'", "int64", "no captions", captions=["label"])
    refused(path, "has no captions")


def test_usual_names_are_found_the_likeliest_first(tmp_path):
    columns = {
        "name": ["n"] * 4,
        "Title": ["t"] * 4,
        "text": [["x", "y"]] * 4,
        "captions": [1, 2, 3, 4],
        "caption": [[1]] * 4,
    }
    path = parquet(tmp_path / "a.parquet", columns)
    holds(open_pairs(path), [("x", "y")] * 4)
    assert open_images(path).captions is None
    assert open_images(path, captions=()).captions[0] == ("x", "y")
    holds(open_pairs(path, label="text", captions=()), [("t",)] * 4)
    holds(open_pairs(parquet(path, {"name": ["n"] * 4})), [("n",)] * 4)
    assert open_images(parquet(path, {"n": ["n"] * 4}), captions=()).captions is None


def test_several_tables_and_an_arrow_file(tmp_path):
    parquet(tmp_path / "d" / "1.parquet", {"text": ["a", "b"]}, PICTURES[:2])
    second = parquet(tmp_path / "d" / "2.parquet", {"text": [["c", "d"], ["e"]]}, PICTURES[2:])
    holds(open_pairs(tmp_path / "d"), [("a",), ("b",), ("c", "d"), ("e",)])
    table = pq.read_table(second)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    holds(open_pairs(tmp_path / "a.arrow"), [("c", "d"), ("e",)], PICTURES[2:])
    parquet(second, {"text": [1, 2]}, PICTURES[2:])
    refused(tmp_path / "d", "2.parquet", "'text'", "int64")


def test_text_that_is_not_utf8_is_no_caption(tmp_path):
    flawed = pa.array([b"good", FLAWED], pa.binary()).view(pa.string())
    found = open_pairs(parquet(tmp_path / "a.parquet", {"text": flawed}, PICTURES[:2]), failures=0.5)
    holds(found, [("good",)], PICTURES[:1])
    nested = pa.ListArray.from_arrays(pa.array([0, 2, 2], pa.int32()), flawed)
    assert list(open_pairs(parquet(tmp_path / "b.parquet", {"text": nested}, PICTURES[:2]), failures=0.5).captions) == [
        ("good",)
    ]
    write(tmp_path / "0.png", PICTURES[0])
    (tmp_path / "list.csv").write_bytes(b"path,text\n0.png,good\n0.png," + FLAWED + b"\n")
    holds(open_pairs(tmp_path / "list.csv"), [("good",)], PICTURES[:1])


@pytest.fixture
def files(tmp_path):
    """Four image files and the rows of a list of them, one of which has two captions."""
    for number, picture in enumerate(PICTURES):
        write(tmp_path / "photos" / f"{number}.png", picture)
    return [
        {"id": row, "path": f"photos/{number}.png", "caption": caption, "label": "ab"[number % 2]}
        for row, (number, caption) in enumerate(
            [(0, "a cat"), (1, "a dog"), (2, " a  hen "), (1, "the dog runs"), (3, "a dog"), (0, "")]
        )
    ]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_rows_of_one_path_are_one_image(tmp_path, files, kind):
    path = tmp_path / f"list{kind}"
    with path.open("w", newline="") as file:
        if kind == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in files)
        else:
            writer = csv.DictWriter(file, files[0], delimiter="," if kind == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(files)
    found = open_pairs(path)
    holds(found)
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.skipped.seen == 4
    assert len(open_images(path)) == 6
    assert open_pairs(path, captions=["caption", "label"]).captions[1] == ("a dog", "b", "the dog runs", "b")
    refused(path, "has no column 'nothing'", captions=["nothing"])


def test_lists_count_what_is_missing(tmp_path, files):
    rows = [
        *('{"path": "photos/0.png", "caption": ["a", null, 7, " b "]}', '{"path": "photos/1.png"}'),
        *('{"path": "photos/nothing.png", "caption": "a"}', '{"path": "photos/2.png", "caption": " "}'),
        *("no JSON", '{"path": "photos/3.png", "caption": {"a": 1}}', '{"caption": "d"}'),
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    found = open_pairs(tmp_path / "list.jsonl", captions=["caption"], failures=0.9)
    holds(found, [("a", "b")], PICTURES[:1])
    assert (found.skipped.count, found.skipped.seen) == (6, 7)
    assert [name.split("/")[-1] for name in found.skipped.names] == [
        "1.png: it has no caption",
        "nothing.png: No such file or directory",
        "2.png: it has no caption",
        "list.jsonl, record 5: it has no path",
        "3.png: it has no caption",
    ]
    assert open_pairs(tmp_path / "list.jsonl", failures=0.9).captions[0] == ("a", "b")
    (tmp_path / "list.jsonl").write_text('{"path": "photos/0.png", "caption": {"a": "b"}, "text": 7}')
    refused(tmp_path / "list.jsonl", "has no captions")


def test_several_lists_share_their_images(tmp_path, files):
    (tmp_path / "1.csv").write_text("path,caption\nphotos/1.png,a dog\n")
    (tmp_path / "2.csv").write_text("path,text\nphotos/1.png,le chien\nphotos/0.png,le chat\n")
    holds(open_pairs(str(tmp_path / "*.csv")), [("a dog", "le chien"), ("le chat",)], [PICTURES[1], PICTURES[0]])


def test_text_files_beside_images(tmp_path):
    for number, picture in enumerate(PICTURES):
        place = tmp_path / ("animals" if number < 2 else "birds") / "deep" / f"{number}"
        place = place if number % 2 else place.parent.parent / place.name
        write(place.with_suffix(".png"), picture)
    write(tmp_path / "animals" / "0.txt", b"\xef\xbb\xbfa cat\r\n\r\n")
    write(tmp_path / "animals" / "deep" / "1.txt", b"a dog\n \n\tthe  dog runs")
    write(tmp_path / "birds" / "2.caption", b"a hen")
    write(tmp_path / "birds" / "deep" / "3.txt", b"a dog\n" + FLAWED)
    write(tmp_path / "birds" / "deep" / "3.caption", b"another")
    write(tmp_path / "birds" / "2.fr.txt", b"la poule")
    told = []
    found = open_pairs(tmp_path, progress=lambda *done: told.append(done))
    holds(found)
    assert told == [(4, 4)] * 3
    assert open_images(tmp_path).captions is None
    named = open_pairs(tmp_path, captions=["fr.txt", "caption"], failures=0.5)
    holds(named, [("la poule", "a hen"), ("another",)], PICTURES[2:])
    assert named.skipped.names[0] == f"{tmp_path / 'animals' / '0.png'}: it has no caption"
    os.unlink(tmp_path / "birds" / "2.caption")
    refused(tmp_path, "1 of 4", "2.png: it has no caption")
    refused(tmp_path, "has no captions", captions=["it"])
    with pytest.raises(UserError, match="has no captions"):
        open_images(tmp_path, captions=["it"])


def test_folders_stay_classes(tmp_path):
    for number, picture in enumerate(PICTURES):
        write(tmp_path / "ab"[number % 2] / f"{number}.png", picture)
        write(tmp_path / "ab"[number % 2] / f"{number}.txt", b"text")
    found = open_pairs(tmp_path)
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 0, 1, 1]


def test_archives(tmp_path, monkeypatch):
    members = {f"{number}.png": encoded(picture) for number, picture in enumerate(PICTURES)}
    members |= {
        "0.txt": b"a cat\n",
        "0.json": b'{"caption": "not this", "fr": "le chat", "label": 7}',
        "1.json": b'{"captions": ["a dog", "the  dog runs"], "text": "nor this"}',
        "2.caption": b"a hen",
        "2.json": b"{",
        "3.json": b'{"text": "a dog", "fr": ["le chien"]}',
    }
    path = archive(tmp_path / "a.tar", members)
    found = open_pairs(path)
    holds(found)
    assert found.labels.tolist() == [0, -1, -1, -1]
    assert open_images(path).captions is None
    monkeypatch.setattr(archives, "LONG", 0)  # what is kept of an archive goes by the captions asked for
    for _ in range(2):
        holds(open_pairs(path))
        assert open_images(path).captions is None
        named = open_pairs(path, captions=["fr", "txt"], failures=0.5)
        holds(named, [("le chat", "a cat"), ("le chien",)], [PICTURES[0], PICTURES[3]])
        assert named.skipped.names[0] == f"{path}, 1.png: it has no caption"
    refused(path, "has no captions", captions=["it"])


def test_archives_of_files_with_dots(tmp_path):
    members = {"a/IMG.1.png": encoded(PICTURES[0]), "a/IMG.2.png": encoded(PICTURES[1])}
    members |= {"a/IMG.1.txt": b"one", "a/IMG.txt": b"both"}
    path = archive(tmp_path / "a.tar", members)
    holds(open_pairs(path), [("one",), ("both",)], PICTURES[:2])
    members = {"a.seg.png": encoded(PICTURES[0]), "a.jpg": b"", "a.txt": b"a cat"}
    holds(open_pairs(archive(tmp_path / "b.tar", members), column="seg.png"), [("a cat",)], PICTURES[:1])


def test_data_sets(tmp_path, monkeypatch):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "sentences": datasets.Sequence(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["x", "y"]),
        }
    )
    rows = {
        "image": [{"bytes": encoded(picture), "path": None} for picture in PICTURES],
        "sentences": list(map(list, CAPTIONS)),
        "label": [0, 1, 0, 1],
    }
    data = datasets.Dataset.from_dict(rows, features)
    holds(open_pairs(data))
    assert open_images(data).captions is None
    holds(open_pairs(data.select([1, 0])), [CAPTIONS[1], CAPTIONS[0]], [PICTURES[1], PICTURES[0]])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    assert open_pairs("hub:user/name").labels.tolist() == [0, 1, 0, 1]
    refused(data, "no column 'fr'", captions=["fr"])


def test_pairs_from_python(tmp_path):
    path = write(tmp_path / "2.png", PICTURES[2])
    source = [
        (PICTURES[0], "a cat"),
        (Image.fromarray(PICTURES[1]), ["a dog", "the dog runs"]),
        (str(path), ("a hen",)),
        [encoded(PICTURES[3]), " a dog\n"],
    ]
    found = open_pairs(source)
    holds(found)
    assert [found.place(index) for index in (0, 2)] == ["image 1", str(path)]
    assert open_images(source).captions is None
    assert open_pairs(found) is found
    gone = open_pairs([*source, (path.with_name("3.png"), "x"), (PICTURES[0], "")], failures=0.5)
    holds(gone)
    assert [name.split("/")[-1] for name in gone.skipped.names] == [
        "3.png: No such file or directory",
        "image 6: it has no caption",
    ]
    refused([(PICTURES[0], None)], "has no captions")
    refused(PICTURES, "has no captions")
    refused(open_images(PICTURES), "has no captions")
    refused([(7, "x")], "Image 1", "is a int")


def test_the_bundled_sample():
    found = open_pairs("sample:emoji")
    assert len(found) == len(found.captions) == 1644
    assert len(set(chain.from_iterable(found.captions))) == 1644
    assert found.classes[found.labels[list(found.captions).index(("cherries",))]] == "Food & Drink"


def test_the_fingerprint_is_of_captions_too():
    known = open_pairs(list(zip(PICTURES, CAPTIONS, strict=True)))
    assert known.fingerprint() != open_images(PICTURES).fingerprint()
    assert known.fingerprint() == open_pairs(list(zip(PICTURES, CAPTIONS, strict=True))).fingerprint()
    others = [CAPTIONS[0], ("a dog",), ("the dog runs", "a hen"), CAPTIONS[3]]  # the same texts, moved
    assert known.fingerprint() != open_pairs(list(zip(PICTURES, others, strict=True))).fingerprint()


@given(st.lists(st.lists(st.text(max_size=5), max_size=4), min_size=1, max_size=8), st.data())
def test_captions_are_a_sequence(lists, data):
    tidy = [tuple(captions_in(captions)) for captions in lists]
    for text in chain.from_iterable(tidy):
        assert text
        assert text == " ".join(text.split())
    found = Captions.of(tidy)
    if not any(tidy):
        assert found is None
        return
    assert list(found) == tidy
    assert list(found[1:3]) == tidy[1:3]
    assert found[-1] == tidy[-1]
    chosen = data.draw(st.lists(st.integers(0, len(tidy) - 1)))
    part = found.take(np.array(chosen, np.int64))
    assert list(part) == [tidy[index] for index in chosen]
    assert part.counts().tolist() == [len(tidy[index]) for index in chosen]
    size = data.draw(st.integers(1, 5))
    batches = list(part.batches(size))
    assert list(chain.from_iterable(batches)) == list(chain.from_iterable(part))
    assert all(len(batch) == size for batch in batches[:-1])


# -- records -------------------------------------------------------------------------------------------------

TOKENIZER = train_tokenizer("words", ["red cat dog hen sea hill runs"], family="encoder")
WORDS = st.lists(st.sampled_from(["red", "cat", "dog", "hen", "sea", "hill"]), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(WORDS, min_size=1, max_size=4)), min_size=1, max_size=6),
    st.integers(3, 9),
    st.data(),
)
def test_records_hold_all_captions(content, window, data):
    source = open_pairs([(PICTURES[picture], captions) for picture, captions in content])
    part = np.array(data.draw(st.permutations(range(len(content)))))[: data.draw(st.integers(1, 6))]
    records = PairRecords(source, part, 8, TOKENIZER, window)
    wanted = np.array(data.draw(st.lists(st.integers(0, len(part) - 1), min_size=1, max_size=5)))
    read = records.read(wanted)
    expected = [
        [[TOKENIZER.start, *TOKENIZER.encode(text).tolist()[: window - 2], TOKENIZER.end] for text in content[index][1]]
        for index in part
    ]
    lengths = [len(ids) for captions in expected for ids in captions]
    assert len(records) == len(part)
    assert records.mean_length == pytest.approx(np.mean(lengths))
    assert records.truncated == sum(len(text.split()) > window - 2 for index in part for text in content[index][1])
    assert read["captions"].tolist() == [len(expected[record]) for record in wanted]
    most = max(len(expected[record]) for record in wanted)
    longest = max(lengths)
    assert read["tokens"].shape == (len(wanted), most, longest)
    keys = {}
    for row, record in enumerate(wanted):
        for number in range(most):
            ids = expected[record][number] if number < len(expected[record]) else []
            assert read["lengths"][row, number] == len(ids)
            padded = ids + [TOKENIZER.pad] * (longest - len(ids))
            assert read["tokens"][row, number].tolist() == padded
            if ids:
                keys.setdefault(tuple(ids), set()).add(int(read["text_keys"][row, number]))
            else:
                assert read["text_keys"][row, number] == 0
    assert all(len(found) == 1 for found in keys.values())
    assert len(set.union(*keys.values())) == len(keys)
    shown = [content[part[record]][0] for record in wanted]
    same = np.equal.outer(shown, shown)
    assert np.array_equal(np.equal.outer(read["image_keys"].numpy(), read["image_keys"].numpy()), same)
    plain = ImageRecords(source, part, 8)
    for name, values in plain.read(wanted).items():
        assert torch.equal(read[name], values)
    assert all(values.dtype == torch.int64 for name, values in read.items() if name != "pixels")
    assert records.place(0) == source.place(part[0])


def test_captions_go_with_the_image_that_takes_the_place_of_a_bad_one(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "SMALL", 0)
    for number, word in enumerate(["cat", "dog", "hen"]):
        write(tmp_path / f"{number}.png", noise(40, 50, number))
        write(tmp_path / f"{number}.txt", word.encode())
    whole = (tmp_path / "1.png").read_bytes()
    write(tmp_path / "1.png", whole[:900])
    source = open_pairs(tmp_path, failures=0.5)
    records = PairRecords(source, np.array([1, 2, 0]), 40, TOKENIZER, 8)
    read = records.read(np.array([0, 2, 1]))
    assert [TOKENIZER.decode(ids[0]) for ids in read["tokens"]] == ["hen", "cat", "hen"]
    np.testing.assert_array_equal(read["pixels"][0].permute(1, 2, 0).numpy(), noise(40, 50, 2))
    assert read["image_keys"][0] == read["image_keys"][2] != read["image_keys"][1]


def test_captions_are_encoded_in_batches(monkeypatch):
    source = open_pairs(list(zip(PICTURES, CAPTIONS, strict=True)))
    known = PairRecords(source, np.arange(4), 8, TOKENIZER, 8).read(np.arange(4))
    monkeypatch.setattr(pairs, "BATCH", 2)
    again = PairRecords(source, np.arange(4), 8, TOKENIZER, 8).read(np.arange(4))
    assert all(torch.equal(known[name], again[name]) for name in known)


def test_records_need_captions_and_a_window():
    with pytest.raises(UserError, match="has no captions"):
        PairRecords(open_images(PICTURES), np.arange(4), 8, TOKENIZER, 8)
    source = open_pairs(list(zip(PICTURES, CAPTIONS, strict=True)))
    with pytest.raises(UserError, match="window of 2"):
        PairRecords(source, np.arange(4), 8, TOKENIZER, 2)


def test_records_of_the_bundled_sample():
    source = open_pairs("sample:emoji")
    train, held_out = split_images(source, 0.1)
    captions = list(chain.from_iterable(source.captions.take(train)))
    tokenizer = train_tokenizer("wordpiece", captions, 500, family="encoder")
    records = PairRecords(source, held_out, 64, tokenizer, 32)
    read = records.read(np.arange(len(records)))
    assert read["pixels"].shape == (len(held_out), 3, 64, 64)
    for row, index in enumerate(held_out):
        (name,) = source.captions[index]
        shown = read["tokens"][row, 0, 1 : read["lengths"][row, 0] - 1].numpy()
        np.testing.assert_array_equal(shown, tokenizer.encode(name))
    assert len(read["image_keys"].unique()) == len(np.unique(source.hashes[held_out])) < len(held_out)
