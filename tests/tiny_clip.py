"""The smallest model of two towers there is, untrained, and photos with captions in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tiny_vision import COLOURS, WIDTH, save_photos, tiny_vision

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.models.clip import Similarity, save_clip
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.features import Features

DIMENSION, TEXT_WIDTH, WINDOW = 12, 32, 16
SOFTMAX, SIGMOID = Similarity("softmax", 10.0, 0.0), Similarity("sigmoid", 10.0, -2.0)
VOCABULARY = "a the photo picture of red green blue noise cat dog ship number zero one two three in snow " * 2


def projection(width: int, seed: int, bias: bool = False) -> Features:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(DIMENSION, width, generator=random)
    return Features("mean", weight, torch.randn(DIMENSION, generator=random) if bias else None)


def tiny_text(seed: int = 0) -> tuple[TextEncoder, object]:
    tokenizer = train_tokenizer("words", [VOCABULARY] * 2, size=64, family="encoder")
    config = EncoderConfig(tokenizer.vocabulary, 1, TEXT_WIDTH, 2, 64, window=WINDOW, tied=True)
    with torch.no_grad():
        return TextEncoder(config).initialise(torch.Generator().manual_seed(seed)), tokenizer


def save_tiny_clip(directory: Path, similarity: Similarity = SOFTMAX, seed: int = 0) -> Path:
    text, tokenizer = tiny_text(seed)
    features = projection(WIDTH, seed + 1), projection(TEXT_WIDTH, seed + 2, bias=True)
    save_clip(
        directory, tiny_vision(seed), features[0], text, tokenizer, features[1], similarity,
        lambda found: f"max |Δ| {found}",
    )  # fmt: skip
    return directory


def save_table(path: Path, photos: Path, numbers: Sequence[int]) -> Path:
    """A parquet of photos with their bytes, a caption, and their colour."""
    save_photos(photos, max(numbers) + 1)
    files = [photos / colour / f"{number:02}.png" for colour in COLOURS for number in numbers]
    table = {
        "image": [file.read_bytes() for file in files],
        "caption": [f"the {file.parent.name} photo" for file in files],
        "label": [file.parent.name for file in files],
    }
    pq.write_table(pa.table(table), path)
    return path
