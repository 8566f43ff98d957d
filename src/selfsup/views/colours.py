"""Colours of images (3, n, P) with values in [0, 1], changed in place, with parameters of each image's own."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luminance(images: Tensor) -> Tensor:
    """Y = .299 R + .587 G + .114 B (ITU-R BT.601), (n, P)."""
    red, green, blue = images
    grey: Tensor = red * LUMA[0]
    return grey.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def blend(images: Tensor, factors: Tensor, contrast: Tensor, saturation: Tensor) -> None:
    """x ← f x + (1 − f) anchor, clipped to [0, 1]; in place.

    The anchor is black for brightness, the image's mean luminance for contrast, the pixel's luminance for saturation
    (Haeberli & Voorhies 1994).

    Args:
        images: (3, n, P).
        factors: (n,) f.
        contrast, saturation: (n,) 1 where that is what changes, else 0.
    """
    grey = luminance(images)
    rest = 1 - factors
    mean = grey.mean(1).mul_(rest * contrast)
    anchor = torch.addcmul(mean[:, None], grey, (rest * saturation)[:, None], out=grey)
    torch.addcmul(anchor, images, factors[:, None], out=images).clamp_(0, 1)


def shift_hue(images: Tensor, shifts: Tensor) -> None:
    """Turn the hue of HSV (Smith 1978) by `shifts` (n,) of the colour circle; in place.

    With v the largest, m the smallest channel and c = v − m, the hue in sixths of the circle, from −3 to 3, is
    h = sign(G − B) · ((G + B − R − m) / c + 1), and the channels of a hue are m + c · clip(2 − |h|, 0, 1) for red,
    m + c · clip(|h + 1| − 1, 0, 1) for green and m + c · clip(|h − 1| − 1, 0, 1) for blue.
    """
    red, green, blue = images
    least = torch.minimum(red, green)
    most = torch.maximum(red, green)
    torch.minimum(least, blue, out=least)
    chroma = torch.maximum(most, blue, out=most).sub_(least)
    hue = (green + blue).sub_(red).sub_(least).div_(chroma + 1e-12).add_(1)
    hue.copysign_(green - blue).add_(6 * shifts[:, None])
    hue.sub_((hue / 6).round_().mul_(6))
    for channel, (turn, sign, level) in zip(images, ((0, -1, 2), (1, 1, -1), (-1, 1, -1)), strict=True):
        torch.add(hue, turn, out=channel).abs_().mul_(sign).add_(level).clamp_(0, 1)
        torch.addcmul(least, chroma, channel, out=channel)


def solarize(images: Tensor) -> Tensor:
    """Values from a half on are inverted: min(x, 1 − x)."""
    return torch.minimum(images, 1 - images)
