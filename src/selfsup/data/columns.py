"""Which column of a table holds its texts, and what its others are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from selfsup.data.parts import TEXT, Part, Values, head_of, paths_of
from selfsup.errors import Damaged

# Names under which a text column goes, the likeliest first.
TEXT_COLUMNS = (TEXT, "content", "document", "body", "article", "story", "passage", "sentence", "markdown")
NAME_IT = "name the column to read (--column NAME or data.column=NAME)"

# One ASCII word that holds more than letters: an id, address, number, hash, date, name of a file; and base64 in lines.
_CODE = re.compile(
    r"[a-z][a-z0-9+.-]*://\S+|(?=[a-z]*[^a-z])[\w.:/@%#?&=+,-]+"
    r"|(?=\D*\d)(?:[\w+/-]{40,}\s+)+[\w+/=-]*",
    re.A | re.I,
)
_SIGN = re.compile(r"[!-@\[-`{-~]")  # what ASCII has beside letters
LOOKED_AT = 1000  # characters of a value


def text_column(part: Part, wanted: str | None) -> str:
    """The column of a part that holds its text.

    It is the one wanted, which must be there; else one with a usual name (`TEXT_COLUMNS`, in that order); else, of
    those whose values are mostly prose, the one with the longest text in the first rows; else the longest of all, if
    that does not hold ids, addresses, numbers, dates, hashes or base64, or is the only one of texts.

    Raises:
        Damaged: there is none, or it is not clear which.
    """
    if part.text is not None:
        return part.text
    columns, rows = part.sample()
    if not rows:
        return wanted or ""  # without a readable row, only malformed ones can come
    if wanted is not None:
        require_column(part.name, columns, wanted)
        return wanted
    texts = texts_of(rows)
    usual = {name.lower(): name for name in texts}
    for name in TEXT_COLUMNS:
        if name in usual:
            return usual[name]
    if not texts:
        raise Damaged(f"{part.name} has no text column, only {_listed(columns, rows)}: {NAME_IT}.")
    prose = {name: values for name, values in texts.items() if _mostly(is_prose, values)}
    best = max(prose or texts, key=lambda name: sum(map(len, texts[name])))
    if len(texts) > 1 and _mostly(is_code, texts[best]):
        raise Damaged(
            f"{part.name} has no column of prose, only of ids, addresses, numbers and the like "
            f"({_listed(columns, rows)}): {NAME_IT}."
        )
    return best


def require_column(where: str, columns: Sequence[str], wanted: str) -> None:
    """Raise Damaged where a column, or the one that a dotted path begins with, is missing."""
    if head_of(wanted, columns) not in columns:
        raise Damaged(f"{where} has no column {wanted!r}: choose one of {', '.join(columns)}.")


def described(chosen: str, columns: Sequence[str]) -> str:
    """A column in words, with those that are not read."""
    others = [name for name in columns if name != head_of(chosen, columns)]
    return f"{chosen!r}" + (f" (not read: {', '.join(others)})" if others else "")


def is_code(value: str) -> bool:
    """Whether a value is an id, an address, a number, a date, a hash or base64 rather than a text."""
    start = value.strip()[:LOOKED_AT]
    return _CODE.fullmatch(start) is not None or 2 * len(_SIGN.findall(start)) > len("".join(start.split()))


def is_prose(value: str) -> bool:
    """Whether a value is several words, or in a script that may have no spaces between them."""
    return not is_code(value) and (len(value.split(None, 1)) > 1 or not value.isascii())


def _mostly(holds: Callable[[str], bool], values: Sequence[str]) -> bool:
    there = [value for value in values if value.strip()]
    return 2 * sum(map(holds, there)) > len(there)


def texts_of(rows: Sequence[Values]) -> dict[str, list[str]]:
    """The values that are texts, by column."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str):
                texts.setdefault(name, []).append(value)
    return texts


def _listed(columns: Sequence[str], rows: Sequence[Values]) -> str:
    """Columns by name, those of records by the dotted paths into them."""
    paths = list(dict.fromkeys(path for row in rows for path, _ in paths_of(row)))
    nested = {path.partition(".")[0] for path in paths}
    return ", ".join([*paths, *(name for name in columns if name not in nested)]) or "unnamed values"
