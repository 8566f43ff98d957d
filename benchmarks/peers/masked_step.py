"""HF Trainer on ModernBERT with masked LM (6 layers, 6 heads, width 384, windows of 128, batch 32): time per step.

Arguments: fp32 or bf16. Vocabulary 8,192, 15 % of the tokens hidden by transformers' own collator, AdamW.
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
from tokenizers import Tokenizer, models
from transformers import (
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

STEPS, WARM = 14, 4
VOCABULARY, WINDOW, BATCH = 8192, 128, 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Clock(TrainerCallback):
    """The moment at which each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.moments.append(time.perf_counter())


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(VOCABULARY - 5))])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def main() -> None:
    precision = sys.argv[1]
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1024,
        max_position_embeddings=WINDOW, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    rows = torch.randint(5, VOCABULARY, (STEPS * BATCH, WINDOW))
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            directory, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-3, use_cpu=True,
            bf16=precision == "bf16", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokenizer(), mlm=True, mlm_probability=0.15)
        data = [{"input_ids": row} for row in rows]
        model = ModernBertForMaskedLM(config)
        Trainer(model, arguments, train_dataset=data, data_collator=collator, callbacks=[clock]).train()
    times = [b - a for a, b in pairwise(clock.moments)][WARM:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = BATCH * WINDOW / median(times)
    print(json.dumps({"seconds": median(times), "tokens_per_second": rate, "peak_memory": peak}))


main()
