"""What happens to good inputs: bytes that were flipped, cut, lost or doubled, and values that are of another kind."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 2**31, 10**9, 2**63, 10**30, -(10**30), 0.5, 1e308, float("nan")),
    *(float("inf"), "", "x", "0", "12", " ", "\x00", "\ud800", "\x1b[2J", "../../x", "/dev/zero", "nan", "é" * 300),
    *([], {}, [[]], [None], ["x", 1], {"x": 1}, {"": {}}, nested(50), nested(200)),
)


def of_bytes(data: bytes, random: Random) -> bytes:
    """One to four faults in a row."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_BYTES)(data, random)
    return data


def _flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[_place(data, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def _lose(data: bytes, random: Random) -> bytes:
    start = _place(data, random)
    return data[:start] + data[start + random.choice((1, 3, 16, 500)) :]


def _double(data: bytes, random: Random) -> bytes:
    start = _place(data, random)
    piece = data[start : start + random.choice((1, 8, 200))]
    return data[:start] + piece * random.choice((2, 3, 50)) + data[start:]


def _insert(data: bytes, random: Random) -> bytes:
    start = _place(data, random)
    piece = random.choice((b"\x00", b"\xff" * 8, b'"', b"\n", b"\xef\xbb\xbf", b"\xff\xfe", b"{", random.randbytes(20)))
    return data[:start] + piece + data[start:]


def _number(data: bytes, random: Random) -> bytes:
    """Another length or offset, of 4 or 8 bytes."""
    start, width = _place(data, random), random.choice((4, 8))
    value = random.choice((0, 1, 2**31 - 1, 2**32 - 1, random.randrange(2**32))) % 256**width
    piece = value.to_bytes(width, random.choice(("little", "big")))
    return data[:start] + piece + data[start + width :]


def _place(data: bytes, random: Random) -> int:
    """Headers and footers matter most."""
    ends = min(64, len(data))
    choice = random.randrange(4)
    if choice == 0 and data:
        return random.randrange(ends)
    if choice == 1 and data:
        return len(data) - 1 - random.randrange(ends)
    return random.randrange(len(data)) if data else 0


_BYTES = (_flip, _flip, _cut, _lose, _double, _insert, _number)


def of_json(value: Any, random: Random) -> Any:
    """Another JSON value with the same text but for one to three values, keys or items."""
    changed = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 3))):
        changed = _changed(changed, random)
    return changed


def _changed(value: Any, random: Random) -> Any:
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return copy.deepcopy(random.choice(ODD))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = random.choice(keys)
    action = random.randrange(8)
    if action == 0:
        del value[key]
    elif action == 1 and isinstance(value, dict):
        value[random.choice(("", "x", "__class__", key + "_"))] = value.pop(key)
    else:
        value[key] = _changed(value[key], random)
    return value


def of_json_text(text: bytes, random: Random) -> bytes:
    """A JSON file with other values, or with damaged bytes."""
    choice = random.random()
    if choice < 0.3:
        return of_bytes(text, random)
    if choice < 0.35:  # deeper than a parser that calls itself can follow
        start = _place(text, random)
        return text[:start] + b"[" * 100_000 + b"]" * 100_000 + text[start:]
    return json.dumps(of_json(json.loads(text), random)).encode("utf-8", "surrogatepass")
