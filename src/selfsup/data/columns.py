"""Which columns of a table hold texts, images, classes and captions, and what its others are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten

from selfsup.data.discovery import kind_of
from selfsup.data.parts import TEXT, Part, Sample, Values, head_of, paths_of
from selfsup.errors import Damaged

# Names under which a text column goes, the likeliest first.
TEXT_COLUMNS = (TEXT, "content", "document", "body", "article", "story", "passage", "sentence", "markdown")
# Likewise for columns of images, of their paths, of classes and of captions.
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "webp", "pixels", "bytes")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "filepath", "image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "cls")
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "txt", "alt_text", "alt", "description", "descriptions"),
    *("sentence", "sentences", "title", "name", "prompt"),
)
# Columns of which each row is a pair of texts that belong together.
PAIR_COLUMNS = (
    *(("query", "passage"), ("query", "document"), ("query", "positive"), ("anchor", "positive")),
    *(("question", "answer"), ("question", "passage"), ("question", "context")),
    *(("title", "body"), ("title", "text"), ("title", "abstract"), ("title", "content"), ("title", "article")),
    *(("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text1", "text2")),
    *(("source", "target"), ("sentence", "translation"), ("summary", "document"), ("docstring", "code")),
)
TITLE_COLUMNS = ("title", "heading", "headline", "subject")
# Columns that say of a pair whether it belongs together; where there is one, not all of them need do so.
JUDGEMENT_COLUMNS = ("score", "label", "labels", "similarity", "is_duplicate", "gold_label")
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
    that does not hold ids, addresses, numbers, dates, hashes or base64, or is the only one of texts. Raises Damaged
    where there is none, or it is not clear which.
    """
    if part.text is not None:
        return part.text
    columns, rows, *_ = part.sample()
    if not rows:
        return wanted or ""  # without a readable row, only malformed ones can come
    if wanted is not None:
        require_column(part.name, columns, wanted)
        return wanted
    texts = texts_of(rows)
    if named := usual(TEXT_COLUMNS, texts):
        return named[0]
    if not texts:
        raise Damaged(f"{part.name} has no text column, only {_listed(columns, rows)}: {NAME_IT}.")
    prose = {name: values for name, values in texts.items() if _mostly(is_prose, values)}
    best = max(prose or texts, key=lambda name: sum(map(len, texts[name])))
    if len(texts) > 1 and _mostly(is_code, texts[best]):
        ids = f"only of ids, addresses, numbers and the like ({_listed(columns, rows)})"
        raise Damaged(f"{part.name} has no column of prose, {ids}: {NAME_IT}.")
    return best


@dataclass(frozen=True)
class Wanted:
    """What is to be read of a source of images, by the names of its columns, extensions or keys."""

    content: str | None = None  # of the images or their paths; None is the one that is found
    label: str | None = None  # of the classes; None is the one that is found, if any
    captions: tuple[str, ...] | None = None  # () is the one that is found, if any; with None none are read


@dataclass(frozen=True)
class Chosen:
    """The columns of images (or their paths), of classes and of captions."""

    images: str
    label: str | None
    captions: Sequence[str]

    @property
    def beside(self) -> list[str]:
        """Those of classes and of captions."""
        return list(dict.fromkeys([*([self.label] if self.label else []), *self.captions]))

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([self.images, *self.beside]))

    def told(self, columns: Sequence[str]) -> str:
        """The column of images in words, with those of a table that are not read."""
        return described(self.images, [name for name in columns if name not in self.beside])


def image_columns(where: str, sample: Sample, wanted: Wanted) -> Chosen:
    """The columns that images are read from: those wanted, which must be there, else those that are found.

    Of a table they are told by their type, else by the first value, which is the name of an image file; among several
    a usual name decides. Of a list, whose columns have no types, a usual name comes first. Raises Damaged where a
    column is missing, or none holds images.
    """
    for name in (wanted.content, wanted.label, *(wanted.captions or ())):
        if name is not None:
            require_column(where, sample.names, name)
    images = wanted.content or _image_column(where, sample)
    label = wanted.label or next((name for name in LABEL_COLUMNS if name in sample.names), None)
    return Chosen(images, label, _caption_columns(sample, (images, label), wanted.captions))


def path_columns(sample: Sample) -> list[str]:
    """The columns whose first value is the name of an image file."""
    return [name for row in sample.rows[:1] for name, value in row.items() if names_image(value)]


def names_image(value: object) -> bool:
    """Whether a value is the name of an image file."""
    return isinstance(value, str) and kind_of(value) == "images"


def _image_column(where: str, sample: Sample) -> str:
    if sample.images is None:
        images = [name for name in PATH_COLUMNS if name in sample.names] or path_columns(sample)
    else:
        there = sample.images or path_columns(sample)
        images = [name for name in (*IMAGE_COLUMNS, *PATH_COLUMNS) if name in there] or list(there)
    if images:
        return images[0]
    listed = shorten(", ".join(map(str, sample.names)), 200, placeholder=" …")
    kind = "image paths" if sample.images is None else "images"
    raise Damaged(f"{where} has no column of {kind}, only {listed}: {NAME_IT}.")


def _caption_columns(sample: Sample, taken: Sequence[str | None], wanted: Sequence[str] | None) -> Sequence[str]:
    if wanted is None or wanted:
        return wanted or ()
    return usual(CAPTION_COLUMNS, [name for name in sample.texts if name not in taken])[:1]


def pair_columns(columns: Sequence[str], rows: Sequence[Values]) -> list[tuple[str, str]]:
    """The pairs of columns with usual names; of records of a text in two languages, the paths to both."""
    pairs = [(usual((one,), columns), usual((other,), columns)) for one, other in PAIR_COLUMNS]
    found = [(one[0], other[0]) for one, other in pairs if one and other]
    nested = [path for path, value in paths_of(rows[0]) if "." in path and isinstance(value, str)] if rows else []
    languages = [path for path in nested if path.startswith("translation.")]
    return found + ([(languages[0], languages[1])] if len(languages) == 2 else [])


def usual(usual: Sequence[str], columns: Iterable[str]) -> list[str]:
    """The columns with a usual name, in any case, the likeliest first."""
    named = {name.lower(): name for name in columns}
    return [named[name] for name in usual if name in named]


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
