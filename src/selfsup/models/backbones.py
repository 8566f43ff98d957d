"""Networks that turn an image into a vector."""

from __future__ import annotations

from selfsup.models.vision import VisionTransformer

AnyBackbone = VisionTransformer
