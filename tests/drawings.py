"""Small images to train on: a rectangle on a gradient, in colours, places and sizes of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image


def drawing(number: int, side: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3), a function of its arguments; one side is `side`, the other up to a quarter longer."""
    random = np.random.default_rng(number)
    height, width = side + random.permutation([0, int(random.integers(side // 4 + 1))])
    corners = random.uniform(0, 255, (2, 2, 3))
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - columns) + corners[0, 1] * columns
    bottom = corners[1, 0] * (1 - columns) + corners[1, 1] * columns
    image = top * (1 - rows) + bottom * rows
    first, extent = random.integers(0, side // 2, 2), random.integers(side // 4, side // 2, 2)
    (y, x), (tall, wide) = first, extent
    image[y : y + tall, x : x + wide] = random.uniform(0, 255, 3)
    return np.asarray(image.round(), np.uint8)


def write_drawings(directory: Path, count: int, side: int) -> Path:
    """A folder of PNG files."""
    directory.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(drawing(number, side)).save(directory / f"{number:03d}.png")
    return directory
