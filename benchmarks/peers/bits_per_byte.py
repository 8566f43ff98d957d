"""Bits per byte of texts by a plain loop of transformers in fp32 over windows of 512 tokens, first tokens left out.

Arguments: a model directory and text files; prints a figure for each.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512


@torch.inference_mode()
def bits_per_byte(model: torch.nn.Module, tokenizer: object, text: str) -> float:
    ids = torch.tensor(tokenizer(text)["input_ids"])  # type: ignore[operator]
    total, counted = 0.0, 0
    for window in ids.split(WINDOW):
        if len(window) < 2:
            continue
        logits = model(window[None]).logits[0, :-1]
        total += float(F.cross_entropy(logits, window[1:], reduction="sum"))
        counted += len(window) - 1
    return total / counted * len(ids) / len(text.encode()) / math.log(2)


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    print(json.dumps({Path(f).stem: bits_per_byte(model, tokenizer, Path(f).read_text()) for f in sys.argv[2:]}))


main()
