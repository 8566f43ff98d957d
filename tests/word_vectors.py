"""The smallest encoders there are, in place of trained ones: random word vectors, and an untrained model."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.inference.base import EmbeddingModel, OneNetwork
from selfsup.inference.texts import Text, Texts
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel
from selfsup.models.encoder_layouts import save_encoder
from selfsup.models.features import Features

WORDS = 512


class WordVectors(OneNetwork[torch.nn.Embedding], EmbeddingModel):
    """What protocols need of an encoder: a text's feature is the mean of its words' vectors.

    `embedded` counts the texts that went through.
    """

    kind = "a text encoder"
    embeds = (Text,)
    reading = ()

    def __init__(self, dimension: int = 16, seed: int = 0) -> None:
        super().__init__(torch.nn.Embedding(WORDS, dimension), Features())
        torch.nn.init.normal_(self.network.weight, generator=torch.Generator().manual_seed(seed))
        self.masked = None
        self.tokenizer = SimpleNamespace(vocabulary=WORDS, fingerprint="words")
        self.embedded = 0

    @classmethod
    def _open(cls, directory: Path) -> WordVectors:
        raise NotImplementedError

    @property
    def width(self) -> int:
        return self.network.embedding_dim

    def read(
        self, source: object, column: str | None = None, *, label: str | None = None, failures: float = 0.01, **_: Any
    ) -> Texts:
        return Texts(source, column, label, failures)

    @torch.no_grad()
    def embed(
        self,
        texts: Sequence[str],
        precision: str = "auto",
        progress: Callable[[int, int], None] | None = None,
        prompt: str | None = None,
    ) -> npt.NDArray[np.float32]:
        self.embedded += len(texts)
        features = torch.zeros(len(texts), self.dimension)
        for number, text in enumerate(texts):
            words = [zlib.crc32(word.encode()) % WORDS for word in text.lower().split()]
            features[number] = self.features.map(self.network(torch.tensor(words)).mean(0)[None])[0]
            if progress is not None:
                progress(number + 1, len(texts))
        return features.numpy()

    def pseudo_losses(self, text: str) -> npt.NDArray[np.float32]:
        """Each word's loss is the logarithm of its length and one."""
        return np.array([math.log(1 + len(word)) for word in text.split()], np.float32)


def save_tiny_encoder(directory: Path, texts: Sequence[str]) -> Path:
    """A real encoder with its head, untrained, as a model directory."""
    tokenizer = train_tokenizer("words", texts, family="encoder")
    config = EncoderConfig(tokenizer.vocabulary, 2, 16, 2, 16, window=32, tied=True)
    model = MaskedLanguageModel(config).initialise(torch.Generator().manual_seed(0))
    save_encoder(directory, model, tokenizer, Features(), "")
    return directory
