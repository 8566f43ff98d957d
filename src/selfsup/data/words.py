"""The ids of many texts: where a tokenizer goes by words, each word is tokenised once and looked up after that."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

from selfsup.data.tokenizers import Ids, TextTokenizer

MOST = 1 << 24  # characters of the words that are remembered, beyond which they are forgotten
Numbers = npt.NDArray[np.int64]


@dataclass
class Known:
    """Words by their numbers: where the ids of each begin among all `ids`, and how many it has."""

    ids: Ids
    starts: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    sizes: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    numbers: dict[str, int] = field(default_factory=dict)
    characters: int = 0

    def add(self, words: list[str], ids: Ids, sizes: Numbers) -> None:
        """Remember new words, whose ids lie one after the other."""
        self.numbers |= dict(zip(words, range(len(self.numbers), len(self.numbers) + len(words)), strict=True))
        self.starts = np.concatenate([self.starts, len(self.ids) + sizes.cumsum() - sizes])
        self.sizes = np.concatenate([self.sizes, sizes])
        self.ids = np.concatenate([self.ids, ids])
        self.characters += sum(map(len, words))


class WordIds:
    """What a tokenizer makes of words, remembered. The ids are those of `TextTokenizer.encode_joined`."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self._known = Known(np.empty(0, tokenizer.dtype))

    def encode(self, texts: list[str]) -> tuple[Ids, Numbers]:
        """The ids of all texts, one after the other, (tokens in all,), and how many each has, (n,)."""
        if not (self.tokenizer.apart and all(isinstance(text, str) for text in texts)):
            return self.tokenizer.encode_joined(texts)
        words = [text.split(" ") for text in texts]
        numbers = self._look_up(list(chain.from_iterable(words)))
        starts, sizes = self._known.starts[numbers], self._known.sizes[numbers]
        places = np.arange(sizes.sum()) + np.repeat(starts - sizes.cumsum() + sizes, sizes)
        ends = sizes.cumsum()[np.cumsum([len(of_text) for of_text in words], dtype=np.int64) - 1]
        return self._known.ids[places], np.diff(ends, prepend=0)

    def _look_up(self, words: list[str]) -> Numbers:
        """The number of each word (n,)."""
        if self._known.characters > MOST:
            self._known = Known(np.empty(0, self.tokenizer.dtype))
        if new := sorted(set(words) - self._known.numbers.keys()):
            self._known.add(new, *self.tokenizer.encode_joined(new))
        return np.fromiter(map(self._known.numbers.__getitem__, words), np.int64, len(words))
