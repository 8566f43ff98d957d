"""Formats of texts beyond plain records: documents of JSON, separators and quoting, bounds, archives, columns."""

import bz2
import gzip
import io
import json
import os
import tarfile

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from selfsup.data import archives, arrow_records, csv_records, formats, json_records, parts, streams
from selfsup.data.columns import is_code, is_prose
from selfsup.data.sentences import open_sentences
from selfsup.data.sources import open_text
from selfsup.errors import UserError

MIB = 1 << 20


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(source, **options):
    return list(open_text(source, **options).documents())


def unreadable(source, **options):
    """What is read, and the reasons for what is not."""
    collection = open_text(source, failures=1.0, **options)
    documents = list(collection.documents())
    return documents, [name.partition(", ")[2] for name in collection.skipped.names]


def refused(source, *words, **options):
    with pytest.raises(UserError) as caught:
        read(source, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


# -- JSON ----------------------------------------------------------------------------------------------------

RECORDS = [{"id": number, "text": f"text {number}"} for number in range(4)]
TEXTS = [record["text"] for record in RECORDS]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2),
        "[" + ",\n".join(map(json.dumps, RECORDS)) + "]\n",
        "\n [\n" + json.dumps(RECORDS[0]) + "\n," + json.dumps(RECORDS[1:])[1:],
        json.dumps({"version": 1, "items": RECORDS, "tags": ["a"]}),
        json.dumps({"items": RECORDS}, indent=1),
        "\n\n".join(map(json.dumps, RECORDS)),
        "\ufeff" + json.dumps(RECORDS),
    ],
)
@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_documents_of_json(tmp_path, content, kind):
    if kind == ".jsonl" and content.startswith('{"version'):
        pytest.skip("a single line of JSON lines is a record")
    assert read(write(tmp_path / f"a{kind}", content)) == TEXTS


def test_an_object_with_a_text_is_a_document(tmp_path):
    nested = {"text": "a text", "spans": [{"text": "no"}]}
    assert read(write(tmp_path / "a.json", json.dumps(nested, indent=1))) == ["a text"]
    long = {"note": "word " * 30, "spans": [{"text": "no"}]}
    assert read(write(tmp_path / "b.json", json.dumps(long))) == [long["note"]]
    assert read(write(tmp_path / "c.jsonl", json.dumps({"a": "one two", "l": RECORDS}))) == ["one two"]


def test_a_list_longer_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "PIECE", 16)
    records = [{"text": "x" * (7 * number), "n": 10**number} for number in range(1, 12)]
    path = write(tmp_path / "a.json", json.dumps(records))
    assert read(path, column="text") == [record["text"] for record in records]
    assert [row.values for row in open_text(path).rows()] == records
    numbers = write(tmp_path / "b.json", '[{"text": "a b"}, 12, [1], "x"]')
    assert unreadable(numbers)[1] == [f"record {n}: the record is no JSON object" for n in (2, 3, 4)]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('[{"text": "a"}, {"text": ', "Expecting"),
        ('[{"text": "a"} {"text": "b"}]', "] is missing"),
        ('[{"text": "a"}] x', "more behind"),
        ('[{"text": "a"}, ' + "[" * 100_000, "nested too deeply"),
        ('{"a": [{"t": "x"}], "b": [{"t": "y"}]}', "several lists of records (a, b)"),
        ('{\n"a": 1,\n', "no JSON"),
    ],
)
def test_damaged_documents_of_json(tmp_path, content, word):
    path = write(tmp_path / "a.json", content)
    refused(path, "a.json", word)
    write(tmp_path / "b.txt", "another")
    documents, _ = unreadable(tmp_path)
    assert documents == ["another"] if content[0] == "{" else ["a", "another"]


def test_broken_first_lines_do_not_make_a_document(tmp_path):
    rest = "\n".join(map(json.dumps, RECORDS))
    for number, first in enumerate(("{", "{broken", '{"text": "latin', "[1]", "null")):
        assert unreadable(write(tmp_path / f"{number}.jsonl", f"{first}\n{rest}"))[0] == TEXTS


def test_dotted_paths_into_records(tmp_path):
    records = [{"id": n, "body": {"text": f"inner {n}", "n": n}, "a.b": "dotted name"} for n in range(3)]
    inner = [record["body"]["text"] for record in records]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    for source in (records, tmp_path / "a.parquet", tmp_path / "a.jsonl", datasets.Dataset.from_list(records)):
        assert read(source, column="body.text") == inner
        assert read(source, column="a.b") == ["dotted name"] * 3
        rows = open_text(source, "body.text").texts(optional=["id"])
        assert [(text, row.values) for text, row in rows] == [(t, {"id": n}) for n, t in enumerate(inner)]
        with pytest.raises(UserError, match=r"there is no 'body\.no'"):
            read(source, column="body.no")
    refused([{"n": 1, "body": {"words": "a b"}}], "body.words", "--column NAME or data.column=NAME")
    deep = json.loads('{"a": ' * 900 + "1" + "}" * 900)
    refused([deep], "a.a.a", "--column NAME")
    refused(write(tmp_path / "b.csv", "id,text\n1,a\n"), "there is no 'text.x'", column="text.x")


# -- CSV and TSV ---------------------------------------------------------------------------------------------


def test_tsv_has_no_quoting(tmp_path):
    """One row opens a quotation, another one closes it, some 20 rows on."""
    texts = [f'"She said {n}' if n % 3 == 0 else f'he said {n}"' if n % 5 == 0 else f"line \\t {n}" for n in range(200)]
    rows = "".join(f"{n}\t{text}\n" for n, text in enumerate(texts))
    assert read(write(tmp_path / "a.tsv", "id\ttext\n" + rows)) == texts
    assert read(write(tmp_path / "b.csv", "id\ttext\n" + rows.replace("\n", "\r\n"))) == texts


def test_what_programs_quote_in_tsv_is_undone(tmp_path):
    fields = ['"an ""odd"" one"', '"Hello." "Bye."', '"whole speech"', '"""", she said', '""']
    path = write(tmp_path / "a.tsv", "id\ttext\n" + "".join(f"1\t{field}\n" for field in fields))
    assert read(path) == ['an "odd" one', *fields[1:]]
    path = write(tmp_path / "b.tsv", '"id"\t"text"\n' + "".join(f'"1"\t"{n} words"\n' for n in range(3)))
    assert read(path) == ["0 words", "1 words", "2 words"]
    assert open_text(path).columns == ("id", "text")


def test_unpaired_quotation_marks_in_csv(tmp_path):
    rows = [f"{n},line {n}" for n in range(100)]
    rows[10] = '10,"opened'
    rows[20] = '20,"opened too'
    rows[30] = '30,"quoted, whole"'
    rows[40] = '40,closed"'
    rows[50] = '50,"a "word" quoted"'
    texts = [row.partition(",")[2] for row in rows]
    texts[10], texts[20], texts[30] = "opened", "opened too", "quoted, whole"
    documents = read(write(tmp_path / "a.csv", "id,text\n" + "\n".join(rows)))
    assert documents[:50] + documents[51:] == texts[:50] + texts[51:]
    assert documents[50].startswith("a word")
    last = write(tmp_path / "b.csv", 'id,text\n1,"never closed\n2,two\n3,three\n')
    assert read(last) == ["never closed", "two", "three"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_the_separator_is_recognised(tmp_path, separator, kind):
    texts = [text.replace(separator, "-") for text in ("one; two | three", "four, five", "seven\teight")]
    header = "id,text,note: this".replace(",", separator)
    rows = [f"{n}{separator}{text}{separator}x" for n, text in enumerate(texts)]
    assert read(write(tmp_path / f"a{kind}", "\n".join([header, *rows]))) == texts


@pytest.mark.parametrize("separator", [",", "\t"])
def test_rows_that_do_not_fit_the_header(tmp_path, separator):
    rows = ["id,text,label", "1,one,a", "2,two, too,b", "3,three", "4,four,b,,", "5"]
    path = write(tmp_path / "a.csv", "\n".join(rows).replace(",", separator))
    documents, reasons = unreadable(path)
    assert documents == ["one", "three", "four"]
    assert reasons == ["line 3: the row has 4 fields and the header 3", "line 6: the row ends before 'text'"]
    labels = open_text(path, failures=1.0)
    assert [row.values["label"] for row in labels.rows(["label"])] == ["a", "b"]
    assert labels.skipped.count == 3


def test_headers(tmp_path):
    refused(write(tmp_path / "a.csv", "id,text,text\n1,a,b\n"), "several columns called 'text'")
    assert read(write(tmp_path / "b.csv", ",text,\n1,a b,\n")) == ["a b"]
    for content in ("", "id,text\n", "\n"):
        refused(write(tmp_path / "c.csv", content), "c.csv holds no text (0 records")
    assert read(write(tmp_path / "d.csv", "text\n'a'\nb c\n")) == ["'a'", "b c"]
    with pytest.raises(UserError, match="the row has 2 fields and the header 1"):
        read(write(tmp_path / "e.csv", "text\na, b\nc, d\n"))


@pytest.mark.parametrize("kind", [".txt", ".csv", ".tsv", ".jsonl", ".json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_called_by_its_name(tmp_path, kind, encoding):
    path = write(tmp_path / f"a{kind}", 'id,text\n{"text": "one"}\n'.encode(encoding))
    refused(path, "UTF-16", "UTF-8")
    write(tmp_path / "b.txt", "another")
    assert read(tmp_path, failures=1.0) == ["another"]


def test_zeros(tmp_path):
    refused(write(tmp_path / "a.txt", b"\0" * 1000), "zero")
    refused(write(tmp_path / "a.csv", b"\0" * 1000), "zero")
    refused(write(tmp_path / "a.jsonl", b"\0" * 1000), "not JSON")


# -- bounds --------------------------------------------------------------------------------------------------


@pytest.fixture
def low_bounds(monkeypatch):
    """Bounds of 4 MiB for documents and 1 MiB for records."""
    for module in (parts, streams, csv_records, json_records, formats, archives, arrow_records):
        monkeypatch.setattr(module, "RECORD", MIB, raising=False)
        monkeypatch.setattr(module, "DOCUMENT", 4 * MIB, raising=False)


@pytest.mark.usefixtures("low_bounds")
@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "', '"}\n{"text": "two"}\n'),
        ("a.csv", 'id,text\n1,one\n2,"', '"\n3,two\n'),
        ("a.tsv", "id\ttext\n1\tone\n2\t", "\n3\ttwo\n"),
        ("a.csv", 'id,text\n1,one\n2,"\n', '"\n3,two\n'),
    ],
)
def test_records_that_are_too_long_are_named(tmp_path, name, start, end):
    content = start + "word " * (3 * MIB // 5) + end
    for path in (write(tmp_path / name, content), write(tmp_path / f"{name}.gz", gzip.compress(content.encode()))):
        documents, reasons = unreadable(path)
        assert documents == ["one", "two"]
        assert f"{MIB:,} characters" in reasons[0]
        assert path.name in open_text(path, failures=1.0).name


@pytest.mark.usefixtures("low_bounds")
def test_a_row_of_many_lines_has_a_bound(tmp_path):
    row = '2,"' + "many lines\n" * (3 * MIB // 10) + '"\n'
    collection = open_text(write(tmp_path / "a.csv", "id,text\n1,one\n" + row + "3,two\n"), failures=1.0)
    documents = list(collection.documents())
    assert documents[0] == "one"
    assert documents[-1] == "two"
    assert max(map(len, documents)) < MIB


@pytest.mark.usefixtures("low_bounds")
def test_documents_that_are_too_long_are_named(tmp_path):
    write(tmp_path / "b.txt", "kept")
    with open(tmp_path / "sparse.txt", "wb") as file:
        file.truncate(1 << 40)
    write(tmp_path / "a.txt.bz2", bz2.compress(b"word " * MIB))
    write(tmp_path / "c.json", json.dumps({"text": "word " * MIB}))
    write(tmp_path / "d.json", json.dumps([{"text": "word " * MIB}]))
    collection = open_text(tmp_path, failures=1.0)
    assert list(collection.documents()) == ["kept"]
    told = "; ".join(collection.skipped.names)
    assert all(f"{name}: " in told for name in ("sparse.txt", "a.txt.bz2", "c.json", "d.json"))
    assert told.count(f"{4 * MIB:,} bytes") == 2


@pytest.mark.usefixtures("low_bounds")
def test_values_that_are_too_long_are_named(tmp_path):
    long = "word " * MIB
    for column in (pa.array(["one", long, "two"]), pa.array(["one", long, "two"]).dictionary_encode()):
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        documents, reasons = unreadable(tmp_path / "a.parquet")
        assert documents == ["one", "two"]
        assert reasons == [f"row 2: a value has more than {MIB:,} bytes"]


def test_a_value_that_many_rows_refer_to_is_held_once(tmp_path):
    """A dictionary of one text of 1 MiB, in 20,000 rows: 20 GiB, were each row to hold it."""
    text = "word " * (MIB // 5)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array([text]))
    for path in (tmp_path / "a.arrow", tmp_path / "a.feather"):
        pyarrow.feather.write_feather(pa.table({"text": column}), str(path), compression="uncompressed")
        documents = open_text(path).documents()
        assert sum(1 for document in documents if document == text) == 20_000


# -- archives ------------------------------------------------------------------------------------------------


def archive(path, members, mode="w:gz", damage=lambda data: data):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    return write(path, damage(content.getvalue()))


MEMBERS = [("a.txt", b"one"), ("x/a.txt", b"two\n"), ("a.txt", b"three"), ("../../up.md", b"four")]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.bz2", "w:bz2"), ("a.txz", "w:xz")],
)
def test_archives_of_texts(tmp_path, name, mode):
    others = [("b.json", b"{}"), ("c.json", b"{}"), ("link.txt", None)]
    collection = open_text(archive(tmp_path / name, MEMBERS + others, mode))
    assert list(collection.documents()) == ["one", "two\n", "three", "four"]
    assert collection.skipped.left_out == (".json files in archives: 2", "links and devices in archives: 1")
    assert ".json files in archives: 2" in collection.notes["left out"]
    assert list(open_sentences(tmp_path / name).documents()) == ["one", "two", "three", "four"]


def test_an_archive_is_known_by_its_content(tmp_path):
    plain = archive(tmp_path / "a.tar.gz", MEMBERS, "w").read_bytes()
    assert read(tmp_path / "a.tar.gz") == ["one", "two\n", "three", "four"]
    for name, content in (("b.tar", gzip.compress(plain)), ("c.tgz", bz2.compress(plain))):
        assert read(write(tmp_path / name, content)) == ["one", "two\n", "three", "four"]


def test_a_member_of_a_negative_size_ends_an_archive(tmp_path):
    info = tarfile.TarInfo("x.txt")
    for size in (-512, -(1 << 60)):
        info.size = size
        refused(write(tmp_path / "a.tar", info.tobuf(tarfile.GNU_FORMAT) * 2 + bytes(1024)), "tar archive")


def test_damaged_archives(tmp_path):
    plain = archive(tmp_path / "a.tar", MEMBERS, "w").read_bytes()
    for damaged in (plain[:600], plain[:1000], plain[:1024] + b"x" * 512 + plain[1536:], b"no archive at all" * 99):
        refused(write(tmp_path / "b.tar", damaged), "b.tar", "tar archive")
    refused(write(tmp_path / "c.tar.gz", gzip.compress(plain)[:-20]), "c.tar.gz", "cannot be read")
    documents = read(tmp_path, failures=1.0)
    assert documents[:4] == ["one", "two\n", "three", "four"]


def test_a_header_that_lies_about_its_length(tmp_path):
    """Of an extended header tarfile would read as many bytes as it says."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    refused(
        write(tmp_path / "a.tar", info.tobuf(tarfile.USTAR_FORMAT) + bytes(4 * MIB)), "header of 4,294,967,296 bytes"
    )


# -- tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
)
def test_every_string_type_in_every_table(tmp_path, kind):
    texts = ["one two", None, "größer"]
    values = pa.array(texts)
    if pa.types.is_dictionary(kind):
        encoded = values.dictionary_encode()
        column = pa.DictionaryArray.from_arrays(
            encoded.indices.cast(kind.index_type), encoded.dictionary.cast(kind.value_type)
        )
    else:
        column = values.cast(kind)
    table = pa.table({"n": [1, 2, 3], "words": column})
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for source in (table, tmp_path / "file.arrow", tmp_path / "stream.arrow"):
        collection = open_text(source, failures=0.5)
        assert list(collection.documents()) == ["one two", "größer"]
        assert collection.skipped.count == 1
        assert collection.text_columns.told() == "'words' (not read: n)"


def test_directories_of_data_sets(tmp_path):
    dataset = datasets.Dataset.from_dict({"id": [1, 2], "text": ["one", "two"]})
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == ["one", "two"]
    assert open_text(tmp_path / "saved").fingerprint() == open_text(tmp_path / "saved").fingerprint()
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "both"))
    training = open_text(tmp_path / "both", split="training")
    assert list(training.documents()) == ["one", "two"]
    assert training.notes["split"] == "train"
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(tmp_path).create_table("table", dataset.data.table)
    assert read(tmp_path / "table.lance") == ["one", "two"]


def test_data_frames():
    frame = pd.DataFrame({"id": [1, 2, 3], "prose": ["one and two", None, "three and four"]})
    for source in (frame, pa.Table.from_pandas(frame), pa.Table.from_pandas(frame).to_reader()):
        if isinstance(source, pa.RecordBatchReader):
            assert [row.values["id"] for row in open_text(source).rows(["id"])] == [1, 2, 3]
        else:
            assert read(source, failures=0.5) == ["one and two", "three and four"]
            assert open_text(source).fingerprint() == open_text(source).fingerprint()
    refused(pd.DataFrame({"x": [1]}), "no text column")


def test_values_that_python_cannot_hold_are_bad_by_themselves(tmp_path):
    moments = pa.array([0, 1 << 62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["one", "two"], "when": moments}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["one", "two"]
    table = open_text(tmp_path / "a.parquet", failures=1.0)
    assert [row.values["text"] for row in table.rows(["text", "when"])] == ["one"]


# -- the column ----------------------------------------------------------------------------------------------

CODES = {
    "url": [f"https://example.org/a/long/address/of/{n}/" + "x" * 80 for n in range(4)],
    "hash": ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a0" + str(n) for n in range(4)],
    "uuid": [f"123e4567-e89b-12d3-a456-42661417400{n}" for n in range(4)],
    "id": [f"user_{n:030d}" for n in range(4)],
    "date": [f"2024-01-0{n + 1} 12:00:00.000000 +0000" for n in range(4)],
    "mail date": [f"Mon, 0{n + 1} Jan 2024 10:00:00 +0200" for n in range(4)],
    "number": [f"{n}.{'1234567890' * 4}" for n in range(4)],
    "base64": ["iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ" * 3 for n in range(4)],
    "lines of base64": ["iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ\n" * 3 for n in range(4)],
    "file": [f"images/of/the/training/part/in/a/deep/folder/{n}.jpg" for n in range(4)],
}
PROSE = ["The cat sat.", "It was old, 12 or so.", "三番目の文", "नमस्ते दुनिया"]


@pytest.mark.parametrize("kind", CODES)
def test_codes_do_not_win_because_they_are_long(kind):
    records = [{kind: code, "said": prose} for code, prose in zip(CODES[kind], PROSE, strict=True)]
    assert all(map(is_code, CODES[kind]))
    assert read(records) == PROSE
    assert open_text(records).text_columns.told() == f"'said' (not read: {kind})"
    assert read(records, column=kind) == CODES[kind]
    assert read([{kind: code, "n": 1} for code in CODES[kind]]) == CODES[kind]  # the only one of texts
    two = [{kind: code, "label": "good"} for code in CODES[kind]]
    refused(two, "no column of prose", "--column NAME or data.column=NAME")


def test_words_without_spaces_are_texts():
    assert all(map(is_prose, PROSE))
    genes = [{"id": f"g{n}", "sequence": "ACGT" * 30} for n in range(3)]
    assert read(genes) == ["ACGT" * 30] * 3


def test_columns_are_told_file_by_file(tmp_path):
    write(tmp_path / "a.jsonl", '{"body": "one two", "id": 1}\n')
    write(tmp_path / "b.csv", "id,text\n1,three\n")
    write(tmp_path / "c.txt", "four")
    columns = open_text(tmp_path).text_columns
    assert columns.name is None
    assert columns.told() == "'body' (not read: id) in 1 files; 'text' (not read: id) in 1 files"
    assert open_text(tmp_path / "c.txt").notes == {}


# -- lines, splits, what is damaged --------------------------------------------------------------------------


def test_lines_end_at_line_feeds_and_carriage_returns_alone(tmp_path):
    signs = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
    line = "one " + " two ".join(signs) + " end"
    path = write(tmp_path / "a.txt", f"{line}\n{line}\r\n{line}\r{line}")
    assert list(open_sentences(path).documents()) == [line] * 4


def test_only_the_training_part_is_trained_on(tmp_path):
    for name in ("train-0.jsonl", "test-0.jsonl", "README.md"):
        write(tmp_path / name, json.dumps({"text": name}) if name.endswith("l") else name)
    assert len(read(tmp_path)) == 3
    training = open_text(tmp_path, split="training")
    assert list(training.documents()) == ["README.md", "train-0.jsonl"]
    assert "files of the test split: 1" in training.notes["left out"]
    assert read(tmp_path, split="test") == ["README.md", "test-0.jsonl"]
    assert len(read(tmp_path, split="all")) == 3
    refused(tmp_path, "no validation split", split="validation")
    assert open_text(tmp_path / "test-0.jsonl", split="training").split is None


def test_where_everything_may_fail_damaged_files_are_named(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": "one"}\n')
    write(tmp_path / "b.parquet", b"PAR1 no")
    write(tmp_path / "c.jsonl.gz", gzip.compress(b'{"text": "two"}\n' * 99999)[:-200])
    write(tmp_path / "d.csv", "x,y\n1,2\n")
    write(tmp_path / "e.txt.gz", b"no gzip")
    refused(tmp_path, "cannot be read")
    for options in ({}, {"column": "text"}):
        collection = open_text(tmp_path, failures=1.0, **options)
        assert set(collection.documents()) == {"one", "two"}
        assert [os.path.basename(name.partition(": ")[0]) for name in collection.skipped.names] == [
            *("b.parquet", "c.jsonl.gz", "d.csv", "e.txt.gz")
        ]
    table = open_text(tmp_path, failures=1.0)
    assert set(table.documents()) == {"one", "two"}
    assert table.skipped.count == 4


def test_the_fingerprints_of_ordinary_sources_stay(tmp_path):
    """A run is resumed, and prepared text found, only where the fingerprint of its data is the same."""
    lines = write(tmp_path / "a.jsonl", '{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n')
    write(tmp_path / "a-b" / "b.txt", "three")
    write(tmp_path / "a" / "c.csv", "id,body\n1,four\n")
    assert open_text(lines).fingerprint() == "d2ae3f41212eb1e7bd358ab9becd7d47"
    assert open_text(lines, column="id").fingerprint() == "efa3b89bf3035d4b374b5d4d32b4d590"
    assert open_text(tmp_path).fingerprint() == "8526b8cd251aa0349d8c961854796e4e"
    assert open_sentences(tmp_path).fingerprint() == "c64dfd8b2ca11ba9271c0903957bb8da"
    assert open_text([{"text": "one", "id": 1}]).fingerprint() == "96a6d73536eca87ac87b4176a775dba8"
