"""sentence-transformers: symmetric MultipleNegativesRankingLoss of pairs on an encoder, batch 64: sentences/s.

Arguments: fp32 or bf16, a parquet file of pairs (query, passage), the directory of the encoder. At most 32 tokens,
AdamW, the encoder's dropout, mean pooling, both directions.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from statistics import median

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    models,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

STEPS, WARM, BATCH, LENGTH = 20, 4, 64, 32


class Clock(TrainerCallback):
    """The moment at which each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.moments.append(time.perf_counter())


def main() -> None:
    precision, path, directory = sys.argv[1:]
    torch.manual_seed(0)
    clock = Clock()
    transformer = models.Transformer(directory, max_seq_length=LENGTH)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    loss = MultipleNegativesRankingLoss(
        model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    with tempfile.TemporaryDirectory() as place:
        arguments = SentenceTransformerTrainingArguments(
            place, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=3e-5, use_cpu=True,
            bf16=precision == "bf16", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        data = Dataset.from_parquet(path)
        SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss, callbacks=[clock]).train()
    times = [b - a for a, b in pairwise(clock.moments)][WARM:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = 2 * BATCH / median(times)
    print(json.dumps({"seconds": median(times), "sentences_per_second": rate, "peak_memory": peak}))


main()
