"""What the pages of a parquet file say that they unpack to: read before Arrow takes memory for them.

The headers of pages are Thrift structs in its compact protocol (PageHeader in parquet.thrift); Arrow shows only what
the footer says, which a damaged file need not keep to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DICTIONARY = 2  # a type of pages


@dataclass(frozen=True)
class Page:
    """The header of a page: its type, and its bytes with and without compression."""

    type: int
    unpacked: int
    packed: int


def pages_of(content: memoryview, group: Any, columns: Sequence[str]) -> Iterator[Page]:
    """The headers of all pages of some columns.

    Args:
        content: of the file.
        group: the metadata of a group of rows.

    Raises:
        ValueError, IndexError, RecursionError: they are damaged.
    """
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema in columns or chunk.path_in_schema.split(".")[0] in columns:
            yield from _pages(content, chunk)


def _pages(content: memoryview, chunk: Any) -> Iterator[Page]:
    place = chunk.data_page_offset
    if chunk.dictionary_page_offset is not None:
        place = min(place, chunk.dictionary_page_offset)
    end = place + chunk.total_compressed_size
    while place < end:
        header = _Struct(content, place)
        page = Page(*(header.numbers.get(field, 0) for field in (1, 2, 3)))
        if page.unpacked < 0 or page.packed < 0:
            raise ValueError("a page has a negative size")
        yield page
        place = header.end + page.packed


class _Struct:
    """A struct of Thrift's compact protocol: its whole numbers by field, and where it ends."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self.end = data, place
        self.numbers: dict[int, int] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            if head & 15 in (4, 5, 6):
                self.numbers[field] = self._signed()
            else:
                self._skip(head & 15)

    def _byte(self) -> int:
        self.end += 1
        return self._data[self.end - 1]

    def _number(self) -> int:
        number, shift = 0, 0
        while (byte := self._byte()) & 128 and shift < 64:
            number |= (byte & 127) << shift
            shift += 7
        return number | byte << shift

    def _signed(self) -> int:
        number = self._number()
        return number >> 1 ^ -(number & 1)

    def _skip(self, kind: int) -> None:
        """Pass over a value: a truth value, a byte, a number, a float, bytes, a list or a struct."""
        if kind == 3:
            self._byte()
        elif kind in (4, 5, 6):
            self._number()
        elif kind == 7:
            self.end += 8
        elif kind == 8:
            length = self._number()
            self.end += length
        elif kind in (9, 10):
            self._skip_list()
        elif kind == 12:
            self.end = _Struct(self._data, self.end).end
        elif kind not in (1, 2):
            raise ValueError(f"the header of a page has a field of type {kind}")

    def _skip_list(self) -> None:
        head = self._byte()
        for _ in range(head >> 4 if head >> 4 < 15 else self._number()):
            self._skip(3 if head & 15 in (1, 2) else head & 15)
