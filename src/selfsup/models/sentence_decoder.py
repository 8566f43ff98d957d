"""The decoder of TSDAE: a sentence from the one vector that stands for it and the tokens so far (Wang et al. 2021,
"TSDAE: Using Transformer-based Sequential Denoising Auto-Encoder for Unsupervised Sentence Embedding Learning",
section 3).

Its layers and embeddings are the encoder's own, made causal; what it has to itself is what tells each layer the vector.
A decoder attends to what it decodes by softmax(q kᵀ) v. Of one vector s alone there is one key, whose softmax is 1
whatever the query, so that

    cross-attention(x, s) = Wo (Wv s + bv) + bo = A s + b

for every position: a linear map of the vector. Queries and keys have no part in it and get no gradient, so A and b are
what is trained, and equal every cross-attention that there is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from selfsup.models.encoder import EncoderConfig, TextEncoder, initialise
from selfsup.models.kernels import affine
from selfsup.models.packing import lay
from selfsup.models.transformer import LayerNorm, Linear, compute_dtype


class Telling(nn.Module):
    """What one layer is told of a vector: x + A s + b, then a norm where the encoder's stand behind the sums."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.told = Linear(config.width, config.width, config.biases)
        self.norm: LayerNorm | None = config.norm() if config.post_norm else None

    def forward(self, x: Tensor, vectors: Tensor, sentences: Tensor) -> Tensor:
        """Hidden states (B, T, width), the vectors (n, width), and whose sentence each position belongs to (B, T)."""
        told = affine(vectors, (self.told.weight, self.told.bias))[0]
        x = x + told.index_select(0, sentences.flatten()).view_as(x)
        return x if self.norm is None else self.norm(x, x.dtype)


class SentenceDecoder(nn.Module):
    """What tells the layers of an encoder a vector, so that they decode it. Parameters are NaN until filled."""

    __call__: Callable[..., Tensor]

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Telling(config) for _ in range(config.layers))

    def initialise(self, generator: torch.Generator) -> SentenceDecoder:
        """Fill the parameters as `TextEncoder.initialise`; returns self."""
        initialise(self, generator)
        return self

    def forward(self, encoder: TextEncoder, vectors: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The hidden state at each token, (tokens in all, width): each sees the vector (n, width) of its sentence and
        the tokens up to itself.

        `tokens` (tokens in all,) are the sentences one after the other, of `lengths` (n,), laid into rows as they are
        for the encoder; both may be on the host.
        """
        rows = lay(lengths)
        laid = tokens.new_zeros(rows.documents.shape)
        laid.view(-1)[rows.places] = tokens
        laid, documents, places = (
            each.to(vectors.device, non_blocking=True) for each in (laid, rows.documents, rows.places)
        )
        told = vectors.to(compute_dtype(encoder.embeddings.tok_embeddings.weight))
        sentences = documents.clamp(min=0)  # of padding any, for nobody sees it
        layers = [partial(layer, vectors=told, sentences=sentences) for layer in self.layers]
        states = encoder.decode(laid, None if len(lengths) == 1 else documents, layers)
        return states.flatten(0, 1).index_select(0, places)
