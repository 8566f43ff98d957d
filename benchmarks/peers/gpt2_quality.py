"""GPT-2 of transformers with nanoGPT's CPU recipe on a text in characters; prints its loss and wall time.

4 layers, 4 heads, width 128, windows of 64, batch 12, 2,000 AdamW steps, learning rate 1e-3 to 1e-4 by a cosine after
100 steps of warm-up, betas (.9, .99), weight decay .1, clipping at 1, no dropout, fp32, a plain loop. The clock starts
at the first read of the data and stops after the validation over the whole held-out tenth.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

WINDOW, BATCH, STEPS, WARMUP = 64, 12, 2000, 100


def rate(step: int) -> float:
    if step < WARMUP:
        return 1e-3 * (step + 1) / (WARMUP + 1)
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) * 9e-4


@torch.no_grad()
def validate(model: GPT2LMHeadModel, ids: torch.Tensor) -> float:
    """Mean loss of every target, in windows of the trained length."""
    count = (len(ids) - 1) // WINDOW * WINDOW
    inputs, targets = ids[:count].view(-1, WINDOW), ids[1 : count + 1].view(-1, WINDOW)
    total = 0.0
    for x, y in zip(inputs.split(64), targets.split(64), strict=True):
        total += float(torch.nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten(), reduction="sum"))
    return total / count


def main() -> None:
    torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    start = time.perf_counter()
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([index[character] for character in text])
    cut = int(len(ids) * 0.9)
    config = GPT2Config(
        vocab_size=len(index), n_positions=WINDOW, n_embd=128, n_layer=4, n_head=4,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        starts = torch.randint(cut - WINDOW - 1, (BATCH,))
        rows = torch.stack([ids[i : i + WINDOW + 1] for i in starts])
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    validation = validate(model, ids[cut - 1 :])
    print(json.dumps({"loss": validation, "seconds": time.perf_counter() - start}))


main()
