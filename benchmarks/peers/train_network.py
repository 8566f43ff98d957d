"""The side of selfsup: `selfsup train` on a network from Python, which the command line cannot name.

Arguments: a network of benchmarks/networks.py; an objective, or a run to go on with; settings as one JSON object (of a
run to go on with only the seed counts); and, where its vectors are to be kept, a file of arrays to write, then names
and parquet files of images, as NAME=FILE.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from selfsup.launch import ENVIRONMENT

if TYPE_CHECKING:
    import numpy as np

    from selfsup.models.backbones import SavedBackbone

sys.path.append(str(Path(__file__).parents[2]))  # whose networks these are


def vectors(opened: SavedBackbone, parquet: str) -> np.ndarray:
    """The vector of each image as the run defines it, in fp32, (n, dimension)."""
    import numpy as np
    import torch

    from selfsup.data.images import ImageRecords, open_images
    from selfsup.views import centred

    images = open_images(parquet)
    records = ImageRecords(images, np.arange(len(images)), opened.size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = opened.backbone.eval().to(device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), 500):
            data = records.read(np.arange(start, min(start + 500, len(images))))
            pixels = centred(data["pixels"].to(device), data["sizes"].to(device), opened.size)
            parts.append(opened.features.map(network.embed(pixels, opened.features.pooling)).cpu())
    return torch.cat(parts).numpy()


def main() -> None:
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
    import numpy as np
    import torch

    import selfsup
    from benchmarks.networks import NETWORKS
    from selfsup.models.backbones import open_backbone

    name, what, given, *kept = sys.argv[1:]
    settings = json.loads(given)
    torch.manual_seed(settings.get("seed", 0))
    network = NETWORKS[name]()
    if not Path(what).is_dir():
        run = selfsup.train(what, model=network, **settings)
    elif not (run := selfsup.Run.open(what)).summary:
        run = selfsup.train(resume=what, model=network)
    if kept:
        opened = open_backbone(run.model_directory, network)
        sources = dict(word.split("=", 1) for word in kept[1:])
        np.savez(kept[0], **{part: vectors(opened, file) for part, file in sources.items()})
    print(json.dumps(run.summary))


if __name__ == "__main__":
    main()
