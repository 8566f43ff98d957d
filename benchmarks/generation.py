"""Tokens per second of greedy writing: 6 layers, 6 heads, width 384, fp32, 256 tokens, batch 1 and 8."""

from __future__ import annotations

import json
import sys
import time
from statistics import median

from benchmarks.common import Quick, alternate, peer, ratios, run, show, spread, write

TOKENS, REPEATS = 256, 5
QUICK = Quick(("1",), ("transformers",))


def measure() -> None:
    """Ours, in a process of its own: the whole of `generate`, from texts to texts."""
    import torch

    from selfsup.data.tokenizer_training import train_tokenizer
    from selfsup.inference.generate import LanguageModel
    from selfsup.models.decoder import Decoder, DecoderConfig

    tokenizer = train_tokenizer("characters", ["".join(chr(33 + i) for i in range(62))])
    config = DecoderConfig(
        vocabulary=tokenizer.vocabulary, layers=6, width=384, heads=6, kv_heads=6, head_dim=64, mlp=1024,
        window=512, tied=False,
    )  # fmt: skip
    drawn = torch.Generator().manual_seed(0)
    decoder = Decoder(config).initialise(drawn).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=drawn)
    model = LanguageModel(decoder, tokenizer)
    model.ends = set()  # so that no text ends early
    rates = {}
    for batch in (1, 8):
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            model.generate([""] * batch, tokens=TOKENS, temperature=0, precision="fp32")
            times.append(time.perf_counter() - start)
        rates[f"batch_{batch}"] = batch * TOKENS / median(times[1:])
    print(json.dumps(rates))


def main(arguments: list[str]) -> None:
    if arguments == ["ours"]:
        measure()
        return
    rounds = alternate(
        int(arguments[0]) if arguments else 3,
        transformers=lambda: peer("hf_generate"),
        selfsup=lambda: run(sys.executable, "-m", "benchmarks", "generation", "ours"),
    )
    rows = []
    figures: dict[str, object] = {"rounds": rounds}
    for batch in ("batch_1", "batch_8"):
        for side in ("transformers", "selfsup"):
            rate = spread([one[side][batch] for one in rounds])
            rows.append((f"{side}, {batch.replace('_', ' ')}: tokens/s", show(rate, 0)))
        figures[batch] = ratios(rounds, "selfsup", "transformers", batch)
        rows.append((f"selfsup / transformers, {batch.replace('_', ' ')}", show(figures[batch])))  # type: ignore[arg-type]
    write(
        "generation",
        "Greedy generation of 256 tokens with a key-value cache in fp32, 6 layers, 6 heads, width 384, 65 tokens: "
        "`generate` of transformers on GPT-2 against selfsup's.",
        figures,
        rows,
    )
