"""SentenceTransformer.encode of the sentences of a file: sentences/s, the best of its batch sizes 32 and 128.

Arguments: a sentence-transformers directory, fp32 or bf16, a file of sentences (one a line).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    directory, precision, path = sys.argv[1:]
    sentences = Path(path).read_text(encoding="utf-8").splitlines()
    model = SentenceTransformer(directory, device="cpu")
    if precision == "bf16":
        model = model.bfloat16()
    model.encode(sentences[:256])
    rates = {}
    for batch in (32, 128):
        start = time.perf_counter()
        model.encode(sentences, batch_size=batch, show_progress_bar=False, convert_to_tensor=True)
        rates[batch] = len(sentences) / (time.perf_counter() - start)
    best = max(rates, key=lambda batch: rates[batch])
    print(json.dumps({"sentences_per_second": rates[best], "batch": best, "threads": torch.get_num_threads()}))


main()
