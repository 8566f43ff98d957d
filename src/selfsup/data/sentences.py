"""Sentences as training data: where they come from, and how documents are split into them."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selfsup.data.shards import Tokens
from selfsup.data.sources import Table
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError

RULE = 1  # of splitting; another one makes other sentences of the same documents

_BLANK_LINES = re.compile(r"\n\s*\n")
_LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines takes other signs for ends, such as U+2028

# What may end a sentence: its mark, quotes and brackets that close behind it, and white space; or a full-width mark.
# (Only the first of several marks begins a match, so that a long row of them takes no longer than any text.)
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+\s+|[。！？]+[”’」』）]*\s*")
# Words that a full stop belongs to (English, French, German, Italian, Portuguese, Spanish), and initials.
_ABBREVIATED = re.compile(
    r"(?:\b(?:Mrs?|Ms|Mme|Mlle|MM|M|Dr|Prof|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Gov|Sen|Rep|St|Ste|Sr|Sra|Jr|Sig|Dott|Herr|Fr"
    r"|vs|etc|cf|viz|e\.g|i\.e|No|Nos|Vol|vol|pp|p|ch|Fig|fig|art|bzw|z\.B|d\.h|Nr|ca)|\b[A-ZÀ-ÖØ-ÞΑ-ΩА-Я])\.$"
)
# Quotes, brackets and dashes before the first letter or digit.
_OPENS = re.compile(r"[\"'“‘«(\[¿¡—–-]*[^\W_]")


class SentenceTable(Table):
    """A text source whose documents are sentences: the lines of text files, and what other records are split into."""

    def documents(self) -> Iterator[str]:
        for document, row in self.texts():
            if row.part.whole_file:
                yield from (line.strip() for line in _LINE_END.split(document) if line.strip())
            else:
                yield from split_sentences(document)

    def fingerprint(self) -> str:
        content = f"sentences {RULE} {super().fingerprint()}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def open_sentences(
    source: object, column: str | None = None, failures: float = 0.01, split: str | None = None
) -> SentenceTable:
    """Open any source that `open_text` takes; each line of a text file is a sentence, other records are split. Raises
    UserError: as `open_text`."""
    return SentenceTable.of(source, column, failures, split)


def split_sentences(document: str) -> Iterator[str]:
    """The sentences of a document (`sentence_spans`), white space within them reduced to single spaces."""
    return (" ".join(document[start:end].split()) for start, end in sentence_spans(document))


def sentence_spans(document: str) -> Iterator[tuple[int, int]]:
    """The sentences of a document as [start, end) of characters, in order; between them lies white space alone.

    A blank line ends a sentence. Else one ends behind `.`, `!`, `?` or `…` (and what closes there: quotes, brackets)
    before white space and a word that does not begin with a small letter, but not behind an abbreviation such as
    `Mr.` or an initial; a full-width mark ends one by itself.
    """
    for start, last in stretches(document, _BLANK_LINES, 0, len(document)):
        for end in _END.finditer(document, start, last):
            if end.end() < last and _ends_here(document, start, end):
                yield start, start + len(document[start : end.end()].rstrip())
                start = end.end()
        yield start, last


def stretches(text: str, between: re.Pattern[str], start: int, end: int) -> Iterator[tuple[int, int]]:
    """What stands between the matches of a pattern in text[start:end], as [start, end) of characters, without the white
    space around it; what is blank is left out."""
    for match in itertools.chain(between.finditer(text, start, end), [None]):
        stretch = text[start : match.start() if match else end]
        if core := stretch.strip():
            first = start + len(stretch) - len(stretch.lstrip())
            yield first, first + len(core)
        start = match.end() if match else end


def _ends_here(text: str, start: int, end: re.Match[str]) -> bool:
    mark = end.group()[0]
    if mark in "。！？":
        return True
    opening = _OPENS.match(text, end.end())
    if opening is None or opening.group()[-1].islower():
        return False
    return mark != "." or _ABBREVIATED.search(text[max(start, end.start() - 8) : end.start() + 1]) is None


class Sentences:
    """A stream `[start] s1 [end] [start] s2 [end] …` as one record per sentence, map-style. Sentences longer than
    `window` tokens lose their end: `truncated` counts them. Raises UserError: there is no sentence."""

    def __init__(self, tokens: Tokens, window: int, tokenizer: TextTokenizer) -> None:
        self.window = window
        self.tokenizer = tokenizer
        self._tokens = np.asarray(tokens)
        self._starts = np.flatnonzero(self._tokens == tokenizer.start)
        if not len(self._starts):
            raise UserError("The text holds no sentence; give more text.")
        lengths = np.diff(self._starts, append=len(self._tokens))
        self.truncated = int((lengths > window).sum())
        self._lengths = np.minimum(lengths, window)
        self.mean_length = float(self._lengths.mean())

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """Sentences by index (B,).

        Returns:
            `tokens`: int64 (B, T), padded, start and end token included; `lengths`: int64 (B,); `keys`: int64 (B,),
            equal for sentences of equal tokens (and else, up to a chance of 2^-64, different).
        """
        lengths = self._lengths[indices]
        within = np.arange(self.window) < lengths[:, None]
        places = np.minimum(self._starts[indices][:, None] + np.arange(self.window), len(self._tokens) - 1)
        tokens = np.where(within, self._tokens[places], int(self.tokenizer.pad or 0)).astype(np.int64)
        tokens[np.arange(len(tokens)), lengths - 1] = self.tokenizer.end
        keys = [
            hashlib.blake2b(row[:n].tobytes(), digest_size=8).digest() for row, n in zip(tokens, lengths, strict=True)
        ]
        return {
            "tokens": torch.from_numpy(tokens),
            "lengths": torch.from_numpy(lengths.astype(np.int64)),
            "keys": torch.from_numpy(np.frombuffer(b"".join(keys), np.int64).copy()),
        }
