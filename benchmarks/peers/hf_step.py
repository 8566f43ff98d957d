"""HF Trainer on GPT-2 (6 layers, 6 heads, width 384, windows of 256, batch 16, 65 tokens, AdamW): time per step.

Arguments: fp32 or bf16, and optionally another vocabulary, window and batch.
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
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

STEPS, WARM = 12, 3


class Clock(TrainerCallback):
    """The moment at which each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.moments.append(time.perf_counter())


def main() -> None:
    precision = sys.argv[1]
    vocabulary, window, batch = (int(a) for a in sys.argv[2:5]) if len(sys.argv) > 2 else (65, 256, 16)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=window, n_embd=384, n_layer=6, n_head=6,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    rows = torch.randint(vocabulary, (STEPS * batch, window))
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            directory, max_steps=STEPS, per_device_train_batch_size=batch, learning_rate=1e-3, use_cpu=True,
            bf16=precision == "bf16", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in rows]
        Trainer(GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=[clock]).train()
    times = [b - a for a, b in pairwise(clock.moments)][WARM:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps({"seconds": median(times), "tokens_per_second": batch * window / median(times), "peak_memory": peak})
    )


main()
