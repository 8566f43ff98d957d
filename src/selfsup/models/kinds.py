"""What kind of model a directory holds, by what its files say."""

from __future__ import annotations

from pathlib import Path

from selfsup.models.adapters import writes
from selfsup.models.clip import MODEL_TYPE as TOWERS
from selfsup.models.dinov3 import MODEL_TYPE as VISION
from selfsup.models.dinov3 import PREPROCESSOR
from selfsup.models.directories import read_config


def two_towers(directory: Path) -> bool:
    """Whether a directory holds two, each in a directory of its own."""
    return read_config(directory).get("model_type") == TOWERS


def sees(directory: Path) -> bool:
    """Whether it holds a model of images: it says how they are prepared."""
    return (directory / PREPROCESSOR).exists() or read_config(directory).get("model_type") == VISION


def reads(directory: Path) -> bool:
    """Whether it holds a model of texts alone."""
    known = read_config(directory).get("model_type")
    return known is not None and known != TOWERS and not sees(directory)


def described(directory: Path) -> str:
    """What it holds, in words."""
    saved = read_config(directory)
    if two_towers(directory):
        return "two towers"
    if "architecture" in saved:
        return f"timm's {saved['architecture']}"
    if "class" in saved:
        return f"{saved['class']}, a network from Python"
    of_texts = "a decoder" if writes(directory) else "a text encoder"
    return f"{'an image encoder' if sees(directory) else of_texts} of type {saved.get('model_type')!r}"
