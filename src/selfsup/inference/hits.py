"""What a search found, and how it is shown: a line for each hit, around the words of the query."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


LINES = 3  # of a passage
INDENT = 7  # of its text, which stands behind the score


@dataclass(frozen=True)
class Hit:
    """A record that was found."""

    score: float  # cosine similarity with the query, from −1 to 1; of a hybrid search the sum of reciprocal ranks
    id: str
    text: str  # what it says; empty for an image
    source: str  # where the record stands
    values: dict[str, Any]  # its other columns
    document: str | None = None  # of a library of passages: the id of the document that the text is a part of, …
    start: int | None = None  # … document[start:end] …
    end: int | None = None  # … in characters
    ranks: dict[str, int | None] | None = None  # of a hybrid search: its place by `vectors` and by `words`
    reranked: float | None = None  # how well it answers the query by a cross-encoder, where one ordered the hits

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def snippet(text: str, query: str, width: int) -> str:
    """One line of a text, at most `width` characters: around words of the query where they occur, else its start.

    Shown is the stretch that holds the most letters of different words of the query.
    """
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    start = _best_start(text, query, width)
    end = min(len(text), start + width)
    start = max(0, end - width)
    shown = text[start:end]
    if start > 0:
        shown = "…" + (shown.partition(" ")[2] or shown[1:])
    if end < len(text):
        shown = (shown.rpartition(" ")[0] or shown[:-1]) + "…"
    return shown


def _best_start(text: str, query: str, width: int) -> int:
    """Where the stretch around the words of a query begins: a fifth of it stands before the first of them."""
    words = [re.escape(word) for word in re.findall(r"\w+", query)]
    if not words:
        return 0
    before = width // 5
    found = list(re.finditer(rf"\b(?:{'|'.join(words)})\b", text, re.IGNORECASE))
    inside: Counter[str] = Counter()
    first = most = start = 0
    for last in found:
        inside[last[0].casefold()] += 1
        while last.end() - found[first].start() > width - before and found[first] is not last:
            inside[found[first][0].casefold()] -= 1
            first += 1
        letters = sum(len(word) for word, count in inside.items() if count)
        if letters > most:
            most, start = letters, max(0, found[first].start() - before)
    return start


def show(hits: Sequence[Hit], query: str, console: Console) -> None:
    """Each hit around the words of the query: those of whole records in a line, passages of documents in a few."""
    if not hits:
        console.print("Nothing found.")
    elif any(hit.document not in (None, hit.id) for hit in hits):
        _show_passages(hits, query, console)
    else:
        _show_records(hits, query, console)


def _show_passages(hits: Sequence[Hit], query: str, console: Console) -> None:
    """A line with score and source, and `LINES` of the text."""
    from selfsup.report import Text, printable

    width = max(20, console.width - INDENT)
    for hit in hits:
        scores = "".join(f"{figure}  " for figure in _figures(hit))
        place = ending(printable(short(hit.source)), max(20, console.width - len(scores) - len(_ranks(hit))))
        console.print(Text(scores), Text(place, "bold"), Text(_ranks(hit), "dim"), sep="")
        text = _marked(snippet(printable(hit.text), query, LINES * width - width // 4), query)
        for line in text.wrap(console, width):
            console.print(" " * INDENT, line, sep="")
        console.print()


def _figures(hit: Hit) -> list[str]:
    """Its scores."""
    return [f"{score:.3f}" for score in (hit.score, hit.reranked) if score is not None]


def _ranks(hit: Hit) -> str:
    """The places of a hybrid hit, where there are any, in words."""
    named = (f"{name} {rank or '–'}" for name, rank in (hit.ranks or {}).items())
    return f"  ({', '.join(named)})" if hit.ranks else ""


def _marked(text: str, query: str) -> Any:
    """A text with the words of the query made bold."""
    from selfsup.report import Text

    line = Text(text)
    line.highlight_words(re.findall(r"\w+", query), "bold", case_sensitive=False)
    return line


def _show_records(hits: Sequence[Hit], query: str, console: Console) -> None:
    """Score, snippet and source of each hit, one line each."""
    from selfsup.report import Text, printable

    sources = [printable(short(hit.source)) for hit in hits]
    worded = any(hit.text for hit in hits)
    aside = min(max(map(len, sources)), console.width // 3 if worded else console.width - 9)
    reranked = any(hit.reranked is not None for hit in hits)
    width = max(20, console.width - aside - (21 if reranked else 11))
    table = plain_table()
    table.add_column("score", justify="right")
    if reranked:
        table.add_column("reranked", justify="right")
    if worded:
        table.add_column("text", no_wrap=True, overflow="ellipsis", width=width)
    table.add_column("source", no_wrap=True, width=aside, style="dim" if worded else None)
    for hit, source in zip(hits, sources, strict=True):
        line = _marked(snippet(printable(hit.text), query, width), query)
        table.add_row(*_figures(hit), *([line] if worded else []), Text(ending(source, aside)))
    console.print(table)


def plain_table() -> Table:
    """A table without lines, for what was found."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def short(source: str) -> str:
    """A place without the part of the path that leads to the working directory."""
    return source.removeprefix(os.getcwd() + os.sep)


def ending(source: str, width: int) -> str:
    """The end of a place, where the file and the record stand."""
    return source if len(source) <= width else "…" + source[len(source) - width + 1 :]
