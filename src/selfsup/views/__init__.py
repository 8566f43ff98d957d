"""Views: augmented renderings of images, as batched tensor operations with parameters of each image's own."""

from __future__ import annotations

from selfsup.views.kinds import View, dino_global, dino_local, dino_second, mae_view, simclr_view
from selfsup.views.masking import block_patches, random_patches
from selfsup.views.preprocessing import MEAN, STD, Preprocessing
from selfsup.views.rendering import centred, render, render_several

__all__ = [
    "MEAN",
    "STD",
    "Preprocessing",
    "View",
    "block_patches",
    "centred",
    "dino_global",
    "dino_local",
    "dino_second",
    "mae_view",
    "random_patches",
    "render",
    "render_several",
    "simclr_view",
]
