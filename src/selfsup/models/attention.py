"""Attention, and what it knows of where tokens stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.models.kernels import dense_attention, rotate_heads


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, −∞ elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


class Runs(NamedTuple):
    """In place of a mask: the lengths of the documents of each row, one behind the other; a position sees the earlier
    ones of its own."""

    lengths: Sequence[list[int]]


@dataclass(frozen=True)
class Placement:
    """What all layers of a pass, or those of one kind, know of where its tokens stand.

    Attributes:
        cos, sin: of the rotation, the sines signed: (T, 1, dim) for all rows, or (B, T, 1, dim) for each; without rows
            where nothing is turned.
        mask: to add to scores; without one, all tokens of a row see all.
        reach: how many positions a token sees, itself included, where it does not see all; the mask says so too.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | Runs | None = None
    reach: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """In which matrices are multiplied in this pass."""
        return self.cos.dtype

    def turned(self, x: Tensor, gain: Tensor | None = None, eps: float = 0.0) -> Tensor:
        """Queries or keys (B, T, heads · dim) as (B, heads, T, dim), rotated: see `rotate_heads`."""
        if not self.cos.shape[0]:
            return split(x, x.shape[-1] // self.cos.shape[-1])
        return rotate_heads(x, gain, self.cos, self.sin, eps)


def document_mask(documents: Tensor, dtype: torch.dtype, causal: bool, reach: int | None = None) -> Tensor:
    """(B, 1, T, T) to add to scores: a position sees those, or the earlier ones, of its own document number (B, T);
    none that are `reach` positions or more before it."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    same = same.tril_() if causal else same
    return additive(same if reach is None else same.triu_(1 - reach), dtype)


SHORT_ROW = 256


def causal_mask(documents: Tensor, dtype: torch.dtype) -> Tensor | Runs:
    """That a position sees the earlier ones of its own document number (B, T): each document by itself costs its own
    length squared where a mask costs the row's, and takes no memory for one. With a gradient, and in short rows, where
    it gains nothing, it is a mask."""
    if torch.is_grad_enabled() or documents.shape[1] <= SHORT_ROW:
        return document_mask(documents, dtype, causal=True)
    bounds = [[*row.nonzero().flatten().tolist(), len(row)] for row in begun(documents)]
    return Runs([[end - start for start, end in pairwise(row)] for row in bounds])


def places_within(tokens: Tensor, documents: Tensor | None) -> Tensor:
    """The place of each token in its document: (B, T) of documents (B, T), 0 on padding (−1), which may be longer than
    any document; (T,) where each row is one."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    if documents is None:
        return places
    begins = places.where(begun(documents), 0).cummax(1).values
    return (places - begins).masked_fill(documents < 0, 0)


def begun(documents: Tensor) -> Tensor:
    """Whether another document begins at each position (B, T); one does at the first of each row."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return begins


def split(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads · dim) as (B, heads, T, dim)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Runs | None = None, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(dim) + mask) v, the heads side by side: (B, T, heads · dim).

    q (B, heads, T, dim); k, v (B, kv_heads, S, dim), each serving heads / kv_heads consecutive heads of q.
    The mask, in the dtype of q, is broadcast to (B, heads, T, S); causal (without a mask, and T = S) lets
    position t see 0..t.
    """
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, Runs):
        seen = torch.cat([_by_document(*row) for row in zip(q, k, v, mask.lengths, strict=True)])
    elif _dense_is_faster(q):
        seen = dense_attention(q, k, v, _causal_mask(q) if mask is None and causal else mask)
    else:
        seen = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
    return seen.transpose(1, 2).flatten(2)


def _by_document(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Of one row: q (heads, T, dim); k, v (kv_heads, T, dim) → (1, heads, T, dim)."""
    parts = zip(*(torch.split(x[None], lengths, 2) for x in (q, k, v)), strict=True)
    grouped = len(q) != len(k)
    seen = [F.scaled_dot_product_attention(x, y, z, is_causal=True, enable_gqa=grouped) for x, y, z in parts]
    return torch.cat(seen, 2)


def capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cap: float, scale: float) -> Tensor:
    """As `attention` of scores s = q kᵀ · scale that are capped: softmax(cap · tanh(s / cap) + mask) v; heads one after
    the other, for their memory. Without a mask and with T > 1, position t sees 0..t."""
    if mask is None and q.shape[2] > 1:
        mask = _causal_mask(q)
    group, seen = q.shape[1] // k.shape[1], []
    for head in range(q.shape[1]):
        scores = torch.tanh(q[:, head] @ k[:, head // group].mT * (scale / cap)) * cap
        scores = scores if mask is None else scores + mask.view(-1, *mask.shape[-2:])
        p = torch.softmax(scores, -1, torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
        seen.append(p @ v[:, head // group])
    return torch.cat(seen, -1)


# Up to which window plain products beat the fused kernel's bf16 backward on CPU (docs/LOG.md): with AMX it is faster.
DENSE_WINDOW = 256 if torch.cpu._is_amx_tile_supported() else 512


def _dense_is_faster(q: Tensor) -> bool:
    narrow = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return narrow and q.shape[2] <= DENSE_WINDOW and torch.is_grad_enabled()


def _causal_mask(q: Tensor) -> Tensor:
    return torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
