"""Tables of Arrow on the disk, opened and fully checked: nothing that a damaged file says is believed.

A table is a file of parquet or of Arrow (`.arrow` or `.feather`, in the format of files or of streams), or a directory
that is a Lance data set (`.lance`) or was written by `datasets.save_to_disk`.

Reading is bounded before memory is taken: by rows (`ROWS` for each byte on the disk), by what a table unpacks to
(see `most_unpacked`), and by what has to be unpacked at once (half of the free memory).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from selfsup.data.discovery import EXPANSION, mapped, most_unpacked, reading
from selfsup.data.parquet_pages import DICTIONARY, pages_of
from selfsup.errors import Damaged, UserError
from selfsup.files import inside, read_bytes

BATCH_ROWS = 256  # at most in a batch
BATCH_BYTES = 1 << 28  # at most, of the values of a batch that lie once and are referred to many times
ROWS, FEW_ROWS = 64, 1 << 20  # rows that a table may have: for each byte on the disk, and in any case
PAGE = 1 << 26  # what a page of parquet may unpack to in any case, and a batch should
METADATA = 1 << 28  # bytes of a schema or a footer at most

# What a damaged table raises beside errors of the disk and Arrow's own.
DAMAGE = (ValueError, LookupError, TypeError, struct.error, MemoryError, RecursionError)

_MAGIC = b"ARROW1"
_LIMITS = {"thrift_string_size_limit": METADATA, "thrift_container_size_limit": METADATA >> 8}  # of parquet


@dataclass(frozen=True)
class ArrowFile:
    """An opened table, whose batches can be read any number of times, by several threads."""

    path: Path
    schema: Any  # all columns with their types, as Arrow has them
    rows: int
    size: int  # bytes on the disk
    mapped: bool  # whether its batches lie on the disk as they are, so that keeping them takes no memory
    read: Callable[[list[str]], Iterator[Any]]
    at: Callable[[str, int], Any] | None = None  # a column in a row, where rows are not to be kept

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """All rows of some columns (by default all), in checked record batches of at most `BATCH_ROWS`; texts may still
        be no UTF-8. Raises UserError: no such column, or several; a damaged table, or one that unpacks to too much."""
        names = list(self.schema.names if columns is None else columns)
        known = list(self.schema.names)
        for name in names:
            if (count := known.count(name)) != 1:
                raise Damaged(f"{self.path} has {count} columns {name!r}: choose one of {', '.join(known)}.")
        unpacked = 0
        with reading(self.path, *DAMAGE):
            for batch in checked_batches(self.read(names)):
                unpacked += 0 if self.mapped else batch.nbytes
                if unpacked > most_unpacked(self.size):
                    raise _bomb(self.path, f"more than {unpacked >> 20} MiB")
                yield batch


def checked_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Record batches with the same rows, cut to at most `BATCH_ROWS`. Raises pa.ArrowInvalid where offsets, indices,
    lengths or counts of nulls lie."""
    for batch in batches:
        for column in batch.columns:
            storage = column.storage if isinstance(column, pa.ExtensionArray) else column
            storage.view(_without_texts(storage.type)).validate(full=True)
        step = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, _shared_bytes(batch))))
        yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))


def open_arrow(path: Path) -> ArrowFile:
    """Open a table; its columns and how many rows it has are known then, and nothing else is read. Raises UserError: it
    is damaged, or claims more than may be."""
    with reading(path, *DAMAGE):
        if path.is_dir():
            opener = _open_saved if (path / "state.json").exists() else _open_lance
        else:
            opener = _open_parquet if path.suffix.lower() == ".parquet" else _open_ipc
        table = opener(path)
    if table.rows > max(FEW_ROWS, ROWS * table.size):
        raise _bomb(path, f"{table.rows} rows")
    return table


def _bomb(path: Path, claim: str) -> Damaged:
    return Damaged(f"{path} holds {claim}, far more than its size allows: repair it or leave it out.")


def _room() -> int:
    """Bytes that may be unpacked at once."""
    return int(psutil.virtual_memory().available) // 2


# -- checks --------------------------------------------------------------------------------------------------


def _without_texts(kind: Any) -> Any:
    """A type with bytes in place of texts: whether these are UTF-8 is asked of each by itself, by whoever reads it."""
    if isinstance(kind, pa.BaseExtensionType):
        return _without_texts(kind.storage_type)
    if isinstance(kind, pa.DictionaryType):
        return pa.dictionary(kind.index_type, _without_texts(kind.value_type), kind.ordered)
    if isinstance(kind, pa.StructType):
        return pa.struct([field.with_type(_without_texts(field.type)) for field in kind])
    for of_list, build in _LISTS.items():
        if isinstance(kind, of_list):
            return build(kind, kind.value_field.with_type(_without_texts(kind.value_type)))
    return BYTES.get(kind, kind)


# Types of texts, and those of the same bytes.
BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_LISTS: dict[Any, Callable[[Any, Any], Any]] = {
    pa.ListType: lambda kind, field: pa.list_(field),
    pa.LargeListType: lambda kind, field: pa.large_list(field),
    pa.FixedSizeListType: lambda kind, field: pa.list_(field, kind.list_size),
}


def _shared_bytes(batch: Any) -> int:
    """Of the columns whose rows refer to values rather than hold them, so that each row may be all of them."""
    return sum(
        column.get_total_buffer_size()
        for column in batch.columns
        if any(word in str(column.type) for word in ("dictionary", "view", "run_end"))
    )


# -- directories and parquet ---------------------------------------------------------------------------------


def _open_saved(folder: Path) -> ArrowFile:
    """A data set of `datasets.save_to_disk`: Arrow files, which a JSON file lists in their order."""
    state = json.loads(read_bytes(folder / "state.json", METADATA))
    names = [str(entry["filename"]) for entry in state["_data_files"]]
    tables = [_open_ipc(Path(inside(folder, name))) for name in names]
    if not tables or any(table.schema != tables[0].schema for table in tables):
        raise ValueError("its state.json lists no files, or such of different columns")

    def read(names: list[str]) -> Iterator[Any]:
        return (batch for table in tables for batch in table.read(names))

    rows, size = sum(table.rows for table in tables), sum(table.size for table in tables)
    return ArrowFile(folder, tables[0].schema, rows, size, all(table.mapped for table in tables), read)


def _open_parquet(path: Path, only: int | None = None) -> ArrowFile:
    """All of a file, or only one of its groups of rows."""
    content = mapped(path)
    opened = partial(pq.ParquetFile, path, memory_map=True, **_LIMITS)

    def read(names: list[str]) -> Iterator[Any]:
        with opened() as file:
            # One group at a time: over the border of two, Arrow gives columns of nulls a wrong length.
            for number in range(file.num_row_groups) if only is None else [only]:
                group = file.metadata.row_group(number)
                if group.num_rows:  # an empty group has no pages
                    rows = _rows_at_once(path, memoryview(content), group, names)
                    for batch in file.iter_batches(rows, [number], columns=names, use_threads=False):
                        yield batch.select(names)

    with opened() as file:
        return ArrowFile(path, file.schema_arrow, file.metadata.num_rows, content.size, False, read)


def row_groups(path: Path) -> list[tuple[int, int]]:
    """Rows and bytes of each group of rows of a parquet file. Raises UserError as `open_arrow` does."""
    open_arrow(path)
    with reading(path, *DAMAGE), pq.ParquetFile(path, memory_map=True, **_LIMITS) as file:
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in groups]


def open_row_group(path: Path, number: int) -> ArrowFile:
    """One group of rows of a parquet file as a table. Raises UserError: it is damaged."""
    with reading(path, *DAMAGE):
        return _open_parquet(path, number)


def _rows_at_once(path: Path, content: memoryview, group: Any, names: list[str]) -> int:
    """Rows of a group to unpack at once; each may be as long as a dictionary, else as all are in the mean. Raises
    Damaged: a page unpacks to far more than its bytes allow."""
    whole = longest = 0
    for page in pages_of(content, group, names):
        if page.unpacked > max(PAGE, EXPANSION * page.packed):
            raise _bomb(path, f"a page of {page.unpacked >> 20} MiB")
        whole += page.unpacked
        longest = max(longest, page.unpacked if page.type == DICTIONARY else 0)
    mean = whole // max(1, int(group.num_rows))
    return max(1, min(BATCH_ROWS, PAGE // max(1, mean, longest)))


def _open_lance(path: Path) -> ArrowFile:
    """A data set of Lance, by the library that the index of vectors is kept with."""
    try:
        import lancedb
    except ImportError:
        raise UserError(f"Reading {path} needs the lancedb library: pip install 'selfsup[search]'.") from None

    def read(names: list[str]) -> Iterator[Any]:
        with _panics():
            query = table.search().select(names).limit(None)
            for batch in query.to_batches(batch_size=BATCH_ROWS):
                yield batch.select(names)

    with _panics():
        table = lancedb.connect(path.absolute().parent).open_table(path.stem)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return ArrowFile(path, table.schema, table.count_rows(), size, mapped=False, read=read)


@contextmanager
def _panics() -> Iterator[None]:
    """Turn what Lance raises for damage into ValueError: a panic of Rust is no Exception at all."""
    try:
        yield
    except (UserError, OSError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise ValueError(str(error)) from error


# -- Arrow ---------------------------------------------------------------------------------------------------


def _open_ipc(path: Path) -> ArrowFile:
    """A file of Arrow, whose footer says where its batches lie, or a stream, mapped into memory."""
    content = mapped(path)
    of_file = content.slice(0, len(_MAGIC)).to_pybytes() == _MAGIC
    opened = partial(pa.ipc.open_file if of_file else pa.ipc.open_stream, content)
    with opened() as reader:
        schema = reader.schema
    rows, compressed = 0, False
    for message in _messages_of_file(content) if of_file else pa.ipc.MessageReader.open_stream(content):
        if message.type in ("record batch", "dictionary"):
            batch = _header_of(message)
            rows += batch.number(0) if message.type == "record batch" else 0
            if batch.place(3) is not None:
                compressed = True
                if (unpacked := _unpacked(batch, message.body)) > min(_room(), most_unpacked(content.size)):
                    raise _bomb(path, f"a batch of {unpacked >> 20} MiB")

    def read(names: list[str]) -> Iterator[Any]:
        places = sorted(schema.get_field_index(name) for name in names)
        with opened(options=pa.ipc.IpcReadOptions(included_fields=places, use_threads=False)) as reader:
            batches = map(reader.get_batch, range(reader.num_record_batches)) if of_file else reader
            yield from (batch.select(names) for batch in batches)

    return ArrowFile(path, schema, rows, content.size, not compressed, read)


def _messages_of_file(content: Any) -> Iterator[Any]:
    """The dictionaries and batches of a file, where its footer says that they lie (File.fbs of Arrow's format)."""
    end = content.size - len(_MAGIC) - 4
    (length,) = struct.unpack("<i", content.slice(end, 4).to_pybytes())
    footer = _Table(content.slice(end - length, length).to_pybytes()).below()
    for field in (2, 3):
        start, count = footer.vector(field)
        for number in range(count):
            offset, header, body = struct.unpack_from("<qi4xq", footer.data, start + 24 * number)
            yield pa.ipc.read_message(content.slice(offset, header + body))


def _header_of(message: Any) -> _Table:
    """What the metadata of a batch say, also of one in a dictionary: rows, buffers, compression (Message.fbs)."""
    header = _Table(message.metadata.to_pybytes()).below().below(2)
    return header.below(1) if message.type == "dictionary" else header


def _unpacked(batch: _Table, body: Any) -> int:
    """Bytes that compressed buffers have without compression: each begins with that number, or -1."""
    start, count = batch.vector(2)
    places = (struct.unpack_from("<qq", batch.data, start + 16 * number) for number in range(count))
    view = memoryview(body)
    return sum(max(0, *struct.unpack_from("<q", view, place)) for place, length in places if length > 0)


class _Table(NamedTuple):
    """A table of flatbuffers within bytes."""

    data: bytes
    start: int = 0

    def at(self, place: int, kind: str = "I") -> int:
        """The number at a place."""
        return int(struct.unpack_from(f"<{kind}", self.data, place)[0])

    def place(self, field: int) -> int | None:
        """Where a field lies, None where it has its default."""
        description, entry = self.start - self.at(self.start, "i"), 4 + 2 * field
        offset = self.at(description + entry, "H") if entry < self.at(description, "H") else 0
        return self.start + offset if offset else None

    def number(self, field: int) -> int:
        place = self.place(field)
        return 0 if place is None else self.at(place, "q")

    def below(self, field: int | None = None) -> _Table:
        """The table in a field; without one, the first of all."""
        place = 0 if field is None else self.place(field)
        if place is None:
            raise ValueError("its metadata lack a part")
        return self._replace(start=place + self.at(place))

    def vector(self, field: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many there are."""
        if self.place(field) is None:
            return 0, 0
        start = self.below(field).start
        return start + 4, self.at(start)
