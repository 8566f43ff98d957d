"""A library: made, kept up to date without embedding twice, searched exactly and by index, and its errors."""

from __future__ import annotations

import csv
import datetime
import json
import shutil
import subprocess
import sys

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import WIDTH, WORDS, save_tiny

import selfsup
from selfsup.errors import UserError
from selfsup.inference import library as library_module
from selfsup.inference.columns import Kinds, as_string, kind_of
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.hits import Hit, snippet
from selfsup.inference.library import Library
from selfsup.inference.texts import Text

STORIES = [
    {"key": "a", "text": "a storm at sea", "year": 1850, "author": "Ann O'Neil"},
    {"key": "b", "text": "the ship sank in the storm", "year": 1990, "author": "Bo"},
    {"key": "c", "text": "the old man smoked his pipe by the fire", "year": 1952, "author": "Cy"},
    {"key": "d", "text": "the cat sat on the hill and the dog ran", "year": 2001, "author": "Di"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def stories(model, tmp_path_factory):
    """A library that tests look at and leave as it is."""
    path = tmp_path_factory.mktemp("stories") / "stories.lance"
    selfsup.index(model, STORIES, path, id_column="key")
    return path


@pytest.fixture
def embedded(monkeypatch):
    """The texts that went through the model."""
    seen = []
    original = EncoderModel.embed

    def spy(self, texts, **options):
        seen.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(EncoderModel, "embed", spy)
    return seen


def refused(work, *words):
    with pytest.raises(UserError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    assert ".rs:" not in message
    for word in words:
        assert word in message
    return message


def rows(path):
    found = lancedb.connect(path.parent).open_table(path.stem).search().to_arrow().to_pylist()
    return {row["id"]: row for row in found}


# -- search --


def test_the_nearest_are_found_as_by_hand(model, stories):
    hits = selfsup.search(stories, "a storm", top=3)
    encoder = selfsup.load(model)
    query = encoder.embed(["a storm"])[0]
    vectors = encoder.embed([story["text"] for story in STORIES])
    cosine = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosine)[:3]
    assert [hit.id for hit in hits] == [STORIES[i]["key"] for i in order]
    np.testing.assert_allclose([hit.score for hit in hits], cosine[order], atol=2e-2)
    assert hits[0].text == "a storm at sea"
    assert hits[0].values == {"year": 1850, "author": "Ann O'Neil"}
    assert hits[0].source == "record 1"


def test_conditions_on_the_columns(stories):
    def ids(where):
        return {hit.id for hit in selfsup.search(stories, "a storm", where=where)}

    assert ids("year > 1950") == {"b", "c", "d"}
    assert ids("year > 1950 AND author LIKE 'C%'") == {"c"}
    assert ids("id IN ('a', 'd')") == {"a", "d"}
    assert ids("year > 3000") == set()
    assert len(selfsup.search(stories, "a storm", top=1, where="year > 1950")) == 1


def test_a_searcher_answers_again(stories):
    searcher = selfsup.Searcher(stories)
    assert searcher("a storm at sea")[0].id == "a"
    assert searcher("the old man smoked his pipe by the fire", top=1)[0].score == pytest.approx(1, abs=1e-3)


def test_a_model_that_moved(model, tmp_path):
    place = tmp_path / "model"
    shutil.copytree(model, place)
    selfsup.index(place, STORIES, tmp_path / "x.lance")
    place.rename(tmp_path / "moved")
    refused(lambda: selfsup.search(tmp_path / "x.lance", "storm"), str(place), "--model", "mean")
    assert selfsup.search(tmp_path / "x.lance", "a storm at sea", model=tmp_path / "moved")[0].text == "a storm at sea"
    other = save_tiny(tmp_path / "other", seed=1)
    refused(lambda: selfsup.search(tmp_path / "x.lance", "storm", model=other), "another model")


def test_what_search_refuses(stories, tmp_path):
    refused(lambda: selfsup.search(tmp_path / "no.lance", "x"), "There is no library", "selfsup index")
    refused(lambda: selfsup.search(stories, " "), "query is empty")
    refused(lambda: selfsup.search(stories, "x", top=0), "top is 0")
    for where in ("yeer > 1", "year >>> 1", "year > 'x'", "", "1"):
        message = refused(lambda where=where: selfsup.search(stories, "x", where=where), repr(where), "year")
        assert "vector" not in message.rpartition("columns")[2]
    made = lancedb.connect(tmp_path).create_table("other", [{"vector": [1.0, 2.0], "id": "a"}])
    assert made.count_rows() == 1
    refused(lambda: selfsup.search(tmp_path / "other.lance", "x"), "not made by selfsup index")


def test_a_damaged_library(model, tmp_path):
    path = tmp_path / "x.lance"
    selfsup.index(model, STORIES, path)
    for file in (path / "data").iterdir():
        file.write_bytes(b"x")
    refused(lambda: selfsup.search(path, "storm"), "x.lance is damaged")


# -- index --


def test_what_is_stored(model, stories):
    table = lancedb.connect(stories.parent).open_table("stories")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), WIDTH)
    assert table.schema.field("year").type == pa.int64()
    description = Library.open(stories).description
    assert description["model"] == str(model)
    assert (description["pooling"], description["dimension"]) == ("mean", WIDTH)
    assert "index" not in description
    stored = rows(stories)
    assert {key: row["text"] for key, row in stored.items()} == {story["key"]: story["text"] for story in STORIES}


def test_only_what_changed_is_embedded(model, tmp_path, embedded):
    path = tmp_path / "x.lance"
    first = selfsup.index(model, STORIES, path, id_column="key")
    assert (first.records, first.added, first.updated, first.unchanged, first.embedded) == (4, 4, 0, 0, 4)
    before = rows(path)
    version = lancedb.connect(tmp_path).open_table("x").version

    embedded.clear()
    again = selfsup.index(model, STORIES, path, id_column="key")
    assert (again.records, again.added, again.updated, again.unchanged, again.embedded) == (4, 0, 0, 4, 0)
    assert embedded == []
    assert rows(path) == before
    assert lancedb.connect(tmp_path).open_table("x").version == version

    changed = [
        STORIES[0],
        {**STORIES[1], "text": "the dog sank in the sea"},
        {**STORIES[2], "year": 1953},
        {**STORIES[3], "key": "e"},
    ]
    third = selfsup.index(model, changed, path, id_column="key")
    assert (third.records, third.added, third.updated, third.unchanged, third.embedded) == (5, 1, 2, 1, 1)
    assert embedded == [changed[1]["text"]]  # the other new one says what another record says
    after = rows(path)
    assert after["a"] == before["a"]
    assert after["d"] == before["d"]  # the source no longer holds it, and only `delete` removes
    assert after["c"] == {**before["c"], "year": 1953, "values_hash": after["c"]["values_hash"]}
    assert after["b"]["text"] == changed[1]["text"]
    assert after["b"]["vector"] == pytest.approx(selfsup.load(model).embed([changed[1]["text"]])[0], abs=1e-2)


def test_new_columns_and_missing_ones(model, tmp_path):
    path = tmp_path / "x.lance"
    selfsup.index(model, STORIES[:2], path, id_column="key")
    selfsup.index(model, [{"key": "z", "text": "night", "pages": 3}], path, id_column="key")
    stored = rows(path)
    assert (stored["z"]["pages"], stored["z"]["year"], stored["a"]["pages"]) == (3, None, None)
    refused(
        lambda: selfsup.index(model, [{"key": "y", "text": "fire", "year": "soon"}], path, id_column="key"),
        "column year holds int64",
        "'soon'",
    )
    assert set(rows(path)) == {"a", "b", "z"}
    assert Library.open(path).description["model"] == str(model)


@pytest.mark.parametrize("chunk", [1, 3])
def test_an_interrupted_index_goes_on(model, tmp_path, monkeypatch, embedded, chunk):
    source = [{"key": str(i), "text": f"the {WORDS[i % len(WORDS)]} {i}"} for i in range(20)]
    path = tmp_path / "x.lance"
    put, calls = Library.put, []

    class Killed(BaseException):
        pass

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == chunk:
            raise Killed
        put(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Library, "put", dying)
        with pytest.raises(Killed):
            selfsup.index(model, source, path, id_column="key", batch=4)
    done = 4 * (chunk - 1)
    assert len(rows(path)) == done
    embedded.clear()
    seen = []
    made = selfsup.index(
        model, source, path, id_column="key", batch=4, progress=lambda done, total: seen.append((done, total))
    )
    assert (made.records, made.added, made.unchanged) == (20, 20 - done, done)
    assert embedded == [item["text"] for item in source[done:]]
    assert seen[-1] == (20, 20)
    selfsup.index(model, source, tmp_path / "whole.lance", id_column="key", batch=4)
    assert rows(path) == rows(tmp_path / "whole.lance")


def test_what_a_crash_left_of_a_beginning_is_no_obstacle(model, tmp_path):
    for name in ("_transactions", "_versions"):
        (tmp_path / "x.lance" / name).mkdir(parents=True)
    (tmp_path / "x.lance" / ".lock").touch()
    assert selfsup.index(model, STORIES, tmp_path / "x.lance").records == 4


def test_delete(model, tmp_path):
    path = tmp_path / "x.lance"
    odd = [{"key": "it's", "text": "a storm"}, *STORIES]
    selfsup.index(model, odd, path, id_column="key")
    refused(lambda: selfsup.delete(path, ["a", "nothing"]), "'nothing'", "nothing was deleted")
    assert len(rows(path)) == 5
    assert selfsup.delete(path, ["it's", "a"]) == 3
    assert set(rows(path)) == {"b", "c", "d"}
    refused(lambda: selfsup.delete(tmp_path / "no.lance", ["a"]), "There is no library")


def test_what_index_refuses(model, stories, tmp_path, monkeypatch):
    other = save_tiny(tmp_path / "other", seed=1)
    before = rows(stories)
    refused(lambda: selfsup.index(other, STORIES, stories, id_column="key"), "another model", str(model))
    twice = [STORIES[0], {**STORIES[1], "key": "a"}]
    refused(lambda: selfsup.index(model, twice, stories, id_column="key"), "'a' occurs twice")
    assert rows(stories) == before
    refused(lambda: selfsup.index(model, STORIES, tmp_path / "library"), "ends in .lance")
    refused(lambda: selfsup.index(model, STORIES, tmp_path / "my library.lance"), "ends in .lance")
    refused(lambda: selfsup.index(model, STORIES, tmp_path / "x.lance", batch=0), "batch is 0")
    (tmp_path / "mine.lance").mkdir()
    (tmp_path / "mine.lance" / "a.txt").write_text("mine")
    refused(lambda: selfsup.index(model, STORIES, tmp_path / "mine.lance"), "is no library")
    with Library.held(stories):
        refused(lambda: selfsup.index(model, STORIES, stories, id_column="key"), "another process")
    assert not (tmp_path / "x.lance").exists()
    monkeypatch.setitem(sys.modules, "lancedb", None)
    refused(lambda: selfsup.index(model, STORIES, tmp_path / "x.lance"), "pip install 'selfsup[search]'")
    refused(lambda: selfsup.search(stories, "storm"), "pip install 'selfsup[search]'")


def test_pooling_makes_another_model(tmp_path):
    mean, cls = save_tiny(tmp_path / "mean"), save_tiny(tmp_path / "cls", pooling="cls")
    selfsup.index(mean, STORIES, tmp_path / "x.lance")
    refused(lambda: selfsup.index(cls, STORIES, tmp_path / "x.lance"), "another model")


# -- columns --


def test_a_csv_file_with_awkward_columns(model, tmp_path):
    file = tmp_path / "books.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["id", "text", "Publication year", "Year", "year", "price", "zip", "source", "2nd", "none"])
        writer.writerow(["1", "a storm", "1850", "1", "x", "1.5", "007", "shop", "t", ""])
        writer.writerow(["2", "the sea", "1990", "", "y", "2", "12", "", "u", ""])
    path = tmp_path / "x.lance"
    selfsup.index(model, file, path)
    kinds = Library.open(path).kinds
    assert kinds == {
        "id_": pa.int64(),
        "Publication_year": pa.int64(),
        "Year": pa.int64(),
        "year_": pa.string(),
        "price": pa.float64(),
        "zip": pa.string(),
        "source_": pa.string(),
        "_2nd": pa.string(),
    }
    stored = rows(path)
    first, second = (stored[f"{file}, line {line}"] for line in (2, 3))
    assert (first["Publication_year"], first["price"], first["zip"], first["source_"]) == (1850, 1.5, "007", "shop")
    assert (second["Year"], second["price"], second["zip"], second["source_"]) == (None, 2.0, "12", None)
    assert [hit.id for hit in selfsup.search(path, "sea", where="Publication_year > 1900")] == [f"{file}, line 3"]
    assert selfsup.index(model, file, path).unchanged == 2


def test_parquet_with_every_kind_of_value(model, tmp_path):
    table = pa.table(
        {
            "text": ["a storm", "the sea"],
            "day": [datetime.date(2020, 1, 2), None],
            "tags": [["x", "y"], []],
            "data": [b"\xff", b"\x00"],
            "good": [True, False],
            "share": pa.array([0.5, None], pa.float32()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    selfsup.index(model, tmp_path / "a.parquet", tmp_path / "x.lance")
    (hit,) = selfsup.search(tmp_path / "x.lance", "storm", where="good AND day >= '2020-01-01'")
    assert hit.values == {"day": "2020-01-02", "tags": '["x", "y"]', "good": True, "share": 0.5}


def test_folders_of_text_files(model, tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("a storm at sea")
    (folder / "b.md").write_text("the old man")
    monkeypatch.chdir(tmp_path)
    selfsup.index(model, "texts", "x.lance")
    monkeypatch.chdir(folder)
    made = selfsup.index(model, ".", tmp_path / "x.lance")
    assert (made.added, made.unchanged) == (0, 2)
    assert selfsup.search(tmp_path / "x.lance", "a storm at sea", top=1)[0].source == str(folder / "a.txt")


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()))
def test_a_value_is_stored_as_it_can_be_read_again(value):
    kinds = Kinds()
    list(kinds.watch([Text("", "", "", {"x": value})]))
    columns = kinds.columns({}, library_module.OWN)
    if not columns:
        assert value is None or value == "" or isinstance(value, bytes)
        return
    column = columns["x"]
    stored = pa.array([column.convert(value, "here")], column.kind).to_pylist()[0]
    assert stored == value or as_string(stored) == as_string(value) or float(stored) == float(value)


def test_kinds_of_strings():
    numbers = {"0": pa.int64(), "-12": pa.int64(), "1.50": pa.float64(), "2.5e-3": pa.float64()}
    for text, kind in numbers.items():
        assert kind_of(text) == kind
    for text in ("007", "1_000", "+5", "1e5x", "nan", "1.", "１２", "9" * 30, " 1"):
        assert kind_of(text) == pa.string()
    assert kind_of(2**63) == pa.string()


# -- the index of many rows --


def test_many_rows_are_indexed_and_the_recall_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(library_module, "EXACT_ROWS", 500)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((600, 8)).astype(np.float32)
    library = Library.create(
        tmp_path / "x.lance", {"dimension": 8, "model_fingerprint": "f", "model": "m", "pooling": "mean"}
    )

    def put(start, end):
        ids = [str(i) for i in range(start, end)]
        given = {name: ids for name in library_module.OWN if name != "vector"}
        library.put(given, vectors[start:end])
        library.settle(worded=False)

    put(0, 499)
    assert "index" not in library.description
    put(499, 550)
    measured = library.description["index"]
    assert measured == {"index": "IVF_SQ", "recall@10": measured["recall@10"], "queries": 100, "rows": 550}
    assert 0.95 < measured["recall@10"] <= 1
    version = library._table.version
    library.settle(worded=False)
    assert library._table.version == version
    put(550, 600)
    assert library.description["index"]["rows"] == 600
    reopened = Library.open(tmp_path / "x.lance")
    for query in random.standard_normal((10, 8)).astype(np.float32):
        cosine = vectors @ query / np.linalg.norm(vectors, axis=1)
        expected = {str(i) for i in np.argsort(-cosine)[:10]}
        exact = reopened._nearest(query, 10, exact=True).to_list()
        assert {row["id"] for row in exact} == expected
        assert len({row["id"] for row in reopened.search(query, 10)} & expected) >= 8
    assert [row["id"] for row in reopened.search(vectors[7], 3, "id = '9'")] == ["9"]


def test_recall_is_the_share_that_the_index_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(library_module, "EXACT_ROWS", 300)
    vectors = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    library = Library.create(
        tmp_path / "x.lance", {"dimension": 8, "model_fingerprint": "f", "model": "m", "pooling": "mean"}
    )
    nearest = Library._nearest

    def half_blind(self, vector, top, exact):
        return nearest(self, vector, top if exact else top // 2 + 1, exact)

    monkeypatch.setattr(Library, "_nearest", half_blind)
    library.put({name: [str(i) for i in range(300)] for name in library_module.OWN if name != "vector"}, vectors)
    library.settle(worded=False)
    assert library.description["index"]["recall@10"] == pytest.approx(0.5, abs=0.02)


# -- what is shown --

LONG = "Call me Ishmael. " * 20 + "Then rose a terrible storm at sea, and the ship sank. " + "It was long ago. " * 20


def test_snippets():
    found = snippet(LONG, "a storm at sea", 60)
    assert "storm at sea" in found
    assert found.startswith("…")
    assert found.endswith("…")
    assert snippet(LONG, "elephants", 40).startswith("Call me Ishmael. Call me")
    assert snippet("two\n\nlines\there", "x", 40) == "two lines here"
    assert "STORM" in snippet("x " * 100 + "STORM" + " y" * 100, "storm", 30)
    assert "storm" not in snippet("x " * 100 + "thunderstorms" + " y" * 100, "storm", 30)


@given(
    words=st.lists(st.sampled_from(["storm", "sea", "a", "long" * 30, "b?c", "ß", "\n"]), max_size=60),
    query=st.text(max_size=20) | st.sampled_from(["storm", "a sea", "b?c", "[", "(?i)"]),
    width=st.integers(4, 80),
)
def test_a_snippet_is_one_line_of_the_text(words, query, width):
    text = " ".join(words)
    shown = snippet(text, query, width)
    assert len(shown) <= width + 1
    assert "\n" not in shown
    assert shown.strip("…") in " ".join(text.split())
    for word in ("storm", "sea"):
        if query == word and word in words and width >= 12:
            assert word in shown


def test_hits_are_json(stories):
    hit = selfsup.search(stories, "a storm at sea", top=1)[0]
    assert isinstance(hit, Hit)
    assert json.loads(json.dumps(hit.to_json()))["values"]["year"] == 1850


def test_a_search_of_texts_loads_no_more_than_it_needs(stories):
    """No images and their views, no other kinds of models, nothing that trains, measures or reads sources."""
    code = (
        "import sys, selfsup\n"
        f"assert selfsup.search({str(stories)!r}, 'a storm at sea')[0].text == 'a storm at sea'\n"
        "print(*(name for name in sys.modules if name.startswith('selfsup')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "selfsup.inference.encoder" in loaded
    foreign = (
        "views",
        "objectives",
        "evaluation",
        "inspection",
        "exporting",
        "training",
        "data.images",
        "data.sources",
    )
    foreign += ("models.vision", "models.decoder", "models.adapters", "inference.generate", "inference.pictures")
    assert not [name for name in loaded if name.removeprefix("selfsup.").startswith(foreign)]
    assert len(loaded) < 41


# -- the commands --


def test_the_commands(model, tmp_path, selfsup_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "stories.jsonl"
    source.write_text("".join(json.dumps(story) + "\n" for story in STORIES))
    answer = selfsup_command("index", model, "--data", source, "--out", "x.lance")
    assert answer.code == 0, answer
    assert "4 added, 0 updated, 0 unchanged" in " ".join(answer.out.split())
    assert "exact" in answer.out
    answer = selfsup_command("search", "x.lance", "a storm at sea", "--top", 2, "--where", "year < 1995")
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[0] == ["score", "text", "source"]
    assert lines[1] == ["1.000", "a", "storm", "at", "sea", "stories.jsonl,", "line", "1"]
    assert len(lines) == 3
    answer = selfsup_command("search", "x.lance", "a storm at sea", "--json", "--top", 1)
    found = json.loads(answer.out)
    assert (found["query"], found["hits"][0]["text"]) == ("a storm at sea", "a storm at sea")
    answer = selfsup_command("search", "x.lance", "storm", "--where", "year > 3000")
    assert answer.out == "Nothing found.\n"
    identifier = f"{source}, line 1"
    answer = selfsup_command("delete", "x.lance", identifier)
    assert (answer.code, answer.out) == (0, "1 deleted, 3 left in x.lance.\n")
    answer = selfsup_command("delete", "x.lance", identifier, "--json")
    assert (answer.code, answer.out) == (2, "")
    answer = selfsup_command("index", model, "--data", source, "--out", "x.lance", "--json")
    made = json.loads(answer.out)
    assert (made["added"], made["unchanged"], made["index"]) == (1, 3, None)
    for words in (
        ("index", "--out", "x.lance"),
        ("index", model, "--out", "x.lance"),
        ("delete", "x.lance"),
        ("delete", "x.lance", "b", "nothing"),
        ("search", "x.lance", ""),
        ("search", "y.lance", "a"),
    ):
        answer = selfsup_command(*words)
        assert (answer.code, answer.out) == (2, ""), answer
        assert answer.error.count("\n") == 1


def test_all_of_a_library_can_be_taken_out(model, tmp_path):
    """All records or some that are drawn, each with its own vector; its fingerprint changes with what is in it."""
    path = tmp_path / "stories.lance"
    selfsup.index(model, STORIES, path, id_column="key")
    library = Library.open(path)
    ids, vectors = library.sample(10)
    assert sorted(ids) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(vectors, library.vectors(ids))
    drawn, some = library.sample(3)
    assert len(set(drawn)) == 3
    np.testing.assert_array_equal(some, library.vectors(drawn))
    assert library.sample(3)[0] == drawn
    assert sorted(library.columns("year").column("year").to_pylist()) == [1850, 1952, 1990, 2001]
    assert library.record("b")["author"] == "Bo"
    assert not {"vector", "content_hash", "values_hash"} & set(library.record("b"))
    with pytest.raises(UserError, match="no record with the id 'x'"):
        library.record("x")
    before = library.fingerprint
    assert Library.open(path).fingerprint == before
    selfsup.delete(path, "a")
    assert Library.open(path).fingerprint != before
