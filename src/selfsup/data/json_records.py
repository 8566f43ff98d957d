"""Records in JSON: one object per line, or one document: a list of objects, or an object that holds such a list.

A list is read element by element; an object is read whole.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from selfsup.data.columns import TEXT_COLUMNS
from selfsup.data.parts import RECORD, Malformed, Rows, Values
from selfsup.data.streams import PIECE, lines
from selfsup.errors import Damaged

LONG_TEXT = 100  # characters of a text that make the object it is in a document, whatever else is in it

Open = Callable[[], AbstractContextManager[io.TextIOWrapper]]

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


def json_records(name: str, opened: Open, one_per_line: bool) -> Rows:
    """(place, record) for each record of a file. With `one_per_line`, a single line is one record, whatever it holds.
    Raises Damaged: a document that is no JSON, or of which it is not clear where its records are."""
    with opened() as file:
        start = _document_start(file, one_per_line)
    with opened() as file:
        if start == "[":
            yield from _elements(name, file)
        elif start == "{":
            yield from _of_object(name, file)
        else:
            yield from _of_lines(name, file)


def _document_start(file: io.TextIOWrapper, one_per_line: bool) -> str:
    """`[` or `{` where the file is one document, which its first line begins and does not end; else nothing."""
    line = _next_line(file)
    start = line.lstrip()[:1]
    if start == "[":
        return "" if _kind(line) == "whole" and _next_line(file) else start
    if start != "{":
        return ""
    if _kind(line) == "begun":  # but for a line that was cut off
        return "" if _kind(_next_line(file)) == "whole" else start
    return "" if one_per_line or _next_line(file) else start


def _next_line(file: io.TextIOWrapper) -> str:
    """The start of the next line that is not blank; nothing at the end."""
    line = " "
    while line.isspace():
        line = file.readline(PIECE)
    rest = line
    while rest and not rest.endswith("\n"):
        rest = file.readline(PIECE)
    return line


def _kind(line: str) -> str:
    """Whether a line is JSON, `whole`, or `begun` where it is as far as it goes; else, or if it is long, `neither`."""
    if len(line) == PIECE:
        return "neither"
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return "begun" if error.pos >= len(line.rstrip()) else "neither"
    except (ValueError, RecursionError):
        return "neither"
    return "whole"


def _of_lines(name: str, file: io.TextIOWrapper) -> Rows:
    for number, line in enumerate(lines(file), 1):
        if isinstance(line, Malformed) or not line.isspace():
            yield f"{name}, line {number}", _record_of(line)


def _record_of(line: str | Malformed) -> Values | Malformed:
    if isinstance(line, Malformed):
        return line
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Malformed("the line is not JSON (one object per line is read)")
    return record if isinstance(record, dict) else Malformed("the line is not a JSON object")


def _of_object(name: str, file: io.TextIOWrapper) -> Rows:
    """The records within an object, or itself as the only one."""
    content = file.read(RECORD + 1)
    if len(content) > RECORD:
        long = f"more than {RECORD:,} characters"
        raise Damaged(f"{name} is one JSON object of {long}: write its records one per line.")
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        remedy = "repair it or leave it out (one object per line is read too)"
        raise Damaged(f"{name} is no JSON ({error}): {remedy}.") from None
    lists = {} if _is_document(whole) else {key: value for key, value in whole.items() if _is_records(value)}
    if len(lists) > 1:
        raise Damaged(
            f"{name} holds several lists of records ({', '.join(lists)}): write the one to read into a file of its "
            "own, one record per line."
        )
    where = "".join(f"{key} " for key in lists)
    for number, record in enumerate(next(iter(lists.values()), [whole]), 1):
        yield f"{name}, {where}record {number}", record


def _is_document(whole: Values) -> bool:
    """Whether an object is a record itself: one with a text."""
    texts = {key.lower(): value for key, value in whole.items() if isinstance(value, str)}
    return any(key in TEXT_COLUMNS or len(value) >= LONG_TEXT for key, value in texts.items())


def _is_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _elements(name: str, file: io.TextIOWrapper) -> Rows:
    """The elements of a list, one after the other."""
    window = _Window(name, file)
    window.skip("[")
    for number in itertools.count(1):
        if window.next() in ("]", ""):
            break
        record = window.value()
        whole = isinstance(record, dict)
        yield f"{name}, record {number}", record if whole else Malformed("the record is no JSON object")
        if window.next() == ",":
            window.skip(",")
        elif window.next() != "]":
            break
    window.skip("]")
    if window.next():
        raise window.damage("there is more behind its list")


class _Window:
    """A part of a text that moves on as values are taken from its start."""

    def __init__(self, name: str, file: io.TextIOWrapper) -> None:
        self._name, self._file = name, file
        self._text, self._place = "", 0

    def damage(self, reason: str) -> Damaged:
        return Damaged(f"{self._name} is no JSON ({reason}): repair it or leave it out.")

    def next(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            self._place = next(_SPACE.finditer(self._text, self._place)).end()
            if self._place < len(self._text) or not self._read(PIECE):
                return self._text[self._place : self._place + 1]

    def skip(self, mark: str) -> None:
        if self.next() != mark:
            raise self.damage(f"{mark} is missing in its list, which may be cut off")
        self._place += 1

    def value(self) -> Any:
        """The next value, read on for as long as it is not whole."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
                if end < len(self._text) or not self._read(PIECE):  # a number may go on
                    self._place = end
                    return value
            except RecursionError:
                raise self.damage("it is nested too deeply") from None
            except ValueError as error:
                if not self._read(max(PIECE, self._left)):
                    raise self.damage(str(error)) from None

    @property
    def _left(self) -> int:
        return len(self._text) - self._place

    def _read(self, size: int) -> bool:
        """Read on; whether there was anything."""
        if self._left > RECORD:
            raise self.damage(f"a record of it has more than {RECORD:,} characters")
        more = self._file.read(size)
        self._text, self._place = self._text[self._place :] + more, 0
        return bool(more)
