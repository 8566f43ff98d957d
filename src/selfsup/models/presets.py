"""Sizes by name: for decoders and encoders alike, for vision transformers, and for convolutional networks."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """What a preset chooses."""

    layers: int
    width: int
    heads: int
    mlp: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def blocks(self) -> float:
        """Parameters of the blocks, about."""
        return 12.0 * self.layers * self.width**2


def feed_forward_width(width: int) -> int:
    """A gated feed-forward's hidden width: 8/3 of the width (as many parameters as a plain one of 4), rounded to 64."""
    return max(64, round(width * 8 / 3 / 64) * 64)


def _gated(layers: int, width: int, head_dim: int = 64) -> Shape:
    return Shape(layers, width, width // head_dim, feed_forward_width(width))


def _plain(layers: int, width: int, head_dim: int = 64) -> Shape:
    return Shape(layers, width, width // head_dim, 4 * width)


# Of networks of texts. Named by the parameters in the blocks; embeddings come on top.
PRESETS: dict[str, Shape] = {
    "0.1m": _gated(2, 64, head_dim=32),
    "0.4m": _gated(2, 128, head_dim=32),
    "0.8m": _gated(4, 128, head_dim=32),
    "3m": _gated(6, 192),
    "5m": _gated(6, 256),
    "10m": _gated(6, 384),
    "25m": _gated(8, 512),
    "50m": _gated(10, 640),
    "85m": _gated(12, 768),
    "200m": _gated(16, 1024),
    "400m": _gated(20, 1280),
    "700m": _gated(24, 1536),
    "1.5b": _gated(30, 2048),
    "3b": _gated(26, 3072, head_dim=128),
    "7b": _gated(32, 4096, head_dim=128),  # as Llama's, whose feed-forward is 11,008 wide in place of 10,944
}

# ViT-Ti, S (Touvron et al. 2021, "Training data-efficient image transformers", table 1), B, L and H (Dosovitskiy et al.
# 2021, table 1) under their usual names; the others lie between and below them.
VISION: dict[str, Shape] = {
    "vit-atto": _plain(6, 64, head_dim=32),  # 0.3 million parameters in the blocks
    "vit-femto": _plain(6, 96, head_dim=32),  # 0.7
    "vit-pico": _plain(6, 128, head_dim=32),  # 1.2
    "vit-nano": _plain(8, 160, head_dim=32),  # 2.5
    "vit-ti": _plain(12, 192),  # 5.3
    "vit-xs": _plain(12, 256),  # 9.4
    "vit-s": _plain(12, 384),  # 21
    "vit-m": _plain(12, 512),  # 38
    "vit-b": _plain(12, 768),  # 85
    "vit-l": _plain(24, 1024),  # 302
    "vit-h": _plain(32, 1280, head_dim=80),  # 629
}

# Of convolutional networks, by the width of their first stage; the last one is eight times as wide. Four stages of two
# convolutions and the one before them are a ResNet-9.
CONVOLUTIONAL = {f"conv-{width}": width for width in (16, 24, 32, 48, 64, 96, 128)}
