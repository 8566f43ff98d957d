"""From decoded images to what a network reads: batched, on CPU or GPU, with parameters of each image's own.

Every parameter is a function of (seed, number of the view, epoch, record), so a record's view does not depend on what
stands beside it. Images are worked on a few at a time, so that they stay in the cache; an operation runs on those
images only that drew it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from selfsup.seeding import uniform
from selfsup.views.blurring import blur
from selfsup.views.colours import blend, luminance, shift_hue, solarize
from selfsup.views.crops import CROP_DRAWS, random_boxes, resample, resampling
from selfsup.views.kinds import View

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained networks have them

CHUNK = {"cpu": 2**17}  # values (of one image plane set) worked on at a time
WHOLE = 2**28  # where memory, not the cache, sets the limit

FLIP, JITTER, GREY, BLUR, SIGMA, SOLARIZE = range(6)
ORDER, FACTORS = slice(6, 10), slice(10, 14)
CROP = slice(14, 14 + CROP_DRAWS)


def render(
    pixels: Tensor,
    sizes: Tensor,
    view: View,
    seed: int,
    epochs: np.ndarray,
    records: np.ndarray,
    number: int,
) -> Tensor:
    """One view of each image.

    Args:
        pixels: (n, 3, H, W) uint8, each image at the top left, whatever stands in the rest.
        sizes: (n, 2) int64 height and width of each image.
        seed, epochs, records: the place of each image (epochs and records are (n,)).
        number: which view of the record it is; views of different numbers are drawn independently.

    Returns:
        (n, 3, S, S) float32 on the device of the pixels, normalised with MEAN and STD.
    """
    draws = uniform(seed, f"view {number}", epochs, records, CROP.stop)
    before = draws[:, ORDER].argsort(1).argsort(1)[:, 3]  # operations that come before the shift of the hue
    before[draws[:, JITTER] >= view.jitter] = -1
    order = np.argsort(-before, kind="stable")  # so that the images of one operation stand beside each other
    draws, before = draws[order], before[order]
    places = torch.from_numpy(order).to(pixels.device)
    drawn = torch.from_numpy(draws).to(pixels.device)
    sizes = sizes.index_select(0, places)
    boxes = random_boxes(drawn[:, CROP], sizes, view.scale, view.ratio)
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        out = pixels.new_empty((len(pixels), 3, view.size, view.size), dtype=torch.float32)
        for part in _parts(pixels, view.size):
            images = _crop(pixels, places[part], boxes[part], drawn[part, FLIP] < view.flip, view.size)
            _recolour(images.flatten(2), view, draws[part], drawn[part].float(), before[part])
            _filter(images, view, draws[part], drawn[part].float())
            out[places[part]] = normalised(images).transpose(0, 1)
    return out


def centred(pixels: Tensor, sizes: Tensor, size: int) -> Tensor:
    """The middle of each image, for evaluation: the short side resized to `size`, the long one cropped.

    Args:
        pixels: (n, 3, H, W) uint8, each image at the top left.
        sizes: (n, 2) int64 height and width of each image.

    Returns:
        (n, 3, size, size) float32, normalised with MEAN and STD.
    """
    resized = (size * sizes // sizes.amin(1, keepdim=True)).double()
    extent = sizes * (size / resized)
    start = ((resized - size) / 2).round() * (sizes / resized)
    low = torch.zeros_like(sizes)
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        out = pixels.new_empty((len(pixels), 3, size, size), dtype=torch.float32)
        for part in _parts(pixels, size):
            sides = [
                resampling(
                    start[part, d], extent[part, d], low[part, d], sizes[part, d], size, pixels.shape[2 + d]
                )
                for d in (0, 1)
            ]
            images = resample(pixels[part], sides[0], sides[1]).div_(255)
            out[part] = normalised(images).transpose(0, 1)
    return out


def normalised(images: Tensor) -> Tensor:
    """(x − mean) / std of each channel of (3, n, S, S), in place."""
    for channel, mean, std in zip(images, MEAN, STD, strict=True):
        channel.sub_(mean).div_(std)
    return images


def _parts(pixels: Tensor, size: int) -> Iterator[slice]:
    """The images in parts whose values fit into the cache, or into memory where there is none to speak of."""
    values = 3 * max(pixels.shape[2] * pixels.shape[3], size * size)
    step = max(1, CHUNK.get(pixels.device.type, WHOLE) // values)
    return (slice(start, start + step) for start in range(0, len(pixels), step))


def _crop(pixels: Tensor, places: Tensor, boxes: Tensor, mirror: Tensor, size: int) -> Tensor:
    top, left, height, width = boxes.unbind(1)
    rows = resampling(top, height, top, top + height, size, pixels.shape[2])
    columns = resampling(left, width, left, left + width, size, pixels.shape[3], mirror)
    return resample(pixels.index_select(0, places), rows, columns).div_(255)


def _recolour(images: Tensor, view: View, draws: np.ndarray, drawn: Tensor, before: np.ndarray) -> None:
    """Jitter the colours of images (3, n, P), sorted by how many operations come before the shift of the hue."""
    jittered = int((before >= 0).sum())
    if jittered:
        strengths = drawn.new_tensor((view.brightness, view.contrast, view.saturation))
        factors = 1 + strengths * (2 * drawn[:jittered, FACTORS][:, :3] - 1)
        kinds = drawn[:jittered, ORDER][:, :3].argsort(1)
        factors = factors.gather(1, kinds)
        for turn in range(3):
            _blend(images[:, : int((before > turn).sum())], factors[:, turn], kinds[:, turn], 0)
        shift_hue(images[:, :jittered], view.hue * (2 * drawn[:jittered, FACTORS][:, 3] - 1))
        for turn in range(3):
            first = int((before > turn).sum())
            _blend(images[:, first:jittered], factors[first:, turn], kinds[first:, turn], 0)
    grey = np.flatnonzero(draws[:, GREY] < view.grey)
    if len(grey):
        which = torch.from_numpy(grey).to(images.device)
        images[:, which] = luminance(images.index_select(1, which))


def _blend(images: Tensor, factors: Tensor, kinds: Tensor, _: int) -> None:
    count = images.shape[1]
    if count:
        blend(images, factors[:count], (kinds[:count] == 1).float(), (kinds[:count] == 2).float())


def _filter(images: Tensor, view: View, draws: np.ndarray, drawn: Tensor) -> None:
    blurred = np.flatnonzero(draws[:, BLUR] < view.blur)
    if len(blurred):
        which = torch.from_numpy(blurred).to(images.device)
        sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * drawn[which, SIGMA]
        images[:, which] = blur(images.index_select(1, which), sigma)
    inverted = np.flatnonzero(draws[:, SOLARIZE] < view.solarize)
    if len(inverted):
        which = torch.from_numpy(inverted).to(images.device)
        images[:, which] = solarize(images.index_select(1, which))
