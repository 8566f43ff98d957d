"""What the pages of a parquet file say that they unpack to: read before Arrow takes memory for them.

The headers of pages are Thrift structs in its compact protocol (PageHeader in parquet.thrift); Arrow shows only what
the footer says, which a damaged file need not keep to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

DICTIONARY = 2  # a type of pages


class Page(NamedTuple):
    """The header of a page: its type, and its bytes with and without compression."""

    type: int
    unpacked: int
    packed: int


def pages_of(content: memoryview, group: Any, columns: Sequence[str]) -> Iterator[Page]:
    """The headers of all pages of some columns, in the content of a file, by the metadata of a group of rows. Raises
    ValueError, IndexError or RecursionError where they are damaged."""
    for chunk in map(group.column, range(group.num_columns)):
        if chunk.path_in_schema in columns or chunk.path_in_schema.split(".")[0] in columns:
            first = (chunk.data_page_offset, chunk.dictionary_page_offset)
            start = min(place for place in first if place is not None)
            yield from _pages(content, start, start + chunk.total_compressed_size)


def _pages(content: memoryview, place: int, end: int) -> Iterator[Page]:
    while place < end:
        reader = _Compact(content, place)
        header = reader.struct()
        page = Page(*(header.get(field, 0) for field in (1, 2, 3)))
        if page.unpacked < 0 or page.packed < 0:
            raise ValueError("a page has a negative size")
        yield page
        place = reader.end + page.packed


class _Compact:
    """Reads values of Thrift's compact protocol, one behind the other."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self.end = data, place

    def struct(self) -> dict[int, int]:
        """The whole numbers of a struct, by field; its other values are passed over."""
        numbers: dict[int, int] = {}
        field = 0
        while head := self._take(1):
            field = field + (head >> 4) if head >> 4 else self._signed()
            if head & 15 in (4, 5, 6):
                numbers[field] = self._signed()
            else:
                self._skip(head & 15)
        return numbers

    def _take(self, size: int) -> int:
        """The last of so many bytes, which are taken; raises IndexError behind the end of the file."""
        self.end += size
        return self._data[self.end - 1]

    def _number(self) -> int:
        number, shift = 0, 0
        while (byte := self._take(1)) & 128 and shift < 64:
            number |= (byte & 127) << shift
            shift += 7
        return number | byte << shift

    def _signed(self) -> int:
        number = self._number()
        return number >> 1 ^ -(number & 1)

    def _skip(self, kind: int) -> None:
        """Pass over a value: a truth value, a byte, a number, a float, bytes, a list or a struct."""
        if kind in (4, 5, 6):
            self._number()
        elif kind in (3, 7, 8):
            self._take({3: 1, 7: 8}.get(kind) or self._number())
        elif kind in (9, 10):
            head = self._take(1)
            for _ in range(head >> 4 if head >> 4 < 15 else self._number()):
                self._skip(3 if head & 15 in (1, 2) else head & 15)
        elif kind == 12:
            self.struct()
        elif kind not in (1, 2):
            raise ValueError(f"the header of a page has a field of type {kind}")
