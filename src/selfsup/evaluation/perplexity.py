"""perplexity: among how many equally likely tokens the model hesitates, on the geometric mean.

    exp( mean of −ln p(token | tokens before it) )

The mean runs over every token of the text and over the end-of-text token that closes each document (Jelinek et
al. 1977). It is a figure per token: only models with the same tokenizer can be compared by it. A token that stands
for what the vocabulary does not hold is predicted like any other.

Chance is a model that gives every token of its vocabulary the same probability: the size of the vocabulary.
"""

from __future__ import annotations

import math

import numpy as np

from selfsup.evaluation.base import Request, Score, ratio_interval
from selfsup.evaluation.language import block_sums, open_subject, token_losses


def perplexity(request: Request) -> Score:
    """Measure it; see `selfsup.evaluation.language` for what is predicted from what."""
    model, text = open_subject(request)
    losses = token_losses(model, text, request)
    window = model.decoder.config.window
    nats = block_sums(losses, window)
    low, high = ratio_interval(nats, block_sums(np.ones(len(losses)), window), request.seed)
    return Score(
        protocol="perplexity",
        value=math.exp(float(nats.sum()) / len(losses)),
        unit="per token",
        n=len(losses),
        interval=(math.exp(low), math.exp(high)),  # percentiles go along with an increasing function
        chance=float(model.tokenizer.vocabulary),
        seed=request.seed,
        data=text.name,
    )
