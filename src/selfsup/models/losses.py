"""Losses of predicted tokens; statistics in fp32, whatever the precision of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    dtype = torch.promote_types(hidden.dtype, torch.float32)

    def score(part: slice, hidden: Tensor, weight: Tensor, slope: Tensor | None) -> tuple[Tensor, ...]:
        return (_losses(hidden, weight, targets[part], slope, dtype, cap),)

    return _by_blocks(hidden, weight, score)[0]


class Said(NamedTuple):
    """What a model says of n tokens to come: hidden states (n, width), the matrix (vocabulary, width) that makes logits
    of them, and what these are `capped` by."""

    hidden: Tensor
    weight: Tensor
    cap: float | None = None


class Divergences(NamedTuple):
    """Sums over tokens, in nats. The first has a gradient, the others are figures.

    Attributes:
        loss: (1 − hard) · T² · H(p, q) + hard · −log q₁[target], where H(p, q) = −Σ_v p_v log q_v = KL(p ‖ q) + H(p).
        divergence: KL(p ‖ q).
        cross_entropy: −log q₁[target] of the student.
        teacher_cross_entropy: −log p₁[target] of the teacher.
    """

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    teacher_cross_entropy: Tensor


def linear_distillation(
    student: Said, teacher: Said, targets: Tensor, temperature: float = 1.0, hard: float = 0.0
) -> Divergences:
    """How far a student's distributions of next tokens, q, are from a teacher's, p (Hinton et al. 2015, "Distilling the
    Knowledge in a Neural Network", section 2), without the full logits of either ever standing in memory.

    p = softmax(teacher's logits / T), q = softmax(student's logits / T); p₁ and q₁ are those at T = 1. By T² gradients
    are as large at every temperature. They go to the student's hidden states and matrix only.

    Args:
        targets: (n,) int64, the tokens that came; `IGNORE` where nothing is to be said.
        temperature: T.
        hard: the share of the ordinary cross-entropy, from 0 to 1.

    The vocabularies may have rows beyond each other's: a token that the teacher has no row for is impossible to it, one
    that the student has none for is left out.
    """
    dtype = torch.promote_types(student.hidden.dtype, torch.float32)
    shared = min(len(student.weight), len(teacher.weight))
    known = Said(teacher.hidden.detach(), teacher.weight.detach()[:shared].to(teacher.hidden.dtype), teacher.cap)

    def score(part: slice, hidden: Tensor, weight: Tensor, slope: Tensor | None) -> tuple[Tensor, ...]:
        own, taught = Said(hidden, weight, student.cap), known._replace(hidden=known.hidden[part])
        return _divergences(own, taught, targets[part], slope, dtype, temperature, hard)

    return Divergences(*_by_blocks(student.hidden, student.weight, score))


# Of a block: its rows, their hidden states, the matrix in the precision of these, and room for the gradient of the
# logits, where there is to be one. Sums, of which the first is what the gradient is of.
Score = Callable[[slice, Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]


def _by_blocks(hidden: Tensor, weight: Tensor, score: Score) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled():  # inside a Function gradients always seem to be wanted
        hidden, weight = hidden.detach(), weight.detach()
    return _ByBlocks.apply(hidden, weight, score)  # type: ignore[no-any-return, no-untyped-call]


class _ByBlocks(torch.autograd.Function):
    """Block by block: sums, and at once the gradient of both inputs, so that nothing is kept or redone.

    A block of the gradient of the logits is as large as its memory allows, for each costs a pass over the gradient of
    `weight`; within it, logits stay near the caches.
    """

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, score: Score) -> tuple[Tensor, ...]:
        needs_hidden, needs_weight, *_ = context.needs_input_grad
        cast = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight) if needs_weight else None
        rows, needed = max(1, BLOCK_ELEMENTS // len(weight)), needs_hidden or needs_weight
        block = hidden.new_empty(min(rows, len(hidden)), len(weight)) if needed else None
        sums: list[Tensor] = []
        for start in range(0, max(1, len(hidden)), rows):
            part = slice(start, start + rows)
            slope = None if block is None else block[: len(hidden[part])]
            found = [each.clone() for each in score(part, hidden[part], cast, slope)]  # no views leave a Function
            sums = [before + new for before, new in zip(sums, found, strict=True)] if sums else found
            if slope is not None and hidden_grad is not None:
                torch.mm(slope, cast, out=hidden_grad[part])
            if slope is not None and weight_grad is not None:
                weight_grad += slope.T @ hidden[part]
        context.hidden_grad, context.weight_grad = hidden_grad, weight_grad
        context.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        hidden_grad, weight_grad = context.hidden_grad, context.weight_grad
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad * scale,
            None,
        )


def _losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, slope: Tensor | None, dtype: torch.dtype, cap: float | None
) -> Tensor:
    """The sum of the losses in `dtype`; the gradient of the logits is written into `slope` (n, vocabulary): with
    p = softmax(logits) it is p − onehot(target)."""
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


def _divergences(
    student: Said,
    teacher: Said,
    targets: Tensor,
    slope: Tensor | None,
    dtype: torch.dtype,
    temperature: float,
    hard: float,
) -> tuple[Tensor, ...]:
    """The sums of `Divergences` in `dtype`; the gradient of the student's logits is written into `slope`:
    (1 − hard) · T · (q − p) + hard · (q₁ − onehot(target))."""
    sums = torch.zeros(4, dtype=dtype, device=targets.device)
    shared, rows = len(teacher.weight), max(1, CHUNK_ELEMENTS // len(student.weight))
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        ignored, wanted = targets[part, None] == IGNORE, targets[part, None].clamp(min=0)
        logits = capped(student.hidden[part] @ student.weight.T, student.cap)
        known = capped(teacher.hidden[part] @ teacher.weight.T, teacher.cap)
        log_q, log_p = (_log_softmax(each, temperature, dtype) for each in (logits, known))
        plain_q, plain_p = (
            (log_q, log_p) if temperature == 1 else (_log_softmax(each, 1.0, dtype) for each in (logits, known))
        )
        p = log_p.exp()
        soft = -(p * log_q[:, :shared]).sum(1, keepdim=True)
        divergence = (p * (log_p - log_q[:, :shared])).sum(1, keepdim=True)
        own, theirs = -plain_q.gather(1, wanted), -plain_p.gather(1, wanted)
        loss = (1 - hard) * temperature**2 * soft + hard * own
        each = torch.cat((loss, divergence, own, theirs), 1)
        sums += each.masked_fill_(ignored, 0).sum(0)
        if slope is not None:
            gradient = log_q.exp()
            gradient[:, :shared] -= p
            gradient *= (1 - hard) * temperature
            if hard:
                gradient.add_(plain_q.exp(), alpha=hard)
                gradient.scatter_add_(1, wanted, torch.full_like(own, -hard))
            if student.cap is not None:
                gradient.mul_(1 - (logits / student.cap).square_())
            slope[part] = gradient
            slope[part].masked_fill_(ignored, 0)
    return sums.unbind()


def _log_softmax(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    return torch.log_softmax(logits if temperature == 1 else logits.to(dtype) / temperature, 1, dtype=dtype)


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
