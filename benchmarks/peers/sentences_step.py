"""sentence-transformers: unsupervised SimCSE on a random BERT (6 layers, 6 heads, width 384, batch 64): sentences/s.

Arguments: fp32 or bf16, a file of sentences (one a line). WordPiece of 8,192 tokens trained on them, at most 32 tokens,
dropout .1, mean pooling, MultipleNegativesRankingLoss of each sentence with itself.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
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
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast, TrainerCallback

STEPS, WARM, BATCH, LENGTH = 20, 4, 64, 32


class Clock(TrainerCallback):
    """The moment at which each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.moments.append(time.perf_counter())


def build(sentences: list[str], directory: str) -> SentenceTransformer:
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(sentences, vocab_size=8192, show_progress=False)
    tokenizer = BertTokenizerFast(vocab=pieces.get_vocab(), do_lower_case=True, model_max_length=LENGTH)
    tokenizer.save_pretrained(directory)
    config = BertConfig(
        vocab_size=8192, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    transformer = models.Transformer(directory, max_seq_length=LENGTH)
    return SentenceTransformer(modules=[transformer, models.Pooling(384, "mean")], device="cpu")


def main() -> None:
    precision, path = sys.argv[1:]
    torch.manual_seed(0)
    sentences = Path(path).read_text(encoding="utf-8").splitlines()
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        model = build(sentences, directory)
        arguments = SentenceTransformerTrainingArguments(
            directory + "/run", max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=3e-5, use_cpu=True,
            bf16=precision == "bf16", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        data = Dataset.from_dict({"anchor": sentences, "positive": sentences})
        loss = MultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss, callbacks=[clock]).train()
    times = [b - a for a, b in pairwise(clock.moments)][WARM:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = BATCH / median(times)
    print(json.dumps({"seconds": median(times), "sentences_per_second": rate, "peak_memory": peak}))


main()
