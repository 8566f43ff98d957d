"""Losses of predicted tokens; statistics in fp32, whatever the precision of their inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfsup.models.kernels import applied

IGNORE = -100
CHUNK_ELEMENTS = 1 << 22  # logits of one chunk: 16 MiB in fp32, which stays near the processor's caches
BLOCK_ELEMENTS = 1 << 26  # logits' gradient of one block: 128 MiB in bf16


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap), which lie between −cap and cap; as they are without one."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def cap_of(model: object) -> float | None:
    """What the logits of a model are `capped` by, where it says that."""
    return getattr(model, "logit_cap", None)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    """Σ −log softmax(hidden · weightᵀ)[target], without the full logits ever standing in memory: a scalar with gradient
    to `hidden` (n, width) and `weight` (vocabulary, width).

    Targets are (n,) int64, `IGNORE` where nothing is to be predicted. The matrix products run in the precision of
    `hidden`, the softmax in fp32. Logits may be `capped`.
    """
    if not torch.is_grad_enabled():  # inside a Function gradients always seem to be wanted
        hidden, weight = hidden.detach(), weight.detach()
    return applied(_LinearCrossEntropy, hidden, weight, targets, cap)


class _LinearCrossEntropy(torch.autograd.Function):
    """Block by block: loss, and at once the gradient of both inputs, so that nothing is kept or redone.

    With p = softmax(logits): d loss / d logits = p − onehot(target). A block of that gradient is as large as its
    memory allows, for each costs a pass over the gradient of `weight`; within it, logits stay near the caches.
    """

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> Tensor:
        needs_hidden, needs_weight, *_ = context.needs_input_grad
        cast = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight) if needs_weight else None
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        rows, needed = max(1, BLOCK_ELEMENTS // len(weight)), needs_hidden or needs_weight
        block = hidden.new_empty(min(rows, len(hidden)), len(weight)) if needed else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            slope = None if block is None else block[: len(hidden[part])]
            total += _losses(hidden[part], cast, targets[part], slope, total.dtype, cap)
            if slope is not None and hidden_grad is not None:
                torch.mm(slope, cast, out=hidden_grad[part])
            if slope is not None and weight_grad is not None:
                weight_grad += slope.T @ hidden[part]
        context.hidden_grad, context.weight_grad = hidden_grad, weight_grad
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        hidden_grad, weight_grad = context.hidden_grad, context.weight_grad
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad * scale,
            None,
            None,
        )


def _losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, slope: Tensor | None, dtype: torch.dtype, cap: float | None
) -> Tensor:
    """The sum of the losses in `dtype`; the gradient of the logits is written into `slope` (n, vocabulary)."""
    total = torch.zeros((), dtype=dtype, device=hidden.device)
    rows = max(1, CHUNK_ELEMENTS // len(weight))
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        logits, wanted = capped(hidden[part] @ weight.T, cap), targets[part, None]
        ignored = wanted == IGNORE
        wanted = wanted.masked_fill(ignored, 0)
        p = torch.softmax(logits, 1, dtype=dtype)
        # The likeliest token's p is exp(largest − log Σ exp logits), which cannot underflow.
        normaliser = logits.amax(1, keepdim=True).to(dtype) - p.amax(1, keepdim=True).log()
        losses = normaliser - logits.gather(1, wanted).to(dtype)
        total += losses.masked_fill_(ignored, 0).sum()
        if slope is not None:
            p.scatter_add_(1, wanted, torch.full_like(losses, -1.0))
            if cap is not None:
                p.mul_(1 - (logits / cap).square_())
            slope[part] = p
            slope[part].masked_fill_(ignored, 0)
    return total


def at_least_single(tensor: Tensor) -> Tensor:
    """In fp32, or in its own precision where that is higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p of each target: logits (…, vocabulary), targets (…) → (…), in nats."""
    flat = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view_as(targets)


def target_losses(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    """−log p of each target (…), from hidden states (…, width) and the matrix (vocabulary, width) that makes logits of
    them, which may be `capped`, in nats; 0 where it is `IGNORE`. Full logits never stand in memory."""
    rows = max(1, CHUNK_ELEMENTS // len(weight))  # of logits at once
    weight = weight.to(hidden.dtype)  # once, not for each of these
    parts = zip(torch.split(hidden.flatten(0, -2), rows), torch.split(targets.flatten(), rows), strict=True)
    return torch.cat([token_losses(capped(h @ weight.T, cap), t) for h, t in parts]).view_as(targets)
