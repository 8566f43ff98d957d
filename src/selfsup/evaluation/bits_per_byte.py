"""bits-per-byte: how many bits the model needs for each byte of a text.

    Σ −log₂ p(token | tokens before it) / bytes of the text in UTF-8

The sum runs over every token of the text and over the end-of-text token that closes each document; the bytes are
those of the documents alone. So models with different tokenizers can be compared, and the figure is the rate at
which the model, with an arithmetic coder, compresses the text (Shannon 1948; used like this in The Pile, Gao et
al. 2020, section 3.1). It is defined only where the tokens stand for every byte of the text.

Chance is a model that gives every token of its vocabulary the same probability.
"""

from __future__ import annotations

import math

from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Score, ratio_interval
from selfsup.evaluation.language import block_sums, lost_bytes, open_subject, token_losses


def bits_per_byte(measurement: Measurement) -> Score:
    """Measure it; see `selfsup.evaluation.language` for what is predicted from what. Raises UserError where the
    tokenizer loses bytes of the data."""
    model, text = open_subject(measurement)
    sizes = model.tokenizer.token_bytes()
    if sizes is None or not text.lossless:
        reason = lost_bytes(model.tokenizer, text)
        raise UserError(
            f"bits-per-byte is not defined for {measurement.directory} on {text.name}: {reason}; "
            "use --protocol perplexity, or a model with a byte-level tokenizer (bpe), which keeps every byte."
        )
    losses = token_losses(model, text, measurement)
    window = model.decoder.config.window
    bits = block_sums(losses / math.log(2), window)
    size = block_sums(sizes[text.targets], window)
    return Score(
        value=float(bits.sum()) / text.bytes,
        unit="bits per byte",
        n=len(losses),
        interval=ratio_interval(bits, size, measurement.seed),
        chance=math.log2(model.tokenizer.vocabulary) * len(losses) / text.bytes,
        data=text.name,
    )
