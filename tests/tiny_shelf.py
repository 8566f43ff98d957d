"""A folder as a studio is given one: the smallest model of each kind, photos, and libraries of them and of stories."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file
from tiny_clip import save_tiny_clip
from tiny_decoder import save_tiny_decoder
from tiny_encoder import save_tiny
from tiny_vision import save_photos, save_tiny_vision

import selfsup
from selfsup.inference.generate import LanguageModel

STORIES = [
    {"key": "a", "text": "a storm at sea", "year": 1850, "author": "Ann"},
    {"key": "b", "text": "the ship sank in a storm", "year": 1990, "author": 'Bo, the "old"'},
    {"key": "c", "text": "the old man smoked his pipe by the fire", "year": 1952, "author": "Ann"},
    {"key": "d", "text": "the cat sat on the hill and the dog ran", "year": 2001, "author": "Di"},
]


def save_models(root: Path) -> Path:
    """ROOT/decoder, encoder, seeing and pair."""
    _never_ends(save_tiny_decoder(root / "decoder"))
    save_tiny(root / "encoder")
    save_tiny_vision(root / "seeing")
    save_tiny_clip(root / "pair")
    return root


def _never_ends(directory: Path) -> None:
    """Let no greedy text come to its end: among so many tokens one is always likelier than a logit of 0."""
    path, end = directory / "model.safetensors", LanguageModel.load(directory).tokenizer.end
    weights = load_file(path)
    weights["lm_head.weight"][end] = 0
    save_file(weights, path, metadata={"format": "pt"})


def save_libraries(root: Path) -> Path:
    """ROOT/photos and table.parquet, and libraries of them and of stories; the models are there already."""
    photos = save_photos(root / "photos", 4)
    files = sorted(photos.rglob("*.png"))[:3]
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), root / "table.parquet")
    selfsup.index(root / "pair", photos, root / "photos.lance")
    selfsup.index(root / "seeing", root / "table.parquet", root / "rows.lance")
    selfsup.index(root / "encoder", STORIES, root / "stories.lance", id_column="key")
    return root
