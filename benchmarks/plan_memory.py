"""Memory of a training step as a plan on paper says it, beside what is measured: six small networks."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from benchmarks.common import Figures, run, write

STEPS = 3
TEXT = {"data": "sample:shakespeare", "data.vocabulary": 8192}
FP32 = {"precision": "fp32", "matrices": "adamw"}
# On a CPU attention in bf16 keeps its scores, of up to 256 tokens, or without AMX 512, which no GPU does.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "decoder 10m, 8 × 512 tokens, bf16, Muon": ("causal-lm", {"model": "10m", "window": 512, "batch": 8}),
    "decoder 25m, 8 × 1,024 tokens, bf16, Muon": ("causal-lm", {"model": "25m", "window": 1024, "batch": 8}),
    "decoder 85m, 2 × 512 tokens, fp32, AdamW": ("causal-lm", {"model": "85m", "window": 512, "batch": 2, **FP32}),
    "encoder 25m, 16 × 512 tokens, bf16, Muon": ("masked-lm", {"model": "25m", "window": 512, "batch": 16}),
    "encoder 50m, 4 × 1,024 tokens, fp32, AdamW": ("masked-lm", {"model": "50m", "window": 1024, "batch": 4, **FP32}),
    "MAE of ViT-B/16, 24 images, fp32, AdamW": ("mae", {"model": "vit-b", "batch": 24, **FP32}),
}


def settings(given: dict[str, Any]) -> dict[str, Any]:
    """Those of `selfsup.train`."""
    window, matrices = given.get("window"), given.get("matrices", "muon")
    text = {"data.window": window, **TEXT} if window else {"data": "sample:emoji", "data.size": 224}
    return {
        "model": given["model"],
        "batch": given["batch"],
        "train.micro_batch": given["batch"],
        "precision": given.get("precision", "bf16"),
        "optim.matrices": matrices,
        "optim.weight_decay": 0.1,
        "device": "cpu",
        **text,
    }


def measure(name: str) -> Figures:
    """Both sides of a case, in this process: what stood before the network was built is not the network's."""
    import psutil

    from selfsup.budget import Clock
    from selfsup.distributed import Processes
    from selfsup.machine import peak_memory
    from selfsup.models.counting import Kept
    from selfsup.objectives.recipe import Effort
    from selfsup.paper import Setup, memory_of
    from selfsup.planning import find_machine, loader_of, optimizer_of, ready
    from selfsup.report import Reporter
    from selfsup.step import gradients
    from selfsup.trainer import Team
    from selfsup.training import Given, _open, _recipe

    objective_name, given = CASES[name]
    values = settings(given)
    asked = Given(objective_name, values.pop("data"), values.pop("model"), values, "benchmark")
    found = asked.settings()
    recipe, alone = _recipe(found, asked), Processes()
    _open(recipe, Team(alone, Reporter(False), Clock()))
    machine = find_machine(found, alone)
    recipe.settle(Effort(steps=STEPS))
    sketch = recipe.sketch()
    assert sketch is not None
    if objective_name == "causal-lm":  # the norms of decoders have a function of their own on a CPU
        stacks = (replace(s, kept=Kept(s.kept.narrow + 2 * s.width, 0)) for s in sketch.stacks)
        sketch = replace(sketch, stacks=tuple(stacks))
    narrow = 4 if machine.precision == "fp32" else 2
    setup = Setup(1, found["train.batch"], muon=found["optim.matrices"] == "muon", narrow=narrow)
    memory = memory_of(sketch, setup)

    before = psutil.Process().memory_info().rss
    objective = ready(recipe, machine, alone)
    optimizer = optimizer_of(recipe, objective, found.config.optim, machine)
    batches = loader_of(recipe, alone, 0).steps(0)
    for _ in range(STEPS):
        gradients(objective, next(batches), alone, machine.autocast)
        optimizer.clip(1.0)
        optimizer.step(1.0)
    measured = peak_memory(machine.device) - before
    return {"said": round(memory.peak), "measured": measured, "before": before, "parts": memory.told()}


def main(arguments: list[str]) -> None:
    if arguments:
        print(json.dumps(measure(arguments[0])))
        return
    found = {name: run(sys.executable, "-m", "benchmarks", "plan_memory", name) for name in CASES}
    rows = [
        (name, f"{one['said'] / 1e9:.2f} GB said, {one['measured'] / 1e9:.2f} GB measured, "
         f"{one['said'] / one['measured'] - 1:+.0%}")
        for name, one in found.items()
    ]  # fmt: skip
    write(
        "plan_memory",
        f"Memory of {STEPS} steps on a CPU beyond what the process held before its network was built, as "
        "`selfsup.paper.memory_of` says and as measured (the peak of the resident size).",
        {"cases": found},
        rows,
    )
