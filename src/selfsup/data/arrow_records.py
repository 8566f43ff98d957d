"""Records in tables of Arrow: which of their columns hold texts or images, and their rows as values of Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from selfsup.data import parts
from selfsup.data.arrow_files import BYTES, ArrowFile
from selfsup.data.parts import RECORD, Malformed, Part, Rows, Sample, Values

_UNREADABLE = (ValueError, OverflowError, pa.ArrowException)


def table_part(name: str, opened: Callable[[], ArrowFile], before: int = 0, of: Part | None = None) -> Part:
    """A table of Arrow, in a file or in memory; or a part of one `of` which so many rows come before."""

    def rows(columns: Sequence[str] | None) -> Rows:
        table = opened()
        names = table.schema.names
        heads = names if columns is None else dict.fromkeys(parts.head_of(name, names) for name in columns)
        batches = table.batches([head for head in heads if head in names])
        for number, row in enumerate(itertools.chain.from_iterable(map(rows_of_batch, batches)), before + 1):
            yield f"{name}, row {number}", parts.selected(row, columns)

    return Part(name, of.sample if of else lambda: sample_of_table(opened()), rows)


def sample_of_table(table: ArrowFile) -> Sample:
    """The columns of a table, and the texts in its first rows."""
    read = [field.name for field in table.schema if _may_hold_text(field.type)]
    batch = next(table.batches(read), None) if read else None
    rows: list[Values] = [{}] * min(table.rows, parts.SAMPLED_ROWS)
    if batch is not None:
        rows = parts.sample_of(("", row) for row in rows_of_batch(batch)).rows
    return Sample(table.schema.names, rows, texts_in(table.schema), images_in(table.schema))


def texts_in(schema: Any) -> list[str]:
    """The columns of texts or of lists of texts."""
    return [field.name for field in schema if is_text(field.type) or is_text(_of_list(field.type))]


def images_in(schema: Any) -> list[str]:
    """The columns of the bytes of images, plain or in the hub's struct of bytes and path."""
    return [field.name for field in schema if _is_image(field.type)]


def rows_of_batch(batch: Any) -> list[Values]:
    """The rows of a batch; what has no value in Python is Malformed."""
    return _rows(zip(batch.schema.names, batch.columns, strict=True), batch.num_rows)


def _rows(columns: Iterable[tuple[str, Any]], count: int) -> list[Values]:
    decoded = {name: _decoded(column) for name, column in columns}
    return [{name: values[row] for name, values in decoded.items()} for row in range(count)]


def is_text(kind: Any) -> bool:
    """Whether a type is of texts: plain, in a dictionary or an extension."""
    return _values(kind) in BYTES


def _values(kind: Any) -> Any:
    """The type of the values of a dictionary or of an extension, else the type itself."""
    if isinstance(kind, pa.DictionaryType):
        return _values(kind.value_type)
    return _values(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _of_list(kind: Any) -> Any:
    """The type of the values in a list; None where a type is of none."""
    is_list = isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
    return kind.value_type if is_list else None


def _is_binary(kind: Any) -> bool:
    return _values(kind) in BYTES.values()


def _is_image(kind: Any) -> bool:
    kind = _values(kind)
    if not isinstance(kind, pa.StructType):
        return _is_binary(kind)
    fields = {field.name: field.type for field in kind}
    return "bytes" in fields and (_is_binary(fields["bytes"]) or pa.types.is_null(fields["bytes"]))


def _may_hold_text(kind: Any) -> bool:
    kind = _values(kind)
    if isinstance(kind, pa.StructType):
        return not _is_image(kind) and any(_may_hold_text(field.type) for field in kind)
    return is_text(kind)


def _decoded(array: Any) -> list[object]:
    """An Arrow array's values, Malformed where one is too long or has no value in Python. Text is decoded here, since
    Arrow would raise for the whole batch at once; the values of a dictionary once, however often they occur."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        values = _decoded(array.dictionary)
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    if pa.types.is_struct(array.type):
        fields = zip((field.name for field in array.type), array.flatten(), strict=True)
        return _where_there(array, _rows(fields, len(array)))
    if is_text(_of_list(array.type)) and array.nbytes <= RECORD:
        items = iter(_decoded(array.flatten()))
        lengths = pc.list_value_length(array).to_pylist()
        return _where_there(array, [list(itertools.islice(items, length or 0)) for length in lengths])
    of_text = array.type in BYTES
    array = array.cast(BYTES[array.type]) if of_text else array
    if array.nbytes <= RECORD:
        with suppress(*_UNREADABLE):
            return [_text(value) for value in array.to_pylist()] if of_text else list(array.to_pylist())
    return [_value(array, row, of_text) for row in range(len(array))]


def _where_there(array: Any, values: Sequence[object]) -> list[object]:
    there = array.is_valid().to_pylist()
    return [value if valid else None for value, valid in zip(values, there, strict=True)]


def _value(array: Any, row: int, of_text: bool) -> object:
    if array.slice(row, 1).nbytes > RECORD:
        return Malformed(f"a value has more than {RECORD:,} bytes")
    try:
        value = array[row].as_py()
    except _UNREADABLE as error:
        return Malformed(f"a value cannot be read ({' '.join(str(error).split())})")
    return _text(value) if of_text else value


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="surrogateescape")
