"""HF Trainer's usual recipe for going on with a decoder (its defaults on windows of 512: batch 8, AdamW at 5e-5 that
falls to 0 in a line, bf16) for so many seconds, from the reading of the texts to the last step.

Arguments: a model directory, a parquet file with texts, seconds, a seed, and the directory to leave the model in.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from statistics import median

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed

WINDOW, BATCH, WARM = 512, 8, 3


class Clock(TrainerCallback):
    """The moment at which each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.moments.append(time.perf_counter())


def trainer(model: torch.nn.Module, rows: list[dict[str, torch.Tensor]], steps: int, seed: int, place: str) -> Trainer:
    arguments = TrainingArguments(
        place, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=5e-5, use_cpu=True, bf16=True,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        seed=seed,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows, callbacks=[Clock()])


def step_seconds(directory: str, rows: list[dict[str, torch.Tensor]], place: str) -> float:
    """What a step takes, on a copy that is thrown away."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tried = trainer(model, rows, 2 * WARM, 0, place)
    tried.train()
    clock = next(one for one in tried.callback_handler.callbacks if isinstance(one, Clock))
    return median([b - a for a, b in pairwise(clock.moments)][WARM - 1 :])


def main() -> None:
    start = time.perf_counter()
    directory, source, seconds, seed, out = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = pq.read_table(source, columns=["text"]).column("text").to_pylist()
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = list(torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW))
    data = [{"input_ids": row, "labels": row} for row in rows]
    with tempfile.TemporaryDirectory() as place:
        took = step_seconds(directory, data, place)
        set_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        steps = int((seconds - (time.perf_counter() - start)) / took)
        trainer(model, data, steps, seed, place).train()
    total = time.perf_counter() - start
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(json.dumps({"steps": steps, "tokens": steps * BATCH * WINDOW, "seconds": total}))


main()
