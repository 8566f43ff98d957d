"""datasets.map with a tokenizer over parquet files: seconds of it and bytes of text.

Arguments: the tokenizer's directory, the number of processes, and the files.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core

from datasets import load_dataset
from tokenizers import Tokenizer


def main() -> None:
    tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")

    def encode(batch: dict[str, list[str]]) -> dict[str, list[object]]:
        encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"ids": [one.ids for one in encoded], "bytes": [len(text.encode()) for text in batch["text"]]}

    with tempfile.TemporaryDirectory() as cache:
        data = load_dataset("parquet", data_files=sys.argv[3:], split="train", cache_dir=cache)
        start = time.perf_counter()
        made = data.map(
            encode, batched=True, batch_size=16, num_proc=int(sys.argv[2]), remove_columns=data.column_names
        )
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "bytes": sum(made["bytes"])}))


if __name__ == "__main__":
    main()
