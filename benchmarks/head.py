"""Linear layer and cross-entropy, forward and backward: ours in chunks, torch's in chunks, and plain."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Figures, Quick, show, spread, write
from selfsup.models.losses import linear_cross_entropy

SHAPES = [(67, 128, 4096), (1024, 256, 4096), (8192, 384, 1024)]  # vocabulary, width, tokens
ROUNDS = 5
QUICK = Quick((), ())


def ways(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Callable[[], Tensor]]:
    options = torch.nn.LinearCrossEntropyOptions()
    return {
        "selfsup": lambda: linear_cross_entropy(hidden, weight, targets) / len(targets),
        "torch_chunked": lambda: F.linear_cross_entropy(hidden, weight.to(hidden.dtype), targets, options=options),
        "plain": lambda: F.cross_entropy((hidden @ weight.to(hidden.dtype).T).float(), targets),
    }


def measure(vocabulary: int, width: int, tokens: int, dtype: torch.dtype) -> Figures:
    """Milliseconds of each way, in alternating rounds."""
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, compute in ways(hidden, weight, targets).items():
            start = time.perf_counter()
            compute().backward()
            times.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
            hidden.grad = weight.grad = None
    shape = {"vocabulary": vocabulary, "width": width, "tokens": tokens, "dtype": str(dtype)}
    ratio = [theirs / ours for ours, theirs in zip(times["selfsup"][1:], times["torch_chunked"][1:], strict=True)]
    return {**shape, "ms": {k: spread(v[1:]) for k, v in times.items()}, "torch_over_selfsup": spread(ratio)}


def main(arguments: list[str]) -> None:
    torch.manual_seed(0)
    rows = [measure(*shape, dtype) for dtype in (torch.float32, torch.bfloat16) for shape in SHAPES]
    write(
        "head",
        "Linear layer and cross-entropy, forward and backward: torch's chunked function divided by selfsup's, in time.",
        {"rows": rows},
        [
            (
                f"vocabulary {row['vocabulary']:,}, width {row['width']}, {row['tokens']:,} tokens, {row['dtype']}: "
                "torch / selfsup",
                show(row["torch_over_selfsup"]),
            )
            for row in rows
        ],
    )
