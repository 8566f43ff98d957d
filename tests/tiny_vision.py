"""The smallest image encoder there is, untrained, and a folder of small pictures of three colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selfsup.models.features import Features
from selfsup.models.packing import Pooling
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import save_vision

COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}
SIZE, WIDTH = 16, 16


def tiny_vision(seed: int = 0) -> VisionTransformer:
    config = VisionConfig(size=SIZE, patch=8, layers=1, width=WIDTH, heads=2, mlp=32, registers=1)
    return VisionTransformer(config).initialise(torch.Generator().manual_seed(seed))


def save_tiny_vision(directory: Path, seed: int = 0, pooling: Pooling = "mean") -> Path:
    save_vision(directory, tiny_vision(seed), Features(pooling), lambda exactness: exactness)
    return directory


def picture(colour: str, number: int) -> np.ndarray:
    """Noise around a colour, (H, W, 3), of a size of its own."""
    random = np.random.default_rng([number, list(COLOURS).index(colour)])
    height, width = random.integers(16, 40, 2)
    noise = random.normal(0, 25, (height, width, 3))
    return np.clip(COLOURS[colour] + noise, 0, 255).astype(np.uint8)


def save_photos(directory: Path, each: int = 12, start: int = 0) -> Path:
    """directory/COLOUR/NUMBER.png"""
    for colour in COLOURS:
        (directory / colour).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + each):
            Image.fromarray(picture(colour, number)).save(directory / colour / f"{number:02}.png")
    return directory
