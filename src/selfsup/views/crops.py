"""Where a crop lies, and how it is resampled: as two products with a matrix of weights for each image, large ones on a
CPU by PyTorch's own resize of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10
CROP_DRAWS = 2 * TRIES + 2
BLOCK = 48  # outputs that are computed together: most weights of a long line are zero
LARGE = 64  # pixels: crops of this size are faster one by one on a CPU


def random_boxes(draws: Tensor, sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
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


def cropping(
    pixels: Tensor, chosen: Tensor, boxes: Tensor, mirror: Tensor, size: int, bicubic: bool = False
) -> Callable[[slice], Tensor]:
    """What makes any part of n crops, resized to squares as Pillow's antialiased bilinear or bicubic resize does it.

    Args:
        pixels: (N, 3, H, W) uint8.
        chosen: (n,) int64: of which of them each crop is.
        boxes: (n, 4) int64 top, left, height and width.
        mirror: (n,) bool: whose columns come in reverse order.
        size: S, their side.

    Returns:
        A function to (…, 3, S, S) float32 in [0, 1]; on a CPU `LARGE` crops are multiples of 1 / 255, as of Pillow.
    """
    if pixels.device.type == "cpu" and size >= LARGE:
        each = list(zip(chosen.tolist(), boxes.tolist(), mirror.tolist(), strict=True))
        return lambda part: _one_by_one(pixels, each[part], size, "bicubic" if bicubic else "bilinear")
    top, left, height, width = boxes.unbind(1)
    rows = Line.of(top, height, top, top + height, pixels.shape[2], size, bicubic)
    columns = Line.of(left, width, left, left + width, pixels.shape[3], size, bicubic, mirror)
    return lambda part: resample(pixels, chosen[part], rows[part], columns[part])


def _one_by_one(pixels: Tensor, each: list[tuple[int, list[int], bool]], size: int, mode: str) -> Tensor:
    images = torch.empty(len(each), 3, size, size)
    for image, (source, (top, left, height, width), mirrored) in zip(images, each, strict=True):
        part = pixels[source, :, top : top + height, left : left + width]
        resized = F.interpolate(part[None], (size, size), mode=mode, antialias=True)[0]
        image.copy_(resized.flip(2) if mirrored else resized)
    return images.div_(255)


@dataclass(frozen=True)
class Line:
    """Where the pixels of lines and the outputs that they are resampled to stand, in widths of the filter, a bilinear
    one of which is zero from 1 on, a bicubic one from 2 on.

    Attributes:
        pixels: (n, L) float32, infinite where a pixel is not looked at.
        outputs: (n, S) float32.
        first, last: (n, blocks) the pixels first ≤ i < last are all that BLOCK successive outputs may have a part of.
        bicubic: which filter it is.
    """

    pixels: Tensor
    outputs: Tensor
    first: Tensor
    last: Tensor
    bicubic: bool

    @staticmethod
    def of(
        start: Tensor,
        extent: Tensor,
        low: Tensor,
        high: Tensor,
        length: int,
        size: int,
        bicubic: bool = False,
        mirror: Tensor | None = None,
    ) -> Line:
        """Lines of `length` pixels, resampled to `size` outputs.

        Args:
            start, extent: (n,) the part of each line that is resampled, in pixels.
            low, high: (n,) pixels that are looked at: low ≤ i < high.
            mirror: (n,) bool: whose outputs come in reverse order.
        """
        start, low, high = start[:, None], low[:, None], high[:, None]
        step = extent.double()[:, None] / size
        width = step.clamp(min=1)
        outputs = torch.arange(size, device=step.device) + 0.5
        if mirror is not None:
            outputs = torch.where(mirror[:, None], size - outputs, outputs)
        centres = start + outputs * step
        one = centres[:, ::BLOCK]  # the outermost outputs of each block, in either order
        other = torch.cat((centres[:, BLOCK - 1 :: BLOCK], centres[:, -1:]), 1)[:, : one.shape[1]]
        reach = 2 * width if bicubic else width
        first = (torch.minimum(one, other) - reach).floor().clamp(low, high - 1)
        last = (torch.maximum(one, other) + reach).ceil().clamp(low + 1, high)
        places = torch.arange(length, device=step.device)
        seen = (places >= low) & (places < high)
        pixels = torch.where(seen, (places + 0.5) / width, math.inf)
        return Line(pixels.float(), (centres / width).float(), first.long(), last.long(), bicubic)

    def __getitem__(self, images: slice) -> Line:
        first, last = self.first[images], self.last[images]
        return Line(self.pixels[images], self.outputs[images], first, last, self.bicubic)

    def blocks(self) -> tuple[slice, list[tuple[slice, slice]]]:
        """The pixels that any output may have a part of; and for successive outputs, those of them that they may."""
        if self.outputs.device.type != "cpu":  # which would have to wait for the answer
            everything = slice(0, self.pixels.shape[1])
            return everything, [(slice(0, self.outputs.shape[1]), everything)]
        first, last = self.first.amin(0).tolist(), self.last.amax(0).tolist()
        low, high = min(first), max(last)
        spans = enumerate(zip(first, last, strict=True))
        return slice(low, high), [(slice(i * BLOCK, (i + 1) * BLOCK), slice(a - low, b - low)) for i, (a, b) in spans]

    def weights(self, seen: slice) -> Tensor:
        """How much of each pixel that is seen is in each output, (n, S, pixels), as in Pillow's antialiased resize: the
        filter at their distance, divided by the sum over all pixels."""
        distances = (self.pixels[:, None, seen] - self.outputs[:, :, None]).abs_()
        shares = _cubic(distances) if self.bicubic else distances.neg_().add_(1).clamp_(min=0)
        return shares.div_(shares.sum(2, keepdim=True))


def _cubic(distances: Tensor) -> Tensor:
    """Keys' cubic filter with a = −1/2 (1981, "Cubic convolution interpolation for digital image processing")."""
    d = distances.clamp_(max=2)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
    return torch.where(d < 1, near, far)


def resample(pixels: Tensor, chosen: Tensor, rows: Line, columns: Line) -> Tensor:
    """Resample images along both sides.

    Args:
        pixels: (N, 3, H, W) uint8.
        chosen: (n,) int64: which of them.
        rows: n lines of H pixels.
        columns: n lines of W pixels.

    Returns:
        (n, 3, S, S) float32 in [0, 1].
    """
    (high, down), (wide, across) = rows.blocks(), columns.blocks()
    part = pixels[:, :, high, wide].index_select(0, chosen)
    count, channels, height, _ = part.shape
    weights = columns.weights(wide).div_(255)
    size = weights.shape[1]
    narrow = weights.new_empty(count, channels * height, size)
    for to, span in across:
        lines = part[..., span].float().view(count, channels * height, -1)
        torch.bmm(lines, weights[:, to, span].mT, out=narrow[:, :, to])
    if columns.bicubic:  # may overshoot; Pillow cuts that off after either side
        narrow.clamp_(0, 1)
    weights = of_channels(rows.weights(high), channels)
    lines, images = narrow.view(-1, height, size), narrow.new_empty(count, channels, size, size)
    for to, span in down:
        torch.bmm(weights[:, to, span], lines[:, span], out=images.view(-1, size, size)[:, to])
    return images.clamp_(0, 1) if rows.bicubic else images


def of_channels(matrices: Tensor, channels: int) -> Tensor:
    """The matrices (n, …) of images for each of their channels, (n · channels, …)."""
    return matrices[:, None].expand(-1, channels, -1, -1).flatten(0, 1)
