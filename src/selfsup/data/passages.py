"""Windows for an encoder: each a passage between start and end token, with nothing wasted on padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selfsup.data.shards import Tokens, block_of, runs_of
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError


class Passages:
    """A stream `[start] d1 [end] [start] d2 [end] …` as records of `window` tokens, map-style.

    Record i holds the T − 2 tokens of the stream from i(T − 2) on, behind a start token and before an end token, as
    whoever opens the model gives it a text; several documents in one record keep theirs. Where the passage opens with
    a start token of its own (or closes with an end token), padding takes the place of the one added. The last record
    begins early enough to be full. A stream that is too short for one record is a UserError. Those of a stream in
    shards lie in blocks.
    """

    def __init__(self, tokens: Tokens, window: int, tokenizer: TextTokenizer) -> None:
        self.window = window
        self.tokenizer = tokenizer
        self.content = window - 2
        if window < 3 or len(tokens) < self.content:
            raise UserError(
                f"The text has {len(tokens)} tokens, too few for one window of {window}: choose a smaller window "
                "(of at least 3) or give more text."
            )
        self._length = -(-len(tokens) // self.content)
        self._last = len(tokens) - self.content
        self.block = block_of(tokens, self.content, self._length)
        self._runs = runs_of(tokens, self.content)

    def __len__(self) -> int:
        return self._length

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """Records by index (B,): `tokens`, int64 (B, T)."""
        runs = self._runs(np.minimum(indices.astype(np.int64) * self.content, self._last))
        start, end, pad = self.tokenizer.start, self.tokenizer.end, int(self.tokenizer.pad or 0)
        framed = np.empty((len(runs), self.window), np.int64)
        framed[:, 1:-1] = runs
        framed[:, 0] = np.where(runs[:, 0] == start, pad, start)
        framed[:, -1] = np.where(runs[:, -1] == end, pad, end)
        return {"tokens": torch.from_numpy(framed)}
