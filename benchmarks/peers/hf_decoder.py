"""A decoder by transformers, in fp32 or bf16.

`hf_decoder.py evaluation MODEL FILE WINDOW PRECISION` prints tokens per second of a text and its bits per byte, by a
plain loop over logits; `hf_decoder.py training MODEL FILE WINDOW PRECISION BATCH STEPS [RANK]` tokens per second of
Trainer and its peak memory, of all weights or of an adapter of peft in the matrices of all blocks.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

WARM = 3


class Clock(TrainerCallback):
    """The moment at which each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.moments.append(time.perf_counter())


def tokens_of(directory: str, file: str) -> list[int]:
    """A text between the tokens that open and close it."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer(Path(file).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    return [tokenizer.bos_token_id, *text, tokenizer.eos_token_id]


@torch.inference_mode()
def evaluation(directory: str, file: str, window: int, precision: str) -> dict[str, float]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    start = time.perf_counter()
    ids = torch.tensor(tokens_of(directory, file))
    nats, targets = 0.0, len(ids) - 1
    for begin in range(0, targets, window):
        first = min(begin, max(0, targets - window))  # the last window begins earlier, and counts what is new
        row = ids[first : first + window + 1]
        losses = F.cross_entropy(model(row[None, :-1]).logits[0].float(), row[1:], reduction="none")
        nats += float(losses[begin - first :].sum())
    size = len(Path(file).read_bytes())
    rate = targets / (time.perf_counter() - start)
    return {"tokens_per_second": rate, "bits_per_byte": nats / size / math.log(2)}


def adapted(model: torch.nn.Module, rank: int) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def training(
    directory: str, file: str, window: int, precision: str, batch: str, steps: str, rank: str = "0"
) -> dict[str, float]:
    ids = torch.tensor(tokens_of(directory, file))
    rows = ids[: len(ids) // window * window].view(-1, window)
    model, clock = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), Clock()
    model = adapted(model, int(rank)) if int(rank) else model
    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            place, max_steps=int(steps), per_device_train_batch_size=int(batch), learning_rate=5e-5, use_cpu=True,
            bf16=precision == "bf16", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in rows]
        Trainer(model, arguments, train_dataset=data, callbacks=[clock]).train()
    seconds = median([b - a for a, b in pairwise(clock.moments)][WARM:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens_per_second": int(batch) * window / seconds, "peak_memory": peak}


def main() -> None:
    part, directory, file, window, *more = sys.argv[1:]
    print(json.dumps({"evaluation": evaluation, "training": training}[part](directory, file, int(window), *more)))


main()
