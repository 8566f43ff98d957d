"""HF Trainer's masked LM on prepared windows; prints its loss on a fixed mask, and wall time.

Arguments: bert or modernbert, a safetensors file, a seed. It holds `windows` (n, T), and `inputs` (m, T), `labels`
(m, T, −100 where nothing was hidden) to validate on. 4 layers, 4 heads, width 256, batch 32, 15 % hidden, AdamW at 1e-3
with 6 % warm-up and linear decay, weight decay .01, bf16, no dropout. The clock runs while Trainer.train does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

STEPS, BATCH, WIDTH = 500, 32, 256
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")  # their ids are 0 to 3, as in the windows


def collator(vocabulary: int) -> DataCollatorForLanguageModeling:
    words = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(vocabulary - 4))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    return DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.15)


def build(which: str, vocabulary: int, window: int) -> torch.nn.Module:
    shape = {
        "vocab_size": vocabulary, "hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4,
        "max_position_embeddings": window, "pad_token_id": 0,
    }  # fmt: skip
    if which == "bert":
        dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForMaskedLM(BertConfig(**shape, intermediate_size=4 * WIDTH, **dropouts))
    marks = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    return ModernBertForMaskedLM(ModernBertConfig(**shape, intermediate_size=704, **marks))


@torch.no_grad()
def validate(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean loss of the hidden tokens, in fp32."""
    total = 0.0
    for x, y in zip(inputs.split(32), labels.split(32), strict=True):
        logits = model(input_ids=x).logits.flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits, y.flatten(), reduction="sum"))
    return total / int((labels != -100).sum())


def main() -> None:
    which, path, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.manual_seed(seed)
    data = load_file(path)
    vocabulary = int(data["vocabulary"])
    model = build(which, vocabulary, data["windows"].shape[1])
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            directory, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-3, warmup_steps=STEPS // 16,
            weight_decay=0.01, lr_scheduler_type="linear", seed=seed, use_cpu=True, bf16=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            remove_unused_columns=False,
        )  # fmt: skip
        rows = [{"input_ids": row} for row in data["windows"]]
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator(vocabulary))
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    model.eval()
    print(json.dumps({"loss": validate(model, data["inputs"], data["labels"]), "seconds": seconds}))


main()
