"""Blocks that the networks share: normalisation, rotary positions, attention, gated feed-forward.

Parameters are filled with NaN when a module is built, so that one that was neither initialised nor loaded
shows in the first loss. No module holds a buffer: everything but parameters is recomputed from the config.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """A matrix without bias; weight (outputs, inputs), NaN until initialised."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)


class Embedding(nn.Embedding):
    """A table of vectors; weight (vocabulary, width), NaN until initialised."""

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)


class RMSNorm(nn.Module):
    """y = weight · x / sqrt(mean(x²) + eps) over the last dimension (Zhang & Sennrich 2019, equation 4).

    The statistics are fp32 whatever the dtype of x; y has the dtype of x.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.full((width,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return _RMSNormOnCPU.apply(x, weight, self.eps)  # type: ignore[no-any-return, no-untyped-call]
        return F.rms_norm(x, weight.shape, weight, self.eps)


class _RMSNormOnCPU(torch.autograd.Function):
    """F.rms_norm with its gradient written out: on CPU torch composes both of many passes over the data.

    With r = 1 / sqrt(mean(x²) + eps) and C the width, the gradients are
    d weight = Σ_rows r · g · x  and  d x = r · g · weight − x · r³ / C · Σ_columns g · x · weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # which would copy x to fp32 first
            statistics = torch.promote_types(x.dtype, torch.float32)
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=statistics)
        r = norm.square_().div_(weight.numel()).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        y: Tensor = (x * r.to(x.dtype)).mul_(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        width = weight.numel()
        product = (x * gradient).flatten(0, -2)
        grad_weight = product.t() @ r.view(-1).to(x.dtype)
        along_x = (product @ weight).view_as(r) * r.pow(3).div_(-width)
        grad_x = (gradient * weight).mul_(r.to(x.dtype)).addcmul_(x, along_x.to(x.dtype))
        return grad_x, grad_weight, None


def rotary_tables(positions: Tensor, dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each (T, 1, dim), for `rotate` at integer positions (T,).

    Pair i of a head turns by position · theta^(−2i/dim) (Su et al. 2021, RoFormer, equation 15). The angles
    are fp32. The first half of the sines is negated: see `rotate`.
    """
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angles = torch.outer(positions.float(), 1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).unsqueeze(1).to(dtype), torch.cat((-sin, sin), -1).unsqueeze(1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions for heads (B, T, heads, dim): dimension i pairs with i + dim/2 ("half-split").

    A roll by half a head brings each dimension's partner beside it, and the sign of the rotation sits in the
    sines, so that three passes over the data do it.
    """
    return x.roll(x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q kᵀ / sqrt(dim) + mask) v.

    q (B, heads, T, dim); k, v (B, kv_heads, S, dim), each serving heads / kv_heads consecutive heads of q.
    The mask, in the dtype of q, is broadcast to (B, heads, T, S); causal (without a mask, and T = S) lets
    position t see 0..t. Returns (B, heads, T, dim).
    """
    grouped = q.shape[1] != k.shape[1]
    if _dense_is_faster(q, grouped):
        return _dense_attention(q, k, v, _causal_mask(q) if mask is None and causal else mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


DENSE_WINDOW = 256  # up to which plain products beat the fused kernel's bf16 backward on CPU (docs/LOG.md)


def _dense_is_faster(q: Tensor, grouped: bool) -> bool:
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= DENSE_WINDOW
    return short and not grouped and torch.is_grad_enabled()


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return torch.softmax(scores if mask is None else scores.add_(mask), -1) @ v


def _causal_mask(q: Tensor) -> Tensor:
    return torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)


class SwiGLU(nn.Module):
    """down(silu(gate x) · up x), without biases (Shazeer 2020, equation 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden)
        self.up_proj = Linear(width, hidden)
        self.down_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return hidden


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which matrices are multiplied: autocast's where that is on, else the weights' own."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype
