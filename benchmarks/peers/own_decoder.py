"""A decoder by selfsup: `own_decoder.py evaluation MODEL FILE WINDOW auto|fp32|bf16` prints tokens per second of a
text and its bits per byte."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import selfsup
from selfsup.evaluation import measure
from selfsup.evaluation.base import Measurement


def evaluation(directory: str, file: str, window: int, precision: str) -> dict[str, float | str]:
    model = selfsup.load(directory)
    start = time.perf_counter()
    score = measure(Measurement(Path(directory), model, file, precision=precision, window=window), "bits-per-byte")
    rate = score.n / (time.perf_counter() - start)
    return {"tokens_per_second": rate, "bits_per_byte": score.value, "precision": score.precision}


def main() -> None:
    part, directory, file, window, precision = sys.argv[1:]
    print(json.dumps({"evaluation": evaluation}[part](directory, file, int(window), precision)))


main()
