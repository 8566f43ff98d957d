"""From decoded images to what a network reads: batched, on CPU or GPU, with parameters of each image's own.

Every parameter is a function of (seed, number of the view, epoch, record), so a record's view does not depend on what
stands beside it. An operation works on those images only that drew it. On CPU a few images are worked on at a time, so
that they stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.seeding import uniform
from selfsup.views.blurring import blur, gaussian, reach
from selfsup.views.colours import HUE, jitter, jitter_parameters, luminance, solarize
from selfsup.views.crops import CROP_DRAWS, Line, cropping, random_boxes, resample
from selfsup.views.kinds import View
from selfsup.views.preprocessing import Preprocessing

CACHE, MEMORY = 2**18, 2**28  # values of images that are worked on at a time: per thread of a CPU, on a GPU

FLIP, JITTER, GREY, BLUR, SIGMA, SOLARIZE = range(6)  # what each draw is for
KEYS, AMOUNTS, CROP = slice(6, 10), slice(10, 14), slice(14, 14 + CROP_DRAWS)


def render(
    pixels: Tensor, sizes: Tensor, view: View, seed: int, epochs: np.ndarray, records: np.ndarray, number: int
) -> Tensor:
    """One view of each image.

    Args:
        pixels: (n, 3, H, W) uint8, each image at the top left; what stands in the rest is never looked at.
        sizes: (n, 2) int64 height and width of each image.
        seed, epochs, records: the place of each image; epochs and records are (n,).
        number: which view of the record it is; views of different numbers are drawn independently.

    Returns:
        (n, 3, S, S) float32 on the device of the pixels, normalised.
    """
    return render_several(pixels, sizes, view, seed, epochs, records, (number,))[:, 0]


def render_several(
    pixels: Tensor,
    sizes: Tensor,
    view: View,
    seed: int,
    epochs: np.ndarray,
    records: np.ndarray,
    numbers: Sequence[int],
) -> Tensor:
    """Several views of one kind of each image, the same as `render` makes one by one, but faster.

    Returns:
        (n, views, 3, S, S) float32.
    """
    # The views of an image stand beside each other, since it is in the cache then.
    each = [uniform(seed, f"view {number}", epochs, records, CROP.stop) for number in numbers]
    draws = np.stack(each, 1).reshape(-1, CROP.stop)
    step = _together(pixels, view.size)
    early = np.where(draws[:, JITTER] < view.jitter, (draws[:, KEYS] < draws[:, KEYS][:, HUE:]).sum(1), -1)
    order = np.lexsort((-early, np.arange(len(draws)) // step))  # each part sorted as `jitter` wants it
    draws, early = draws[order], early[order]
    places, back, drawn = (_moved(array, pixels.device) for array in (order, np.argsort(order) % step, draws))
    source = places // len(numbers)
    boxes = random_boxes(drawn[:, CROP], sizes[source], view.scale, view.ratio)
    cropped = cropping(pixels, source, boxes, drawn[:, FLIP] < view.flip, view.size, view.bicubic)
    strengths = (view.brightness, view.contrast, view.saturation, view.hue)
    blends, shifts = jitter_parameters(drawn[:, KEYS], drawn[:, AMOUNTS], strengths)
    kinds = np.argsort(draws[:, KEYS][:, :HUE])
    grey, blurred = draws[:, GREY] < view.grey, draws[:, BLUR] < view.blur
    inverted = draws[:, SOLARIZE] < view.solarize
    sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * draws[:, SIGMA]
    kernels = gaussian(_moved(sigma, pixels.device), view.size)

    out = pixels.new_empty((len(order), 3, view.size, view.size), dtype=torch.float32)
    with _threads(step), torch.inference_mode(), torch.autocast(pixels.device.type, enabled=False):
        for part in _parts(len(order), step):
            images = cropped(part)
            jitter(images.flatten(2), blends[part], shifts[part], early[part], kinds[part])
            images = _changed(images, grey[part], _grey)
            near = kernels[part, : reach(view.size, sigma[part].max()) + 1]
            images = _changed(images, blurred[part], blur, near)
            images = _changed(images, inverted[part], solarize)
            torch.index_select(_normalised(images, view), 0, back[part], out=out[part])
    return out.view(len(pixels), len(numbers), *out.shape[1:])


def centred(pixels: Tensor, sizes: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The middle of each image, for evaluation: resized and cropped as it is said.

    Sides and crops are rounded as the image processors of transformers do it.

    Args:
        pixels: (n, 3, H, W) uint8, each image at the top left; what stands in the rest is never looked at.
        sizes: (n, 2) int64 height and width of each image.

    Returns:
        (n, 3, S, S) float32 on the device of the pixels, normalised.
    """
    size, short = preprocessing.size, preprocessing.resized
    resized = torch.full_like(sizes, short) if preprocessing.square else short * sizes // sizes.amin(1, keepdim=True)
    step = sizes.double() / resized
    start, extent = ((resized - size) / 2).floor() * step, size * step
    none = torch.zeros_like(sizes)
    rows, columns = (
        Line.of(start[:, d], extent[:, d], none[:, d], sizes[:, d], pixels.shape[2 + d], size, preprocessing.bicubic)
        for d in (0, 1)
    )
    everyone = torch.arange(len(pixels), device=pixels.device)
    out = pixels.new_empty((len(pixels), 3, size, size), dtype=torch.float32)
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        for part in _parts(len(pixels), _together(pixels, size)):
            images = resample(pixels, everyone[part], rows[part], columns[part])
            out[part] = _normalised(images, preprocessing)
    return out


def _together(pixels: Tensor, size: int) -> int:
    """How many views are worked on at a time: as many as stay in the cache, or in a GPU's memory."""
    values = 3 * max(pixels.shape[2] * pixels.shape[3], size * size)
    fitting = CACHE * torch.get_num_threads() if pixels.device.type == "cpu" else MEMORY
    return max(1, fitting // values)


@contextmanager
def _threads(most: int) -> Iterator[None]:
    """Operations on few images are too small for many threads, which decode the next ones meanwhile."""
    usual = torch.get_num_threads()
    torch.set_num_threads(min(usual, most))
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, count, step))


def _changed(
    images: Tensor, chosen: npt.NDArray[np.bool_], operation: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """Images (n, 3, S, S) with an operation applied to the chosen ones (n,), with their parameters (n, …)."""
    if chosen.all():
        return operation(images, *parameters)
    if chosen.any():
        which = _moved(np.flatnonzero(chosen), images.device)
        theirs = (parameter[which] for parameter in parameters)
        images.index_copy_(0, which, operation(images.index_select(0, which), *theirs))
    return images


def _grey(images: Tensor) -> Tensor:
    return luminance(images)[:, None].expand_as(images).contiguous()


def _normalised(images: Tensor, seen: View | Preprocessing) -> Tensor:
    """(x − mean) / std of each channel of (n, 3, S, S); in place, in the cache, from where a copy is fast."""
    for channel, mean, std in zip(images.unbind(1), seen.mean, seen.std, strict=True):
        torch.add(images.new_full((), -mean / std), channel, alpha=1 / std, out=channel)
    return images


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, without waiting for what a GPU is at."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
