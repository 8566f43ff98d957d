"""Gaussian blur as two products with a matrix for each image."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def reach(size: int) -> int:
    """Pixels to each side of the kernel: a tenth of the image in all (SimCLR, appendix A)."""
    return max(1, round(0.05 * size))


@lru_cache(maxsize=8)
def _reflected(size: int, radius: int, device: torch.device) -> Tensor:
    """(radius + 1, size · size): how often pixel i is d pixels from pixel o, d the row, in a line that goes on as its
    own reflection about its first and last pixel."""
    line = torch.arange(size)
    places = torch.arange(-radius, size + radius).abs()
    places = torch.where(places < size, places, 2 * (size - 1) - places)
    table = torch.zeros(radius + 1, size, size)
    for offset in range(-radius, radius + 1):
        table[abs(offset), line, places[line + offset + radius]] += 1
    return table.flatten(1).to(device)


def gaussian(sigma: Tensor, radius: int) -> Tensor:
    """exp(−d² / 2σ²) for d = 0 … radius, (n, radius + 1), divided by the sum over −radius … radius."""
    distances = torch.arange(radius + 1, device=sigma.device, dtype=sigma.dtype)
    kernels = torch.exp(-0.5 * (distances / sigma[:, None]) ** 2)
    return kernels / (2 * kernels.sum(1, keepdim=True) - 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Convolve images (3, n, S, S) with Gaussians of deviations `sigma` (n,), reflected at the borders."""
    size = images.shape[-1]
    radius = min(reach(size), size - 1)
    table = _reflected(size, radius, images.device)
    matrices = (gaussian(sigma, radius) @ table).view(-1, size, size)
    return torch.stack([matrices @ channel @ matrices.mT for channel in images])
