"""perplexity, pseudo-perplexity: among how many equally likely tokens a model hesitates, on the geometric mean.

    perplexity           exp( mean of −ln p(token | tokens before it) )
    pseudo-perplexity    exp( mean of −ln p(token | all other tokens of its text) )

Perplexity, of decoders: the mean runs over every token of the text and over the end-of-text token that closes each
document (Jelinek et al. 1977). A token that stands for what the vocabulary does not hold is predicted like any other.

Pseudo-perplexity, of masked language models: each token of each text is masked in turn, alone, and predicted from all
others; special tokens are neither masked nor counted (Salazar et al. 2020, "Masked Language Model Scoring"). A text
that is longer than the model's window is cut into pieces that fit. Since each token sees what comes after it, it is no
probability of the text, and lower than a causal model's perplexity. The interval resamples texts.

Both are figures per token: only models with the same tokenizer can be compared by them. Chance is a model that gives
every token of its vocabulary the same probability: the size of the vocabulary.
"""

from __future__ import annotations

import math

import numpy as np

from selfsup.evaluation.base import Measurement, Score, ratio_interval
from selfsup.evaluation.language import block_sums, open_subject, token_losses
from selfsup.inference.geometry import Floats
from selfsup.machine import find_device


def perplexity(measurement: Measurement) -> Score:
    """Measure it; see `selfsup.evaluation.language` for what is predicted from what."""
    model, text = open_subject(measurement)
    losses = token_losses(model, text, measurement)
    window = model.decoder.config.window
    return _score(measurement, block_sums(losses, window), block_sums(np.ones(len(losses)), window), text.name)


def pseudo_perplexity(measurement: Measurement) -> Score:
    """Raises UserError where there is no data, or the model has no head that predicts hidden tokens."""
    collection = measurement.open()
    texts = [item.content for item in collection.items()]
    measurement.model.to(find_device(measurement.device))
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
    for number, text in enumerate(texts):
        losses = measurement.model.pseudo_losses(text)
        nats[number], tokens[number] = losses.sum(dtype=np.float64), len(losses)
        measurement.progress(number + 1, len(texts))
    return _score(measurement, nats, tokens, collection.name, texts=len(texts))


def _score(measurement: Measurement, nats: Floats, tokens: Floats, data: str, **details: int) -> Score:
    """Of the losses and tokens of units that are resampled, (units,) each."""
    low, high = ratio_interval(nats, tokens, measurement.seed)
    return Score(
        value=math.exp(float(nats.sum()) / float(tokens.sum())),
        unit="per token",
        n=int(tokens.sum()),
        interval=(math.exp(low), math.exp(high)),  # percentiles go along with an increasing function
        chance=float(measurement.model.tokenizer.vocabulary),
        data=data,
        details=details,
    )
