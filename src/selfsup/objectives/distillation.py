"""What a student learns from its teacher: targets over prototypes, the cross-entropy to them, and spread features.

Statistics are in fp32, or wider where the inputs are; products run in the precision of the vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfsup.models.losses import at_least_single
from selfsup.objectives.base import Collectives

ITERATIONS = 3  # of Sinkhorn-Knopp (Caron et al. 2020, section 3.1)
TINY = 1e-30  # the least sum that is divided by
NEAREST = 1e-8  # the least distance whose logarithm is taken
BLOCK_ELEMENTS = 1 << 22  # logits of one block: 16 MiB in fp32, which stays near the processor's caches


def sinkhorn_knopp(
    logits: Tensor, temperature: float, collectives: Collectives, iterations: int = ITERATIONS
) -> Tensor:
    """Targets that use every prototype equally (Caron et al. 2020, "SwAV", section 3.1; Oquab et al. 2023).

    softmax(logits / temperature), whose columns and then rows are divided by their sums, `iterations` times. The rows
    of all processes meet in the sums of the columns. Only the two scalings are iterated, so that each iteration reads
    the probabilities twice and writes none.

    Args:
        logits: (n, K).
        iterations: at least 1.

    Returns:
        (n, K); rows sum to 1, columns nearly to (rows of all processes) / K.
    """
    p = torch.softmax(at_least_single(logits) / temperature, 1)
    rows = torch.ones_like(p[:, 0])
    share = collectives.sum(rows.sum()) / p.shape[1]  # of all rows, that each prototype gets
    for _ in range(iterations):
        columns = share / collectives.sum(rows @ p).clamp(min=TINY)
        rows = 1 / (p @ columns).clamp(min=TINY)
    return p.mul_(columns).mul_(rows[:, None])


def centred(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """softmax((logits − centre) / temperature), (n, K) (Caron et al. 2021, "DINO", section 3.1)."""
    return torch.softmax((at_least_single(logits) - centre) / temperature, 1)


def soft_cross_entropy(vectors: Tensor, prototypes: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Σ_ic −Σ_k targets_ik log softmax(vectors_ic · prototypesᵀ / temperature)_k, without all logits in memory.

    Args:
        vectors: (n, c, width): c views that share one target; the matrix products run in their precision.
        prototypes: (K, width).
        targets: (n, K), rows that sum to 1; no gradient.

    Returns:
        The sum, a scalar with gradient to `vectors` and `prototypes`.
    """
    if not torch.is_grad_enabled():  # inside a Function gradients always seem to be wanted
        vectors, prototypes = vectors.detach(), prototypes.detach()
    return _SoftCrossEntropy.apply(vectors, prototypes, targets, temperature)  # type: ignore[no-any-return,no-untyped-call]


class _SoftCrossEntropy(torch.autograd.Function):
    """Block by block: loss, and at once the gradient of both inputs, so that nothing is kept or redone.

    With p = softmax(logits / temperature): d loss / d logits = (p − target) / temperature.
    """

    @staticmethod
    def forward(
        context: torch.autograd.function.FunctionCtx,
        vectors: Tensor,
        prototypes: Tensor,
        targets: Tensor,
        temperature: float,
    ) -> Tensor:
        needs_vectors, needs_prototypes, *_ = context.needs_input_grad  # type: ignore[attr-defined]
        cast = prototypes.to(vectors.dtype)
        vectors_grad = torch.empty_like(vectors) if needs_vectors else None
        prototypes_grad = torch.zeros_like(prototypes) if needs_prototypes else None
        total = torch.zeros((), dtype=targets.dtype, device=vectors.device)
        rows = max(1, BLOCK_ELEMENTS // (max(1, vectors.shape[1]) * len(prototypes)))
        for start in range(0, len(vectors), rows):
            part = slice(start, start + rows)
            block = vectors[part].flatten(0, 1)
            logits = ((block @ cast.T).to(targets.dtype) / temperature).view(*vectors[part].shape[:2], len(cast))
            slope, wanted = torch.softmax(logits, -1), targets[part]
            # The likeliest prototype's p is exp(largest − log Σ exp logits), which cannot underflow.
            normaliser = logits.amax(-1) - slope.amax(-1).log()
            total += normaliser.sum() - (logits @ wanted[:, :, None]).sum()
            if vectors_grad is None and prototypes_grad is None:
                continue
            slope = slope.sub_(wanted[:, None]).div_(temperature).flatten(0, 1).to(vectors.dtype)
            if vectors_grad is not None:
                vectors_grad[part] = (slope @ cast).view_as(vectors[part])
            if prototypes_grad is not None:
                prototypes_grad += slope.T @ block
        context.vectors_grad, context.prototypes_grad = vectors_grad, prototypes_grad  # type: ignore[attr-defined]
        return total

    @staticmethod
    @once_differentiable
    def backward(context: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        vectors_grad, prototypes_grad = context.vectors_grad, context.prototypes_grad  # type: ignore[attr-defined]
        return (
            None if vectors_grad is None else vectors_grad * scale.to(vectors_grad.dtype),
            None if prototypes_grad is None else prototypes_grad * scale.to(prototypes_grad.dtype),
            None,
            None,
        )


def koleo(features: Tensor, collectives: Collectives) -> Tensor:
    """Σ_i −log min_j≠i ‖x_i − x_j‖, x of length 1 (Sablayrolles et al. 2019, "Spreading vectors", section 3).

    Args:
        features: (n, width), of any length; the nearest is looked for among those of all processes.

    Returns:
        The sum over the features of this process, a scalar with gradient; 0 where there is no other.
    """
    features = at_least_single(features)
    x = torch.nn.functional.normalize(features, dim=-1)
    others = collectives.gather(x)
    if len(others) < 2:
        return x.sum() * 0
    ranks = collectives.gather(torch.full((len(x),), collectives.rank, device=x.device))
    own = torch.nonzero_static(ranks == collectives.rank, size=len(x)).squeeze(1)  # where mine stand among all
    with torch.no_grad():
        similar = x @ others.T
        similar[torch.arange(len(x), device=x.device), own] = -torch.inf
        nearest = similar.argmax(1)
    squares = (x - others[nearest]).square().sum(1)
    return -squares.clamp(min=NEAREST**2).log().sum() / 2


def in_use(targets: Tensor, collectives: Collectives) -> Tensor:
    """The share of the prototypes that are some row's likeliest target, of as many as there can be; a scalar.

    n rows (of all processes) can have no more than n of the K prototypes.
    """
    likeliest = collectives.gather(targets.argmax(1))
    used = torch.zeros(targets.shape[1], device=targets.device, dtype=targets.dtype)
    used[likeliest] = 1
    return used.sum() / max(1, min(targets.shape[1], len(likeliest)))
