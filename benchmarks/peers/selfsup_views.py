"""The side of selfsup: views of images per second, read and rendered as in a run.

Arguments: simclr, dino or simclr-224; a parquet file of images, or a directory of files; cores. The views are those of
lightly's transforms: the same crops, colours and blur with the same probabilities.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import groupby

from selfsup.launch import ENVIRONMENT

SECONDS, WARM = 4.0, 4


def main() -> None:
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
    kind, source, cores = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.sched_setaffinity(0, range(cores))
    os.environ["OMP_NUM_THREADS"] = str(cores)
    import numpy as np

    from selfsup.data.images import collection, records
    from selfsup.data.loader import Loader
    from selfsup.views import View, render_several

    colours = {"jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "grey": 0.2}
    half = colours | {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    views = {
        "simclr": [View(32, (0.08, 1), blur=0.5, **colours)] * 2,
        "simclr-224": [View(224, (0.08, 1), blur=0.5, **colours)] * 2,
        "dino": [
            View(32, (0.4, 1), blur=1.0, **half),
            View(32, (0.4, 1), blur=0.1, solarize=0.2, **half),
            *[View(16, (0.05, 0.4), blur=0.5, **half)] * 6,
        ],
    }[kind]
    if kind == "simclr-224":
        # As of a collection too large for memory: each image is decoded each time.
        collection.SMALL, records.SHARE = 0, 1 << 62
    found = collection.open_images(source)
    images = records.ImageRecords(found, np.arange(len(found)), round(1.5 * views[0].size))
    batch = 64 if kind == "simclr-224" else 256
    read = Loader(images, 0, batch, batch, workers=1).steps(0)

    def make() -> None:
        (one,) = next(read)
        for view, numbers in groupby(range(len(views)), views.__getitem__):
            place = (0, one.epochs, one.records, list(numbers))
            render_several(one.data["pixels"], one.data["sizes"], view, *place)

    for _ in range(WARM):
        make()
    done, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS:
        make()
        done += batch
    read.close()
    print(json.dumps({"images_per_second": done / seconds, "cores": cores}))


main()
