"""Static embeddings: a table of token vectors. The vector of a text is the mean of those of its tokens.

(Tulkens and van Dongen 2024, "Model2Vec", github.com/MinishLab/model2vec.) Nothing but the table is computed with, so
that a CPU embeds texts far faster than by a transformer. What tokens weigh is folded into their vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.models.transformer import Embedding, TensorModule

UNLIMITED = 1 << 40  # tokens of a text, where nothing bounds them


@dataclass(frozen=True)
class StaticConfig:
    """All that determines a table but its numbers.

    Attributes:
        window: tokens of the longest text that is read to its end.
        around: tokens that stand around texts in training and are no part of the mean.
    """

    vocabulary: int
    width: int
    window: int = UNLIMITED
    around: tuple[int, ...] = ()


class StaticEncoder(TensorModule):
    """Token numbers to token vectors, and to their means. The table is NaN until it is filled or loaded."""

    def __init__(self, config: StaticConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocabulary, config.width)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """The vectors (B, T, width) of tokens (B, T), which see nothing of each other, whatever their documents."""
        vectors: Tensor = self.embedding(tokens)
        return vectors

    def pooled(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The mean of the token vectors of each text, (n, width); zeros for one without any.

        `tokens` (tokens in all,) are the texts one after the other, of `lengths` (n,).
        """
        if self.config.around:
            inner = ~torch.isin(tokens, tokens.new_tensor(self.config.around))
            texts = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
            tokens, lengths = tokens[inner], torch.bincount(texts[inner], minlength=len(lengths))
        weight, starts = self.embedding.weight, lengths.cumsum(0) - lengths
        tokens, starts = (each.to(weight.device, non_blocking=True) for each in (tokens, starts))
        return F.embedding_bag(tokens, weight, starts, mode="mean")
