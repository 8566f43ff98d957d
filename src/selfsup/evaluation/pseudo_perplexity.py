"""pseudo-perplexity: among how many equally likely tokens a masked language model hesitates, on the geometric mean.

    exp( mean of −ln p(token | all other tokens of its text) )

Each token of each text is masked in turn, alone, and predicted from all others; special tokens are neither
masked nor counted (Salazar et al. 2020, equations 2 and 3). It is a figure per token: only models with the same
tokenizer can be compared by it; the bits per byte among the details, the same sum over the bytes of the
texts, go some way beyond. Since each token sees what comes after it, it is no probability of the text and is lower
than a causal model's perplexity.

Chance is a model that gives every token of its vocabulary the same probability: the size of the vocabulary. The
interval resamples texts.
"""

from __future__ import annotations

import math

import numpy as np

from selfsup.data.tables import open_table
from selfsup.errors import UserError
from selfsup.evaluation.base import Request, Score, ratio_interval
from selfsup.evaluation.features import need_data
from selfsup.machine import find_device


def measure(request: Request) -> Score:
    """Measure it on the texts of a request's data, each as long as the model's window at most."""
    table = open_table(need_data(request))
    texts = [text for text, _ in table.documents(request.column)]
    model = request.model
    model.encoder.to(find_device(request.device))
    losses, sizes = model.pseudo_losses(texts, progress=request.progress)
    nats = np.array([float(text.sum()) for text in losses])
    tokens = np.array([float(len(text)) for text in losses])
    if not tokens.sum():
        raise UserError(f"{table.name} holds no token that could be masked; give texts that are not blank.")
    low, high = ratio_interval(nats, tokens, request.seed)
    return Score(
        protocol="pseudo-perplexity",
        value=math.exp(nats.sum() / tokens.sum()),
        unit="per token",
        n=int(tokens.sum()),
        interval=(math.exp(low), math.exp(high)),  # percentiles go along with an increasing function
        chance=float(model.tokenizer.vocabulary),
        seed=request.seed,
        data=table.name,
        details={"texts": len(texts), "bits_per_byte": float(nats.sum() / math.log(2) / sum(sizes))},
    )
