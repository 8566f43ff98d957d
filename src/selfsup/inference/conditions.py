"""Conditions in SQL: LanceDB reads the first one that it finds, and says nothing of what stands behind it."""

from __future__ import annotations

import re

# A text, a quoted name, the marks of a cast and of comments, or any other character.
TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|::|--|/\*|.", re.DOTALL)
QUOTES = "'\"`"
FOREIGN = {
    ";": "it goes on behind a ;",
    "--": "it holds a comment",
    "/*": "it holds a comment",
    "?": "it holds a ?, and there is no value for it",
    "$": "it holds a $, and there is no value for it",
    ":": "it holds a :, and there is no value for it",
}


def enclosed(condition: str) -> str:
    """A condition in parentheses, out of which nothing of it reaches: so the parser reads all of it as one expression.
    Raises ValueError where it is none, and says why."""
    if not condition.strip():
        raise ValueError("it is empty")
    depth = 0
    for token in TOKEN.findall(condition):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if token in FOREIGN:
            raise ValueError(FOREIGN[token])
        if token in QUOTES:
            raise ValueError(f"a {token} is not closed")
        if depth < 0:
            break
    if depth:
        raise ValueError("its parentheses are not balanced")
    return f"({condition})"
