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

import numpy as np

from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Resampling, Score
from selfsup.evaluation.language import byte_blocks, lost_bytes, open_subject, token_losses, window_of
from selfsup.inference.items import digest


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
    found = token_losses(model, text, measurement, sizes * math.log(2), "{:.4f} bits per byte")
    size, bits = sizes[found.targets], found.nats / math.log(2)
    blocks = byte_blocks(size)
    # Whole texts of so many bytes have the same blocks whatever their tokens; samples are of tokens.
    of = text.bytes if measurement.records is None else digest(found.targets.tobytes())
    return Score.of(
        Resampling.of_ratio(np.bincount(blocks, bits), np.bincount(blocks, size), of),
        measurement.seed,
        value=float(bits.sum()) / float(size.sum()),
        unit="bits per byte",
        n=len(size),
        chance=math.log2(model.tokenizer.vocabulary) * len(size) / float(size.sum()),
        data=text.name,
        details={"window": window_of(measurement)},
    )
