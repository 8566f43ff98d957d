"""A public decoder against transformers: --model DIR [--parts generation] [--rounds N] [--tokens N]."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.common import Figures, Quick, alternate, peer, ratios, run, show, spread, write

PROMPT = "The old lighthouse keeper looked at the sea and"  # that of peers/hf_public.py
REPEATS = 3
QUICK = Quick(("--model", "{data}/smollm2", "--tokens", "16", "--rounds", "1"), ("transformers",))


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["ours"]:
        print(json.dumps(OURS[arguments[1]](arguments[2], int(arguments[3]))))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks public_models")
    parser.add_argument("--model", required=True, help="a directory of a decoder in Hugging Face's layout")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="that are written behind a prompt")
    given = parser.parse_args(arguments)
    for part in given.parts:
        PARTS[part](given)


# -- generation --------------------------------------------------------------------------------------------


def compare_generation(given: argparse.Namespace) -> None:
    """Against whichever of its precisions is the faster for transformers, in each round."""
    place, tokens = str(Path(given.model).resolve()), str(given.tokens)
    rounds = alternate(
        given.rounds,
        fp32=lambda: peer("hf_public", "generation", place, "fp32", tokens),
        bf16=lambda: peer("hf_public", "generation", place, "bf16", tokens),
        selfsup=lambda: run(sys.executable, "-m", "benchmarks", "public_models", "ours", "generation", place, tokens),
    )
    rows = []
    figures: Figures = {"rounds": rounds}
    for batch in ("batch_1", "batch_8"):
        for one in rounds:
            one.setdefault("transformers", {})[batch] = max(one["fp32"][batch], one["bf16"][batch])
        for side in ("fp32", "bf16", "selfsup"):
            name = side if side == "selfsup" else f"transformers in {side}"
            rate = spread([one[side][batch] for one in rounds])
            rows.append((f"{name}, {batch.replace('_', ' ')}: tokens/s", show(rate, 1)))
        figures[batch] = ratios(rounds, "selfsup", "transformers", batch)
        rows.append((f"selfsup / the faster of transformers, {batch.replace('_', ' ')}", show(figures[batch])))
    write(
        "public_models_generation",
        f"Greedy generation of {tokens} tokens by {Path(place).name}: `generate` of transformers against "
        "selfsup's in its own choice of precision.",
        figures,
        rows,
    )


def generation(directory: str, tokens: int) -> dict[str, float]:
    """Ours, in a process of its own: the whole of `generate`, from texts to texts, in the precision that is chosen."""
    from selfsup.inference.generate import LanguageModel

    model = LanguageModel.load(directory)
    model.ends = set()  # so that no text ends early
    rates = {}
    for batch in (1, 8):
        times = []
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            model.generate([PROMPT] * batch, tokens=tokens, temperature=0)
            times.append(time.perf_counter() - start)
        rates[f"batch_{batch}"] = batch * tokens / median(times[1:])
    return rates


# By the name of a part: what is measured of both sides, and of ours alone in a process of its own.
PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"generation": compare_generation}
OURS: dict[str, Callable[[str, int], dict[str, float]]] = {"generation": generation}
