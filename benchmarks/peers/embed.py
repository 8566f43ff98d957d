"""The side of selfsup: EncoderModel.embed of the sentences of a file: sentences/s, as the command line starts it.

Arguments: a model directory, fp32 or bf16, a file of sentences (one a line).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from selfsup.launch import ENVIRONMENT


def main() -> None:
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
    import selfsup

    directory, precision, path = sys.argv[1:]
    sentences = Path(path).read_text(encoding="utf-8").splitlines()
    model = selfsup.load(directory)
    model.embed(sentences[:256], precision)
    start = time.perf_counter()
    model.embed(sentences, precision)
    print(json.dumps({"sentences_per_second": len(sentences) / (time.perf_counter() - start)}))


main()
