"""Tables of Arrow: every kind that is opened, and what is refused before it does harm."""

import json
import struct
from contextlib import suppress
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.data import arrow_files, discovery
from selfsup.data.arrow_files import open_arrow
from selfsup.data.parquet_pages import pages_of
from selfsup.errors import UserError

ROWS = 600
CONTENT = [None if n == 3 else bytes([n % 251]) * (n % 7) for n in range(ROWS)]
TABLE = pa.table(
    {
        "n": list(range(ROWS)),
        "text": [f"text {n % 5}" for n in range(ROWS)],
        "image": pa.array([{"bytes": content, "path": None} for content in CONTENT]),
        "view": pa.array(CONTENT, pa.binary_view()),
        "large": pa.array(CONTENT, pa.large_binary()),
        "word": pa.array([f"word {n % 5}" for n in range(ROWS)]).dictionary_encode(),
        "words": [["a"] * (n % 3) for n in range(ROWS)],
    }
)


def stream(path, table=TABLE, new=pa.ipc.new_stream, size=250, **options):
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table, max_chunksize=size)
    return path


def lance(path, table=TABLE):
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(path.parent).create_table(path.stem, table.drop(["view"]))
    return path


KINDS = {
    "stream": lambda folder, table=TABLE: stream(folder / "a.arrow", table),
    "file": lambda folder, table=TABLE: stream(folder / "a.arrow", table, pa.ipc.new_file),
    "zstd": lambda folder, table=TABLE: stream(folder / "a.arrow", table, compression="zstd"),
    "lz4": lambda folder, table=TABLE: stream(folder / "a.arrow", table, pa.ipc.new_file, compression="lz4"),
    "feather": lambda folder, table=TABLE: pyarrow.feather.write_feather(table, str(folder / "a.feather")),
    "parquet": lambda folder, table=TABLE: pq.write_table(table, folder / "a.parquet", row_group_size=250),
    "lance": lambda folder, table=TABLE: lance(folder / "a.lance", table),
}


def opened(folder):
    (path,) = folder.iterdir()
    return open_arrow(path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_rows_in_batches(tmp_path, kind):
    KINDS[kind](tmp_path)
    table = opened(tmp_path)
    assert table.rows == ROWS
    assert table.mapped == (kind in ("stream", "file"))
    columns = [name for name in ("words", "view", "n", "image", "word", "text") if name in table.schema.names]
    for _ in range(2):
        batches = list(table.batches(columns))
        assert max(batch.num_rows for batch in batches) <= arrow_files.BATCH_ROWS
        assert batches[0].schema.names == columns
        assert [row for batch in batches for row in batch.to_pylist()] == TABLE.select(columns).to_pylist()
    assert sum(batch.num_rows for batch in table.batches()) == ROWS
    with pytest.raises(UserError, match="has 0 columns 'x': choose one of n, text"):
        list(table.batches(["x"]))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_without_rows(tmp_path, kind):
    KINDS[kind](tmp_path, TABLE.slice(0, 0))
    table = opened(tmp_path)
    assert (table.rows, list(table.batches(["n", "image"]))) == (0, [])


def test_files_whose_batches_lie_elsewhere_than_those_of_a_stream(tmp_path):
    """Only the footer says where: other programs leave gaps, and cut off the mark of the end."""
    content = stream(tmp_path / "a.arrow", TABLE.select(["n", "text"]), pa.ipc.new_file).read_bytes()
    (length,) = struct.unpack("<i", content[-10:-6])
    footer = bytearray(content[-10 - length : -10])
    body = content[8 : -10 - length]
    for offset in range(len(footer) - 24 + 1):  # the blocks of the footer, by where they point
        place, _, gap, _ = struct.unpack_from("<qiiq", footer, offset)
        if gap == 0 and 8 <= place < len(body) and place % 8 == 0 and content[place : place + 4] == b"\xff" * 4:
            struct.pack_into("<q", footer, offset, place + 64)
    moved = b"ARROW1\0\0" + b"\0" * 64 + body.removesuffix(b"\xff\xff\xff\xff\0\0\0\0")
    (tmp_path / "a.arrow").write_bytes(moved + footer + struct.pack("<i", length) + b"ARROW1")
    table = open_arrow(tmp_path / "a.arrow")
    assert table.rows == ROWS
    rows = [row for batch in table.batches() for row in batch.to_pylist()]
    assert rows == TABLE.select(["n", "text"]).to_pylist()


def test_columns_of_one_name(tmp_path):
    path = stream(tmp_path / "a.arrow", pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"]))
    with pytest.raises(UserError, match="2 columns 'x'"):
        list(open_arrow(path).batches(["x"]))


def test_texts_that_are_no_utf_8_are_not_damage(tmp_path):
    texts = pa.array([b"fine", b"\xff\xfe"])
    texts = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
    table = pa.table(
        {"plain": texts, "list": pa.ListArray.from_arrays([0, 1, 2], texts), "word": texts.dictionary_encode()}
    )
    (batch,) = open_arrow(stream(tmp_path / "a.arrow", table)).batches()
    assert batch["plain"].cast(pa.binary()).to_pylist() == [b"fine", b"\xff\xfe"]


def test_directories_of_save_to_disk(tmp_path):
    folder = tmp_path / "d"
    datasets.Dataset.from_dict({"a": list(range(10))}).save_to_disk(folder, num_shards=2)
    stream(folder / "cache-1.arrow")  # what `map` leaves there
    table = open_arrow(folder)
    assert (table.rows, table.mapped, table.schema.names) == (10, True, ["a"])
    assert [number for batch in table.batches() for number in batch["a"].to_pylist()] == list(range(10))
    stream(tmp_path / "a.arrow")
    for names in (["../a.arrow"], [str(tmp_path / "a.arrow")], [], ["\0"]):
        state = {"_data_files": [{"filename": name} for name in names]}
        (folder / "state.json").write_text(json.dumps(state))
        refused(folder, "cannot be read")
    for state in ("{}", "[", "null"):
        (folder / "state.json").write_text(state)
        refused(folder, "cannot be read")


def test_extension_types(tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((4, 2, 3)))
    (batch,) = open_arrow(stream(tmp_path / "a.arrow", pa.table({"x": tensors}))).batches()
    assert batch.num_rows == 4


# -- what lies -----------------------------------------------------------------------------------------------


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        list(open_arrow(path).batches())
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def lying(kind, buffers, length=2):
    return pa.Array.from_buffers(kind, length, buffers)


LIES = {
    "offsets": lambda: lying(
        pa.binary(), [None, pa.array([0, 1 << 30, 5], pa.int32()).buffers()[1], pa.py_buffer(b"hello")]
    ),
    "texts": lambda: lying(pa.string(), [None, pa.array([0, 9, 5], pa.int32()).buffers()[1], pa.py_buffer(b"hello")]),
    "views": lambda: lying(
        pa.binary_view(), [None, pa.py_buffer(b"\xff\xff\xff\x7f" + b"\x01" * 12 + bytes(16)), pa.py_buffer(b"x")]
    ),
    "indices": lambda: pa.DictionaryArray.from_arrays(pa.array([0, 5_000_000]), pa.array(["a"]), safe=False),
    "lists": lambda: pa.ListArray.from_buffers(
        pa.list_(pa.int8()),
        2,
        [None, pa.array([0, 1 << 30, 3], pa.int32()).buffers()[1]],
        children=[pa.array([1, 2, 3], pa.int8())],
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("nested", [False, True])
def test_what_points_outside_is_refused(tmp_path, lie, nested):
    column = LIES[lie]()
    column = pa.StructArray.from_arrays([column], ["bytes"]) if nested else column
    refused(stream(tmp_path / "a.arrow", pa.Table.from_arrays([column], ["x"])), "cannot be read")


def test_rows_without_bytes(tmp_path):
    """Of nulls a file of some hundred bytes may claim as many as there are numbers."""
    nulls = pa.Array.from_buffers(pa.null(), (1 << 31) - 1, [None])
    batch = pa.RecordBatch.from_arrays([nulls], ["x"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as out:
        out.write_batch(batch)
    refused(tmp_path / "a.arrow", "2147483647 rows")


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_batch_that_unpacks_to_more_than_there_is_room_for(tmp_path, monkeypatch, compression):
    table = pa.table({"x": [b"\0" * 3_000_000]})
    path = stream(tmp_path / "a.arrow", table, compression=compression)
    monkeypatch.setattr(arrow_files, "_room", lambda: 2_000_000)
    refused(path, "a batch of 2 MiB")


def test_unpacking_stops(tmp_path, monkeypatch):
    pq.write_table(pa.table({"x": [b"\0" * 100_000] * 1000}), tmp_path / "a.parquet", compression="zstd")
    monkeypatch.setattr(discovery, "SMALL", 1 << 20)
    refused(tmp_path / "a.parquet", "far more than its size allows")


def test_values_that_many_rows_share_come_in_small_batches(tmp_path, monkeypatch):
    table = pa.table({"x": pa.DictionaryArray.from_arrays([0] * 500, pa.array([b"x" * 10_000]))})
    monkeypatch.setattr(arrow_files, "BATCH_BYTES", 100_000)
    batches = list(open_arrow(stream(tmp_path / "a.arrow", table)).batches())
    assert sum(batch.num_rows for batch in batches) == 500
    assert max(batch.num_rows for batch in batches) < 10


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lance"])
def test_damage_anywhere_is_refused_or_harmless(tmp_path, kind):
    KINDS[kind](tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for number in range(40):
        place = number * (len(whole) - 8) // 40
        damaged = bytearray(whole)
        damaged[place : place + 4] = b"\xff\xff\xff\x7f"
        path.write_bytes(damaged)
        try:
            list(open_arrow(path).batches())
        except UserError as error:
            assert str(path) in str(error)
    for length in (0, 1, 7, 8, 20, len(whole) // 2):
        path.write_bytes(whole[:length])
        refused(path)


def test_a_damaged_data_set_of_lance(tmp_path):
    lance(tmp_path / "a.lance")
    for file in (tmp_path / "a.lance").rglob("*.lance"):
        file.write_bytes(file.read_bytes()[:-20])
    refused(tmp_path / "a.lance", "cannot be read")
    (tmp_path / "b.lance").mkdir()
    refused(tmp_path / "b.lance", "cannot be read")


# -- pages of parquet ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_the_headers_of_pages_are_those_that_the_footer_adds_up(tmp_path, version, compression):
    path = tmp_path / "a.parquet"
    options = {"data_page_version": version, "write_page_checksum": True, "data_page_size": 300, "write_batch_size": 20}
    pq.write_table(TABLE, path, compression=compression, row_group_size=250, **options)
    metadata = pq.read_metadata(path)
    content = memoryview(path.read_bytes())
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(column) for column in range(group.num_columns)]
        pages = list(pages_of(content, group, TABLE.schema.names))
        saved = sum(chunk.total_uncompressed_size - chunk.total_compressed_size for chunk in chunks)
        assert sum(page.unpacked - page.packed for page in pages) == saved  # headers count on both sides
        assert len(pages) > 2 * len(chunks)
        few = [chunk for chunk in chunks if chunk.path_in_schema == "n" or chunk.path_in_schema.startswith("image.")]
        assert 0 < len(list(pages_of(content, group, ["n", "image"]))) < len(pages)
        assert len(few) == 3


def test_a_page_that_stands_for_far_more(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [bytes(70_000_000)]}), path, compression="zstd", use_dictionary=False)
    refused(path, "a page of 66 MiB")


def test_rows_of_a_long_dictionary_come_one_by_one(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20, pa.int32()), pa.array([b"x" * 1_000_000]))
    pq.write_table(pa.table({"x": column}), path, store_schema=False, dictionary_pagesize_limit=1 << 30)
    assert [batch.num_rows for batch in open_arrow(path).batches()] == [20]
    monkeypatch.setattr(arrow_files, "PAGE", 3_000_000)
    assert {batch.num_rows for batch in open_arrow(path).batches()} == {2}


def pages(data):
    chunk = SimpleNamespace(
        data_page_offset=0, dictionary_page_offset=None, total_compressed_size=len(data), path_in_schema="x"
    )
    group = SimpleNamespace(num_columns=1, column=lambda _: chunk)
    return list(pages_of(memoryview(data), group, ["x"]))


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_headers_of_any_bytes_end(data):
    with suppress(ValueError, IndexError, RecursionError):
        assert len(pages(data)) <= len(data)
    with suppress(ValueError, IndexError, RecursionError):
        pages(data * 1000)


@pytest.mark.parametrize("kind", range(1, 13))
def test_a_header_of_a_list_that_is_longer_than_its_file_ends(kind):
    with pytest.raises((ValueError, IndexError)):
        pages(bytes([0x19, 0xF0 | kind, *[0x80] * 6, 0x20]))
