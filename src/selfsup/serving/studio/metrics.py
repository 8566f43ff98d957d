"""A growing metrics.jsonl, read while another process writes it: thinly for curves, or every line as it comes.

Nothing is locked, and what was read is not read again.
"""

from __future__ import annotations

import json
import math
import os
from io import BufferedReader
from pathlib import Path
from typing import Any

from selfsup.files import opened

BLOCK = 1 << 13  # bytes that are read for a point: more than a line has
TAIL = 1 << 16  # bytes of the end, among which the last look is sought
CHUNK = 1 << 20  # bytes that are read at once where every line counts
STRIDE = 256  # bytes between two points, at least
LOOK = b'"validation"'
Line = dict[str, Any]


def parsed(line: bytes) -> Line | None:
    """A line as an object; None where it holds something else. What is no finite number becomes None."""
    try:
        found = json.loads(line, parse_constant=lambda word: None)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def number(line: Line | None, key: str) -> float | None:
    """A figure of a line; None where it has none."""
    value = None if line is None else line.get(key)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fits else None


class Thinned:
    """The curve of a training, from lines here and there.

    Attributes:
        points: (step, loss), half of `most` to twice as many where there are so many.
        last, look: the last lines that a step and a look left, where they are among the last `TAIL` bytes.
        end: the place behind the last whole line.
        changed: when the file was written, in seconds since 1970.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most
        self._begin(None)

    def _begin(self, identity: tuple[int, int] | None) -> None:
        self.points: list[tuple[int, float]] = []
        self.last: Line | None = None
        self.look: Line | None = None
        self.changed = 0.0
        self.size = self.end = self._next = 0
        self._identity, self._stride = identity, STRIDE

    def update(self) -> bool:
        """Read what is new; whether there was anything. A file that took the place of the former is read anew."""
        try:
            with opened(self.path) as file:
                return self._read(file)
        except OSError:
            gone = self.size > 0
            self._begin(None)
            return gone

    def _read(self, file: BufferedReader) -> bool:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino)
        if identity != self._identity or status.st_size < self.size:
            self._begin(identity)
        elif status.st_size == self.size:
            return False
        self.size, self.changed = status.st_size, status.st_mtime
        while (self.size - self._next) / self._stride > self.most:
            self._stride *= 2
        while self._next < self.size:
            self._take(_line_from(file, self._next))
            self._next += self._stride
        if len(self.points) > 2 * self.most:
            self.points = self.points[::2]
            self._stride *= 2
        self._read_end(file)
        return True

    def _take(self, line: Line | None) -> None:
        step, loss = number(line, "step"), number(line, "loss")
        if step is not None and loss is not None and (not self.points or step > self.points[-1][0]):
            self.points.append((int(step), loss))

    def _read_end(self, file: BufferedReader) -> None:
        start = max(0, self.size - TAIL)
        lines = _whole_lines(file, start, self.size)
        self.last = next((line for line in map(parsed, reversed(lines)) if _is(line, "train")), self.last)
        looks = (parsed(line) for line in reversed(lines) if LOOK in line)
        self.look = next((line for line in looks if _is(line, "validation")), self.look)
        self._take(self.last)
        file.seek(start)
        self.end = start + file.read(self.size - start).rfind(b"\n") + 1


def _is(line: Line | None, split: str) -> bool:
    return line is not None and line.get("split") == split


def _line_from(file: BufferedReader, place: int) -> Line | None:
    """The first line of a step that begins there or behind, within a block."""
    found = (parsed(line) for line in _whole_lines(file, place, place + BLOCK) if LOOK not in line)
    return next((line for line in found if _is(line, "train")), None)


def _whole_lines(file: BufferedReader, start: int, end: int) -> list[bytes]:
    """The lines that begin and end between two places."""
    begin = max(0, start - 1)
    file.seek(begin)
    lines = file.read(end - begin).split(b"\n")[:-1]
    return lines if start == 0 else lines[1:]


def looks(path: Path) -> list[tuple[int, float]]:
    """(step, loss) of every look at the held-out part, in a file of which only these lines are understood."""
    found: list[Line] = []
    rest = b""
    with opened(path) as file:
        while chunk := file.read(CHUNK):
            content = rest + chunk
            *lines, rest = content.split(b"\n") if LOOK in content else content.rpartition(b"\n")[::2]
            found += [line for line in map(parsed, (line for line in lines if LOOK in line)) if line is not None]
            rest = rest if len(rest) < CHUNK else b""  # of a line that is none of ours
    points = [(number(line, "step"), number(line, "loss")) for line in found if _is(line, "validation")]
    return [(int(step), loss) for step, loss in points if step is not None and loss is not None]


class Followed:
    """Every line of a file from a place on, as it is written.

    Attributes:
        position: the place behind the last line that was read.
    """

    def __init__(self, path: Path, position: int) -> None:
        self.path, self.position = path, position
        self._identity: tuple[int, int] | None = None

    def read(self) -> list[Line] | None:
        """The new lines, of at most a `CHUNK`; None where another file has taken the place of the one that was read."""
        try:
            with opened(self.path) as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if self._identity not in (None, identity) or status.st_size < self.position:
                    return None
                self._identity = identity
                file.seek(self.position)
                content = file.read(CHUNK)
        except OSError:  # it is not there yet, or not for a moment
            return []
        whole, end, rest = content.rpartition(b"\n")
        self.position += (
            len(content) if len(rest) == CHUNK else len(whole) + len(end)
        )  # past a line that is none of ours
        return [line for line in map(parsed, whole.split(b"\n")) if line is not None]
