"""The smallest encoder there is, in place of a trained one: a text's feature is the mean of its words' vectors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import torch

WORDS = 512


@dataclass(frozen=True)
class Pooling:
    pooling: str = "mean"


class WordVectors:
    """What protocols need of an encoder; `embedded` counts the texts that went through."""

    def __init__(self, dimension: int = 16, seed: int = 0) -> None:
        self.encoder = torch.nn.Embedding(WORDS, dimension)
        torch.nn.init.normal_(self.encoder.weight, generator=torch.Generator().manual_seed(seed))
        self.features = Pooling()
        self.dimension = dimension
        self.tokenizer = SimpleNamespace(vocabulary=WORDS)
        self.embedded = 0

    @torch.no_grad()
    def embed(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        self.embedded += len(texts)
        features = torch.zeros(len(texts), self.dimension)
        for number, text in enumerate(texts):
            words = [zlib.crc32(word.encode()) % WORDS for word in text.lower().split()]
            features[number] = self.encoder(torch.tensor(words)).mean(0)
            if progress is not None:
                progress(number + 1, len(texts))
        return features.numpy()

    def pseudo_losses(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> tuple[list[npt.NDArray[np.float32]], list[int]]:
        """Each word's loss is the logarithm of its length and one."""
        losses = [np.array([math.log(1 + len(w)) for w in text.split()], np.float32) for text in texts]
        return losses, [len(text.encode()) for text in texts]
