"""The smallest model directory of a decoder, which says something of each next character: its weights are random."""

from __future__ import annotations

import string
from pathlib import Path

import torch

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model

WINDOW = 64


def save_tiny_decoder(directory: Path, seed: int = 0) -> Path:
    tokenizer = train_tokenizer("characters", [string.printable])
    config = DecoderConfig(tokenizer.vocabulary, 1, 16, 1, 1, 16, 32, WINDOW, False)
    draws = torch.Generator().manual_seed(seed)
    decoder = Decoder(config).initialise(draws)
    with torch.no_grad():
        decoder.lm_head.weight.normal_(0.0, 0.5, generator=draws)  # a fresh one says nothing
    save_model(directory, decoder, tokenizer, "A tiny decoder.")
    return directory
