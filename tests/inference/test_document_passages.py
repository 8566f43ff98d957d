"""Documents in passages: embedded, indexed, brought up to date, found by meaning and by their words."""

from __future__ import annotations

import json
import re

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny_encoder import WORDS, save_tiny

import selfsup
from selfsup.errors import UserError
from selfsup.inference import search as search_module
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.hits import Hit, show
from selfsup.inference.library import Library
from selfsup.inference.search import reciprocal_ranks

ROOM = 14  # words that the model reads of a text


def sentence(number):
    random = np.random.default_rng(number)
    return " ".join(["The", *random.choice(WORDS, random.integers(2, 6)), f"{number}."])


def book(*numbers):
    return "\n".join(sentence(number) for number in numbers)


BOOKS = [
    {"key": "long", "text": book(*range(30)), "year": 1850},
    {"key": "short", "text": "  A storm at sea. ", "year": 1990},
    {"key": "other", "text": book(*range(100, 112)), "year": 1952},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def books(model, tmp_path_factory):
    """A library that tests look at and leave as it is."""
    path = tmp_path_factory.mktemp("books") / "books.lance"
    selfsup.index(model, BOOKS, path, id_column="key")
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
    for word in words:
        assert word in str(caught.value)


def rows(path):
    found = lancedb.connect(path.parent).open_table(path.stem).search().to_arrow().to_pylist()
    return {row["id"]: row for row in found}


# -- embed --


def test_each_passage_has_a_row_that_says_where_it_stands(model, tmp_path):
    made = selfsup.embed(model, BOOKS, tmp_path / "a.parquet", id_column="key")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["id", "text", "document", "start", "end", "vector"]
    found = table.to_pylist()
    texts = {one["key"]: one["text"] for one in BOOKS}
    for row in found:
        assert texts[row["document"]][row["start"] : row["end"]] == row["text"]
        whole = row["document"] == "short"
        assert row["id"] == row["document"] + ("" if whole else f", characters {row['start']}–{row['end']}")
    assert [row["document"] for row in found] == sorted((row["document"] for row in found), key=list(texts).index)
    assert sum(row["document"] == "long" for row in found) > 5
    alone = selfsup.load(model).embed([row["text"] for row in found], precision="fp32")
    np.testing.assert_allclose(np.array([row["vector"] for row in found]), alone, atol=2e-2)
    assert (made.records, made.left_out.truncated) == (len(found), 0)
    assert re.fullmatch(
        rf"{len(found) - 1}, of 2 documents longer than 14 tokens, at most 1 of which two share",
        made.rows()["passages"],
    )
    assert json.loads(table.schema.metadata[b"selfsup"])["passages"] == {"tokens": ROOM, "overlap": 1}


def test_passages_of_another_size_and_none(model, tmp_path):
    selfsup.embed(model, BOOKS, tmp_path / "a.parquet", passages=8, overlap=2)
    texts = pq.read_table(tmp_path / "a.parquet").column("text").to_pylist()
    assert max(len(re.findall(r"\w+|\.", text)) for text in texts) <= 8
    made = selfsup.embed(model, BOOKS, tmp_path / "b.parquet", passages="none")
    table = pq.read_table(tmp_path / "b.parquet")
    assert table.column_names == ["id", "text", "vector"]
    assert table.column("text").to_pylist() == [one["text"] for one in BOOKS]
    assert made.left_out.truncated == 2
    for options, words in (
        ({"passages": 15}, "reads 14 tokens"),
        ({"passages": "none", "overlap": 1}, "embedded whole"),
        ({"passages": "some"}, "'some'"),
        ({"passages": 8, "overlap": 3}, "0 to 2"),
    ):
        refused(lambda options=options: selfsup.embed(model, BOOKS, tmp_path / "c.parquet", **options), words)
    assert not (tmp_path / "c.parquet.partial").exists()


def test_an_interrupted_embedding_goes_on(model, tmp_path, monkeypatch):
    out, calls = tmp_path / "a.parquet", []
    original = EncoderModel.embed

    def dying(self, texts, **options):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderModel, "embed", dying)
        with pytest.raises(KeyboardInterrupt):
            selfsup.embed(model, BOOKS, out, batch=4)
    refused(lambda: selfsup.embed(model, BOOKS, out, batch=4, passages=8), "begun with another")
    calls.clear()
    seen = []
    selfsup.embed(model, BOOKS, out, batch=4, progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 8
    selfsup.embed(model, BOOKS, tmp_path / "b.parquet", batch=4)
    assert out.read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_an_id_that_occurs_twice(model, tmp_path):
    """Of documents, though their passages have places of their own."""
    twice = [BOOKS[0], {**BOOKS[2], "key": "long"}]
    refused(lambda: selfsup.embed(model, twice, tmp_path / "a.parquet", id_column="key"), "'long' occurs twice")


# -- index --


def test_what_is_stored(books):
    stored = rows(books)
    texts = {one["key"]: one["text"] for one in BOOKS}
    for key, row in stored.items():
        assert texts[row["document"]][row["start"] : row["end"]] == row["text"]
        assert row["year"] == {one["key"]: one["year"] for one in BOOKS}[row["document"]]
        assert key == row["id"]
    assert stored["short"]["source"] == "record 2"
    place = next(row for row in stored.values() if row["document"] == "other" and row["start"] == 0)
    assert place["source"] == f"record 3, characters 0–{place['end']}"


def test_of_a_changed_document_only_what_is_new_is_embedded_and_what_is_gone_is_removed(model, tmp_path, embedded):
    path = tmp_path / "x.lance"
    first = selfsup.index(model, BOOKS, path, id_column="key")
    assert (first.added, first.removed, first.embedded) == (first.records, 0, len(embedded))
    before = rows(path)

    embedded.clear()
    again = selfsup.index(model, BOOKS, path, id_column="key")
    assert (again.added, again.updated, again.unchanged, again.removed) == (0, 0, first.records, 0)
    assert embedded == []

    changed = [{**BOOKS[0], "text": sentence(99) + "\n" + book(*range(20))}, BOOKS[1]]
    third = selfsup.index(model, changed, path, id_column="key")
    after = rows(path)
    former = {row["text"] for row in before.values()}
    assert sorted(embedded) == sorted({row["text"] for row in after.values()} - former)
    assert 0 < len(embedded) < len([row for row in after.values() if row["document"] == "long"])
    gone = before.keys() - after.keys()
    assert {before[key]["document"] for key in gone} == {"long"}
    assert third.removed == len(gone) > 0
    assert third.records == len(after) == first.records + third.added - third.removed
    selfsup.index(model, changed, tmp_path / "new.lance", id_column="key")
    fresh = rows(tmp_path / "new.lance")
    assert after.keys() - fresh.keys() == {key for key in before if before[key]["document"] == "other"}  # it stays
    for key, row in fresh.items():
        np.testing.assert_allclose(after[key].pop("vector"), row.pop("vector"), atol=2e-2)
        assert after[key] == row

    shorter = [{**BOOKS[0], "text": "A storm."}]
    fourth = selfsup.index(model, shorter, path, id_column="key")
    assert [key for key, row in rows(path).items() if row["document"] == "long"] == ["long"]
    assert fourth.removed == len([row for row in fresh.values() if row["document"] == "long"])


@pytest.mark.parametrize("moment", range(1, 7))
def test_an_interrupted_change_goes_on(model, tmp_path, monkeypatch, moment):
    """However far it came: nothing of the former version is removed before all of the new one is there."""
    path, calls = tmp_path / "x.lance", []
    selfsup.index(model, BOOKS, path, id_column="key")
    changed = [{**BOOKS[0], "text": sentence(99) + "\n" + BOOKS[0]["text"]}, *BOOKS[1:]]

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        for name in ("put", "remove"):
            original = getattr(Library, name)

            def dying(self, *arguments, original=original):
                calls.append(1)
                if len(calls) == moment:
                    raise Killed
                original(self, *arguments)

            patch.setattr(Library, name, dying)
        try:
            selfsup.index(model, changed, path, id_column="key", batch=3)
        except Killed:
            former = {one["id"] for one in rows(path).values() if one["document"] == "long"}
            assert len(former) > 5
    selfsup.index(model, changed, path, id_column="key", batch=3)
    selfsup.index(model, changed, tmp_path / "new.lance", id_column="key")
    assert {key: row["text"] for key, row in rows(path).items()} == {
        key: row["text"] for key, row in rows(tmp_path / "new.lance").items()
    }


def test_equal_passages_are_embedded_once(model, tmp_path, embedded):
    copies = [{"key": str(n), "text": BOOKS[0]["text"]} for n in range(3)]
    made = selfsup.index(model, copies, tmp_path / "x.lance", id_column="key", batch=5)
    assert made.embedded == len(embedded) == len(set(embedded)) == made.records / 3
    stored = rows(tmp_path / "x.lance").values()
    by_text = {}
    for row in stored:
        assert by_text.setdefault(row["text"], row["vector"]) == row["vector"]


def test_a_vector_is_not_taken_from_a_record_that_has_changed_meanwhile(model, tmp_path, embedded):
    path = tmp_path / "x.lance"
    selfsup.index(model, [{"key": "a", "text": "a storm"}], path, id_column="key")
    embedded.clear()
    swapped = [{"key": "a", "text": "the sea"}, {"key": "b", "text": "a storm"}]
    selfsup.index(model, swapped, path, id_column="key", batch=1)
    assert embedded == ["the sea", "a storm"]
    encoder = selfsup.load(model)
    for key, text in (("a", "the sea"), ("b", "a storm")):
        np.testing.assert_allclose(rows(path)[key]["vector"], encoder.embed([text])[0], atol=2e-2)


def test_a_library_keeps_how_it_was_cut(model, tmp_path):
    path = tmp_path / "x.lance"
    selfsup.index(model, BOOKS, path, id_column="key", passages=8, overlap=0)
    assert selfsup.index(model, BOOKS, path, id_column="key").unchanged == len(rows(path))
    for options in ({"passages": "auto"}, {"passages": 9}, {"passages": "none"}, {"overlap": 1}):
        refused(
            lambda options=options: selfsup.index(model, BOOKS, path, id_column="key", **options),
            "passages of 8 tokens that share 0",
        )


def test_a_library_of_whole_documents_stays_one(model, tmp_path):
    """Such as those that were made before there were passages, whose columns may be called as theirs."""
    path = tmp_path / "x.lance"
    source = [{**one, "start": number, "document": "d"} for number, one in enumerate(BOOKS)]
    selfsup.index(model, source, path, id_column="key", passages="none")
    with Library.held(path) as library:
        library.describe({key: value for key, value in library.description.items() if key != "passages"})
        library._table.drop_index("text_idx")
    again = selfsup.index(model, [*source, {**source[0], "key": "new"}], path, id_column="key")
    assert (again.records, again.added, again.unchanged) == (4, 1, 3)
    assert again.embedded == 0
    hit = next(hit for hit in selfsup.search(path, "a storm") if hit.id == "new")
    assert (hit.document, hit.start, hit.end, hit.ranks) == (None, None, None, None)
    assert hit.values == {"year": 1850, "start": 0, "document": "d"}
    refused(lambda: selfsup.index(model, source, path, id_column="key", passages=8), "whole documents")


def test_columns_of_the_source_give_way_to_those_of_passages(model, tmp_path):
    selfsup.index(model, [{"text": BOOKS[0]["text"], "start": 7, "document": "d"}], tmp_path / "x.lance")
    hit = selfsup.search(tmp_path / "x.lance", "a storm", top=1)[0]
    assert hit.values == {"start_": 7, "document_": "d"}
    assert hit.document == "record 1"


def test_a_document_is_deleted_with_all_its_passages(model, tmp_path):
    path = tmp_path / "x.lance"
    selfsup.index(model, BOOKS, path, id_column="key")
    stored = rows(path)
    one = next(key for key, row in stored.items() if row["document"] == "other")
    long = sum(row["document"] == "long" for row in stored.values())
    refused(lambda: selfsup.delete(path, ["long", "nothing"]), "'nothing'")
    assert selfsup.delete(path, ["long", one]) == len(stored) - long - 1


# -- search --


def test_a_hit_is_a_passage_and_says_where(model, books):
    wanted = next(row for row in rows(books).values() if row["document"] == "long" and row["start"] > 100)
    hit = selfsup.search(books, wanted["text"], top=1)[0]
    assert (hit.id, hit.document, hit.start, hit.end) == (wanted["id"], "long", wanted["start"], wanted["end"])
    assert hit.text == BOOKS[0]["text"][hit.start : hit.end]
    assert hit.score == pytest.approx(1, abs=1e-2)
    assert selfsup.search(books, "a storm", where=f"start = {hit.start} AND document = 'long'")[0].id == hit.id
    assert json.loads(json.dumps(hit.to_json()))["end"] == hit.end


@given(documents=st.lists(st.integers(0, 4), max_size=30), top=st.integers(1, 12), each=st.integers(1, 4))
def test_one_document_does_not_fill_the_list(documents, top, each):
    hits = [Hit(-n, str(n), "", "", {}, document=str(d)) for n, d in enumerate(documents)]
    shown = search_module._spread(hits, top, each)
    assert len(shown) == min(top, len(hits))
    assert [hit.score for hit in shown] == sorted((hit.score for hit in shown), reverse=True)
    counts = {d: sum(hit.document == d for hit in shown) for d in map(str, documents)}
    lacking = [d for d in counts if counts[d] < min(each, sum(str(one) == d for one in documents))]
    if lacking:
        assert max(counts.values()) <= each


def test_of_one_document_as_many_as_are_asked_for(books):
    first = selfsup.search(books, "the storm", top=3)
    assert {hit.document for hit in first} == {"long", "short", "other"}
    more = selfsup.search(books, "the storm", top=3, per_document=3)
    scores = [hit.score for hit in selfsup.search(books, "the storm", top=50, per_document=50)]
    assert [hit.score for hit in more] == sorted(scores, reverse=True)[:3]
    alone = selfsup.search(books, "the storm", top=6, where="document = 'long'")
    assert len(alone) == 6
    refused(lambda: selfsup.search(books, "x", per_document=0), "per_document is 0")


def test_the_search_goes_deeper_where_one_document_holds_the_nearest(model, tmp_path, monkeypatch):
    monkeypatch.setattr(search_module, "DEPTH", 2)
    monkeypatch.setattr(search_module, "RANKED", 5)
    source = [{"key": "sea", "text": "\n\n".join(["A storm at sea at sea at sea at sea at sea."] * 9)}]
    source += [{"key": str(n), "text": f"The old man sat by the fire {n}."} for n in range(3)]
    selfsup.index(model, source, tmp_path / "x.lance", id_column="key")
    assert len({hit.document for hit in selfsup.search(tmp_path / "x.lance", "a storm at sea", top=3)}) == 3


# -- hybrid --


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True), max_size=3))
def test_reciprocal_ranks(orders):
    scores = reciprocal_ranks(orders)
    assert scores.keys() == {key for order in orders for key in order}
    for key, score in scores.items():
        places = [order.index(key) + 1 for order in orders if key in order]
        assert score == pytest.approx(sum(1 / (60 + place) for place in places))


def test_words_are_found_that_the_model_does_not_know(model, tmp_path):
    source = [{"key": f"k{n}", "text": f"The old man sat by the fire, zx{n}q."} for n in range(20)]
    selfsup.index(model, source, tmp_path / "x.lance", id_column="key")
    best = selfsup.search(tmp_path / "x.lance", "ZX7Q", hybrid=True)[0]
    assert best.id == "k7"
    assert best.ranks["words"] == 1


def test_a_hybrid_search_joins_both_orders(model, books):
    query = "ship 107"
    library = Library.open(books)
    near = [row["id"] for row in library.search(selfsup.load(model).embed([query])[0], 100)]
    worded = [row["id"] for row in library.worded(query, 100)]
    scores = {key: sum(1 / (61 + o.index(key)) for o in (near, worded) if key in o) for key in {*near, *worded}}
    hits = selfsup.search(books, query, top=100, hybrid=True, per_document=100)
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True))
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.id])
        expected = {
            name: o.index(hit.id) + 1 if hit.id in o else None for name, o in (("vectors", near), ("words", worded))
        }
        assert hit.ranks == expected
    assert any(hit.ranks["words"] is None for hit in hits)
    only = selfsup.search(books, query, hybrid=True, where="year = 1952")
    assert {hit.document for hit in only} == {"other"}


@pytest.mark.parametrize(
    "query", ['"', "storm AND (", "sea*", "-storm", "text:sea", "?!", "ship~2 ^4 [a TO b]", "\\", "{}", "'; DROP", "海"]
)
def test_a_query_is_words_whatever_it_says(books, query):
    hits = selfsup.search(books, query, hybrid=True)
    assert len(hits) == 10
    words = set(re.findall(r"\w+", query.lower()))
    for hit in hits:
        held = bool(words & set(re.findall(r"\w+", hit.text.lower())))
        assert (hit.ranks["words"] is not None) == held


def test_words_of_new_documents_are_indexed(model, tmp_path):
    path = tmp_path / "x.lance"
    selfsup.index(model, BOOKS, path, id_column="key")
    selfsup.index(
        model, [{"key": "n", "text": "Café Ærø, 走吧。"}, {**BOOKS[1], "text": "The fire"}], path, id_column="key"
    )
    for query in ("cafe", "CAFÉ", "走吧"):
        assert [row["id"] for row in Library.open(path).worded(query, 5)] == ["n"]
    index = Library.open(path)._index("text")
    assert lancedb.connect(tmp_path).open_table("x").index_stats(index).num_unindexed_rows == 0
    assert [row["id"] for row in Library.open(path).worded("storm", 50)].count("short") == 0  # it says fire now


def test_what_a_hybrid_search_needs(model, books, tmp_path):
    with Library.held(tmp_path / "x.lance", selfsup.load(model).description()) as library:
        given = {name: ["a"] for name in ("id", "text", "source", "content_hash", "values_hash")}
        library.put(given, selfsup.load(model).embed(["a"]))
    refused(lambda: selfsup.search(tmp_path / "x.lance", "a", hybrid=True, model=model), "no index of its words")
    refused(lambda: selfsup.search(books, "a", hybrid=True, where="yeer > 1"), "'yeer > 1'")


# -- what is shown --


def test_hits_are_shown_around_the_words_with_their_place():
    text = "Call me Ishmael. " * 40 + "Then rose a terrible storm, and the ship sank. " + "It was long ago. " * 40
    hits = [
        Hit(
            0.03,
            "moby, characters 0–9",
            text,
            "/a/moby.txt, characters 0–9",
            {},
            "moby",
            0,
            9,
            {"vectors": 2, "words": None},
        ),
        Hit(0.02, "short", "Short.", "/a/short.txt", {}, "short", 0, 6, {"vectors": 1, "words": 3}),
    ]
    console = Console(width=80, record=True)
    show(hits, "a storm", console)
    lines = console.export_text().splitlines()
    assert lines[0].split() == ["0.030", "/a/moby.txt,", "characters", "0–9", "(vectors", "2,", "words", "–)"]
    assert "terrible storm" in " ".join(line.strip() for line in lines[1:4])
    assert all(line.startswith(" " * 7) and len(line) <= 80 for line in lines[1:4])
    assert lines[4].strip() == ""
    assert lines[5].split() == ["0.020", "/a/short.txt", "(vectors", "1,", "words", "3)"]


def test_the_commands(model, tmp_path, selfsup_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for one in BOOKS:
        (tmp_path / "books" / f"{one['key']}.txt").write_text(one["text"])
    answer = selfsup_command("index", model, "--data", "books", "--out", "x.lance")
    assert answer.code == 0, answer
    assert "of 2 documents longer than 14 tokens" in " ".join(answer.out.split())
    answer = selfsup_command("search", "x.lance", "an old ship", "--hybrid", "--top", 2, "--json")
    found = json.loads(answer.out)["hits"]
    assert all(hit["ranks"].keys() == {"vectors", "words"} for hit in found)
    text = (tmp_path / "books" / "long.txt").read_text()
    of_long = next(hit for hit in found if hit["document"].endswith("long.txt"))
    assert text[of_long["start"] : of_long["end"]] == of_long["text"]
    answer = selfsup_command("search", "x.lance", "an old ship", "--where", "document LIKE '%long.txt'", "--top", 2)
    assert len(re.findall(r"books/long\.txt, characters \d+–\d+\n", answer.out)) == 2
    (tmp_path / "books" / "long.txt").write_text("A storm.")
    answer = selfsup_command("index", model, "--data", "books", "--out", "x.lance", "--json")
    assert json.loads(answer.out)["removed"] > 5
    for words in (("--passages", "0"), ("--passages", "many"), ("--overlap", "99"), ("--passages", "none")):
        answer = selfsup_command("index", model, "--data", "books", "--out", "x.lance", *words)
        assert (answer.code, answer.out) == (2, "")
        assert answer.error.count("\n") == 1


def test_a_model_that_reads_any_length_has_passages_where_they_are_asked_for(tmp_path):
    from tiny_tables import public

    model, text = public(tmp_path / "table"), " ".join(["the cat sat on the mat."] * 200)
    for passages, rows in (("auto", 1), (100, 16)):
        made = selfsup.embed(model, [text], tmp_path / f"{passages}.parquet", passages=passages)
        assert made.records == rows


def test_models_of_images_and_pairs_cut_nothing(tmp_path):
    from tiny_clip import save_tiny_clip

    save_tiny_clip(tmp_path / "clip")
    made = selfsup.embed(tmp_path / "clip", [one["text"] for one in BOOKS], tmp_path / "a.parquet")
    assert made.left_out.truncated == 2
    assert pa.parquet.read_schema(tmp_path / "a.parquet").names == ["id", "text", "vector"]
    refused(lambda: selfsup.embed(tmp_path / "clip", ["a"], tmp_path / "b.parquet", passages=5), "embedded whole")
