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
from collections.abc import Hashable

import numpy as np

from selfsup.evaluation.base import Measurement, Numbers, Resampling, Score
from selfsup.evaluation.language import open_subject, token_blocks, token_losses, window_of
from selfsup.inference.items import digest
from selfsup.machine import find_device


def perplexity(measurement: Measurement) -> Score:
    """Measure it; see `selfsup.evaluation.language` for what is predicted from what."""
    model, text = open_subject(measurement)
    each = np.ones(model.tokenizer.vocabulary)
    found = token_losses(model, text, measurement, each, "{:.3f} nats per token")
    blocks = token_blocks(len(found.nats))
    of = digest(found.targets.tobytes())
    nats, tokens = np.bincount(blocks, found.nats), np.bincount(blocks)
    return _score(measurement, nats, tokens, of, text.name, window=window_of(measurement))


def pseudo_perplexity(measurement: Measurement) -> Score:
    """Raises UserError where there is no data, or the model has no head that predicts hidden tokens."""
    collection = measurement.open()
    texts = measurement.sampled([item.content for item in collection.items()])
    measurement.model.to(find_device(measurement.device))
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    measurement.progress(0, len(texts))
    for number, text in enumerate(texts):
        with measurement.autocast():
            losses = measurement.model.pseudo_losses(text)
        nats[number], tokens[number] = losses.sum(dtype=np.float64), len(losses)
        measurement.running(f"{per_token(nats, tokens):.2f} per token")
        measurement.progress(number + 1, len(texts))
    of = measurement.model.tokenizer.fingerprint
    return _score(measurement, nats, tokens, of, collection.name, texts=len(texts))


def per_token(nats: Numbers, tokens: Numbers) -> float:
    """The perplexity of units with such losses and so many tokens, (units,) each."""
    return math.exp(float(nats.sum()) / max(1.0, float(tokens.sum())))


def _score(measurement: Measurement, nats: Numbers, tokens: Numbers, of: Hashable, data: str, **details: int) -> Score:
    """Of the losses and tokens of units that are resampled, (units,) each, and what these are known by."""
    return Score.of(
        Resampling.of_ratio(nats, tokens, of).mapped(math.exp),
        measurement.seed,
        value=per_token(nats, tokens),
        unit="per token",
        n=int(tokens.sum()),
        chance=float(measurement.model.tokenizer.vocabulary),
        data=data,
        details=details,
    )
