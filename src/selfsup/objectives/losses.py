"""Losses that several objectives share; statistics in fp32, whatever the precision of their inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from selfsup.objectives.base import Collectives

IGNORE = -100
CHUNK_ELEMENTS = 1 << 22  # logits of one chunk: 16 MiB in fp32, which stays near the processor's caches
ROWS = 1024  # of similarities that stand in memory at once
BLOCK_ELEMENTS = 1 << 26  # logits' gradient of one block: 128 MiB in bf16


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Σ −log softmax(hidden · weightᵀ)[target], without the full logits ever standing in memory.

    Args:
        hidden: (n, width); the matrix products run in its precision, the softmax in fp32.
        weight: (vocabulary, width).
        targets: (n,) int64; `IGNORE` where nothing is to be predicted.

    Returns:
        The sum over the positions that count, a scalar with gradient to `hidden` and `weight`.
    """
    if not torch.is_grad_enabled():  # inside a Function gradients always seem to be wanted
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-any-return,no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    """Block by block: loss, and at once the gradient of both inputs, so that nothing is kept or redone.

    With p = softmax(logits): d loss / d logits = p − onehot(target). A block of that gradient is as large as its
    memory allows, for each costs a pass over the gradient of `weight`; within it, logits stay near the caches.
    """

    @staticmethod
    def forward(
        context: torch.autograd.function.FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor
    ) -> Tensor:
        needs_hidden, needs_weight, _ = context.needs_input_grad  # type: ignore[attr-defined]
        cast = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight) if needs_weight else None
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        rows = max(1, BLOCK_ELEMENTS // len(weight))
        block = (
            hidden.new_empty(min(rows, len(hidden)), len(weight)) if needs_hidden or needs_weight else None
        )
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            slope = None if block is None else block[: len(hidden[part])]
            total += _losses(hidden[part], cast, targets[part], slope, total.dtype)
            if slope is not None and hidden_grad is not None:
                torch.mm(slope, cast, out=hidden_grad[part])
            if slope is not None and weight_grad is not None:
                weight_grad += slope.T @ hidden[part]
        context.hidden_grad, context.weight_grad = hidden_grad, weight_grad  # type: ignore[attr-defined]
        return total

    @staticmethod
    @once_differentiable
    def backward(
        context: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        hidden_grad, weight_grad = context.hidden_grad, context.weight_grad  # type: ignore[attr-defined]
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad * scale,
            None,
        )


def _losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, slope: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The sum of the losses in `dtype`; the gradient of the logits is written into `slope` (n, vocabulary)."""
    total = torch.zeros((), dtype=dtype, device=hidden.device)
    rows = max(1, CHUNK_ELEMENTS // len(weight))
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        logits, wanted = hidden[part] @ weight.T, targets[part, None]
        ignored = wanted == IGNORE
        wanted = wanted.masked_fill(ignored, 0)
        p = torch.softmax(logits, 1, dtype=dtype)
        # The likeliest token's p is exp(largest − log Σ exp logits), which cannot underflow.
        normaliser = logits.amax(1, keepdim=True).to(dtype) - p.amax(1, keepdim=True).log()
        losses = normaliser - logits.gather(1, wanted).to(dtype)
        total += losses.masked_fill_(ignored, 0).sum()
        if slope is not None:
            p.scatter_add_(1, wanted, torch.full_like(losses, -1.0))
            slope[part] = p
            slope[part].masked_fill_(ignored, 0)
    return total


def info_nce(
    queries: Tensor, keys: Tensor, identities: Tensor, scale: float | Tensor, collectives: Collectives
) -> Tensor:
    """Σ_i −log softmax_j(scale · queries_i · keys_j)[i], the keys of all processes (van den Oord et al. 2018, eq. 4).

    Args:
        queries, keys: (n, dim), normalised; row i of both belongs together.
        identities: (n,) or (n, kinds); other keys that share one with a query are left out of its sum, for they are no
            negatives.

    Returns:
        The sum over the queries of this process, a scalar with gradient; in fp32, or wider.
    """
    own = _own_rows(len(keys), keys.device, collectives)
    return _contrast(queries, keys, identities, own, scale, collectives)


def _contrast(
    queries: Tensor,
    keys: Tensor,
    identities: Tensor,
    positives: Tensor,
    scale: float | Tensor,
    collectives: Collectives,
) -> Tensor:
    """Σ −log softmax of each query's (n, dim) similarities with the keys of all at its positive (n,)."""
    all_keys, all_identities = collectives.gather(keys), collectives.gather(identities)

    def loss(queries: Tensor, identities: Tensor, positives: Tensor) -> Tensor:
        similar = scale * queries @ all_keys.T
        same = _others_alike(identities, all_identities, positives)
        return F.cross_entropy(similar.masked_fill(same, -torch.inf), positives, reduction="sum")

    return _in_blocks(loss, queries, identities, positives)


def sigmoid_pairs(
    queries: Tensor,
    keys: Tensor,
    identities: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    collectives: Collectives,
) -> Tensor:
    """Σ_i Σ_j −log σ(z_ij · (scale · queries_i · keys_j + bias)), z_ij = 1 where i = j, else −1 (Zhai et al. 2023,
    "Sigmoid Loss for Language Image Pre-Training", equation in section 3.2).

    Args:
        queries, keys, identities: as in `info_nce`; what is no negative there is left out here.

    Returns:
        The sum over the queries of this process with the keys of all, a scalar with gradient; in fp32, or wider.
    """
    all_keys, all_identities = collectives.gather(keys), collectives.gather(identities)

    def loss(queries: Tensor, identities: Tensor, own: Tensor) -> Tensor:
        logits = scale * queries @ all_keys.T + bias
        signs = torch.full_like(logits, -1.0).scatter(1, own[:, None], 1.0)
        losses = -F.logsigmoid(signs * logits)
        return losses.masked_fill(_others_alike(identities, all_identities, own), 0.0).sum()

    return _in_blocks(loss, queries, identities, _own_rows(len(keys), keys.device, collectives))


def _in_blocks(loss: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """The sum of a loss over rows, in blocks whose similarities are made once more for the gradient, so that those of a
    large batch never stand in memory at once."""
    blocks = list(zip(*(torch.split(tensor, ROWS) for tensor in rows), strict=True))
    if len(blocks) == 1:
        return loss(*rows)
    return torch.stack([checkpoint(loss, *block, use_reentrant=False) for block in blocks]).sum()


def _own_rows(count: int, device: torch.device, collectives: Collectives) -> Tensor:
    """Where the rows of this process, so many, stand among those of all, (count,)."""
    ranks = collectives.gather(torch.full((count,), collectives.rank, device=device))
    return (ranks == collectives.rank).nonzero().squeeze(1)


def _others_alike(identities: Tensor, everyones: Tensor, positives: Tensor) -> Tensor:
    """Whether rows (n,) and all (N,) share an identity, (n, N), other than each row's positive (n,)."""
    kinds, all_kinds = (x[:, None] if x.ndim == 1 else x for x in (identities, everyones))
    same = torch.zeros(len(kinds), len(all_kinds), dtype=torch.bool, device=kinds.device)
    for mine, theirs in zip(kinds.unbind(1), all_kinds.unbind(1), strict=True):
        same |= mine[:, None] == theirs
    return same.scatter(1, positives[:, None], False)


def nt_xent(
    first: Tensor, second: Tensor, identities: Tensor, scale: float, collectives: Collectives
) -> Tensor:
    """Σ over 2n views of −log softmax of the other view's similarity among all other views (Chen et al. 2020, eq. 1).

    Args:
        first, second: (n, dim), normalised; the two views of each record.
        identities: (n,); views of records with the same identity are no negatives of each other.

    Returns:
        The sum over the views of this process, with those of all processes as negatives; in fp32, or wider.
    """
    views, owners = torch.cat((first, second)), torch.cat((identities, identities))
    others = _own_rows(len(views), views.device, collectives).roll(len(first))
    return _contrast(views, views, owners, others, scale, collectives)


def at_least_single(tensor: Tensor) -> Tensor:
    """In fp32, or in its own precision where that is higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p of each target: logits (…, vocabulary), targets (…) → (…), in nats."""
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none").view_as(
        targets
    )


def target_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """−log p of each target (…), from hidden states (…, width) and the matrix (vocabulary, width) that makes logits of
    them, in nats; 0 where it is `IGNORE`. Full logits never stand in memory."""
    rows = max(1, CHUNK_ELEMENTS // len(weight))  # of logits at once
    parts = zip(torch.split(hidden.flatten(0, -2), rows), torch.split(targets.flatten(), rows), strict=True)
    return torch.cat([token_losses(h @ weight.T, t) for h, t in parts]).view_as(targets)
