"""The towers of image-text training: an encoder each, and the way from its vectors into the space that both share."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.adapters import AnyEncoder
from selfsup.models.backbones import AnyBackbone
from selfsup.models.features import Features
from selfsup.models.packing import Pooling, embed, flattened


class SharedProjection(nn.Module):
    """W x + b in fp32, or W x: what an encoder makes of an image or text, put into the space that both share."""

    def __init__(self, width: int, dimension: int, biased: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dimension, width))
        self.bias = nn.Parameter(torch.zeros(dimension)) if biased else None

    @torch.no_grad()
    def initialise(self, draws: torch.Generator, features: Features) -> SharedProjection:
        """Random directions of the vector that an encoder has been given by its `features`, a map M x + m: W = R·M and
        b = R·m, or the map itself where it leads into as many dimensions. Returns self."""
        dimension, width = self.weight.shape
        mapped = torch.eye(width) if features.weight is None else features.weight
        shift = torch.zeros(len(mapped)) if features.bias is None else features.bias
        directions = torch.empty(dimension, len(mapped)).normal_(0.0, len(mapped) ** -0.5, generator=draws)
        if features.weight is not None and len(mapped) == dimension:
            directions = torch.eye(dimension)
        self.weight.copy_(directions @ mapped)
        if self.bias is not None:
            self.bias.copy_(directions @ shift)
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

    def features(self, pooling: Pooling) -> Features:
        """What the vector of an image or text is in the shared space."""
        weight = self.weight.detach().cpu().clone()
        return Features(pooling, weight, None if self.bias is None else self.bias.detach().cpu().clone())


class Tower(nn.Module):
    """An encoder of images or of texts, and the way from its vectors into the shared space; None where they are of that
    space themselves."""

    def __init__(self, network: nn.Module, projection: SharedProjection | None, pooling: Pooling) -> None:
        super().__init__()
        self.network = network
        self.projection = projection
        self.pooling = pooling
        self.frozen = False

    def freeze(self) -> None:
        """Leave the network as it is; the projection is trained all the same."""
        self.network.requires_grad_(False)
        self.frozen = True

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    @property
    def features(self) -> Features:
        """What the vector of an image or text is, in the shared space."""
        return Features(self.pooling) if self.projection is None else self.projection.features(self.pooling)

    def shared(self, vectors: Tensor) -> Tensor:
        """What the encoder made (B, width), in the shared space (B, dimension)."""
        return vectors if self.projection is None else cast(Tensor, self.projection(vectors))


class ImageTower(Tower):
    network: AnyBackbone

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, dimension)."""
        return self.shared(self.network.embed(pixels, self.pooling))


class TextTower(Tower):
    network: AnyEncoder

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Padded captions (B, T) of `lengths` (B,) tokens to (B, dimension)."""
        return self.shared(embed(self.network, flattened(tokens, lengths), lengths, self.pooling))
