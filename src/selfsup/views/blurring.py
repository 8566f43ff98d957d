"""Gaussian blur, as two products with a matrix for each image."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SHARE = 0.1  # of the image's side: the width of the kernel (SimCLR, appendix A)
TINY = 1e-12


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Convolve images (3, n, S, S) with Gaussians of deviations `sigma` (n,) pixels, reflected at the borders."""
    size = images.shape[-1]
    radius = reach(size)
    kernels = gaussian(sigma, radius)
    matrices = (kernels @ _reflected(size, radius, images.device)).view(-1, size, size)
    between, blurred = torch.empty_like(images[0]), torch.empty_like(images)
    for channel, out in zip(images, blurred, strict=True):
        torch.bmm(matrices, channel, out=between)
        torch.bmm(between, matrices.mT, out=out)
    return blurred


def reach(size: int) -> int:
    """Pixels of the kernel to each side of its middle."""
    return max(1, round(SHARE * size / 2))


def gaussian(sigma: Tensor, radius: int) -> Tensor:
    """exp(−d² / 2σ²) for d = 0 … radius, (n, radius + 1), divided by the sum over −radius … radius."""
    distances = torch.arange(radius + 1, device=sigma.device)
    kernels = torch.exp(-0.5 * (distances / sigma[:, None]) ** 2)
    kernels = F.threshold(kernels, TINY, 0)  # products of numbers below float32's normal ones are slow
    return kernels / (2 * kernels.sum(1, keepdim=True) - 1)


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
