"""pseudo-perplexity: among how many equally likely tokens a masked language model hesitates, on the geometric mean.

    exp( mean of −ln p(token | all other tokens of its text) )

Each token of each text is masked in turn, alone, and predicted from all others; special tokens are neither masked
nor counted (Salazar et al. 2020, "Masked Language Model Scoring"). A text that is longer than the model's window is
cut into pieces that fit. It is a figure per token: only models with the same tokenizer can be compared by it. Since
each token sees what comes after it, it is no probability of the text, and lower than a causal model's perplexity.

Chance is a model that gives every token of its vocabulary the same probability: the size of the vocabulary. The
interval resamples texts.
"""

from __future__ import annotations

import math

import numpy as np

from selfsup.evaluation.base import Request, Score, ratio_interval
from selfsup.evaluation.features import need_data, open_collection, report_skipped
from selfsup.machine import find_device


def measure(request: Request) -> Score:
    """Measure it on the texts of a request's data.

    Raises:
        UserError: no data; the model has no head that predicts hidden tokens.
    """
    collection = open_collection(request, need_data(request))
    texts = [item.content for item in collection.items()]
    report_skipped(collection)
    request.model.to(find_device(request.device))
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
    for number, text in enumerate(texts):
        losses = request.model.pseudo_losses(text)
        nats[number], tokens[number] = losses.sum(dtype=np.float64), len(losses)
        if request.progress is not None:
            request.progress(number + 1, len(texts))
    low, high = ratio_interval(nats, tokens, request.seed)
    return Score(
        protocol="pseudo-perplexity",
        value=math.exp(nats.sum() / tokens.sum()),
        unit="per token",
        n=int(tokens.sum()),
        interval=(math.exp(low), math.exp(high)),  # percentiles go along with an increasing function
        chance=float(request.model.tokenizer.vocabulary),
        seed=request.seed,
        data=collection.name,
        details={"texts": len(texts)},
    )
