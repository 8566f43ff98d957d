"""Gaussian blur, as two products with a matrix for each image."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.views.crops import BLOCK, of_channels

SHARE = 0.1  # of the image's side: the width of the kernel (SimCLR, appendix A)
TINY = 1e-12


def reach(size: int) -> int:
    """Pixels of the kernel to each side of its middle."""
    return max(1, round(SHARE * size / 2))


def gaussian(sigma: Tensor, size: int) -> Tensor:
    """exp(−d² / 2σ²) for d = 0 … reach(size), (n, reach + 1) float32, divided by the sum to both sides."""
    distances = torch.arange(reach(size) + 1, device=sigma.device)
    kernels = torch.exp(-0.5 * (distances / sigma[:, None]) ** 2)
    kernels = F.threshold(kernels, TINY, 0)  # products of numbers below float32's normal ones are slow
    return (kernels / (2 * kernels.sum(1, keepdim=True) - 1)).float()


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve images (n, 3, S, S) with the kernels of `gaussian` along both sides, reflected at the borders."""
    size, radius = images.shape[-1], kernels.shape[1] - 1
    matrices = (kernels @ _reflected(size, radius, images.device)).view(-1, size, size)
    matrices, lines = of_channels(matrices, images.shape[1]), images.flatten(0, 1)
    starts = range(0, size, BLOCK)
    blocks = [(slice(i, i + BLOCK), slice(max(0, i - radius), i + BLOCK + radius)) for i in starts]
    tall, blurred = torch.empty_like(lines), torch.empty_like(lines)
    for to, span in blocks:
        torch.bmm(matrices[:, to, span], lines[:, span], out=tall[:, to])
    for to, span in blocks:
        torch.bmm(tall[:, :, span], matrices[:, to, span].mT, out=blurred[:, :, to])
    return blurred.view_as(images)


@lru_cache(maxsize=8)
def _reflected(size: int, radius: int, device: torch.device) -> Tensor:
    """(radius + 1, size · size): how often output o reads pixel i from d pixels away, d the row, from a line that
    goes on beyond its first and last pixel as its own reflection about them."""
    outputs = torch.arange(size)
    table = torch.zeros(radius + 1, size, size)
    for offset in range(-radius, radius + 1):
        places = (outputs + offset).abs()
        table[abs(offset), outputs, torch.minimum(places, 2 * (size - 1) - places)] += 1
    return table.flatten(1).to(device)
