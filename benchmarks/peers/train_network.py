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
    from torch import nn

sys.path.append(str(Path(__file__).parents[2]))  # whose networks these are


def vectors(network: nn.Module, parquet: str, size: int) -> np.ndarray:
    """What a network says of the middle of each image, in fp32, (n, dimension)."""
    import numpy as np
    import torch

    from selfsup.data.images import ImageRecords, open_images
    from selfsup.views import centred

    images = open_images(parquet)
    records = ImageRecords(images, np.arange(len(images)), size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.eval().to(device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), 500):
            data = records.read(np.arange(start, min(start + 500, len(images))))
            parts.append(network(centred(data["pixels"].to(device), data["sizes"].to(device), size)).cpu())
    return torch.cat(parts).numpy()


def main() -> None:
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
    import numpy as np
    import torch
    from safetensors.torch import load_file

    import selfsup
    from benchmarks.networks import NETWORKS

    name, what, given, *kept = sys.argv[1:]
    settings = json.loads(given)
    torch.manual_seed(settings.get("seed", 0))
    network = NETWORKS[name]()
    if not Path(what).is_dir():
        run = selfsup.train(what, model=network, **settings)
    elif not (run := selfsup.Run.open(what)).summary:
        run = selfsup.train(resume=what, model=network)
    if kept:
        network.load_state_dict(load_file(run.model_directory / "model.safetensors"))
        sources = dict(word.split("=", 1) for word in kept[1:])
        size = run.settings()["data.size"]
        np.savez(kept[0], **{part: vectors(network, file, size) for part, file in sources.items()})
    print(json.dumps(run.summary))


if __name__ == "__main__":
    main()
