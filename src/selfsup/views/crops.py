"""Where a crop lies, and how it is resampled: as two products with a matrix of weights for each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRIES = 10
CROP_DRAWS = 2 * TRIES + 2


def random_boxes(
    draws: Tensor, sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Crops of random area and aspect ratio (Szegedy et al. 2015), as torchvision's RandomResizedCrop draws them.

    The first of ten tries that fits into the image is taken, or the largest centred crop of an allowed ratio.

    Args:
        draws: (n, CROP_DRAWS) numbers in [0, 1).
        sizes: (n, 2) height and width of the images.
        scale: share of the area.
        ratio: width : height.

    Returns:
        (n, 4) int64: top, left, height, width.
    """
    height, width = sizes.double().unbind(1)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    areas = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[:, :TRIES])
    ratios = torch.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    tried = torch.stack((torch.sqrt(areas / ratios), torch.sqrt(areas * ratios)), 2).round()  # (n, TRIES, 2)
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(2)
    first = fits.to(torch.uint8).argmax(1)
    found = tried[torch.arange(len(tried), device=tried.device), first]
    largest = torch.stack(
        (
            torch.minimum(height, (width / ratio[0]).round()),
            torch.minimum(width, (height * ratio[1]).round()),
        ),
        1,
    )
    some = fits.any(1, keepdim=True)
    extent = torch.where(some, found, largest)
    room = sizes - extent
    start = torch.where(some, (draws[:, 2 * TRIES :] * (room + 1)).floor(), (room / 2).floor())
    return torch.cat((start, extent), 1).long()


def resampling(
    start: Tensor,
    extent: Tensor,
    low: Tensor,
    high: Tensor,
    size: int,
    length: int,
    mirror: Tensor | None = None,
) -> Tensor:
    """Weights that resample a line of pixels with a triangle filter, as Pillow's antialiased bilinear resize.

    Output o stands at c = start + (o + ½) s, s = extent / size; pixel i weighs max(0, 1 − |i + ½ − c| / max(s, 1)),
    divided by the sum of all weights of o.

    Args:
        start, extent: (n,) the part of each line that is resampled.
        low, high: (n,) only pixels low ≤ i < high have a weight.
        size: number of outputs.
        length: number of pixels in a line.
        mirror: (n,) bool: whose outputs come in reverse order.

    Returns:
        (n, size, length) float32.
    """
    step = extent.double()[:, None] / size
    width = step.clamp(min=1)
    outputs = torch.arange(size, device=start.device, dtype=torch.float64)[None] + 0.5
    if mirror is not None:
        outputs = torch.where(mirror[:, None], size - outputs, outputs)
    centres = (start[:, None] + outputs * step) / width
    places = torch.arange(length, device=start.device)[None]
    inside = (places >= low[:, None]) & (places < high[:, None])
    pixels = torch.where(inside, (places + 0.5) / width, math.inf)
    weights = pixels.float()[:, None, :] - centres.float()[:, :, None]
    weights.abs_().neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))


def resample(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows · image · columnsᵀ for each channel of each image.

    Args:
        pixels: (n, 3, H, W) uint8.
        rows: (n, S, H).
        columns: (n, S, W).

    Returns:
        (3, n, S, S) float32 from 0 to 255.
    """
    count, channels, height, width = pixels.shape
    size = rows.shape[1]
    lines = pixels.float().reshape(count, channels * height, width)
    narrow = torch.bmm(lines, columns.mT).view(count, channels, height, size)
    image = narrow.new_empty(channels, count, size, size)
    for channel in range(channels):
        torch.bmm(rows, narrow[:, channel], out=image[channel])
    return image
