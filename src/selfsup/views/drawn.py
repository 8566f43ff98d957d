"""Views, to be looked at: what was drawn for them, which is what `render` draws, and how they look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.seeding import uniform
from selfsup.views.crops import random_boxes
from selfsup.views.kinds import View
from selfsup.views.preprocessing import Preprocessing
from selfsup.views.rendering import BLUR, CROP, FLIP, GREY, JITTER, SIGMA, SOLARIZE


@dataclass(frozen=True)
class Drawn:
    """Of one view of one image.

    Attributes:
        box: (top, left, height, width) of the crop, in pixels of the image.
        sigma: of the blur, in pixels of the view; 0 where it is not blurred.
    """

    box: tuple[int, int, int, int]
    mirrored: bool
    jittered: bool
    grey: bool
    sigma: float
    solarized: bool


def draw_views(
    sizes: Tensor, view: View, seed: int, epochs: np.ndarray, records: np.ndarray, number: int
) -> list[Drawn]:
    """For each image, what `render` draws with the same arguments."""
    draws = uniform(seed, f"view {number}", epochs, records, CROP.stop)
    boxes = random_boxes(torch.from_numpy(draws[:, CROP]), sizes, view.scale, view.ratio)
    spread = view.sigma[1] - view.sigma[0]
    return [
        Drawn(
            tuple(box),
            mirrored=bool(row[FLIP] < view.flip),
            jittered=bool(row[JITTER] < view.jitter),
            grey=bool(row[GREY] < view.grey),
            sigma=float(view.sigma[0] + spread * row[SIGMA]) if row[BLUR] < view.blur else 0.0,
            solarized=bool(row[SOLARIZE] < view.solarize),
        )
        for box, row in zip(boxes.tolist(), draws, strict=True)
    ]


def levels(pixels: Tensor, seen: View | Preprocessing) -> npt.NDArray[np.uint8]:
    """What a network is given, (n, 3, H, W), as pictures again: (n, H, W, 3)."""
    mean, std = (torch.tensor(moments).view(3, 1, 1) for moments in (seen.mean, seen.std))
    scaled = (pixels.float().cpu() * std + mean) * 255
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
