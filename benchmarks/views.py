"""Views per second, lightly's per-image PIL and torchvision transforms beside selfsup's batched ones.

Arguments: a parquet file of images of 32 pixels, such as CIFAR-10's; rounds.
"""

from __future__ import annotations

import tempfile
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import Figures, alternate, first_images, has_lightly, lightly, peer, ratios, show, spread, write

CORES = (1, 2)
IMAGES = 4096
# Of JPEG files: number (a batch or more), width, height, magnification of the images they are pieced together from,
# quality. The first kind is about as large as ImageNet's files (110 KB), the second as photos of 3 megapixels (0.8 MB).
FILES = {"512 × 384": (192, 512, 384, 1, 95), "2,048 × 1,536": (64, 2048, 1536, 2, 90)}


def write_files(images: Path, directory: Path, count: int, width: int, height: int, zoom: int, quality: int) -> None:
    """JPEG files, each pieced together from other small images."""
    from selfsup.data.images import open_images

    small, side = open_images(images), 32 * zoom
    rows, columns = -(-height // side), -(-width // side)
    numbers = cycle(range(len(small)))
    directory.mkdir()
    for number in range(count):
        tiles = [
            Image.fromarray(small.pixels(i)).resize((side, side), Image.Resampling.BICUBIC)
            for i in islice(numbers, rows * columns)
        ]
        lines = [np.concatenate(tiles[row * columns : (row + 1) * columns], 1) for row in range(rows)]
        whole = Image.fromarray(np.concatenate(lines)[:height, :width])
        whole.save(directory / f"{number:04}.jpg", quality=quality)


def main(arguments: list[str]) -> None:
    if not arguments or not has_lightly():
        print("views is left out: give it lightly and images: python -m benchmarks views FILE.parquet")
        return
    rounds = int(arguments[1]) if len(arguments) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        source = first_images(Path(arguments[0]), IMAGES, Path(name))
        sources = {"SimCLR, 32 pixels": ("simclr", source), "DINO, 2 × 32 and 6 × 16 pixels": ("dino", source)}
        for number, (size, shape) in enumerate(FILES.items()):
            directory = Path(name) / str(number)
            write_files(source, directory, *shape)
            sources[f"SimCLR, 224 pixels, from JPEG files of {size}"] = ("simclr-224", directory)
        measured: dict[str, list[Figures]] = {}
        for what, (kind, place) in sources.items():
            for cores in CORES:
                given = (kind, str(place), str(cores))
                measured[f"{what}, {cores} core{'s' * (cores > 1)}"] = alternate(
                    rounds,
                    lightly=lambda given=given: lightly("lightly_views", *given),
                    selfsup=lambda given=given: peer("selfsup_views", *given),
                )
    rates = {
        what: {side: spread([one[side]["images_per_second"] for one in some]) for side in ("lightly", "selfsup")}
        for what, some in measured.items()
    }
    compared = {what: ratios(some, "selfsup", "lightly", "images_per_second") for what, some in measured.items()}
    rows = []
    for what in measured:
        rows += [(f"{what}: {side}, images/s", show(rates[what][side], 0)) for side in ("lightly", "selfsup")]
        rows.append((f"{what}: selfsup / lightly", show(compared[what])))
    write(
        "views",
        "Images of which all views were made, per second: lightly's transforms (PIL and torchvision, one image at a "
        "time) in a DataLoader, on one core in one process, on two with two workers; selfsup's reading and rendering "
        "on the same cores, with the same crops, colours and blur. Images of 32 pixels lie decoded in memory; JPEG "
        "files are decoded each time.",
        {"rounds": measured, "rates": rates, "compared": compared},
        rows,
    )
