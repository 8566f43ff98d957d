"""Tables of token vectors with their tokenizers: opened, and asked for texts at the speed at which these are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizers import TextTokenizer
from selfsup.data.words import WordIds
from selfsup.models.static import UNLIMITED, StaticConfig, StaticEncoder
from selfsup.models.static_files import read_static, static_file

AT_ONCE = 4096  # texts whose vectors are made at once


def open_table(directory: Path) -> tuple[StaticEncoder, TextTokenizer]:
    """That of a directory of sentence-transformers or model2vec. Raises UserError where it is damaged."""
    table = read_static(directory)
    tokenizer = load_tokenizer(static_file(directory, "tokenizer.json"), "table")
    window = UNLIMITED if tokenizer.longest is None else tokenizer.longest
    encoder = StaticEncoder(StaticConfig(len(table), table.shape[1], window))
    encoder.load_state_dict({"embedding.weight": table}, assign=True)
    return encoder, tokenizer


def look_up(encoder: StaticEncoder, words: WordIds, texts: list[str]) -> tuple[Tensor, int]:
    """The mean of the token vectors of each text, (n, width), and how many of them lost their end."""
    ids, sizes = words.encode(texts)
    long = sizes > encoder.config.window
    if long.any():
        within = np.arange(len(ids)) - np.repeat(sizes.cumsum() - sizes, sizes)  # place of each id in its text
        ids, sizes = ids[within < encoder.config.window], np.minimum(sizes, encoder.config.window)
    device = encoder.embedding.weight.device
    tokens, lengths = (torch.from_numpy(numbers.astype(np.int64)).to(device) for numbers in (ids, sizes))
    return encoder.pooled(tokens, lengths), int(long.sum())
