"""A public decoder by transformers: `hf_public.py generation DIR fp32|bf16 TOKENS` prints tokens per second."""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "The old lighthouse keeper looked at the sea and"
REPEATS = 3


def generation(directory: str, precision: str, tokens: int) -> dict[str, float]:
    """Greedy, with its key-value cache, at batch 1 and 8."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    rates = {}
    for batch in (1, 8):
        inputs = tokenizer([PROMPT] * batch, return_tensors="pt")
        times = []
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            with torch.inference_mode():
                model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
            times.append(time.perf_counter() - start)
        rates[f"batch_{batch}"] = batch * tokens / median(times[1:])
    return rates


def main() -> None:
    part, directory, precision, tokens = sys.argv[1:]
    print(json.dumps({"generation": generation}[part](directory, precision, int(tokens))))


main()
