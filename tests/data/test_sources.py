"""Text sources: every format, every error, and that a source reads the same each time."""

import bz2
import csv
import gzip
import json
import lzma

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfsup.data.sources import Table, TextSource, open_text
from selfsup.errors import UserError

DOCUMENTS = [
    "The first one.\n\nIt has two paragraphs.",
    "Zweites Stück: größer",
    "三番目",
    'quoted, "so" to say\r\nend',
]


def write(path, data):
    data = data.encode() if isinstance(data, str) else data
    compress = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    data = compress.get(path.suffix, bytes)(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def json_lines(documents, key="text"):
    return "".join(json.dumps({"id": i, key: d}, ensure_ascii=False) + "\n" for i, d in enumerate(documents))


def write_csv(path, documents, delimiter=",", key="text"):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", key])
        writer.writerows(enumerate(documents))
    return path


def read(source, **options):
    return list(open_text(source, **options).documents())


def refused(source, *words, **options):
    with pytest.raises(UserError) as caught:
        read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("end", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"])
def test_every_format_plain_and_compressed(tmp_path, kind, end):
    if kind in (".txt", ".md"):
        content, expected = DOCUMENTS[3], [DOCUMENTS[3]]
    elif kind in (".csv", ".tsv"):
        delimiter, expected = (",", DOCUMENTS) if kind == ".csv" else ("\t", [*DOCUMENTS[1:3], 'an "odd" one'])
        content = write_csv(tmp_path / "plain", expected, delimiter).read_bytes()
    else:
        content, expected = json_lines(DOCUMENTS), DOCUMENTS
    source = open_text(write(tmp_path / f"data{kind}{end}", content))
    assert list(source.documents()) == expected
    assert list(source.documents()) == expected
    assert source.skipped.count == 0
    assert source.skipped.seen == len(expected)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()])
def test_parquet_of_every_string_type(tmp_path, kind):
    array = (
        pa.array(DOCUMENTS).cast(kind) if not pa.types.is_binary(kind) else pa.array([d.encode() for d in DOCUMENTS])
    )
    pq.write_table(pa.table({"text": array, "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", column="text") == DOCUMENTS


def test_parquet_in_several_batches(tmp_path):
    documents = [f"document {i}" for i in range(1000)]
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet", row_group_size=300)
    assert read(tmp_path / "a.parquet") == documents


def test_concatenated_members_are_all_read(tmp_path):
    ways = ((gzip.compress, ".gz"), (zstandard.compress, ".zst"), (bz2.compress, ".bz2"), (lzma.compress, ".xz"))
    for compress, end in ways:
        path = tmp_path / f"a.txt{end}"
        path.write_bytes(compress(b"one ") + compress(b"two"))
        assert read(path) == ["one two"]


def test_mixed_folder_in_order_without_hidden_and_other_files(tmp_path):
    write(tmp_path / "b.jsonl", json_lines(["b1", "b2"]))
    write(tmp_path / "a" / "deep" / "x.txt.gz", "x")
    write(tmp_path / "a.md", "a")
    write(tmp_path / ".git" / "hidden.txt", "hidden")
    write(tmp_path / ".hidden.txt", "hidden")
    write(tmp_path / "picture.png", b"\x89PNG")
    write_csv(tmp_path / "c.csv", ["c"], key="content")
    pq.write_table(pa.table({"body": ["d"]}), tmp_path / "d.parquet")
    assert read(tmp_path) == ["x", "a", "b1", "b2", "c", "d"]
    assert read(str(tmp_path)) == read(tmp_path)
    assert read(str(tmp_path / "*.jsonl")) == ["b1", "b2"]
    assert read(str(tmp_path / "**" / "*.gz")) == ["x"]
    assert read([tmp_path / "b.jsonl", tmp_path / "a.md"]) == ["a", "b1", "b2"]


def test_bundled_sample():
    (document,) = read("sample:shakespeare")
    assert document.startswith("First Citizen:\nBefore we proceed")
    assert len(document) == 1115394
    refused("sample:shakspeare", "shakespeare")


def test_python_sources(tmp_path):
    assert read(DOCUMENTS) == DOCUMENTS
    dataset = datasets.Dataset.from_dict({"label": [0, 1, 2, 3], "title": list("abcd"), "content": DOCUMENTS})
    assert read(dataset) == DOCUMENTS
    assert read(dataset.select([2, 0])) == [DOCUMENTS[2], DOCUMENTS[0]]
    assert open_text(dataset).fingerprint() == open_text(dataset.select(range(4))).fingerprint()
    assert open_text(dataset).fingerprint() != open_text(dataset.select([2, 0])).fingerprint()

    class Own:
        name = "my own"

        def documents(self):
            yield from DOCUMENTS
            yield "   "

        def fingerprint(self):
            return "own-1"

    source = open_text(Own())
    assert list(source.documents()) == DOCUMENTS
    assert (source.name, source.fingerprint(), source.empty) == ("my own", "own-1", 1)
    assert isinstance(source, TextSource)
    assert open_text(source) is source


def test_what_is_no_source():
    for thing in (7, [], [1], object()):
        refused(thing, "source")
    refused("", "The name of the data is empty")


def test_hub_names_are_the_only_way_to_the_network(monkeypatch):
    calls = []

    def load(path, config, split):
        calls.append((path, config, split))
        return datasets.Dataset.from_dict({"text": DOCUMENTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("hub:user/name") == DOCUMENTS
    read("hub:user/name/config:validation")
    read("hub:name")
    assert calls == [("user/name", None, "train"), ("user/name", "config", "validation"), ("name", None, "train")]
    refused("user/name", "There is no file or folder")
    assert len(calls) == 3

    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    refused("hub:user/name", "hub:user/name", "no route")


# -- the text column --


def test_the_usual_name_wins_over_length(tmp_path):
    table = {"title": ["a very long title, longer than the text"], "author": ["someone"], "text": ["short"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["short"]
    assert read(tmp_path / "a.parquet", column="author") == ["someone"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_else_the_longest_column(tmp_path, kind):
    rows = [{"n": i, "name": f"name {i}", "prose": f"Much longer prose, number {i}."} for i in range(20)]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    assert read(path) == [row["prose"] for row in rows]
    refused(path, "'prosa'", "n, name, prose", column="prosa")


def test_no_text_column(tmp_path):
    pq.write_table(pa.table({"x": [1, 2], "y": [0.5, 1.5]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "no text column", "x, y")
    write(tmp_path / "a.jsonl", '{"x": 1}\n{"y": [2]}\n')
    refused(tmp_path / "a.jsonl", "no text column", "x, y")
    refused(datasets.Dataset.from_dict({"x": [1]}), "no text column", "x")


# -- bytes, line breaks, bad records --


def test_byte_order_marks_and_line_breaks(tmp_path):
    mark = b"\xef\xbb\xbf"
    text = "one\r\ntwo\rthree\u2028four\x0bfive\n"
    assert read(write(tmp_path / "a.txt", mark + text.encode())) == [text]
    assert read(write(tmp_path / "a.jsonl", mark + json_lines([text]).encode())) == [text]
    path = write_csv(tmp_path / "a.csv", [text])
    path.write_bytes(mark + path.read_bytes().replace(b"id,text", b"text,id").replace(b"0,", b"", 1)[:-2] + b",0\r\n")
    assert read(path) == [text]
    assert read(write(tmp_path / "b.jsonl", json_lines(["x", "y"]).replace("\n", "\r\n"))) == ["x", "y"]


def test_undecodable_bytes_of_a_text_file(tmp_path):
    path = write(tmp_path / "a.txt", b"caf\xe9 " + b"fine " * 100)
    source = open_text(path)
    assert next(iter(source.documents())).startswith("caf\ufffd fine")
    assert list(source.documents())
    assert source.skipped.replaced_bytes == 1
    assert source.skipped.count == 0
    refused(path, "a.txt", "1 of its 505 bytes are not UTF-8", failures=0.001)
    refused(write(tmp_path / "b.txt", "plain ascii in UTF-16".encode("utf-16")), "UTF-16")
    assert len(read(tmp_path, failures=0.5)) == 1


def test_bad_records_are_skipped_counted_and_named(tmp_path):
    lines = [json.dumps({"text": f"good {i}"}).encode() for i in range(200)]
    lines[3] = b"{broken"
    lines[50] = b'{"text": "latin \xe9"}'
    lines[60] = b'{"text": null}'
    lines[61] = b'{"other": "x"}'
    lines[62] = b"[1, 2]"
    lines[63] = b'{"text": "\\ud800 lone"}'
    lines[64] = b'{"text": 5}'
    lines[70] = b'{"text": "fine", "other": "\xe9"}'
    path = write(tmp_path / "a.jsonl", b"\n".join(lines) + b"\n\n")
    source = open_text(path, failures=0.05)
    documents = list(source.documents())
    assert documents == [f"good {i}" if i != 70 else "fine" for i in range(200) if i not in (3, 50, *range(60, 65))]
    assert (source.skipped.count, source.skipped.seen) == (7, 200)
    assert source.skipped.names[0].startswith(f"{path}, line 4: ")
    assert len(source.skipped.names) == 5
    refused(path, "7 of 200", "line 4", failures=0.03)


def test_bad_rows_of_tables(tmp_path):
    write(tmp_path / "a.csv", "id,text\n1,one\n2\n3,three\n\n4,four\n")
    source = open_text(tmp_path / "a.csv", failures=0.5)
    assert list(source.documents()) == ["one", "three", "four"]
    assert source.skipped.names == (f"{tmp_path / 'a.csv'}, line 3: the row ends before 'text'",)
    offsets = pa.py_buffer(np.array([0, 2, 3], np.int32).tobytes())
    latin = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"ok\xe9"))
    pq.write_table(pa.table({"text": pa.chunked_array([pa.array(["a", None]), latin])}), tmp_path / "a.parquet")
    source = open_text(tmp_path / "a.parquet", failures=0.5)
    assert list(source.documents()) == ["a", "ok"]
    assert [name.split(", ")[1] for name in source.skipped.names] == [
        "row 2: the text is null",
        "row 4: the text is not valid UTF-8",
    ]


def test_long_csv_fields(tmp_path):
    long = "word " * 100_000
    assert read(write_csv(tmp_path / "a.csv", [long])) == [long]


def test_empty_documents_are_dropped_and_counted():
    source = open_text(["a", "", " \n\t", "b", "\u3000"])
    assert list(source.documents()) == ["a", "b"]
    assert source.empty == 3


# -- errors --


def test_missing_empty_and_unknown(tmp_path):
    refused(tmp_path / "nothing.txt", "There is no file or folder", "nothing.txt")
    refused("x" * 5000, "There is no file or folder")
    refused(str(tmp_path / "*.txt"), "No file matches")
    refused(tmp_path, "no file of a readable kind")
    refused(write(tmp_path / "a.docx", "x"), "no readable kind", ".jsonl")
    refused(write(tmp_path / "a.parquet.gz", "x"), "no readable kind")
    for name in ("a.txt", "a.jsonl", "a.csv"):
        refused(write(tmp_path / name, ""), "holds no text")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "holds no text")
    refused([" "], "holds no text")
    refused(["a"], "between 0 and 1", failures=2)


def test_damaged_files(tmp_path):
    text = "".join(map(str, np.random.default_rng(0).integers(0, 10, 50_000)))
    for name in ("a.txt.gz", "a.txt.zst", "a.txt.bz2", "a.txt.xz"):
        path = write(tmp_path / name, text)
        path.write_bytes(path.read_bytes()[:-5000])
        refused(path, name, "cannot be read")
        refused(write(tmp_path / "b", "no archive").replace(path), name, "cannot be read")
    refused(write(tmp_path / "a.parquet", "PAR1 this is not"), "a.parquet", "cannot be read")
    assert read(write(tmp_path / "a.csv", "id,text\r1,one\r2,two\r")) == ["one", "two"]


# -- fingerprints --


def test_fingerprint_is_of_the_content(tmp_path):
    first = write(tmp_path / "one" / "a.jsonl", json_lines(["a", "b"]))
    moved = write(tmp_path / "two" / "b.jsonl", first.read_bytes())
    assert open_text(first).fingerprint() == open_text(moved).fingerprint()
    assert open_text(first.parent).fingerprint() == open_text(first).fingerprint()
    different = {
        open_text(first).fingerprint(),
        open_text(first, column="id").fingerprint(),
        open_text(write(tmp_path / "c.txt", first.read_bytes())).fingerprint(),
        open_text(write(tmp_path / "d.jsonl", json_lines(["a", "c"]))).fingerprint(),
        open_text(["ab"]).fingerprint(),
        open_text(["a", "b"]).fingerprint(),
    }
    assert len(different) == 6
    text = write(tmp_path / "e.txt", "abc")
    assert open_text(text).fingerprint() == open_text(text, column="ignored").fingerprint()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=1, max_size=8))
def test_any_text_survives_every_format(tmp_path, documents):
    expected = [document for document in documents if document.strip()]
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet")
    paths = [
        write(tmp_path / "a.jsonl", json_lines(documents)),
        write_csv(tmp_path / "a.csv", documents),
        tmp_path / "a.parquet",
    ]
    for source in (documents, *paths):
        collection = open_text(source)
        assert isinstance(collection, Table)
        if expected:
            assert list(collection.documents()) == expected
        else:
            refused(source, "holds no text")
