"""lightly's views of images per second, by a DataLoader as in its examples.

Arguments: simclr, dino or simclr-224; a parquet file of images, or a directory of files; cores: on one core this
process makes the views, on more as many loader workers do.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
from lightly_parts import Files, InMemory, allow_torchvision, batches, read_pixels

BATCH, SECONDS = 64, 4.0


def main() -> None:
    allow_torchvision()
    from lightly.transforms import DINOTransform, SimCLRTransform

    kind, source, cores = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.sched_setaffinity(0, range(cores))
    torch.set_num_threads(cores)
    workers = cores if cores > 1 else 0
    transform: Any = {
        "simclr": lambda: SimCLRTransform(input_size=32),
        "dino": lambda: DINOTransform(global_crop_size=32, local_crop_size=16),
        "simclr-224": lambda: SimCLRTransform(input_size=224),
    }[kind]()
    files = kind == "simclr-224"
    images = Files(source, transform) if files else InMemory(read_pixels(source), transform)
    made = batches(images, BATCH, workers)
    for _ in range(4 * workers + 1):  # what the workers had made before
        next(made)
    done, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS:
        next(made)
        done += BATCH
    print(json.dumps({"images_per_second": done / seconds, "cores": cores, "workers": workers}))


main()
