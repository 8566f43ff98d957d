"""Gaussian blur, as two products with a band of weights for each image."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from selfsup.views.crops import of_channels

SHARE = 0.1  # of the image's side: the width of the kernel (SimCLR, appendix A)
SEEN = 6.5  # sigmas: what lies farther away weighs less than float32 can tell
BLOCK = 32  # outputs that are computed together


def reach(size: int, sigma: float = math.inf) -> int:
    """Pixels to each side of a kernel's middle that weigh anything."""
    return min(max(1, round(SHARE * size / 2)), math.ceil(min(size, SEEN * sigma)))


def gaussian(sigma: Tensor, size: int) -> Tensor:
    """exp(−d² / 2σ²) for d = 0 … reach(size), (n, reach + 1) float32, divided by the sum to both sides."""
    distances = torch.arange(reach(size) + 1, device=sigma.device) / sigma[:, None]
    kernels = torch.exp(-0.5 * distances**2) * (distances <= SEEN)  # products of tiny numbers are slow
    return (kernels / (2 * kernels.sum(1, keepdim=True) - 1)).float()


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve images (n, 3, S, S) along both sides, reflected at the borders.

    Args:
        kernels: (n, radius + 1) the kernels of `gaussian`, or as many of their first columns as weigh anything.
    """
    count, channels, size, _ = images.shape
    lines = images.flatten(0, 1)
    tall, blurred = torch.empty_like(lines), torch.empty_like(lines)
    blocks = [
        (to, seen, of_channels((kernels @ table).view(count, to.stop - to.start, -1), channels))
        for to, seen, table in _blocks(size, kernels.shape[1] - 1, images.device)
    ]
    for to, seen, weights in blocks:
        torch.bmm(weights, lines[:, seen], out=tall[:, to])
    for to, seen, weights in blocks:
        torch.bmm(tall[:, :, seen], weights.mT, out=blurred[:, :, to])
    return blurred.view_as(images)


@lru_cache(maxsize=32)
def _blocks(size: int, radius: int, device: torch.device) -> list[tuple[slice, slice, Tensor]]:
    """Successive outputs of a line that goes on beyond its first and last pixel as its own reflection about them.

    Returns:
        The outputs, the pixels that they read, and (radius + 1, outputs · pixels): how often each output reads each
        pixel from d pixels away, d the row.
    """
    outputs = torch.arange(size)
    table = torch.zeros(radius + 1, size, size)
    for offset in range(-radius, radius + 1):
        places = (outputs + offset).abs()
        table[abs(offset), outputs, torch.minimum(places, 2 * (size - 1) - places)] += 1
    blocks = []
    for start in range(0, size, BLOCK):
        to = slice(start, min(size, start + BLOCK))
        seen = slice(max(0, start - radius), min(size, to.stop + radius))
        blocks.append((to, seen, table[:, to, seen].flatten(1).to(device)))
    return blocks
