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
    tables, blocks = _blocks(size, kernels.shape[1] - 1, images.device)
    flat = ((kernels @ table.flatten(1)).view(count, *table.shape[1:]) for table in tables)
    weights = [of_channels(matrices, channels) for matrices in flat]
    for to, seen, kind in blocks:
        torch.bmm(weights[kind], lines[:, seen], out=tall[:, to])
    for to, seen, kind in blocks:
        torch.bmm(tall[:, :, seen], weights[kind].mT, out=blurred[:, :, to])
    return blurred.view_as(images)


@lru_cache(maxsize=32)
def _blocks(size: int, radius: int, device: torch.device) -> tuple[list[Tensor], list[tuple[slice, slice, int]]]:
    """Successive outputs of a line that goes on beyond its first and last pixel as its own reflection about them.

    Returns:
        Tables (radius + 1, outputs, pixels) of how often each output reads each pixel from d pixels away, d the row;
        and of each block the outputs, the pixels that they read, and the number of its table.
    """
    outputs = torch.arange(size)
    whole = torch.zeros(radius + 1, size, size)
    for offset in range(-radius, radius + 1):
        places = (outputs + offset).abs()
        whole[abs(offset), outputs, torch.minimum(places, 2 * (size - 1) - places)] += 1
    tables: list[Tensor] = []
    blocks = []
    for start in range(0, size, BLOCK):
        to = slice(start, min(size, start + BLOCK))
        seen = slice(max(0, start - radius), min(size, to.stop + radius))
        table = whole[:, to, seen].contiguous()
        if not tables or not torch.equal(tables[-1], table):
            tables.append(table)
        blocks.append((to, seen, len(tables) - 1))
    return [table.to(device) for table in tables], blocks
