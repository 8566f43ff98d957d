"""Blocks that the networks share: normalisation, rotary positions, attention, gated feed-forward.

Parameters are filled with NaN when a module is built, so that one that was neither initialised nor loaded
shows in the first loss. No module holds a buffer: everything but parameters is recomputed from the config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.kernels import dense_attention, project, rms_norm, rotate_heads, swiglu


class TensorModule(nn.Module):
    """A module that makes one tensor."""

    __call__: Callable[..., Tensor]


def unset(*shape: int) -> nn.Parameter:
    """A parameter that neither `fill` nor loading has given numbers yet."""
    return nn.Parameter(torch.full(shape, torch.nan))


class Unset(nn.Module):
    """A module of torch's without the values that torch would draw."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.constant_(parameter, torch.nan)


class Linear(Unset, nn.Linear):
    """A matrix, weight (outputs, inputs), and a bias (outputs,) where one is asked for."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)


class Embedding(Unset, nn.Embedding):
    """A table of vectors; weight (vocabulary, width)."""


class Stacked(Linear):
    """Several maps of one input, one above the other in a single matrix; weight (parts · outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, parts: int) -> None:
        super().__init__(inputs, parts * outputs)
        self.parts = parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """One result per map, (…, outputs) each."""
        return project(x, *self.weight.chunk(self.parts))


class LayerNorm(TensorModule):
    """weight · (x − mean) / sqrt(variance + eps) + bias over the last dimension (Ba et al. 2016, equation 4).

    Without a bias by default. The statistics are fp32 (or that of x, if wider) whatever `dtype`, which is that of the
    result.
    """

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = unset(width)
        self.bias = unset(width) if bias else None

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(dtype)


class RMSNorm(TensorModule):
    """`kernels.rms_norm` with its gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = unset(width)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return rms_norm(x, self.weight, self.eps, dtype)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, −∞ elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


@dataclass(frozen=True)
class Placement:
    """What all layers of a pass, or those of one kind, know of where its tokens stand.

    Attributes:
        cos, sin: of the rotation, the sines signed: (T, 1, dim) for all rows, or (B, T, 1, dim) for each.
        mask: to add to scores; without one, all tokens of a row see all.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """In which matrices are multiplied in this pass."""
        return self.cos.dtype

    def turned(self, x: Tensor, gain: Tensor | None = None, eps: float = 0.0) -> Tensor:
        """Queries or keys (B, T, heads · dim) as (B, heads, T, dim), rotated: see `rotate_heads`."""
        return rotate_heads(x, gain, self.cos, self.sin, eps)


def document_mask(documents: Tensor, dtype: torch.dtype, causal: bool) -> Tensor:
    """(B, 1, T, T) to add to scores: a position sees those, or the earlier ones, of its own document number (B, T)."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return additive(same.tril_() if causal else same, dtype)


def split(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads · dim) as (B, heads, T, dim)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(dim) + mask) v, the heads side by side: (B, T, heads · dim).

    q (B, heads, T, dim); k, v (B, kv_heads, S, dim), each serving heads / kv_heads consecutive heads of q.
    The mask, in the dtype of q, is broadcast to (B, heads, T, S); causal (without a mask, and T = S) lets
    position t see 0..t.
    """
    grouped = q.shape[1] != k.shape[1]
    if _dense_is_faster(q, grouped):
        seen = dense_attention(q, k, v, _causal_mask(q) if mask is None and causal else mask)
    else:
        seen = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
    return seen.transpose(1, 2).flatten(2)


DENSE_WINDOW = 256  # up to which plain products beat the fused kernel's bf16 backward on CPU (docs/LOG.md)


def _dense_is_faster(q: Tensor, grouped: bool) -> bool:
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= DENSE_WINDOW
    return short and not grouped and torch.is_grad_enabled()


def _causal_mask(q: Tensor) -> Tensor:
    return torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)


class GeGLU(TensorModule):
    """Wo(gelu(a) · b) with a, b = Wi x, without biases (Shazeer 2020, equation 6), under ModernBERT's names."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.Wi = Stacked(width, hidden, 2)
        self.Wo = Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.Wi(x)
        inner = F.dropout(F.gelu(gate) * up, self.dropout, self.training)
        return project(inner, self.Wo.weight)[0]


class SwiGLU(TensorModule):
    """down(silu(gate x) · up x), without biases (Shazeer 2020, equation 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden)
        self.up_proj = Linear(width, hidden)
        self.down_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project(x, self.gate_proj.weight, self.up_proj.weight)
        return project(swiglu(gate, up), self.down_proj.weight)[0]


@torch.no_grad()
def fill(
    module: nn.Module,
    generator: torch.Generator,
    zeros: tuple[str, ...] = (),
    constants: Mapping[str, float] | None = None,
    deviations: Mapping[str, float] | None = None,
) -> None:
    """Give the parameters of a module fresh values, a pure function of the generator's state.

    Matrices are normal with deviation 1/sqrt(inputs): unit in, unit out. Biases are zero, other vectors, which are
    gains, one.

    Args:
        zeros: ends of the names of what is zero.
        constants, deviations: by the end of its name what has another value, or is normal with another deviation.
    """
    values = {**dict.fromkeys(("bias", *zeros), 0.0), **(constants or {})}
    for name, parameter in module.named_parameters():
        value = next((value for end, value in values.items() if name.endswith(end)), None)
        deviation = next((d for end, d in (deviations or {}).items() if name.endswith(end)), None)
        if value is not None:
            parameter.fill_(value)
        elif deviation is None and parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, deviation or parameter[0].numel() ** -0.5, generator=generator)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which matrices are multiplied: autocast's where that is on, else the weights' own."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype
