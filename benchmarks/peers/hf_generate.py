"""transformers' greedy generation with a key-value cache: 256 tokens at batch 1 and 8, GPT-2 of 6 layers, width 384."""

from __future__ import annotations

import json
import time
from statistics import median

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def main() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=65, n_positions=512, n_embd=384, n_layer=6, n_head=6,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    rates = {}
    for batch in (1, 8):
        prompt = torch.zeros(batch, 1, dtype=torch.long)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=256, do_sample=False)
            times.append(time.perf_counter() - start)
        rates[f"batch_{batch}"] = batch * 256 / median(times[1:])
    print(json.dumps(rates))


main()
