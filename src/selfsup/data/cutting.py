"""Long documents cut into passages that fit a model's window, as spans of characters.

A passage is a run of whole sentences. Where a sentence alone is too long, it is cut between lines, else between words,
else between tokens. Passages cover all of a document but white space, and each shares its last sentences with the next.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from selfsup.data.sentences import sentence_spans, stretches
from selfsup.data.tokenizers import PIECE, TextTokenizer, cut
from selfsup.errors import UserError

Span: TypeAlias = tuple[int, int]  # [start, end) of characters
Unit: TypeAlias = tuple[int, int, int]  # the span of what stays together, and its tokens

TOGETHER = 1 << 20  # characters that are encoded together
BRIEF = 16  # characters for each token of the window: a text of more is not tried whole
GAP = 16  # characters of the white space before a sentence that are counted with it
SHARE = 4  # passages share at most this part of a passage
JOINER = "\u200d"
_SPACE, _LINE_END = re.compile(r"\s+"), re.compile(r"\n")


@dataclass(frozen=True)
class Cutter:
    """Cuts texts into passages of at most `size` tokens (what a model puts around a text not counted), each of which
    begins with as many of the last sentences of the one before as have at most `overlap` tokens. `prompt` is what will
    stand before each passage, beside which it has to fit.

    Raises UserError where the numbers leave nothing to cut by.
    """

    tokenizer: TextTokenizer
    size: int
    overlap: int
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"Passages have at least 1 token, not {self.size}; give more.")
        if not 0 <= self.overlap <= self.size // SHARE:
            raise UserError(
                f"Passages of {self.size} tokens share from 0 to {self.size // SHARE} tokens, not {self.overlap}; give "
                "an overlap between."
            )

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        """The passages of each text, in order: neither their starts nor their ends come twice, all that is no white
        space lies in one, and none begins or ends with white space. A text that fits stays whole: its only passage is
        all of it, with the white space around it. Only a single character can take more tokens than a passage has."""
        brief = [number for number, text in enumerate(texts) if len(text) <= BRIEF * self.size]
        tokens = dict(zip(brief, self._tokens([self.prompt + texts[number] for number in brief]), strict=True))
        fits = [tokens.get(number, self._room + 1) <= self._room for number in range(len(texts))]
        return [[(0, len(text))] if whole else self._cut(text) for text, whole in zip(texts, fits, strict=True)]

    def _cut(self, text: str) -> list[Span]:
        units = self._units(text, sentence_spans(text), (_lines, _words))
        spans: list[Span] = []
        for start, end in self._fitting(text, self._packed(units)):
            if spans and end <= spans[-1][1]:
                continue  # it lies within the one before
            while spans and spans[-1][0] >= start:
                spans.pop()  # and this one within it
            spans.append((start, end))
        return spans

    def _units(self, text: str, spans: Iterable[Span], finer: Sequence[_Parts]) -> Iterator[Unit]:
        """Spans that fit a passage, each with its tokens; longer ones in the first of finer parts that do."""
        for batch in _batches(spans):
            brief = [(_gap(text, start), end) for start, end in batch if end - start <= PIECE]
            tokens = iter(self._tokens([text[start:end] for start, end in brief]))
            for start, end in batch:
                count = next(tokens) if end - start <= PIECE else self.size + 1
                if count <= self.size:
                    yield start, end, count
                elif finer:
                    yield from self._units(text, finer[0](text, start, end), finer[1:])
                else:
                    yield from self._pieces(text, start, end)

    def _pieces(self, text: str, start: int, end: int) -> Iterator[Unit]:
        """What has no white space, parted between tokens, not before a mark that belongs to the letter before it."""
        for piece in cut(text[start:end]):
            starts = np.sort([place for place, _ in self.tokenizer.offsets(piece)]).astype(np.int64)
            between = [place for place in np.unique(starts).tolist() if place and not _is_mark(piece[place])]
            borders = [0, *between, len(piece)]
            before = np.searchsorted(starts, borders).tolist()
            for number, place in enumerate(borders[:-1]):
                yield start + place, start + borders[number + 1], before[number + 1] - before[number]
            start += len(piece)

    def _packed(self, units: Iterable[Unit]) -> Iterator[Span]:
        """As many units together as fit, beginning with the last ones of those before."""
        held: list[Unit] = []
        total = 0
        for unit in units:
            if held and total + unit[2] > self.size:
                yield held[0][0], held[-1][1]
                held, total = _last(held, min(self.overlap, self.size - unit[2]))
            held.append(unit)
            total += unit[2]
        if held:
            yield held[0][0], held[-1][1]

    def _fitting(self, text: str, spans: Iterable[Span]) -> Iterator[Span]:
        """The spans, halved where the text of one by itself takes more tokens than its units were seen to."""
        for batch in _batches(spans):
            passages = [self.prompt + text[slice(*span)] for span in batch]
            for span, tokens in zip(batch, self._tokens(passages), strict=True):
                if tokens <= self._room or span[1] - span[0] == 1:
                    yield span
                else:
                    yield from self._fitting(text, _halves(text, *span))

    @cached_property
    def _room(self) -> int:
        """Tokens of a passage behind its prompt."""
        return self.size + len(self.tokenizer.encode(self.prompt))

    def _tokens(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer.encode_batch(texts)]


_Parts: TypeAlias = Callable[[str, int, int], Iterator[Span]]


def _lines(text: str, start: int, end: int) -> Iterator[Span]:
    return stretches(text, _LINE_END, start, end)


def _words(text: str, start: int, end: int) -> Iterator[Span]:
    return stretches(text, _SPACE, start, end)


def _batches(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Consecutive spans, of `TOGETHER` characters or a little more together."""
    batch: list[Span] = []
    size = 0
    for start, end in spans:
        batch.append((start, end))
        size += end - start
        if size >= TOGETHER:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _gap(text: str, start: int) -> int:
    """Where the white space before a place begins, or the last of it: tokenizers join it to what follows."""
    before = text[max(0, start - GAP) : start]
    return start - len(before) + len(before.rstrip())


def _last(units: list[Unit], most: int) -> tuple[list[Unit], int]:
    """The last units that have at most so many tokens together, and how many."""
    total, first = 0, len(units)
    while first and total + units[first - 1][2] <= most:
        first -= 1
        total += units[first][2]
    return units[first:], total


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M") or character == JOINER


def _halves(text: str, start: int, end: int) -> list[Span]:
    """A span cut at the white space nearest to its middle; where it has none, there."""
    middle = (start + end) // 2
    gaps = [match.span() for match in _SPACE.finditer(text, start, end)]
    last, first = min(gaps, key=lambda gap: abs(gap[0] - middle), default=(middle, middle))
    return [(start, last), (first, end)]
