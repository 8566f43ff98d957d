"""Sizes by name: for decoders and encoders alike, and for vision transformers."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """What a preset chooses."""

    layers: int
    width: int
    heads: int
    head_dim: int
    mlp: int

    @property
    def blocks(self) -> float:
        """Parameters of the blocks, about."""
        return 12.0 * self.layers * self.width**2


def feed_forward_width(width: int) -> int:
    """A gated feed-forward's hidden width: 8/3 of the width (as many parameters as a plain one of 4), rounded to 64."""
    return max(64, round(width * 8 / 3 / 64) * 64)


def _shape(layers: int, width: int, head_dim: int = 64) -> Shape:
    return Shape(layers, width, width // head_dim, head_dim, feed_forward_width(width))


# Named by the parameters in the blocks; embeddings come on top.
PRESETS: dict[str, Shape] = {
    "0.1m": _shape(2, 64, head_dim=32),
    "0.4m": _shape(2, 128, head_dim=32),
    "0.8m": _shape(4, 128, head_dim=32),
    "3m": _shape(6, 192),
    "5m": _shape(6, 256),
    "10m": _shape(6, 384),
    "25m": _shape(8, 512),
    "50m": _shape(10, 640),
    "85m": _shape(12, 768),
    "200m": _shape(16, 1024),
    "400m": _shape(20, 1280),
    "700m": _shape(24, 1536),
    "1.5b": _shape(30, 2048),
}


class VisionShape(NamedTuple):
    """What a preset of a vision transformer chooses."""

    layers: int
    width: int
    heads: int
    mlp: int

    @property
    def blocks(self) -> float:
        """Parameters of the blocks, about."""
        return 12.0 * self.layers * self.width**2


def _vision(layers: int, width: int, head_dim: int = 64) -> VisionShape:
    return VisionShape(layers, width, width // head_dim, 4 * width)


# ViT-Ti, S (Touvron et al. 2021, "Training data-efficient image transformers", table 1), B and L (Dosovitskiy et al.
# 2021, table 1) under their usual names; the others lie between and below them.
VISION: dict[str, VisionShape] = {
    "vit-atto": _vision(6, 64, head_dim=32),  # 0.3 million parameters in the blocks
    "vit-femto": _vision(6, 96, head_dim=32),  # 0.7
    "vit-pico": _vision(6, 128, head_dim=32),  # 1.2
    "vit-nano": _vision(8, 160, head_dim=32),  # 2.5
    "vit-ti": _vision(12, 192),  # 5.3
    "vit-xs": _vision(12, 256),  # 9.4
    "vit-s": _vision(12, 384),  # 21
    "vit-m": _vision(12, 512),  # 38
    "vit-b": _vision(12, 768),  # 85
    "vit-l": _vision(24, 1024),  # 302
}
