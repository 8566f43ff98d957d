"""Tables: every kind of source with all its columns, the columns asked for, bad records."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfsup.data.sources import open_text
from selfsup.errors import UserError

RECORDS = [
    {"id": "a", "text": "The first one.", "label": 1},
    {"id": "b", "text": "größer, 三", "label": 0},
    {"id": "c", "text": 'quoted, "so"\nend', "label": 1},
]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_json(path, records=RECORDS):
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def as_parquet(path, records=RECORDS):
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    return path


def as_csv(path, records=RECORDS):
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    return path


def values(source, *arguments, **options):
    return [row.values for row in open_text(source, **options).rows(*arguments)]


def refused(work, *words):
    with pytest.raises(UserError) as caught:
        work()
    for word in words:
        assert word in str(caught.value)


def test_every_format_gives_its_columns(tmp_path):
    files = [as_json(tmp_path / "a.jsonl"), as_parquet(tmp_path / "a.parquet"), as_csv(tmp_path / "a.csv")]
    for file in files:
        typed = file.suffix != ".csv"
        expected = RECORDS if typed else [{**record, "label": str(record["label"])} for record in RECORDS]
        assert open_text(file).columns == ("id", "text", "label")
        assert values(file) == expected
        assert values(file, ["label", "id"]) == [{k: r[k] for k in ("label", "id")} for r in expected]
        places = [row.where for row in open_text(file).rows()]
        assert len(set(places)) == 3
        assert all(place.startswith(str(file)) for place in places)
        assert list(open_text(file).documents()) == [record["text"] for record in RECORDS]


def test_python_sources(monkeypatch):
    dataset = datasets.Dataset.from_list(RECORDS)
    for source in (RECORDS, dataset):
        assert values(source) == RECORDS
        assert values(source, ["label"]) == [{"label": record["label"]} for record in RECORDS]
        assert open_text(source).columns == ("id", "text", "label")
        assert list(open_text(source).documents()) == [record["text"] for record in RECORDS]
    assert values(["one", "two"]) == [{"text": "one"}, {"text": "two"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    assert values("hub:user/name", ["id"]) == [{"id": "a"}, {"id": "b"}, {"id": "c"}]
    assert open_text("sample:shakespeare").columns == ("text",)


def test_a_text_file_is_one_row(tmp_path):
    file = write(tmp_path / "a.txt", "one\ntwo\n")
    (row,) = open_text(file).rows()
    assert (row.where, row.source, row.values) == (str(file), str(file), {"text": "one\ntwo\n"})
    write(tmp_path / "b.md", b"caf\xe9 " + b"fine " * 100)
    table = open_text(tmp_path)
    assert [row.source for row in table.rows(["text"])] == [str(file), str(tmp_path / "b.md")]
    assert table.skipped.replaced_bytes == 1


def test_mixed_folder(tmp_path):
    as_json(tmp_path / "a.jsonl")
    write(tmp_path / "b.txt", "plain")
    as_parquet(tmp_path / "c.parquet", [{"body": "other", "year": 1900}])
    table = open_text(tmp_path)
    assert table.columns == ("id", "text", "label", "body", "year")
    found = [(text, row.values.get("year")) for text, row in table.texts(optional=["year"])]
    assert found == [(record["text"], None) for record in RECORDS] + [("plain", None), ("other", 1900)]
    refused(lambda: list(table.rows(["label"])), "b.txt", "no column 'label'", "text")


def test_only_the_columns_asked_for_are_read(tmp_path, monkeypatch):
    as_parquet(tmp_path / "a.parquet")
    asked = []
    whole = pq.ParquetFile.iter_batches

    def spy(self, *arguments, columns=None, **options):
        asked.append(columns)
        return whole(self, *arguments, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert values(tmp_path / "a.parquet", ["label"]) == [{"label": 1}, {"label": 0}, {"label": 1}]
    assert asked[-1] == ["label"]


def test_needed_and_optional_columns(tmp_path):
    lines = [{"text": f"t{i}", "label": i} for i in range(8)]
    lines[2] = {"text": "no label"}
    lines[3] = {"text": "null", "label": None}
    lines[4] = {"label": 4}
    file = as_json(tmp_path / "a.jsonl", lines)
    table = open_text(file, failures=0.5)
    assert [row.values["label"] for row in table.rows(["label"])] == [0, 1, 4, 5, 6, 7]
    assert table.skipped.names == (f"{file}, line 3: there is no 'label'", f"{file}, line 4: the label is null")
    found = [(text, row.values["label"]) for text, row in table.texts(optional=["label", "other"])]
    assert found == [("t0", 0), ("t1", 1), ("no label", None), ("null", None), *((f"t{i}", i) for i in (5, 6, 7))]
    assert (table.skipped.count, table.skipped.seen) == (1, 8)
    refused(lambda: values(file, ["label"], failures=0.1), "2 of 8", "line 3")
    refused(lambda: values(file, ["labels"]), "no column 'labels'", "text, label")


def test_bad_records_are_counted_as_in_a_text_source(tmp_path):
    lines = [json.dumps({"text": f"good {i}", "n": i}).encode() for i in range(50)]
    lines[3] = b"{broken"
    lines[5] = b'{"text": "latin \xe9", "n": 1}'
    lines[6] = b'{"text": 5}'
    lines[7] = b'{"text": "  "}'
    file = write(tmp_path / "a.jsonl", b"\n".join(lines))
    table, source = open_text(file, failures=0.2), open_text(file, failures=0.2)
    assert [text for text, _ in table.texts()] == list(source.documents())
    assert table.skipped == source.skipped
    assert table.empty == source.empty == 1


def test_short_rows_and_binary_values(tmp_path):
    file = write(tmp_path / "a.csv", "id,text,note\n1,one,x\n2,two\n3\n")
    table = open_text(file, failures=0.5)
    assert [row.values for row in table.rows(["text"], ["note"])] == [
        {"text": "one", "note": "x"},
        {"text": "two", "note": None},
    ]
    data = {"picture": [b"\xff\x00"], "vector": [[1.0, 2.0]], "body": [b"bytes"]}
    pq.write_table(pa.table(data), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [{"picture": b"\xff\x00", "vector": [1.0, 2.0], "body": b"bytes"}]
    ((text, row),) = open_text(tmp_path / "a.parquet", "body").texts(optional=["vector"])
    assert (text, row.values["vector"]) == ("bytes", [1.0, 2.0])


def test_errors(tmp_path):
    refused(lambda: values(write(tmp_path / "a.jsonl", "")), "no records")
    refused(lambda: open_text(tmp_path / "nothing.csv"), "There is no file")
    refused(lambda: list(open_text([{"text": " "}]).documents()), "holds no text")
    refused(lambda: open_text(7), "int")
    refused(lambda: open_text(["a"], failures=2), "between 0 and 1")


def test_fingerprint_is_of_the_texts_alone(tmp_path):
    other = [{**record, "label": 5} for record in RECORDS]
    for make in (list, datasets.Dataset.from_list):
        first, second = open_text(make(RECORDS)), open_text(make(other))
        assert first.fingerprint() == second.fingerprint()
        assert first.fingerprint() != open_text(make(RECORDS), column="label").fingerprint()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=st.lists(st.sampled_from("abcdef"), min_size=1, unique=True), data=st.data())
def test_any_values_survive_json_and_parquet(tmp_path, columns, data):
    numeric = data.draw(st.booleans())
    kind = st.integers(-1000, 1000) if numeric else st.text(st.characters(exclude_categories=("Cs",)))
    records = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, kind)), min_size=1, max_size=5))
    for file in (as_json(tmp_path / "a.jsonl", records), as_parquet(tmp_path / "a.parquet", records)):
        assert values(file) == records
        assert values(file, columns[:1]) == [{columns[0]: record[columns[0]]} for record in records]


def test_undecodable_parquet_text_is_bad_only_where_it_is_read(tmp_path):
    offsets = pa.py_buffer(np.array([0, 2, 3], np.int32).tobytes())
    latin = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"ok\xe9"))
    pq.write_table(pa.table({"text": latin, "n": [1, 2]}), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet", ["n"]) == [{"n": 1}, {"n": 2}]
    assert values(tmp_path / "a.parquet", ["text"], failures=0.5) == [{"text": "ok"}]


def test_half_characters_within_lists_and_records_are_bad_as_everywhere(tmp_path):
    lines = ['{"text": "a", "tags": ["x", "y"]}', '{"text": "b", "tags": ["\\ud800"]}', '{"text": "c"}']
    write(tmp_path / "a.jsonl", "\n".join(lines))
    inner = pa.array([b"x", b"y", b"\xff"]).view(pa.string())
    tags = pa.ListArray.from_arrays(pa.array([0, 2, 3, 3]), inner)
    pq.write_table(pa.table({"text": ["a", "b", "c"], "tags": tags}), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        table = open_text(tmp_path / name, failures=0.5)
        kept = [(text, row.values["tags"]) for text, row in table.texts(optional=["tags"])]
        assert kept == [("a", ["x", "y"]), ("c", None if name == "a.jsonl" else [])]
        assert [reason.partition(": ")[2] for reason in table.skipped.names] == ["the tags is not valid UTF-8"]
        assert list(open_text(tmp_path / name).documents()) == ["a", "b", "c"]


def test_an_array_of_numbers_is_no_table():
    refused(lambda: open_text(np.zeros((3, 4))), "ndarray is no text source")


def test_a_table_streams(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": "x"}\n' * 2000 + "{broken\n" * 2000)
    table = open_text(file)
    assert next(iter(table.rows())).where.endswith("line 1")
    assert table.skipped.seen == 0
    refused(lambda: list(table.rows()), "2000 of 4000")
