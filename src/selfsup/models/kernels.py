"""The operations between the matrix products, each with its gradient written out.

A step's matrix products run near the machine's rate; what is left of it is passes over activations. Composed by
autograd, these operations make more passes than below (docs/LOG.md has the measurements), for it saves and
differentiates every intermediate result by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfsup.machine import processor

aten = torch.ops.aten


def applied(function: type[torch.autograd.Function], *given: Any) -> Tensor:
    """What a function with a gradient of its own makes of what is given."""
    return function.apply(*given)  # type: ignore[no-any-return, no-untyped-call]


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """y = weight · x / sqrt(mean(x²) + eps) over the last dimension (Zhang & Sennrich 2019, equation 4).

    The statistics are fp32 (or that of x, if wider) whatever `dtype`, which is that of the result.
    """
    if x.device.type != "cpu":  # accelerators have a kernel of their own
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps).to(dtype)
    return applied(_RMSNorm, x, weight, eps, dtype)


class _RMSNorm(torch.autograd.Function):
    """With n = x · r, r = 1 / sqrt(mean(x²) + eps), g = d y · weight and C the width:

    d weight = Σ_rows d y · n   and   d x = r · (g − n / C · Σ_columns g · n).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        r = _inverse_rms(x, eps)
        normal = (x * r.to(x.dtype)).to(dtype)
        ctx.save_for_backward(normal, weight, r)
        ctx.dtype = x.dtype
        return normal * weight.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, r = ctx.saved_tensors
        gain, r = weight.to(dy.dtype), r.to(dy.dtype)
        product = (normal * dy).flatten(0, -2)
        d_weight = _sum_rows(product).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = (product @ gain[:, None]).view_as(r).div_(-weight.numel())
        dx = (dy * gain).addcmul_(normal, along).mul_(r).to(ctx.dtype)
        return dx, d_weight, None, None


def rotate_heads(x: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """The heads of queries or keys x (B, T, heads · dim): RMS-normalised with a gain (dim,) and eps, unless the gain is
    None, and rotated by tables in the dtype of x, (T, 1, dim) from `rotary_tables` or (B, T, 1, dim). Returns
    (B, heads, T, dim), contiguous."""
    return applied(_RotateHeads, x, gain, cos, sin, eps)


class _RotateHeads(torch.autograd.Function):
    """y = R (gain · n), n = x · r, R the rotation. With z = Rᵀ d y and C the width of a head:

    d gain = Σ_rows z · n   and   d x = r · (g − x · r² / C · Σ_columns g · x), g = gain · z.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        x = x.view(*x.shape[:2], -1, cos.shape[-1])
        r = None
        if gain is None:
            y = rotate(x, cos, sin).transpose(1, 2).contiguous()
        else:
            r = _inverse_rms(x, eps)
            narrow = gain.to(x.dtype)
            # The gain goes into the small tables: beside the cosine as it is, beside the sine as its partner's.
            turned = rotate(x, cos * narrow, sin * narrow.roll(x.shape[-1] // 2))
            y = x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3])
            torch.mul(turned, r.to(x.dtype), out=y.transpose(1, 2))
        ctx.save_for_backward(x, gain, cos, sin, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, cos, sin, r = ctx.saved_tensors
        dy, dim = dy.transpose(1, 2), x.shape[-1]
        z = (dy * sin).roll(dim // 2, -1).addcmul_(dy, cos)
        if gain is None:
            return z.flatten(2), None, None, None, None
        narrow, inverse = gain.to(x.dtype), r.to(x.dtype)
        product = x * z
        product = product.view(-1, dim)
        along = (product @ narrow[:, None]).view_as(r).mul_(inverse.square()).div_(-dim)
        d_gain = None
        if ctx.needs_input_grad[1]:
            d_gain = (inverse.view(1, -1) @ product).squeeze(0).to(gain.dtype)
        dx = z.mul_(narrow).addcmul_(x, along).mul_(inverse)
        return dx.flatten(2), d_gain, None, None, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x²) + eps) over the last dimension, which is kept; fp32 or wider."""
    with torch.autocast(x.device.type, enabled=False):  # which would copy x to fp32 first
        wide = torch.promote_types(x.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _sum_rows(x: Tensor) -> Tensor:
    """The sum over all but the last dimension, as a matrix product, which is faster and accumulates in fp32."""
    rows = x.flatten(0, -2)
    return torch.mm(rows.new_ones(1, len(rows)), rows).squeeze(0)


def rotary_tables(
    positions: Tensor,
    dim: int,
    theta: float,
    dtype: torch.dtype,
    divisors: Sequence[float] | None = None,
    amplitude: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each (T, 1, dim), for `rotate` at integer positions (T,).

    Pair i of a head turns by position · theta^(−2i/dim) (Su et al. 2021, RoFormer, equation 15), divided by its
    divisor where there are some, and grows by the amplitude. The angles are fp32 (or `dtype`, if wider). The first half
    of the sines is negated: see `rotate`.
    """
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=wide) / dim
    frequencies = 1.0 / theta**exponents
    if divisors is not None:
        frequencies = frequencies / frequencies.new_tensor(divisors)
    return tables(torch.outer(positions.to(wide), frequencies), dtype, amplitude)


def tables(angles: Tensor, dtype: torch.dtype, amplitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """As `rotary_tables`, of the angles (T, dim / 2) of the pairs of a head."""
    cos, sin = angles.unsqueeze(1).cos(), angles.unsqueeze(1).sin()
    if amplitude != 1:
        cos, sin = cos * amplitude, sin * amplitude
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions for heads (B, T, heads, dim): dimension i pairs with i + dim/2 ("half-split").

    A roll by half a head brings each dimension's partner beside it, and the sign of the rotation sits in the
    sines, so that three passes over the data do it.
    """
    return x.roll(x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)


class Activation(NamedTuple):
    """A function of each number, and the product of its slope there with a gradient, which may be written over."""

    value: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _gelu(approximate: str) -> Activation:
    return Activation(
        lambda x: F.gelu(x, approximate=approximate),
        lambda dy, x: aten.gelu_backward.grad_input(dy, x, approximate=approximate, grad_input=dy),
    )


# By the names that configurations of other libraries have for them.
GATES = {
    **dict.fromkeys(
        ("silu", "swish"), Activation(F.silu, lambda dy, x: aten.silu_backward.grad_input(dy, x, grad_input=dy))
    ),
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new"), _gelu("tanh")),
    "gelu": _gelu("none"),
}


def gated(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """activation(gate) · up (Shazeer 2020, equations 5 and 6)."""
    return applied(_Gated, gate, up, GATES[activation])


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        active = activation.value(gate)
        ctx.save_for_backward(gate, up, active)
        ctx.activation = activation
        return active * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, active = ctx.saved_tensors
        return ctx.activation.backward(dy * up, gate), dy * active, None


REGISTER = 32  # numbers of bf16 in a vector register: shorter rows are worked off one number at a time


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / sqrt(dim) + mask) v by plain products, (B, heads, T, dim).

    q (B, heads, T, dim); k, v (B, kv_heads, S, dim), each serving heads / kv_heads consecutive heads of q, which are
    rows below each other to it; the mask (T, S) or one that expands to (B, heads, T, S). Scores have the dtype of q;
    their softmax is computed in fp32 (or that of q, if wider).
    """
    return applied(_DenseAttention, q, k, v, mask)


class _DenseAttention(torch.autograd.Function):
    """With o = p v, p = softmax(s), s = α q kᵀ + mask:

    d v = pᵀ d o,   d s = p · (d p − Σ_columns p · d p), d p = d o vᵀ,   d q = α d s k,   d k = α d sᵀ q.

    Autograd's d k would be (q transposed times d s) transposed, which is slow to read.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        shape, scale = q.shape, q.shape[-1] ** -0.5
        served = shape[1] // k.shape[1]
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        q = q.reshape(len(k), served * shape[2], shape[3])
        if mask is None:
            mask = q.new_zeros(())
        elif mask.ndim > 2:  # of batch and heads
            mask = mask.expand(*shape[:3], -1).reshape(*q.shape[:2], -1)
        else:
            mask = mask.expand(served, shape[2], -1).flatten(0, 1)
        scores = torch.baddbmm(mask, q, k.mT, alpha=scale)
        p = torch.softmax(scores, -1, torch.float32 if _short(scores) else None).to(scores.dtype)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale = scale
        return torch.bmm(p, v).view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        shape, rows = do.shape, do.reshape(q.shape)
        dv = torch.bmm(p.mT, rows)
        dp = torch.bmm(rows, v.mT)
        if _short(p):
            dp, p = dp.float(), p.float()
        ds = aten._softmax_backward_data(dp, p, -1, p.dtype).to(q.dtype)
        zero = q.new_zeros(())
        dq = torch.baddbmm(zero, ds, k, alpha=ctx.scale)
        dk = torch.baddbmm(zero, ds.mT, q, alpha=ctx.scale)
        return dq.view(shape), *(d.view(len(do), -1, *d.shape[1:]) for d in (dk, dv)), None


def _short(rows: Tensor) -> bool:
    return rows.dtype == torch.bfloat16 and rows.shape[-1] < REGISTER


@dataclass(frozen=True)
class LowRank:
    """The matrix weight + scale · up down, of which the product is never made (Hu et al. 2021, "LoRA", equation 3).

    Attributes:
        weight: (outputs, inputs).
        down: (rank, inputs).
        up: (outputs, rank).
    """

    weight: Tensor
    down: Tensor
    up: Tensor
    scale: float

    def chunk(self, parts: int) -> list[LowRank]:
        """So many matrices, one above the other."""
        pieces = zip(self.weight.chunk(parts), self.up.chunk(parts), strict=True)
        return [LowRank(weight, self.down, up, self.scale) for weight, up in pieces]

    def __rmul__(self, rows: Tensor) -> LowRank:
        """With a factor for each row, (outputs, 1)."""
        return LowRank(rows * self.weight, self.down, rows * self.up, self.scale)

    def dense(self) -> Tensor:
        """The matrix."""
        return self.weight + (self.up @ self.down) * self.scale


Matrix = Tensor | LowRank


def project(x: Tensor, *weights: Matrix) -> tuple[Tensor, ...]:
    """x (…, inputs) times each matrix (outputs, inputs) transposed, in the dtype of x."""
    return affine(x, *((weight, None) for weight in weights))


def affine(x: Tensor, *maps: tuple[Matrix, Tensor | None]) -> tuple[Tensor, ...]:
    """As `project`, plus the bias (outputs,) that comes with each matrix."""
    matrices, biases = zip(*maps, strict=True)
    pieces = [(m.weight, m.down, m.up) if isinstance(m, LowRank) else (m, None, None) for m in matrices]
    weights, downs, ups = zip(*pieces, strict=True)
    scales = [m.scale if isinstance(m, LowRank) else 0.0 for m in matrices]
    return _Affine.apply(x, scales, *weights, *biases, *downs, *ups)  # type: ignore[no-any-return, no-untyped-call]


LARGE = 1 << 26  # multiplications of a product that takes so long that its call does not count


@cache
def _has_own_kernels() -> bool:
    """Whether oneDNN's products in fp32 are faster than MKL's, which takes its best kernels on Intel's processors."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and processor().startswith("AMD")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN where that is faster: with weights by rows or by columns 11 to 21 % (docs/LOG.md)."""
    own = x.dtype == torch.float32 and x.device.type == "cpu" and _has_own_kernels()
    # An export asks no size: its batch would be fixed.
    if own and not torch.compiler.is_compiling() and x.shape[:-1].numel() * weight.numel() >= LARGE:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return made
    return F.linear(x, weight, bias)


def _quarters(parts: Sequence[Any]) -> list[Sequence[Any]]:
    """What came one behind the other: weights, biases, and of low-rank updates downs and ups."""
    count = len(parts) // 4
    return [parts[start : start + count] for start in range(0, len(parts), count)]


class _Affine(torch.autograd.Function):
    """y = W x + b + s U (D x) for each map; its parts that need no gradient cost none.

    With e = s Uᵀ d y: d U = s d y (D x)ᵀ, d D = e xᵀ, and d x = Σ Wᵀ d y + Dᵀ e, summed within the products themselves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: list[float], *parts: Any) -> tuple[Tensor, ...]:
        narrow: list[Any] = [None if part is None else part.to(x.dtype) for part in parts]
        weights, biases, downs, ups = _quarters(narrow)
        ctx.scales, ctx.dtypes = scales, [None if part is None else part.dtype for part in parts]
        with torch.autocast(x.device.type, enabled=False):
            results = tuple(_linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
            inner = [None if down is None else x.flatten(0, -2) @ down.t() for down in downs]
            for result, few, up, scale in zip(results, inner, ups, scales, strict=True):
                if few is not None:
                    result.view(-1, len(up)).addmm_(few, up.t(), alpha=scale)
        ctx.save_for_backward(x, *weights, *inner, *downs, *ups)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        weights, inner, downs, ups = _quarters(saved)
        rows, flat = [gradient.flatten(0, -2) for gradient in gradients], x.flatten(0, -2)
        few = [None if up is None else (row @ up).mul_(s) for row, up, s in zip(rows, ups, ctx.scales, strict=True)]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _linear(rows[0], weights[0].t())
            for row, weight in [*zip(rows[1:], weights[1:], strict=True), *zip(few, downs, strict=True)]:
                if row is not None:
                    dx.addmm_(row, weight)
            dx = dx.view_as(x)
        of_weights, of_biases, of_downs, of_ups = _quarters(ctx.needs_input_grad[2:])
        found = [
            *(row.t() @ flat if needs else None for row, needs in zip(rows, of_weights, strict=True)),
            *(_sum_rows(row) if needs else None for row, needs in zip(rows, of_biases, strict=True)),
            *(row.t() @ flat if row is not None and needs else None for row, needs in zip(few, of_downs, strict=True)),
            *(
                (row.t() @ seen).mul_(scale) if needs else None
                for row, seen, scale, needs in zip(rows, inner, ctx.scales, of_ups, strict=True)
            ),
        ]
        wide = [None if part is None else part.to(dtype) for part, dtype in zip(found, ctx.dtypes, strict=True)]
        return dx, None, *wide
