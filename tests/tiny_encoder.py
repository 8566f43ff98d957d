"""The smallest model directory of an encoder: random weights, so that a text's vector is that of its words."""

from __future__ import annotations

import torch

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.encoder_layouts import save_encoder
from selfsup.models.features import Features

VOCABULARY = "the a storm at sea ship sank old man sat by fire smoked his pipe cat dog ran hill day on in and of"
WORDS = VOCABULARY.split()
WIDTH, WINDOW = 32, 16


def save_tiny(directory, seed=0, pooling="mean", kind="words"):
    tokenizer = train_tokenizer(kind, [VOCABULARY] * 2, size=64 if kind == "words" else None, family="encoder")
    config = EncoderConfig(
        vocabulary=tokenizer.vocabulary, layers=1, width=WIDTH, heads=2, mlp=64, window=WINDOW, tied=True
    )
    with torch.no_grad():
        encoder = TextEncoder(config).initialise(torch.Generator().manual_seed(seed))
    save_encoder(directory, encoder, tokenizer, Features(pooling), "A tiny encoder.")
    return directory
