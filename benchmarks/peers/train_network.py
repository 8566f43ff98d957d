"""The side of selfsup: `selfsup train` on a network from Python, which the command line cannot name.

Arguments: a network of benchmarks/networks.py, an objective or a run to resume, settings as one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from selfsup.launch import ENVIRONMENT

sys.path.append(str(Path(__file__).parents[2]))  # whose networks these are


def main() -> None:
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
    import torch

    import selfsup
    from benchmarks.networks import NETWORKS

    name, what, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    torch.manual_seed(settings.get("seed", 0))
    network = NETWORKS[name]()
    if Path(what).is_dir():
        run = selfsup.train(resume=what, model=network, **settings)
    else:
        run = selfsup.train(what, model=network, **settings)
    print(json.dumps(run.summary))


if __name__ == "__main__":
    main()
