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

    The first of ten tries that fits into the image is taken, else the largest centred crop of an allowed ratio.

    Args:
        draws: (n, CROP_DRAWS) numbers in [0, 1).
        sizes: (n, 2) height and width of the images.
        scale: least and largest share of the area.
        ratio: least and largest width : height.

    Returns:
        (n, 4) int64: top, left, height, width.
    """
    height, width = sizes.double().unbind(1)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    areas = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[:, :TRIES])
    ratios = torch.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    tried = torch.stack((torch.sqrt(areas / ratios), torch.sqrt(areas * ratios)), 2).round()
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(2)
    first = fits.byte().argmax(1)[:, None, None].expand(-1, 1, 2)
    tallest = torch.minimum(height, (width / ratio[0]).round())
    widest = torch.minimum(width, (height * ratio[1]).round())
    fit = fits.any(1, keepdim=True)
    extent = torch.where(fit, tried.gather(1, first)[:, 0], torch.stack((tallest, widest), 1))
    room = sizes - extent
    start = torch.where(fit, draws[:, 2 * TRIES :] * (room + 1), room / 2).floor()
    return torch.cat((start, extent), 1).long()


def line(
    start: Tensor,
    extent: Tensor,
    low: Tensor,
    high: Tensor,
    length: int,
    size: int,
    mirror: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Where the pixels of a line and the outputs it is resampled to stand, in widths of the triangle filter.

    Args:
        start, extent: (n,) the part of the line that is resampled, in pixels.
        low, high: (n,) pixels that are looked at, low ≤ i < high; the others stand at infinity.
        length: number of pixels.
        size: number of outputs.
        mirror: (n,) bool: whose outputs come in reverse order.

    Returns:
        (n, length) of the pixels' middles, (n, size) of the outputs'; float32.
    """
    step = extent.double()[:, None] / size
    width = step.clamp(min=1)
    outputs = torch.arange(size, device=start.device) + 0.5
    if mirror is not None:
        outputs = torch.where(mirror[:, None], size - outputs, outputs)
    places = torch.arange(length, device=start.device)
    seen = (places >= low[:, None]) & (places < high[:, None])
    pixels = torch.where(seen, (places + 0.5) / width, math.inf)
    return pixels.float(), ((start[:, None] + outputs * step) / width).float()


def weights(pixels: Tensor, outputs: Tensor) -> Tensor:
    """How much of each pixel is in each output, as in Pillow's antialiased bilinear resize: max(0, 1 − distance),
    divided by the sum over the pixels.

    Args:
        pixels: (n, L) where they stand, in widths of the filter.
        outputs: (n, S).

    Returns:
        (n, S, L).
    """
    distances = pixels[:, None, :] - outputs[:, :, None]
    triangles = distances.abs_().neg_().add_(1).clamp_(min=0)
    return triangles.div_(triangles.sum(2, keepdim=True))


def resample(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows · channel · columnsᵀ for each channel of each image.

    Args:
        pixels: (n, 3, H, W) uint8.
        rows: (n, S, H).
        columns: (n, S, W).

    Returns:
        (3, n, S, S) float32 in [0, 1].
    """
    count, channels, height, width = pixels.shape
    size = rows.shape[1]
    lines = pixels.float().mul_(1 / 255).reshape(count, channels * height, width)
    narrow = torch.bmm(lines, columns.mT).view(count, channels, height, size)
    images = narrow.new_empty(channels, count, size, size)
    for channel in range(channels):
        torch.bmm(rows, narrow[:, channel], out=images[channel])
    return images
