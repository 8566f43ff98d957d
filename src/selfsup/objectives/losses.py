"""Losses of records that meet: each finds its own among all; in fp32, whatever the precision of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfsup.objectives.base import Collectives

ROWS = 1024  # of similarities that stand in memory at once


def info_nce(
    queries: Tensor,
    keys: Tensor,
    identities: Tensor,
    scale: float | Tensor,
    collectives: Collectives,
    key_identities: Tensor | None = None,
    negatives: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Σ_i −log softmax_j(scale · queries_i · keys_j)[i], the keys of all processes (van den Oord et al. 2018, eq. 4).

    Args:
        queries, keys: (n, dim), normalised; row i of both belongs together.
        identities: (n,) or (n, kinds); other keys that share one with a query are left out of its sum, for they are no
            negatives.
        key_identities: those of the keys, where they are others than the queries'.
        negatives: further keys (m, dim), which are no query's own, and their identities.

    Returns:
        The sum over the queries of this process, a scalar with gradient; in fp32, or wider.
    """
    own = _own_rows(len(keys), keys.device, collectives)
    theirs = identities if key_identities is None else key_identities
    parts = [(keys, theirs)] + ([] if negatives is None else [negatives])
    everyone = [torch.cat([collectives.gather(each) for each in column]) for column in zip(*parts, strict=True)]
    return _contrast(queries, identities, own, everyone, scale)


@torch.no_grad()
def found(
    queries: Tensor, keys: Tensor, identities: Tensor, key_identities: Tensor, collectives: Collectives
) -> Tensor:
    """How many queries have no other key nearer than their own, a scalar; arguments as of `info_nce`."""
    all_keys, everyones = collectives.gather(keys.detach()), collectives.gather(key_identities)
    own = _own_rows(len(keys), keys.device, collectives)
    count = torch.zeros((), dtype=queries.dtype, device=queries.device)
    for rows, kinds, mine in zip(*(torch.split(each, ROWS) for each in (queries, identities, own)), strict=True):
        similar = rows @ all_keys.T
        others = similar.masked_fill(_others_alike(kinds, everyones, mine), -torch.inf)
        count += (others.max(1).values <= similar.gather(1, mine[:, None])[:, 0]).sum()
    return count


def _contrast(
    queries: Tensor, identities: Tensor, positives: Tensor, everyone: Sequence[Tensor], scale: float | Tensor
) -> Tensor:
    """Σ −log softmax of each query's (n, dim) similarities with the keys of all (N, dim) at its positive (n,); beside
    the keys stand their identities."""
    all_keys, all_identities = everyone

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
    return torch.nonzero_static(ranks == collectives.rank, size=count).squeeze(1)


def _others_alike(identities: Tensor, everyones: Tensor, positives: Tensor) -> Tensor:
    """Whether rows (n,) and all (N,) share an identity, (n, N), other than each row's positive (n,)."""
    kinds, all_kinds = (x[:, None] if x.ndim == 1 else x for x in (identities, everyones))
    same = torch.zeros(len(kinds), len(all_kinds), dtype=torch.bool, device=kinds.device)
    for mine, theirs in zip(kinds.unbind(1), all_kinds.unbind(1), strict=True):
        same |= mine[:, None] == theirs
    return same.scatter(1, positives[:, None], False)


def nt_xent(first: Tensor, second: Tensor, identities: Tensor, scale: float, collectives: Collectives) -> Tensor:
    """Σ over 2n views of −log softmax of the other view's similarity among all other views (Chen et al. 2020, eq. 1).

    Args:
        first, second: (n, dim), normalised; the two views of each record.
        identities: (n,); views of records with the same identity are no negatives of each other.

    Returns:
        The sum over the views of this process, with those of all processes as negatives; in fp32, or wider.
    """
    views, owners = torch.cat((first, second)), torch.cat((identities, identities))
    others = _own_rows(len(views), views.device, collectives).roll(len(first))
    everyone = collectives.gather(views), collectives.gather(owners)
    return _contrast(views, owners, others, everyone, scale)
