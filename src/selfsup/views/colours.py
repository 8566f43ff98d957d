"""Colours of images (n, 3, P) with values in [0, 1], with parameters of each image's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
TINY = 1e-12


def jitter_parameters(
    keys: Tensor, amounts: Tensor, strengths: tuple[float, float, float, float]
) -> tuple[Tensor, Tensor]:
    """What `jitter` does to each image.

    Args:
        keys: (n, 4) numbers whose ascending order is that of brightness, contrast, saturation and hue.
        amounts: (n, 4) numbers in [0, 1): how far each of them goes.
        strengths: largest deviation of the first three factors from 1, and of the hue from 0 in colour circles.

    Returns:
        blends (n, 3, 3): (f, g, c) of `blend` for the first three, in their order; shifts (n,) of the hue.
    """
    signed = torch.stack([(2 * u - 1) * most for u, most in zip(amounts.unbind(1), strengths, strict=True)], 1)
    kinds = keys[:, :HUE].argsort(1)
    factors = 1 + signed[:, :HUE].gather(1, kinds)
    anchors = [(1 - factors) * (kinds == kind) for kind in (SATURATION, CONTRAST)]
    return torch.stack((factors, *anchors), 2).float(), signed[:, HUE].float()


def jitter(images: Tensor, blends: Tensor, shifts: Tensor, early: np.ndarray, kinds: np.ndarray) -> None:
    """Change brightness, contrast, saturation and hue of each image in an order of its own; in place.

    Args:
        images: (n, 3, P), sorted so that every round works on images that stand beside each other.
        blends: (n, 3, 3) parameters of three blends.
        shifts: (n,) of the hue.
        early: (n,) how many of the blends come before the shift, in descending order; −1: nothing is changed.
        kinds: (n, 3) what each blend changes: BRIGHTNESS, CONTRAST or SATURATION.
    """

    def blended(some: slice, turn: int) -> None:
        if some.start == some.stop:
            return
        if (kinds[some, turn] == BRIGHTNESS).all():
            images[some].mul_(blends[some, turn, 0, None, None]).clamp_(0, 1)
        else:
            blend(images[some], blends[some, turn])

    end, *counts = (int((early > turn).sum()) for turn in (-1, 0, 1, 2))
    for turn, count in enumerate(counts):
        blended(slice(0, count), turn)
    shift_hue(images[:end], shifts[:end])
    for turn, count in enumerate(counts):
        blended(slice(count, end), turn)


def luminance(images: Tensor) -> Tensor:
    """Y = .299 R + .587 G + .114 B (ITU-R BT.601), (n, P)."""
    red, green, blue = images.unbind(1)
    grey: Tensor = red * LUMA[0]
    return grey.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def blend(images: Tensor, parameters: Tensor) -> None:
    """x ← f x + g Y + c mean(Y), clipped to [0, 1], with Y the luminance; in place.

    With g = c = 0 this changes the brightness, with g = 1 − f the saturation, with c = 1 − f the contrast
    (Haeberli & Voorhies 1994).

    Args:
        images: (n, 3, P).
        parameters: (n, 3) f, g, c.
    """
    factor, grey, mean = parameters[:, :, None].unbind(1)
    anchor = luminance(images)
    average = anchor.mean(1, keepdim=True).mul_(mean)
    anchor.mul_(grey).add_(average)
    torch.addcmul(anchor[:, None], images, factor[:, None], out=images).clamp_(0, 1)


def shift_hue(images: Tensor, shifts: Tensor) -> None:
    """Turn the hue of HSV (Smith 1978) by `shifts` (n,) of the colour circle; in place.

    With v the largest channel, m the smallest and c = v − m, the hue in sixths of the circle, from −3 to 3, is
    h = sign(G − B) · (1 + (G + B − R − m) / c), and a hue's channels are m + c · (2 − clip(|h|, 1, 2)) for red,
    m + c · (clip(|h + 1|, 1, 2) − 1) for green and m + c · (clip(|h − 1|, 1, 2) − 1) for blue.
    """
    if not len(images):
        return
    red, green, blue = images.unbind(1)
    least = torch.minimum(red, green)
    chroma = torch.maximum(red, green)
    torch.minimum(least, blue, out=least)
    torch.maximum(chroma, blue, out=chroma).sub_(least).add_(TINY)
    base = least.sub_(chroma)
    hue = (green + blue).sub_(red).sub_(base).div_(chroma)
    hue.copysign_(green.sub_(blue)).add_(6 * shifts[:, None])
    hue.sub_((hue * (1 / 6)).round_(), alpha=6)
    torch.addcmul(base, chroma, torch.add(hue, 1, out=green).abs_().clamp_(1, 2), out=green)
    torch.addcmul(base, chroma, torch.sub(hue, 1, out=blue).abs_().clamp_(1, 2), out=blue)
    top = base.add_(chroma, alpha=3)
    torch.addcmul(top, chroma, hue.abs_().clamp_(1, 2), value=-1, out=red)


def solarize(images: Tensor) -> Tensor:
    """Values from a half on are inverted: min(x, 1 − x)."""
    return torch.minimum(images, 1 - images)
